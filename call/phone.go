package call

import (
	"context"
	"fmt"
	"time"
)

// LegID names one leg for as long as it lives and in its call detail record ("SCL_...").
type LegID string

// A LegState is how far a leg has come. It only ever moves forward.
type LegState string

// The states of a leg.
const (
	LegNew       LegState = "new"       // known, nothing sent yet
	LegTrying    LegState = "trying"    // the INVITE is on its way, or being decided on
	LegRinging   LegState = "ringing"   // 180
	LegEarly     LegState = "early"     // provisional answer with media: 183
	LegAnswered  LegState = "answered"  // 200
	LegConfirmed LegState = "confirmed" // ACK
	LegEnded     LegState = "ended"
)

// A Direction says who called.
type Direction string

// The directions of a leg, seen from here.
const (
	Inbound  Direction = "inbound"
	Outbound Direction = "outbound"
)

// A Cause says why a leg ended, in words that programs compare. Leg.Text has it
// for people.
type Cause string

// The causes.
const (
	CauseNone        Cause = ""             // not ended
	CauseHangup      Cause = "hangup"       // one side hung up after the answer
	CauseCancelled   Cause = "cancelled"    // the caller gave up before the answer
	CauseBusy        Cause = "busy"         // 486, 600
	CauseNoAnswer    Cause = "no_answer"    // 408, 480, or our own time-out
	CauseRejected    Cause = "rejected"     // 403, 603
	CauseWrongNumber Cause = "wrong_number" // 404, 484, 604
	CauseNotAllowed  Cause = "not_allowed"  // our own policy; nothing was sent
	CauseNoLine      Cause = "no_line"      // every trunk failed or is full: 5xx
	CauseMedia       Cause = "media"        // 488, no common codec, or no sound for too long
	CauseRemoved     Cause = "removed"      // thrown out of the room
	CauseRoomEnded   Cause = "room_ended"
	CauseTransferred Cause = "transferred"
	CauseLimit       Cause = "limit" // longest duration, minutes or money used up
	CauseShutdown    Cause = "shutdown"
	CauseFailed      Cause = "failed" // anything else
)

// A Leg is one call between this server and a telephone, as of now. It is a
// value: a copy never changes.
type Leg struct {
	ID        LegID
	Direction Direction
	State     LegState
	Trunk     string   // the trunk's id
	SIPCallID string   // Call-ID of the SIP dialog
	Room      RoomName // empty while in the menu
	RoomID    string   // the Matrix room, if it is one
	Identity  Identity // the phone's participant, once in the room
	Number    string   // the other side, E.164 or as it came; empty if anonymous. Mask it in logs
	Local     string   // our side: the number called or shown
	Name      string   // display name
	By        string   // who dialled: a Matrix user ID or an API key
	Created   time.Time
	Ringing   time.Time
	Answered  time.Time
	Ended     time.Time
	Code      int    // final SIP status, 0 if none
	Q850      int    // Q.850 cause from a Reason header, 0 if none
	Cause     Cause  // why it ended
	Text      string // the same for people
	Codec     string // "PCMU", "G722", ...
	SRTP      string // "", "sdes", "dtls"
	Encrypted bool   // the room's call is end-to-end encrypted up to this gateway
	Held      bool
	Muted     bool
	Hand      bool // raised
	Hidden    bool // the room is not to see Number
	Stats     LegStats
}

// LegStats is the quality of a leg's media from the trunk.
type LegStats struct {
	Packets   uint64
	Lost      uint64
	Jitter    time.Duration // RFC 3550 §6.4.1
	RTT       time.Duration // 0 until RTCP tells
	MOS       float64       // estimated from loss, jitter and delay (ITU-T G.107); 0 until known
	Strangers uint64        // packets from elsewhere that were dropped
}

