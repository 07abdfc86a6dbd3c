package dialog

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

var errNotYet = errors.New("not yet")

// An Endpoint is all the SIP sockets of a server and the calls on them.
type Endpoint struct{}

// A Call is one INVITE dialog. One goroutine owns it; its methods may be called
// from anywhere, at any time, and after its end do nothing.
type Call struct{}

func newEndpoint(cfg Config, h Handler, log *slog.Logger) (*Endpoint, error) { return nil, errNotYet }

// Run serves until ctx is done, then ends all calls and returns when every
// goroutine has.
func (e *Endpoint) Run(ctx context.Context) error { return errNotYet }

// Addrs returns what was bound, as "udp://192.0.2.1:5060".
func (e *Endpoint) Addrs() []string { return nil }

// Stats counts.
func (e *Endpoint) Stats() Stats { return Stats{} }

// Calls returns the calls of now.
func (e *Endpoint) Calls() []*Call { return nil }

// Find returns the call with this Call-ID, or nil.
func (e *Endpoint) Find(callID string) *Call { return nil }

// A Hop is one address to send to.
type Hop struct {
	Network string // udp, tcp, tls, ws, wss
	Addr    netip.AddrPort
	Name    string // host name for TLS
}

// Resolve finds the addresses of a URI in the order they are tried (RFC 3263).
func (e *Endpoint) Resolve(ctx context.Context, uri string) ([]Hop, error) { return nil, errNotYet }

// Request sends a request outside of any dialog and waits for its final answer.
func (e *Endpoint) Request(ctx context.Context, m Message) (Response, error) {
	return Response{}, errNotYet
}

// Dial starts a call. It returns once the INVITE is on its way.
func (e *Endpoint) Dial(ctx context.Context, o Outgoing) (*Call, error) { return nil, errNotYet }

// Events returns the call's events. They must be read until the channel closes,
// which it does after Ended.
func (c *Call) Events() <-chan Event { return nil }

// Done is closed when the call has ended.
func (c *Call) Done() <-chan struct{} { return nil }

// Request returns the INVITE that came in, or the one that was sent.
func (c *Call) Request() *Request { return nil }

// CallID returns the SIP Call-ID.
func (c *Call) CallID() string { return "" }

// Inbound says whether we were called.
func (c *Call) Inbound() bool { return false }

// State says how far the call is.
func (c *Call) State() State { return "" }

// Remote returns where its requests are sent.
func (c *Call) Remote() netip.AddrPort { return netip.AddrPort{} }

// Trunk returns what the Verdict or the caller said.
func (c *Call) Trunk() string { return "" }

// Dialog returns "call-id;to-tag=...;from-tag=..." for a Replaces header of the
// other side (RFC 3891), or "" before there is a dialog.
func (c *Call) Dialog() string { return "" }

// Ring sends 180, once.
func (c *Call) Ring() error { return errNotYet }

// Progress sends a provisional answer, 180 or 183, with SDP if not nil; reliably
// if so negotiated.
func (c *Call) Progress(code int, sdp []byte) error { return errNotYet }

// Answer sends 200 with sdp: the answer, or the offer if theirs is late. It
// returns when the ACK came, or why none did.
func (c *Call) Answer(ctx context.Context, sdp []byte) error { return errNotYet }

// Reject refuses a call that came in.
func (c *Call) Reject(code int, reason string, h ...Header) error { return errNotYet }

// Cancel gives up a call of ours before the answer; one that is answered
// meanwhile is ended with BYE. cause is Q.850, 0 for none.
func (c *Call) Cancel(cause int, text string) {}

// Bye ends the call, whatever its state: BYE, CANCEL or a refusal.
func (c *Call) Bye(cause int, text string) {}

// LateAnswer sends the ACK with our answer to the offer that came in a 200.
func (c *Call) LateAnswer(sdp []byte) error { return errNotYet }

// Offer sends a re-INVITE with sdp and returns the answer. Glare (491) is tried
// again after the times of RFC 3261 §14.1.
func (c *Call) Offer(ctx context.Context, sdp []byte) (answer []byte, err error) {
	return nil, errNotYet
}

// Accept answers an Offered.
func (c *Call) Accept(id int, sdp []byte) error { return errNotYet }

// Refuse refuses an Offered; the session stays as it was.
func (c *Call) Refuse(id, code int) error { return errNotYet }

// Info sends a digit as application/dtmf-relay.
func (c *Call) Info(ctx context.Context, digit byte, d time.Duration) error { return errNotYet }

// Refer asks the other side to call to. replaces, if not nil, makes it an
// attended transfer to that call's other side. It returns when the REFER is
// accepted; ReferProgress events follow.
func (c *Call) Refer(ctx context.Context, to string, replaces *Call, h ...Header) error {
	return errNotYet
}

// ReferResult reports a state of the call that a Referred asked for.
func (c *Call) ReferResult(id, code int, reason string) error { return errNotYet }

func headerValue(hs []Header, name string) string {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			return h.Value
		}
	}
	return ""
}

func headerValues(hs []Header, name string) (values []string) {
	for _, h := range hs {
		if strings.EqualFold(h.Name, name) {
			values = append(values, h.Value)
		}
	}
	return values
}
