// Package call is the vocabulary that the parts of Trunkhall share when they
// speak of calls: names, grants, participants, tracks, error kinds. It imports
// nothing but the standard library and does no I/O.
package call

import "time"

// RoomName names a media room of the SFU (a LiveKit room name). For a Matrix
// room it is derived from the room ID and slot, see contracts of MSC4195.
type RoomName string

// Identity names a participant inside one room. Two live participants of a
// room never share an identity: the newer evicts the older.
type Identity string

// ParticipantSID is the server's name for one session of a participant
// ("PA_..."). A full reconnect gets a new one, a resume keeps it.
type ParticipantSID string

// TrackSID is the server's name for one published track ("TR_...").
type TrackSID string

// ParticipantKind says what is behind a participant.
type ParticipantKind string

// The participant kinds of the LiveKit protocol that tokens may carry.
const (
	KindStandard ParticipantKind = "standard"
	KindIngress  ParticipantKind = "ingress"
	KindEgress   ParticipantKind = "egress"
	KindSIP      ParticipantKind = "sip"
	KindAgent    ParticipantKind = "agent"
)

// Source says where a track's media comes from. The values are those of the
// LiveKit token claim canPublishSources.
type Source string

// The track sources.
const (
	SourceUnknown          Source = "unknown"
	SourceCamera           Source = "camera"
	SourceMicrophone       Source = "microphone"
	SourceScreenShare      Source = "screen_share"
	SourceScreenShareAudio Source = "screen_share_audio"
)

// A Grant is what a verified token lets its holder do in one room.
type Grant struct {
	Room     RoomName
	Identity Identity
	Name     string            // display name, may be empty
	Metadata string            // opaque to the server
	Attrs    map[string]string // participant attributes
	Kind     ParticipantKind   // empty means KindStandard

	CanPublish           bool
	CanPublishSources    []Source // empty: every source
	CanSubscribe         bool
	CanPublishData       bool
	CanUpdateOwnMetadata bool
	Hidden               bool

	NotBefore time.Time // the token's nbf; compared with the revocation floor
	Expires   time.Time // the token's exp
}

// MayPublish reports whether the grant allows publishing a track from src.
func (g Grant) MayPublish(src Source) bool {
	if !g.CanPublish {
		return false
	}
	if len(g.CanPublishSources) == 0 {
		return true
	}
	for _, s := range g.CanPublishSources {
		if s == src {
			return true
		}
	}
	return false
}

// An ICEServer is one STUN or TURN server as WebRTC clients are told of it.
type ICEServer struct {
	URLs       []string
	Username   string
	Credential string
}

// ICEServersFunc returns the ICE servers for a user, with credentials of its
// own and their lifetime. user is a Matrix user ID or a participant identity.
// No servers means that no TURN is configured.
type ICEServersFunc func(user string) (servers []ICEServer, ttl time.Duration)

// A Delegation is the promise to send a participant's delayed leave event as
// soon as the participant is gone from the SFU (MSC4195 delegate_delayed_leave).
// There is at most one for each room and identity; it outlives a restart.
type Delegation struct {
	Room     RoomName
	Identity Identity
	RoomID   string        // the Matrix room
	UserID   string        // the Matrix user whose leave it is
	DelayID  string        // the delayed event to restart and, in the end, send
	Delay    time.Duration // the delayed event's own delay
	Created  time.Time
	Seen     bool // the participant has been in the SFU since it was created
}
