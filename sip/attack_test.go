package sip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// TestTransferTargets tries ways around the dial plan: whatever a provider would
// read as a number must be one that may be called.
func TestTransferTargets(t *testing.T) {
	h := newHouse(t, nil, nil)
	line, _ := h.gate.lines.Load().trunk("desk")
	for _, c := range []struct{ to, want string }{
		{"+49 30 12345679", "sip:+493012345679@127.0.0.1:9"},
		{"030 12345679", "sip:+493012345679@127.0.0.1:9"},
		{"tel:+493012345679", "tel:+493012345679"},
		{"sip:+493012345679@pbx.example", "sip:+493012345679@pbx.example"},
		{"sip:03012345679@pbx.example;transport=tcp", "sip:+493012345679@pbx.example;transport=tcp"},
		{"sips:alice@pbx.example", "sips:alice@pbx.example"},
		{"SIP:alice@pbx.example", "sip:alice@pbx.example"},

		{"+19005551234", ""},
		{"tel:+19005551234", ""},
		{"tel:+493012345679;ext=1", ""},
		{"sip:+19005551234@pbx.example", ""},
		{"sip:+1900%35551234@pbx.example", ""},
		{"sip:%2B19005551234@pbx.example", ""},
		{"sip:%252B19005551234@pbx.example", ""},
		{"sip:+19005551234:x@pbx.example", ""},
		{"sip:+19005551234;phone-context=+49@pbx.example", ""},
		{"sip:+1900FLOWERS@pbx.example", ""},
		{"sip:1900flowers@pbx.example;user=phone", ""},
		{"sip:flowers@pbx.example;user=phone", ""},
		{"sip:٠٠١٩٠٠@pbx.example", ""},
		{"sip:alice@+19005551234@pbx.example", ""},
		{"sip:alice@pbx.example?Route=%3csip:+1900@evil%3e", ""},
		{"sip:alice@", ""},
		{"sip:pbx.example", ""},
		{"tel:alice", ""},
		{"alice", ""},
		{"+1\r\nX-Evil: 1", ""},
		{"sip:alice@pbx.example>\r\nX-Evil: 1", ""},
		{"http://pbx.example", ""},
		{"112", ""},
		{"sip:112@pbx.example", ""},
		{"sip:110@pbx.example", ""},
		{"SCL_nobody", ""},
		{"", ""},
	} {
		got, _, err := h.gate.transferTarget(nil, line.Trunk, c.to)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v; want %q", c.to, got, err, c.want)
		}
		if err != nil && !errors.Is(err, call.ErrInvalid) && !errors.Is(err, call.ErrForbidden) && !errors.Is(err, call.ErrNotFound) {
			t.Errorf("%q: %v is of no kind", c.to, err)
		}
	}
}

// TestRoomsOfStrangers has callers choose their own numbers: none of them may name a
// room that the operator did not mean.
func TestRoomsOfStrangers(t *testing.T) {
	h := newHouse(t, nil, nil)
	for _, c := range []struct{ from, prefix, want string }{
		{"+493012345671", "", "+493012345671"},
		{"+493012345671", "desk", "desk_+493012345671"},
		{"200", "", "200"},
		{"standup", "", "phone_standup"},
		{"standup", "desk", "desk_standup"},
		{"%21secret%3Aexample.org", "", "phone_secretexample.org"},
		{"%23secret%3Aexample.org", "", "phone_secretexample.org"},
		{"%2F..%2F..%2Fadmin", "", "phone_....admin"},
		{"%F0%9F%98%80", "", "anonymous"},
		{"anonymous", "", "anonymous"},
	} {
		for _, kind := range []string{"individual", "callee"} {
			l := h.gate.newLeg(call.Inbound)
			who := h.gate.plan.CallerOf(call.Trunk{}, numbers.Inbound{From: numbers.Address{URI: "sip:" + c.from + "@pbx.example"}})
			l.caller.Number, l.now.Local = who.Number, who.Number
			if got := l.roomName(call.DispatchAction{Type: kind, Room: c.prefix}); got != c.want {
				t.Errorf("%s of %q: %q, want %q", kind, c.from, got, c.want)
			}
		}
	}
}

