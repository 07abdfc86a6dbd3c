package dialog

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// magic begins the branch of everybody who follows RFC 3261 §8.1.1.7.
const magic = "z9hG4bK"

var (
	errTimeout = fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded)
	errClosed  = errors.New("the endpoint has stopped")
)

// txState is a state of the machines in RFC 3261 §17 with RFC 6026.
type txState int

const (
	txTrying txState = iota // client: calling
	txProceeding
	txCompleted
	txAccepted
	txConfirmed
	txTerminated
)

// A serverTx answers one request (RFC 3261 §17.2). The endpoint makes it and
// feeds it; respond may be called from anywhere. What it tells its user it tells
// through functions that must not block.
type serverTx struct {
	e      *Endpoint
	key    string
	req    *message
	flow   *flow // the way back
	invite bool
	tag    string // our To tag

	mu     sync.Mutex // guards the following
	state  txState
	last   []byte
	code   int
	every  time.Duration // timer G
	resend *time.Timer
	end    *time.Timer
}

// serverKey matches retransmissions (RFC 3261 §17.2.3). method is given because
// ACK and CANCEL look for an INVITE.
func serverKey(m *message, method string) string {
	v := m.via[0]
	if b := v.branch(); len(b) > len(magic) && strings.EqualFold(b[:len(magic)], magic) {
		return strings.Join([]string{b, strings.ToLower(v.host), strconv.Itoa(v.port), method}, "\x00")
	}
	to := m.to.tag()
	if method == "INVITE" {
		to = "" // the ACK has our tag, the INVITE had none
	}
	return strings.Join([]string{m.uri, to, m.from.tag(), m.callID, strconv.Itoa(int(m.seq)), v.raw, method}, "\x00")
}

// receive takes a retransmission.
func (t *serverTx) receive() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.e.counters.retransmitted.Add(1)
	if t.last != nil && (t.state == txProceeding || t.state == txCompleted) {
		t.send(t.last)
	}
}

// send sends an answer. If the connection that brought the request has closed, a
// new one is opened to where it came from (RFC 3261 §18.2.2).
func (t *serverTx) send(b []byte) {
	err := t.flow.send(b)
	v := t.req.via[0]
	if err == nil || !t.flow.reliable() || t.flow.conn.ws || t.code < 200 || !v.good {
		return
	}
	port := v.port
	if port == 0 {
		port = defaultPort(t.flow.network)
	}
	h := Hop{t.flow.network, netip.AddrPortFrom(t.flow.remote.Addr(), uint16(port)), v.host}
	t.e.spawn(func() {
		if f, err := t.e.openConn(t.e.ctx, h); err == nil {
			_ = f.send(b)
		}
	})
}

// respond sends an answer. After a final one it does nothing and returns false.
// A 2xx to an INVITE is sent once; the call repeats it (RFC 3261 §13.3.1.4).
func (t *serverTx) respond(m *message) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state >= txCompleted {
		return false
	}
	b := m.bytes()
	t.last, t.code = b, m.code
	if m.code >= 200 {
		t.e.count(m.code)
	}
	timers := &t.e.timers
	switch {
	case m.code < 200:
		t.state = txProceeding
	case !t.invite:
		t.state = txCompleted
		if t.flow.reliable() {
			t.terminate()
		} else {
			t.end = time.AfterFunc(64*timers.t1, t.stop)
		}
	case m.code < 300:
		t.state = txAccepted
		t.end = time.AfterFunc(64*timers.t1, t.stop)
	default:
		t.state = txCompleted
		if !t.flow.reliable() {
			t.every = timers.t1
			t.resend = time.AfterFunc(t.every, t.again)
		}
		t.end = time.AfterFunc(64*timers.t1, t.stop)
	}
	t.send(b)
	return true
}

// again is timer G.
func (t *serverTx) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != txCompleted {
		return
	}
	t.send(t.last)
	t.every = min(2*t.every, t.e.timers.t2)
	t.resend.Reset(t.every)
}

// ack takes the ACK to a refusal.
func (t *serverTx) ack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != txCompleted || !t.invite {
		return
	}
	t.state = txConfirmed
	t.stopTimers()
	if t.flow.reliable() {
		t.terminate()
		return
	}
	t.end = time.AfterFunc(t.e.timers.t4, t.stop)
}

func (t *serverTx) final() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.state >= txCompleted
}

func (t *serverTx) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.terminate()
}

