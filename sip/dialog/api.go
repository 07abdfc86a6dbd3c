// Package dialog is the signalling half of the telephone gateway: an endpoint
// that speaks SIP over UDP, TCP, TLS and WebSocket (RFC 3261, RFC 7118), and the
// calls on it, both as the one called and as the caller. It knows nothing of
// media, rooms or numbers: SDP goes through it as bytes.
//
// Messages are parsed and written with sipgo. Sockets, transactions and dialogs
// are our own; the decision records say why.
package dialog

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Config is what an Endpoint is made of. The zero values of all but Listen are
// useful.
type Config struct {
	// Listen names the sockets: udp://0.0.0.0:5060, tcp://, tls://, ws://, wss://.
	Listen []string
	// ExternalIP is shown in Via and Contact to peers outside of our own
	// networks. Unset: the address of the socket, or of the interface that leads
	// to the peer.
	ExternalIP netip.Addr
	// UserAgent is sent as User-Agent and Server. Empty: neither is sent.
	UserAgent string
	// Realm is shown in our challenges. Empty: "trunkhall".
	Realm string
	// TLS serves tls:// and wss://. Required for these.
	TLS *tls.Config
	// ClientTLS is for connections that we open. Nil: the system's roots.
	ClientTLS *tls.Config

	MaxConns      int           // TCP, TLS and WebSocket connections in all; 0: 1000
	MaxConnsPerIP int           // of them from one address; 0: 50
	IdleTimeout   time.Duration // of a connection that carries no call; 0: 10 minutes
	ReadTimeout   time.Duration // for a handshake, and for a message once begun; 0: 10 seconds
	MaxMessage    int           // bytes of one message; 0: 65535
	MaxCalls      int           // at a time, both ways; more are refused with 503; 0: 2000

	// T1, T2 and T4 are the timers of RFC 3261 table 4; 0: its values.
	T1, T2, T4 time.Duration
	// MinSE is the shortest session interval that is accepted (RFC 4028 §5), in
	// seconds; 0: 90.
	MinSE int

	// Algorithms are those of our challenges, in order. Empty: SHA-256, then MD5
	// (RFC 8760). Old phones that look at the first challenge only need MD5 alone.
	Algorithms []string
	// Secret signs the nonces of challenges. Nil: random at each start.
	Secret []byte
	// Resolver finds the hosts of URIs. Nil: the system's.
	Resolver Resolver
	// ListenPacket and ListenStream open the sockets; nil: those of package net.
	// Tests hand in sockets in memory.
	ListenPacket func(network, addr string) (net.PacketConn, error)
	ListenStream func(network, addr string) (net.Listener, error)
	// DialStream opens connections; nil: a net.Dialer.
	DialStream func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
}

// A Resolver looks names up; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// A Handler decides what strangers may do. Its methods are called from many
// goroutines and, Invite apart, must not block for long.
type Handler interface {
	// Screen says whether anything is to be read from src. It comes before
	// parsing, for each datagram, each connection and each message of a connection
	// that has brought nothing acceptable yet; false drops without an answer, and
	// closes a connection.
	Screen(src netip.AddrPort, network string) bool
	// Bad tells of something that counts toward a ban: a malformed message, a
	// failed digest, a method nobody asked for. why is a short fixed word.
	Bad(src netip.AddrPort, why string)
	// Trunk says who sends a request outside of any dialog, and what to do.
	Trunk(r *Request) Verdict
	// Invite takes a call that came in. 100 has been sent. It runs on a goroutine
	// of its own and must see to it that the call ends: Answer, Reject or Bye.
	Invite(c *Call)
}

// An Action is the first word of a Verdict.
type Action int

// The actions. The zero value is silence.
const (
	Drop      Action = iota // no answer at all
	Challenge               // 401 or 407, then Accept if the digest is right
	Accept                  // serve it
	Refuse                  // answer with Code and Reason
)

// A Verdict says what to do with a request from outside of any dialog.
type Verdict struct {
	Action Action
	// Trunk is kept on the Call and its Request. With Challenge it comes from
	// Lookup.
	Trunk string
	// Lookup finds the password of a user and the trunk that this user is.
	Lookup func(username, realm string) (password, trunk string, ok bool)
	// Algorithms override Config.Algorithms for a Challenge.
	Algorithms []string
	// Code, Reason and Headers answer a refused request, or an accepted one that
	// is no INVITE (0: 200 for OPTIONS, 405 for the others).
	Code    int
	Reason  string
	Headers []Header
	// Options are for the call that an accepted INVITE begins. After a challenge
	// CallOptions is asked, if not nil.
	Options     CallOptions
	CallOptions func(trunk string) CallOptions
}