// A DialRequest asks for a telephone to be called into a room.
type DialRequest struct {
	Room       RoomName
	RoomID     string            // the Matrix room, if it is one
	By         string            // whose rights and whose budget: a Matrix user ID or an API key
	Number     string            // as a person would type it
	Trunk      string            // id; empty: by the dial plan
	From       string            // wished caller id; must be one that the trunk may show
	Identity   Identity          // empty: the gateway makes one
	Name       string            // display name; empty: the number, masked where asked for
	Metadata   string            // of the participant
	Attrs      map[string]string // of the participant
	Headers    map[string]string // for the INVITE; only X- ones
	DTMF       string            // digits to send after the answer; w waits half a second
	Dialtone   bool              // let the room hear ringing
	HideNumber bool              // no phone number in attributes
	Ringing    time.Duration     // how long it may ring; 0: the default
	Longest    time.Duration     // how long it may last; 0: the trunk's
	Via        *Trunk            // instead of Trunk: a line for this one call, which is not kept
}

// A StatusError is a final SIP response that was a refusal, where one came.
type StatusError struct {
	Code   int    // 300 to 699
	Reason string // the phrase beside it; may be empty
	Err    error  // what was being done, and the kind; may be nil
}

// Error says both.
func (e *StatusError) Error() string {
	text := fmt.Sprintf("SIP status %d %s", e.Code, e.Reason)
	if e.Err != nil {
		text = e.Err.Error() + ": " + text
	}
	return text
}

// Unwrap gives the kind.
func (e *StatusError) Unwrap() error { return e.Err }

// A Phone is a caller as a Directory needs to know it.
type Phone struct {
	Number    string // E.164 or as it came; empty if anonymous
	Name      string // from the caller id
	Direction Direction
	Leg       LegID
	By        string // outbound: who dialled
	// HideNumber keeps the number from the room: nobody there sees it.
	HideNumber bool
}

// A Seat is a phone's place in a room: as whom it joins, with which keys. Leave
// gives it back and must be called exactly once; for a Matrix room it ends the
// ghost's call membership and takes the ghost out of the room.
type Seat struct {
	Room   RoomName
	RoomID string // empty if it is no Matrix room
	Title  string // the room's name for announcements and records; may be empty
	Grant  Grant
	Keys   MediaKeys // nil: the call is not end-to-end encrypted
	// Lobby, if not nil, is closed when somebody lets the phone in. Until then
	// it waits outside the call. If it is refused, Refused is closed instead.
	Lobby   <-chan struct{}
	Refused <-chan struct{}
	Leave   func(ctx context.Context)
	// Hand shows in the Matrix room whether the phone's hand is raised; nil if
	// there is none.
	Hand func(ctx context.Context, up bool) error
}

// A Place is where a call may lead to: a Matrix room or a plain media room.
type Place struct {
	Room   RoomName
	RoomID string // empty if it is no Matrix room
	Title  string // the room's name for announcements and records; may be empty
}

// Why a phone gets no seat in a room. Each wraps the kind that its readers know;
// the gateway tells them apart to say the right words.
var (
	ErrRoomLocked    = fmt.Errorf("the room is locked for telephones: %w", ErrForbidden)
	ErrRoomEncrypted = fmt.Errorf("the room does not let telephones into its encrypted calls: %w", ErrForbidden)
	ErrRoomFull      = fmt.Errorf("the room is full: %w", ErrUnavailable)
)

// A Waiting phone is in a room's lobby until somebody lets it in.
type Waiting struct {
	Leg    LegID     `json:"leg"`
	Name   string    `json:"name,omitempty"`
	Number string    `json:"number,omitempty"` // empty if anonymous
	Since  time.Time `json:"since"`
}

// DialIn is how telephones come into a room.
type DialIn struct {
	PIN     string   `json:"pin,omitempty"` // empty: dial-in by PIN is off
	Numbers []string `json:"numbers,omitempty"`
	E2EE    string   `json:"e2ee"`   // "allow" or "deny": telephones in encrypted calls
	Lobby   bool     `json:"lobby"`  // phones wait until somebody lets them in
	Locked  bool     `json:"locked"` // no phone comes in
	// Encrypted says whether the room is, and so whether E2EE matters.
	Encrypted bool `json:"encrypted"`
	// What the user who asks may do.
	MayDial   bool `json:"may_dial"`
	MayChange bool `json:"may_change"`
	MayAdmit  bool `json:"may_admit"`
}

// DialInChange says what to change of a room's DialIn; nil fields stay.
type DialInChange struct {
	E2EE   *string `json:"e2ee"`
	Lobby  *bool   `json:"lobby"`
	Locked *bool   `json:"locked"`
}