func (t *serverTx) terminate() {
	if t.state == txTerminated {
		return
	}
	t.state = txTerminated
	t.stopTimers()
	t.e.dropServer(t)
}

func (t *serverTx) stopTimers() {
	if t.resend != nil {
		t.resend.Stop()
	}
	if t.end != nil {
		t.end.Stop()
	}
}

// A clientTx sends one request and hears its answers (RFC 3261 §17.1). on gets
// each answer once, all 2xx of an INVITE every time they come, or one error; it
// must not block.
type clientTx struct {
	e      *Endpoint
	key    string
	req    *message
	flow   *flow
	invite bool
	on     func(*message, error)

	mu    sync.Mutex // guards the following
	state txState
	data  []byte
	ackd  []byte // our ACK to a refusal
	every time.Duration
	again *time.Timer // A, E
	end   *time.Timer // B, F; later D, K, M
}

func clientKey(branch, method string) string { return branch + "\x00" + method }

// start sends the request.
func (t *clientTx) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	timers := &t.e.timers
	t.data = t.req.bytes()
	if err := t.flow.send(t.data); err != nil {
		t.fail(err)
		return
	}
	if !t.flow.reliable() {
		t.every = timers.t1
		t.again = time.AfterFunc(t.every, t.resend)
	}
	t.end = time.AfterFunc(64*timers.t1, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.state == txTrying || t.state == txProceeding {
			t.fail(errTimeout)
		}
	})
}

func (t *clientTx) resend() {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.state == txTrying && t.invite:
		t.every *= 2
	case t.state == txTrying:
		t.every = min(2*t.every, t.e.timers.t2)
	case t.state == txProceeding && !t.invite:
		t.every = t.e.timers.t2
	default:
		return
	}
	if err := t.flow.send(t.data); err != nil {
		t.fail(err)
		return
	}
	t.again.Reset(t.every)
}

// fail ends the transaction without an answer. t.mu is held.
func (t *clientTx) fail(err error) {
	if t.state == txTerminated {
		return
	}
	on := t.on
	t.terminate()
	if on != nil {
		go on(nil, err) // not under the lock; the receivers post to a mailbox
	}
}

// receive takes an answer.
func (t *clientTx) receive(m *message) {
	t.mu.Lock()
	timers := &t.e.timers
	up := false
	switch {
	case t.state == txTerminated:
	case m.code < 200:
		if up = t.state == txTrying || t.state == txProceeding; up {
			t.state = txProceeding
			if t.invite {
				t.stopTimers() // RFC 3261 §17.1.1.2: it may ring as long as it likes
			}
		}
	case t.invite && m.code < 300:
		if up = t.state != txCompleted; up && t.state != txAccepted {
			t.state = txAccepted
			t.stopTimers()
			t.end = time.AfterFunc(64*timers.t1, t.stop)
		}
	case t.state == txTrying || t.state == txProceeding:
		up = true
		t.state = txCompleted
		t.stopTimers()
		linger := timers.t4
		if t.invite {
			t.ackd = t.ackFor(m).bytes()
			_ = t.flow.send(t.ackd)
			linger = 64 * timers.t1
		}
		if t.flow.reliable() {
			t.terminate()
		} else {
			t.end = time.AfterFunc(linger, t.stop)
		}
	case t.state == txCompleted && t.invite:
		t.e.counters.retransmitted.Add(1)
		_ = t.flow.send(t.ackd)
	}
	on := t.on
	t.mu.Unlock()
	if up && on != nil {
		on(m, nil)
	}
}

// ackFor makes the ACK to a refusal (RFC 3261 §17.1.1.3).
func (t *clientTx) ackFor(m *message) *message {
	ack := &message{method: "ACK", uri: t.req.uri}
	ack.add("Via", t.req.get("Via"))
	for _, r := range t.req.all("Route") {
		ack.add("Route", r)
	}
	ack.add("Max-Forwards", "70")
	ack.add("From", t.req.get("From"))
	ack.add("To", m.get("To"))
	ack.add("Call-ID", t.req.get("Call-ID"))
	ack.add("CSeq", strconv.Itoa(int(t.req.seq))+" ACK")
	return ack
}

func (t *clientTx) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.terminate()
}

func (t *clientTx) terminate() {
	if t.state == txTerminated {
		return
	}
	t.state = txTerminated
	t.stopTimers()
	t.e.dropClient(t)
}

func (t *clientTx) stopTimers() {
	if t.again != nil {
		t.again.Stop()
	}
	if t.end != nil {
		t.end.Stop()
	}
}