// CallOptions are the settings of one call.
type CallOptions struct {
	// PRACK is "off", "supported" (default) or "require" (RFC 3262).
	PRACK string
	// SessionExpires in seconds asks for a session timer (RFC 4028); 0: none of
	// ours, but the other side's wish is honoured.
	SessionExpires int
	// MinSE overrides Config.MinSE.
	MinSE int
	// Networks are further sources of requests inside the dialog. The source of
	// the first message and the hosts of the route set are always allowed.
	Networks []netip.Prefix
	// ExternalIP overrides Config.ExternalIP.
	ExternalIP netip.Addr
	// Contact is the user part of our Contact; empty: the one dialled or shown.
	Contact string
	// Headers are added to the INVITE, or to the answer of one.
	Headers []Header
}

// A Header is one header field line. Names and values with line breaks are
// refused.
type Header struct{ Name, Value string }

// An Address is the value of From, To, Contact and their like.
type Address struct {
	Name string // display name, unquoted
	URI  string // sip:..., tel:...
	User string // user part of the URI without parameters, %-decoded; tel: the number
	Host string // with port if there is one
	Tag  string
}

// A Request is what the first message of a call says, in terms of the gateway.
type Request struct {
	Method  string
	URI     string // Request-URI
	User    string // its user part, %-decoded, without parameters
	CallID  string
	Source  netip.AddrPort
	Network string // udp, tcp, tls, ws, wss
	Local   netip.AddrPort

	From, To, Contact Address
	Asserted          []Address // P-Asserted-Identity (RFC 3325)
	Preferred         []Address // P-Preferred-Identity
	RemoteParty       []Address // Remote-Party-ID, before RFC 3325
	Privacy           []string  // Privacy values in lower case (RFC 3323): id, user, header, none, ...
	Diversion         []Address // newest first (RFC 5806)
	History           []Address // History-Info, oldest first (RFC 7044)
	Verstat           string    // of the calling number, e.g. TN-Validation-Passed-A
	ReferredBy        Address
	Replaces          string // Call-ID of the call that this one replaces (RFC 3891)
	UserAgent         string
	ContentType       string
	Body              []byte
	Offer             []byte // SDP, also out of a multipart body; nil: a late offer
	Trunk             string // after the Verdict
	Digest            string // user name of a good digest
	MaxForwards       int

	headers []Header
}

// Header returns the first value of a header field, or "".
func (r *Request) Header(name string) string { return headerValue(r.headers, name) }

// Headers returns all values of a header field in order.
func (r *Request) Headers(name string) []string { return headerValues(r.headers, name) }

// All returns every header field, long names, in order.
func (r *Request) All() []Header { return r.headers }

// A Response is the final answer to Endpoint.Request.
type Response struct {
	Code   int
	Reason string
	Source netip.AddrPort
	// Seen is our own address as the peer saw it: received and rport of the Via
	// (RFC 3581). Invalid if the peer did not say.
	Seen    netip.AddrPort
	Elapsed time.Duration // from the last request sent to this answer
	Body    []byte

	headers []Header
}

// Header returns the first value of a header field, or "".
func (r *Response) Header(name string) string { return headerValue(r.headers, name) }

// Headers returns all values of a header field in order.
func (r *Response) Headers(name string) []string { return headerValues(r.headers, name) }

// A Target is where and as whom to send.
type Target struct {
	// URI is the next peer: sip:host, sip:host:port;transport=tls, sips:host. The
	// user part of the request's own URI stays as it is.
	URI string
	// Proxy, if set, is an outbound proxy: a loose route that is sent to first.
	Proxy string
	// Username, Password and Realm answer challenges (RFC 8760). An empty Realm
	// takes the one that the peer names.
	Username, Password, Realm string
	// Networks are further sources of requests inside the dialog.
	Networks []netip.Prefix
	// ExternalIP overrides Config.ExternalIP. ExternalPort, if not 0, is shown
	// with it instead of the socket's: the port of a NAT.
	ExternalIP   netip.Addr
	ExternalPort uint16
}

func (t Target) external() netip.AddrPort { return netip.AddrPortFrom(t.ExternalIP, t.ExternalPort) }

// A Message is a request outside of any dialog: REGISTER, OPTIONS.
type Message struct {
	Method string
	URI    string // Request-URI; empty: the target's
	To     string // URI; empty: URI
	From   string // URI; empty: To
	// CallID and CSeq: a registration keeps the one and counts up the other
	// (RFC 3261 §10.2). Empty and 0: new ones. With a digest CSeq goes up by one
	// more; LastCSeq of the Response is not needed if the caller counts by two.
	CallID string
	CSeq   uint32
	// Contact is the user part of our Contact; it is sent if ContactParams or
	// Contact is not empty. ContactParams follow it: "expires=600".
	Contact       string
	ContactParams string
	Headers       []Header
	ContentType   string
	Body          []byte
	Target        Target
}