// A MediaKey is one participant's key for LiveKit's frame encryption.
type MediaKey struct {
	Identity Identity
	Index    uint8
	Key      []byte // raw, as it came: 16 to 64 bytes
}

// MediaKeys are the keys of an encrypted call as one ghost's device knows them.
type MediaKeys interface {
	// Watch calls f with each key known now and each that comes, the ghost's own
	// ones too (under its own identity, from the moment on when it is to be used
	// for sending). f must not block. No call of f begins after cancel returned.
	Watch(f func(MediaKey)) (cancel func())
}

// A Trunk is a telephone line: a provider, a PBX.
type Trunk struct {
	ID          string            `yaml:"id" json:"id"`
	Name        string            `yaml:"name" json:"name,omitempty"`
	Direction   string            `yaml:"direction" json:"direction"` // inbound, outbound, both
	Targets     []string          `yaml:"targets" json:"targets,omitempty"`
	Outbound    string            `yaml:"outbound_proxy" json:"outbound_proxy,omitempty"`
	Register    TrunkRegister     `yaml:"register" json:"register,omitzero"`
	Auth        TrunkAuth         `yaml:"auth" json:"auth,omitzero"`
	In          TrunkInbound      `yaml:"inbound" json:"inbound,omitzero"`
	CallerID    TrunkCallerID     `yaml:"caller_id" json:"caller_id,omitzero"`
	Codecs      []string          `yaml:"codecs" json:"codecs,omitempty"`                   // PCMU, PCMA, G722, opus; in order
	SRTP        string            `yaml:"srtp" json:"srtp,omitempty"`                       // off, optional, require
	SRTPKeying  string            `yaml:"srtp_keying" json:"srtp_keying,omitempty"`         // sdes, dtls
	DTMF        string            `yaml:"dtmf" json:"dtmf,omitempty"`                       // rfc4733, info, inband
	PRACK       string            `yaml:"prack" json:"prack,omitempty"`                     // off, supported, require
	Expires     int               `yaml:"session_expires" json:"session_expires,omitempty"` // seconds, RFC 4028; 0: off
	OptionsPing time.Duration     `yaml:"options_ping" json:"options_ping,omitempty"`
	MaxCalls    int               `yaml:"max_calls" json:"max_calls,omitempty"`
	MaxCPS      float64           `yaml:"max_cps" json:"max_cps,omitempty"` // new calls a second
	Allow       []string          `yaml:"allow_prefixes" json:"allow_prefixes,omitempty"`
	Deny        []string          `yaml:"deny_prefixes" json:"deny_prefixes,omitempty"`
	Priority    int               `yaml:"priority" json:"priority,omitempty"` // lower first among equally long prefixes
	MaxDuration time.Duration     `yaml:"max_duration" json:"max_duration,omitempty"`
	ExternalIP  string            `yaml:"external_ip" json:"external_ip,omitempty"` // instead of sip.external_ip
	Headers     map[string]string `yaml:"headers" json:"headers,omitempty"`         // sent with each INVITE
	EarlyMedia  bool              `yaml:"early_media" json:"early_media,omitempty"` // inbound: 183 with sound instead of 180
	Metadata    string            `yaml:"metadata" json:"metadata,omitempty"`
}

// TrunkRegister says what to register at the provider (RFC 3261 §10). Without
// an AOR nothing is registered.
type TrunkRegister struct {
	AOR     string        `yaml:"aor" json:"aor,omitempty"`         // sip:user@example.net
	Expires int           `yaml:"expires" json:"expires,omitempty"` // seconds
	Refresh time.Duration `yaml:"refresh" json:"refresh,omitempty"` // how often it is renewed; 0: soon enough to notice within a minute that it was lost
}

// TrunkAuth is the user name and password of digest authentication, both ways.
type TrunkAuth struct {
	Username string `yaml:"username" json:"username,omitempty"`
	Password string `yaml:"password" json:"password,omitempty"`
	Realm    string `yaml:"realm" json:"realm,omitempty"` // empty: whatever the other side names
	// Algorithms are those of our challenges: SHA-256, MD5. Empty: as for all trunks.
	Algorithms []string `yaml:"algorithms" json:"algorithms,omitempty"`
}