// TestTakenOverAndGone replaces a call by one that never acknowledges and hangs up:
// the old call must not be forgotten.
func TestTakenOverAndGone(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
	leg := h.gate.find(h.gate.Legs()[0].ID)

	conn, err := net.Dial("udp", h.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	me, port, _ := strings.Cut(conn.LocalAddr().String(), ":")
	send := func(method string, seq int, to, more string) {
		_, _ = fmt.Fprintf(conn, "%s sip:%s@%s SIP/2.0\r\nVia: SIP/2.0/UDP %s:%s;branch=z9hG4bKr%d;rport\r\nMax-Forwards: 70\r\n"+
			"From: <sip:+493012345679@%s>;tag=me\r\nTo: %s\r\nCall-ID: taker@%s\r\nCSeq: %d %s\r\n"+
			"Contact: <sip:me@%s:%s>\r\n%s",
			method, roomNumber, h.addr(), me, port, seq, me, to, me, seq, method, me, port, more)
	}
	sdp := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %s\r\ns=-\r\nc=IN IP4 %s\r\nt=0 0\r\nm=audio 33950 RTP/AVP 0\r\n", me, me)
	send("INVITE", 1, "<sip:x@x>", fmt.Sprintf("Replaces: %s\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", p.call.Dialog(), len(sdp), sdp))
	tag := ""
	buf := make([]byte, 4096)
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	for tag == "" {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		if answer := string(buf[:n]); strings.HasPrefix(answer, "SIP/2.0 200") {
			tag = regexp.MustCompile(`(?m)^To: .*;tag=(\S+)`).FindStringSubmatch(answer)[1]
		}
	}
	send("BYE", 2, "<sip:x@x>;tag="+tag, "Content-Length: 0\r\n\r\n")
	p.waitEnd()
	if last := h.ended(leg.id); last.Cause != call.CauseHangup && last.Cause != call.CauseFailed {
		t.Errorf("the leg ended with %q", last.Cause)
	}
	select {
	case <-leg.done:
	case <-time.After(patience):
		t.Error("the leg's goroutine never ends")
	}
}

// TestDialogsWithOneCallID asks for the leg of a dialog when another trunk's peer has
// chosen the same Call-ID.
func TestDialogsWithOneCallID(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
	mine := h.gate.find(h.gate.Legs()[0].ID)
	other := h.gate.newLeg(call.Inbound)
	other.update(func(now *call.Leg) { now.SIPCallID = p.call.CallID() })
	other.use(&dialog.Call{})
	h.gate.mu.Lock()
	h.gate.active[other.id] = other
	h.gate.mu.Unlock()
	defer h.gate.forget(other)
	for range 50 { // of a map
		if got := h.gate.byDialog(mine.current.Load()); got != mine {
			t.Fatal("another leg was found")
		}
	}
}

// TestKeyFlood presses keys as a browser's data messages could: they go out one after
// the other, a bounded number of them, by one goroutine.
func TestKeyFlood(t *testing.T) {
	h := newHouse(t, nil, func(c *Config) { c.Trunks[0].DTMF = "info" })
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
	before := runtime.NumGoroutine()
	for range 500 {
		h.gate.DigitsTo("standup", nil, "12345678")
	}
	eventually(t, "keys arrive", func() bool { return len(p.pressed()) > 3 })
	if n := runtime.NumGoroutine(); n > before+100 {
		t.Errorf("%d goroutines, before %d", n, before)
	}
	if keys := p.pressed(); !strings.HasPrefix("1234567812345678", keys) && !strings.HasPrefix(keys, "12345678") {
		t.Errorf("the keys came in disorder: %s", keys)
	}
	leg := h.gate.find(h.gate.Legs()[0].ID)
	if err := leg.ask(func() error {
		if len(leg.toPress) > maxToPress {
			t.Errorf("%d keys wait", len(leg.toPress))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestHiddenNumbers calls over a rule that hides numbers from a PBX that sends the
// number wherever it can.
func TestHiddenNumbers(t *testing.T) {
	h := newHouse(t, nil, func(c *Config) {
		for i := range c.Dispatch {
			c.Dispatch[i].Action.HideNumber = true
		}
	})
	d := newDesk(t, "127.0.0.1")
	for _, name := range []string{"+493012345671", "030 12345671", "Tel. 030/12345671", "12345671"} {
		s := d.session()
		offer, err := s.Offer()
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.ep.Dial(context.Background(), dialog.Outgoing{
			To: roomNumber, From: "+493012345671", FromName: name, SDP: offer, Target: dialog.Target{URI: "sip:" + h.addr()}, Ringing: patience,
			Options: dialog.CallOptions{Headers: []dialog.Header{{Name: "X-Caller", Value: "+493012345671"}}},
		})
		if err != nil {
			t.Fatal(err)
		}
		p := d.pickUp(c, s)
		p.waitAnswer()
		eventually(t, "the phone is in the room", func() bool { return len(h.members("standup")) == 1 })
		room, _ := h.sfu.Room("standup")
		for _, who := range room.Participants() {
			if text := fmt.Sprintf("%+v", who); strings.Contains(text, "12345671") {
				t.Errorf("name %q: the room sees %s", name, text)
			}
		}
		leg := h.gate.Legs()[0]
		if seen := fmt.Sprintf("%+v", legFor(leg, "@alice:example.org", false)); strings.Contains(seen, "671") {
			t.Errorf("name %q: a member sees %s", name, seen)
		}
		if whole := legFor(leg, "@admin:example.org", true); whole.Number != "+493012345671" {
			t.Errorf("the operator sees %q", whole.Number)
		}
		p.call.Bye(16, "")
		h.ended(leg.ID)
		eventually(t, "the room is empty", func() bool { return len(h.members("standup")) == 0 })
	}
}

// TestNamesOfGhosts dials a phone with the name of somebody in the room.
func TestNamesOfGhosts(t *testing.T) {
	for _, c := range []struct{ roomID, want string }{{"!room:example.org", "Alice (phone)"}, {"", "Alice"}} {
		seat := call.Seat{RoomID: c.roomID, Grant: call.Grant{Name: "Alice (phone)", Identity: "ghost"}}
		adjustSeat(&seat, call.DialRequest{Name: "Alice", Identity: "alice"})
		if seat.Grant.Name != c.want || c.roomID != "" && seat.Grant.Identity != "ghost" {
			t.Errorf("in %q: %q as %q", c.roomID, seat.Grant.Name, seat.Grant.Identity)
		}
	}
}

// TestDigitsOfAPhone floods a room with keys that a phone presses by INFO.
func TestDigitsOfAPhone(t *testing.T) {
	h := newHouse(t, nil, nil)
	var told atomic.Int32
	h.gate.OnDigit(func(call.RoomName, call.Identity, byte) { told.Add(1) })
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
	leg := h.gate.find(h.gate.Legs()[0].ID)
	if err := leg.ask(func() error {
		for range 1000 {
			leg.digit('5')
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := told.Load(); n == 0 || n > 2*maxDigitRate {
		t.Errorf("the room is told %d keys", n)
	}
}
