package dialog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A memNet is a network of datagram sockets in memory, for tests in virtual time.
type memNet struct {
	mu    sync.Mutex
	socks map[netip.AddrPort]*memSock
	lose  func(from, to netip.AddrPort, data []byte) bool
}

type memPacket struct {
	from netip.AddrPort
	data []byte
}

type memSock struct {
	net    *memNet
	addr   netip.AddrPort
	in     chan memPacket
	closed chan struct{}
	once   sync.Once

	mu       sync.Mutex
	deadline time.Time
}

func newMemNet() *memNet { return &memNet{socks: map[netip.AddrPort]*memSock{}} }

func (n *memNet) listen(addr string) *memSock {
	s := &memSock{net: n, addr: netip.MustParseAddrPort(addr), in: make(chan memPacket, 4096), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.socks[s.addr] = s
	return s
}

func (s *memSock) ReadFrom(b []byte) (int, net.Addr, error) {
	var late <-chan time.Time
	s.mu.Lock()
	if !s.deadline.IsZero() {
		late = time.After(time.Until(s.deadline))
	}
	s.mu.Unlock()
	select {
	case p := <-s.in:
		return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-late:
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (s *memSock) WriteTo(b []byte, to net.Addr) (int, error) {
	dst := addrPort(to)
	s.net.mu.Lock()
	peer, lose := s.net.socks[dst], s.net.lose
	s.net.mu.Unlock()
	if peer == nil || lose != nil && lose(s.addr, dst, b) {
		return len(b), nil
	}
	select {
	case peer.in <- memPacket{s.addr, append([]byte(nil), b...)}:
	default:
	}
	return len(b), nil
}

func (s *memSock) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}
func (s *memSock) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.addr) }
func (s *memSock) SetDeadline(t time.Time) error {
	return s.SetReadDeadline(t)
}
func (s *memSock) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	return nil
}
func (s *memSock) SetWriteDeadline(time.Time) error { return nil }

const (
	memHere  = "192.0.2.1:5060"
	memThere = "192.0.2.2:5060"
)

// bubble runs f in virtual time with an endpoint at memHere and a phone at
// memThere. f must end its calls; the endpoint stops after it.
func bubble(t *testing.T, f func(t *testing.T, s *side, p *phone), change ...func(*Config, *desk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		cfg := Config{
			Listen:       []string{"udp://" + memHere},
			ListenPacket: func(_, addr string) (net.PacketConn, error) { return n.listen(addr), nil },
			Resolver:     noNames{},
		}
		d := newDesk()
		for _, c := range change {
			c(&cfg, d)
		}
		e, err := New(cfg, d, testLog())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = e.Run(ctx)
		}()
		s := &side{Endpoint: e, desk: d, uri: "sip:" + memHere}
		p := &phone{t: t, sock: n.listen(memThere), net: n, peer: netip.MustParseAddrPort(memHere)}
		defer func() {
			cancel()
			<-done
			if left := e.Stats(); left.Calls != 0 || left.Transactions != 0 {
				t.Errorf("left behind: %d calls, %d transactions", left.Calls, left.Transactions)
			}
		}()
		f(t, s, p)
	})
}

type noNames struct{}

func (noNames) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errors.New("no names here")
}
func (noNames) LookupSRV(context.Context, string, string, string) (string, []*net.SRV, error) {
	return "", nil, errors.New("no names here")
}

// A phone is the other side, by hand: it sends text and reads messages.
type phone struct {
	t    *testing.T
	sock *memSock
	net  *memNet
	peer netip.AddrPort
	n    int
}

func (p *phone) write(text string) {
	p.t.Helper()
	text = strings.ReplaceAll(strings.ReplaceAll(text, "\r\n", "\n"), "\n", "\r\n")
	if _, err := p.sock.WriteTo([]byte(text), net.UDPAddrFromAddrPort(p.peer)); err != nil {
		p.t.Fatal(err)
	}
}

// within reads what comes in the next d, or nil.
func (p *phone) within(d time.Duration) *message {
	p.t.Helper()
	buf := make([]byte, 65536)
	_ = p.sock.SetReadDeadline(time.Now().Add(d))
	n, from, err := p.sock.ReadFrom(buf)
	if err != nil {
		return nil
	}
	m, _, err := scan(buf[:n], false, 65536)
	if err != nil {
		p.t.Fatalf("the endpoint sent a bad message: %v\n%s", err, buf[:n])
	}
	m.flow = &flow{network: "udp", remote: addrPort(from)}
	if f := m.understand(nil); f != nil {
		p.t.Fatalf("the endpoint sent a bad message: %v\n%s", f, buf[:n])
	}
	return m
}

// status reads until a response with code comes; others are skipped only if they
// are provisional or repeats of a lower class.
func (p *phone) status(code int) *message {
	p.t.Helper()
	for range 100 {
		m := p.within(time.Minute)
		if m == nil {
			p.t.Fatalf("no answer, want %d", code)
		}
		if m.code == code {
			return m
		}
		if m.code >= 200 || m.code == 0 {
			p.t.Fatalf("got %d %s %s, want %d", m.code, m.method, m.reason, code)
		}
	}
	p.t.Fatalf("no %d among 100 messages", code)
	return nil
}