// TrunkInbound says which calls may come over a trunk.
type TrunkInbound struct {
	CIDRs      []string `yaml:"cidrs" json:"cidrs,omitempty"`
	Numbers    []string `yaml:"numbers" json:"numbers,omitempty"` // ours; a trailing * is a prefix; empty: all
	From       []string `yaml:"from" json:"from,omitempty"`       // theirs; empty: all
	Digest     bool     `yaml:"digest" json:"digest,omitempty"`
	TrustedPAI bool     `yaml:"trust_identity" json:"trust_identity,omitempty"` // believe P-Asserted-Identity
}

// TrunkCallerID says what number a call over the trunk shows.
type TrunkCallerID struct {
	Mode    string            `yaml:"mode" json:"mode,omitempty"` // fixed, map, passthrough
	Default string            `yaml:"default" json:"default,omitempty"`
	Map     map[string]string `yaml:"map" json:"map,omitempty"`         // Matrix user ID to number
	Numbers []string          `yaml:"numbers" json:"numbers,omitempty"` // may be shown too, when asked for
	Privacy string            `yaml:"privacy" json:"privacy,omitempty"` // honour, ignore
}

// A DispatchRule says what becomes of a call that comes in. The first that
// matches counts.
type DispatchRule struct {
	ID     string         `yaml:"id" json:"id,omitempty"`
	Name   string         `yaml:"name" json:"name,omitempty"`
	Match  DispatchMatch  `yaml:"match" json:"match"`
	Action DispatchAction `yaml:"action" json:"action"`
}

// DispatchMatch says which calls a rule is for. Empty fields match all.
type DispatchMatch struct {
	To     string   `yaml:"to" json:"to,omitempty"` // E.164, a trailing * is a prefix
	From   string   `yaml:"from" json:"from,omitempty"`
	Trunk  string   `yaml:"trunk" json:"trunk,omitempty"`
	Trunks []string `yaml:"trunks" json:"trunks,omitempty"` // any of them
	Tos    []string `yaml:"tos" json:"tos,omitempty"`       // any of them
	Froms  []string `yaml:"froms" json:"froms,omitempty"`   // any of them
}

// DispatchAction says what to do with a call.
type DispatchAction struct {
	Type       string            `yaml:"type" json:"type"`           // pin, room, user, individual, callee
	Room       string            `yaml:"room" json:"room,omitempty"` // room: alias, room ID or media room; individual, callee: prefix
	User       string            `yaml:"user" json:"user,omitempty"` // user: whom to ring
	Ring       []string          `yaml:"ring" json:"ring,omitempty"`
	Timeout    time.Duration     `yaml:"timeout" json:"timeout,omitempty"` // of ringing
	PIN        string            `yaml:"pin" json:"pin,omitempty"`         // room, individual, callee: asked before joining
	Language   string            `yaml:"prompt_lang" json:"prompt_lang,omitempty"`
	Attempts   int               `yaml:"attempts" json:"attempts,omitempty"`
	Lockout    time.Duration     `yaml:"lockout" json:"lockout,omitempty"`
	HideNumber bool              `yaml:"hide_number" json:"hide_number,omitempty"`
	Randomize  bool              `yaml:"randomize" json:"randomize,omitempty"` // individual, callee: random suffix
	Metadata   string            `yaml:"metadata" json:"metadata,omitempty"`
	Attrs      map[string]string `yaml:"attributes" json:"attributes,omitempty"`
}

// A TrunkState is a trunk as it does now.
type TrunkState struct {
	Trunk      Trunk         // without its password
	Source     string        // "config" or "api"
	Registered string        // "", "registered", "registering", "failed"
	Expires    time.Time     // of the registration
	Ping       time.Duration // last OPTIONS round trip, 0 if none
	Up         bool          // answers OPTIONS, or is not asked
	Problem    string        // what is wrong, for people
	Since      time.Time     // of the present state
	Calls      int           // legs over it now
}

// An OpenSeat is a phone's place in a Matrix room that must be given back, also
// if the process dies in between.
type OpenSeat struct {
	RoomID   string
	UserID   string // the ghost
	DeviceID string
	Stays    bool // the ghost remains a member of the room
}
