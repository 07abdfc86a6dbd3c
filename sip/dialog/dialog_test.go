package dialog

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what should come at once.
const patience = 10 * time.Second

// A desk is a Handler for tests: it takes every call and hands it over.
type desk struct {
	calls   chan *Call
	verdict func(*Request) Verdict

	mu       sync.Mutex
	bad      map[string]int
	screened func(netip.AddrPort) bool
}

func newDesk() *desk {
	return &desk{calls: make(chan *Call, 100), bad: map[string]int{}}
}

func (d *desk) Screen(src netip.AddrPort, _ string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.screened == nil || d.screened(src)
}

func (d *desk) Bad(_ netip.AddrPort, why string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.bad[why]++
}

func (d *desk) badCount(why string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bad[why]
}

func (d *desk) Trunk(r *Request) Verdict {
	if d.verdict != nil {
		return d.verdict(r)
	}
	return Verdict{Action: Accept, Trunk: "t"}
}

func (d *desk) Invite(c *Call) { d.calls <- c }

// A side is an endpoint on the loopback, served until the test ends.
type side struct {
	*Endpoint
	*desk
	uri string
}

func testLog() *slog.Logger {
	if os.Getenv("SIP_DEBUG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func newSide(t *testing.T, change ...func(*Config, *desk)) *side {
	t.Helper()
	cfg := Config{Listen: []string{"udp://127.0.0.1:0"}, Resolver: noNames{}}
	d := newDesk()
	for _, f := range change {
		f(&cfg, d)
	}
	e, err := New(cfg, d, testLog())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = e.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case <-ended:
		case <-time.After(2 * patience):
			t.Error("Run did not return")
		}
	})
	s := &side{Endpoint: e, desk: d}
	network, addr, _ := strings.Cut(e.Addrs()[0], "://")
	s.uri = "sip:" + addr
	if network != "udp" {
		s.uri += ";transport=" + network
	}
	return s
}

// dial calls from s to other.
func (s *side) dial(t *testing.T, other *side, change ...func(*Outgoing)) *Call {
	t.Helper()
	o := Outgoing{To: "+4930123", From: "+4940555", FromName: "Alice", SDP: []byte("v=0 offer\r\n"), Target: Target{URI: other.uri}}
	for _, f := range change {
		f(&o)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := s.Dial(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { drainCall(c) })
	return c
}

// drainCall ends a call and reads it out.
func drainCall(c *Call) {
	c.Bye(16, "")
	go func() {
		for range c.Events() {
		}
	}()
}

// incoming is the next call that reached s.
func (s *side) incoming(t *testing.T) *Call {
	t.Helper()
	select {
	case c := <-s.calls:
		t.Cleanup(func() { drainCall(c) })
		return c
	case <-time.After(patience):
		t.Fatal("no call came")
		return nil
	}
}

// next is the next event of c, which must be a T.
func next[T Event](t *testing.T, c *Call) T {
	t.Helper()
	var zero T
	select {
	case ev, ok := <-c.Events():
		if !ok {
			t.Fatalf("no more events, want %T", zero)
		}
		got, is := ev.(T)
		if !is {
			t.Fatalf("event %#v, want %T", ev, zero)
		}
		return got
	case <-time.After(patience):
		t.Fatalf("no event, want %T", zero)
		return zero
	}
}

// finish reads c to its end.
func finish(t *testing.T, c *Call) Ended {
	t.Helper()
	limit := time.After(2 * patience)
	for {
		select {
		case ev, ok := <-c.Events():
			if !ok {
				t.Fatal("the call ended without saying so")
			}
			if e, is := ev.(Ended); is {
				return e
			}
		case <-limit:
			t.Fatal("the call does not end")
		}
	}
}

func testCtx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	return ctx
}

// connected is an answered call between two new sides.
func connected(t *testing.T, change ...func(*Outgoing)) (a, b *side, out, in *Call) {
	t.Helper()
	a, b = newSide(t), newSide(t)
	out, in = join(t, a, b, change...)
	return a, b, out, in
}

func join(t *testing.T, a, b *side, change ...func(*Outgoing)) (out, in *Call) {
	t.Helper()
	out = a.dial(t, b, change...)
	in = b.incoming(t)
	if err := in.Answer(testCtx(t), []byte("v=0 answer\r\n")); err != nil {
		t.Fatal(err)
	}
	next[Confirmed](t, in)
	for {
		switch ev := (<-out.Events()).(type) {
		case Progress:
		case Answered:
			return out, in
		default:
			t.Fatalf("event %#v before the answer", ev)
		}
	}
}

func TestCall(t *testing.T) {
	a, b := newSide(t), newSide(t)
	out := a.dial(t, b)
	in := b.incoming(t)
	r := in.Request()
	if r.User != "+4930123" || r.From.User != "+4940555" || r.From.Name != "Alice" || string(r.Offer) != "v=0 offer\r\n" || r.Trunk != "t" {
		t.Errorf("the INVITE reads %+v", r)
	}
	if err := in.Ring(); err != nil {
		t.Fatal(err)
	}
	if p := next[Progress](t, out); p.Code != 180 || p.SDP != nil {
		t.Errorf("progress %+v, want 180 without SDP", p)
	}
	if err := in.Progress(183, []byte("v=0 early\r\n")); err != nil {
		t.Fatal(err)
	}
	if p := next[Progress](t, out); p.Code != 183 || string(p.SDP) != "v=0 early\r\n" {
		t.Errorf("progress %+v, want 183 with SDP", p)
	}
	if err := in.Answer(testCtx(t), []byte("v=0 answer\r\n")); err != nil {
		t.Fatal(err)
	}
	next[Confirmed](t, in)
	if ans := next[Answered](t, out); string(ans.SDP) != "v=0 early\r\n" && string(ans.SDP) != "v=0 answer\r\n" {
		t.Errorf("answered with %q", ans.SDP)
	}
	if out.State() != Talking || in.State() != Talking {
		t.Errorf("states %s and %s", out.State(), in.State())
	}
	out.Bye(16, "done")
	if e := finish(t, in); e.Cause != EndBye || e.Q850 != 16 || e.ByUs {
		t.Errorf("the called side ended with %+v", e)
	}
	if e := finish(t, out); e.Cause != EndBye || !e.ByUs {
		t.Errorf("the calling side ended with %+v", e)
	}
}