// An Outgoing is a call to be made.
type Outgoing struct {
	// To is the Request-URI and the To header: sip:+4930123@host or just a user
	// part, which then gets the target's host.
	To string
	// From is the caller shown, FromName its display name: a user part (the
	// target's host is added) or a whole URI. Empty: anonymous (RFC 3323 §4.1).
	From, FromName string
	// Asserted, if set, becomes P-Asserted-Identity, a URI or user part.
	Asserted string
	// Privacy, if set, is sent: "id" hides the asserted identity.
	Privacy string
	// SDP is the offer. Nil: a late offer; the answer has theirs, and Answered
	// must be followed by Call.LateAnswer.
	SDP    []byte
	Target Target
	// Trunk is kept on the Call. Only calls of one trunk may replace each other.
	Trunk string
	// Options: see CallOptions.
	Options CallOptions
	// Ringing is how long it may ring before it is cancelled; 0: 3 minutes.
	Ringing time.Duration
	// Silence is how long a hop may say nothing at all, not even 100, before it
	// counts as failed; 0: 64*T1 at the last one, 10*T1 while others remain.
	Silence time.Duration
	// Replaces makes an attended transfer (RFC 3891).
	Replaces string
	// ReferredBy is sent if the call was asked for by REFER.
	ReferredBy string
}

// An Event is something that happened on a Call: one of the types below.
type Event interface{ event() }

// A Progress is a provisional answer to our INVITE above 100. With forking one
// comes per To-tag; the last SDP wins. It has been PRACKed if it asked for that.
type Progress struct {
	Code   int
	Reason string
	SDP    []byte
	Tag    string
}

// Answered is the 200 to our INVITE, already acknowledged unless the offer was
// late (Outgoing.SDP nil): then SDP is their offer and Call.LateAnswer sends
// ours with the ACK.
type Answered struct {
	SDP []byte
	Tag string
}

// Confirmed is the ACK to our 200. SDP is theirs if our 200 had the offer.
type Confirmed struct{ SDP []byte }

// An Offered asks for an answer to a re-INVITE or UPDATE: Call.Accept or
// Call.Refuse with ID. A nil SDP asks for an offer of ours; their answer then
// comes as Confirmed. If nothing is said in 20 seconds it is refused.
type Offered struct {
	ID  int
	SDP []byte
}

// A Digits is DTMF by INFO: application/dtmf-relay or application/dtmf.
type Digits struct {
	Digit    byte
	Duration time.Duration
}

// An Info is any other INFO; it has been answered with 200.
type Info struct {
	Type string
	Body []byte
}

// A Referred asks us to call somebody (RFC 3515). 202 has been sent; call
// Call.ReferResult with each state of the new call until a final one. If
// Replaces is a call of this endpoint it is in Call.
type Referred struct {
	ID         int
	To         Address
	ReferredBy Address
	Replaces   string // the header of RFC 3891, unescaped; empty: blind
	Call       *Call  // the call that Replaces names, if it is ours
}

// A ReferProgress tells how our Call.Refer goes on: the sipfrag of a NOTIFY.
// After a Code of 200 or more nothing else comes.
type ReferProgress struct {
	Code   int
	Reason string
}

// A Replaced says that by, a new call that has been accepted, takes this one's
// place (RFC 3891). Answer by with this call's media, then this call is ended
// by the endpoint with BYE.
type Replaced struct{ By *Call }

// An Ended is the last event.
type Ended struct {
	Code    int    // final status of the INVITE, or 200 for one that was answered
	Reason  string // for people
	Q850    int    // from a Reason header; 0: none
	ByUs    bool
	Timeout bool // no answer, no ACK, session timer ran out
	Cause   End
	Headers []Header // of the final response or of the BYE
}

func (Progress) event()      {}
func (Answered) event()      {}
func (Confirmed) event()     {}
func (Offered) event()       {}
func (Digits) event()        {}
func (Info) event()          {}
func (Referred) event()      {}
func (ReferProgress) event() {}
func (Replaced) event()      {}
func (Ended) event()         {}

// An End says in which way a call ended.
type End string

// The ends.
const (
	EndBye       End = "bye"       // after the answer, by either side
	EndCancelled End = "cancelled" // before the answer, by the caller
	EndRefused   End = "refused"   // a final response of 300 or more
	EndTimeout   End = "timeout"   // nothing came, or it rang too long
	EndNoAck     End = "no_ack"    // our 200 was never acknowledged
	EndSession   End = "session"   // the session timer was not refreshed
	EndTransport End = "transport" // nobody could be reached
	EndReplaced  End = "replaced"  // another call took its place
	EndShutdown  End = "shutdown"  // the endpoint stopped
)

// A State is how far a call is.
type State string

// The states of a call.
const (
	Trying    State = "trying"
	Early     State = "early"
	Answering State = "answered"  // 200 sent or had, ACK not yet
	Talking   State = "confirmed" // ACK
	Over      State = "ended"
)

// A Stats counts what an endpoint has seen since it started.
type Stats struct {
	Calls         int // now
	Conns         int // now
	Transactions  int // now
	Screened      uint64
	Malformed     uint64
	Dropped       uint64 // by Verdict
	ConnsRefused  uint64
	Retransmitted uint64
	Responses     map[int]uint64 // final ones, both ways, by code
}

// New checks cfg and binds all sockets. Nothing is read before Run.
func New(cfg Config, h Handler, log *slog.Logger) (*Endpoint, error) { return newEndpoint(cfg, h, log) }