// request reads the next request, which must be of this method; responses and
// repeats of other requests are skipped.
func (p *phone) request(method string) *message {
	p.t.Helper()
	for range 100 {
		m := p.within(time.Hour)
		if m == nil {
			p.t.Fatalf("no %s came", method)
		}
		if m.method == method {
			return m
		}
		if m.code == 0 {
			p.t.Fatalf("got %s, want %s", m.method, method)
		}
	}
	p.t.Fatalf("no %s among 100 messages", method)
	return nil
}

// call is what the phone knows of its dialog.
type phoneCall struct {
	id, tag, to string
	seq         int
	branch      string
}

const phoneSDP = "v=0\no=- 1 1 IN IP4 192.0.2.2\ns=-\nc=IN IP4 192.0.2.2\nt=0 0\nm=audio 40000 RTP/AVP 0\n"

// invite sends an INVITE with more header lines and a body.
func (p *phone) invite(body string, lines ...string) *phoneCall {
	p.n++
	c := &phoneCall{id: fmt.Sprintf("call%d@phone", p.n), tag: fmt.Sprintf("tag%d", p.n), seq: 1}
	c.to = "<sip:+4930123@192.0.2.1>"
	p.send(c, "INVITE", body, lines...)
	return c
}

// send sends a request of the call.
func (p *phone) send(c *phoneCall, method, body string, lines ...string) {
	p.t.Helper()
	p.n++
	branch := fmt.Sprintf("z9hG4bKphone%d", p.n)
	if method == "INVITE" {
		c.branch = branch
	}
	if method == "CANCEL" {
		branch = c.branch
	}
	p.write(p.text(c, method, branch, body, lines...))
}

func (p *phone) text(c *phoneCall, method, branch, body string, lines ...string) string {
	body = strings.ReplaceAll(body, "\n", "\r\n")
	head := []string{
		method + " sip:+4930123@192.0.2.1 SIP/2.0",
		"Via: SIP/2.0/UDP " + p.sock.addr.String() + ";branch=" + branch + ";rport",
		"Max-Forwards: 70",
		"From: \"Bob\" <sip:bob@192.0.2.2>;tag=" + c.tag,
		"To: " + c.to,
		"Call-ID: " + c.id,
		"CSeq: " + strconv.Itoa(c.seq) + " " + method,
		"Contact: <sip:bob@" + p.sock.addr.String() + ">",
	}
	typed := false
	for _, l := range lines {
		typed = typed || strings.HasPrefix(l, "Content-Type")
		head = append(head, l)
	}
	if body != "" && !typed {
		head = append(head, "Content-Type: application/sdp")
	}
	head = append(head, "Content-Length: "+strconv.Itoa(len(body)), "", "")
	return strings.Join(head, "\r\n") + body
}

// answered takes the To of a final or reliable answer.
func (c *phoneCall) answered(m *message) { c.to = m.get("To") }

func (p *phone) ack(c *phoneCall, body string) { p.send(c, "ACK", body) }

// talk makes an answered call that came in to s.
func (p *phone) talk(s *side, lines ...string) (*phoneCall, *Call) {
	p.t.Helper()
	pc := p.invite(phoneSDP, lines...)
	c := <-s.calls
	answered := make(chan error, 1)
	go func() { answered <- c.Answer(context.Background(), []byte("v=0 ours\r\n")) }()
	pc.answered(p.status(200))
	p.ack(pc, "")
	if err := <-answered; err != nil {
		p.t.Fatal(err)
	}
	next[Confirmed](p.t, c)
	return pc, c
}

// answer sends an answer to a request that came.
func (p *phone) answer(m *message, code int, body string, lines ...string) {
	p.t.Helper()
	body = strings.ReplaceAll(body, "\n", "\r\n")
	to := m.get("To")
	if m.to.tag() == "" {
		to += ";tag=phone"
		for i, l := range lines {
			if tag, ok := strings.CutPrefix(l, "tag="); ok {
				to = m.get("To") + ";tag=" + tag
				lines = append(append([]string{}, lines[:i]...), lines[i+1:]...)
				break
			}
		}
	}
	head := []string{fmt.Sprintf("SIP/2.0 %d %s", code, phrase(code))}
	for _, v := range m.all("Via") {
		head = append(head, "Via: "+v)
	}
	head = append(head, "From: "+m.get("From"), "To: "+to, "Call-ID: "+m.get("Call-ID"), "CSeq: "+m.get("CSeq"),
		"Contact: <sip:bob@"+p.sock.addr.String()+">")
	head = append(head, lines...)
	if body != "" {
		head = append(head, "Content-Type: application/sdp")
	}
	head = append(head, "Content-Length: "+strconv.Itoa(len(body)), "", "")
	p.write(strings.Join(head, "\r\n") + body)
}

// called dials the phone from s.
func (p *phone) called(s *side, change ...func(*Outgoing)) (*Call, *message) {
	p.t.Helper()
	o := Outgoing{To: "+4930123", From: "+4940555", SDP: []byte("v=0 ours\r\n"), Target: Target{URI: "sip:" + p.sock.addr.String()}}
	for _, f := range change {
		f(&o)
	}
	c, err := s.Dial(context.Background(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	return c, p.request("INVITE")
}
