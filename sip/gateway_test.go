package sip

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/sip/dialog"
	"github.com/trunkhall/trunkhall/sip/ledger"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

const (
	menuNumber = "+4930123456"
	roomNumber = "+4930123457"
	userNumber = "+4930123458"
	carol      = "+493012345671"
	dave       = "+493012345672"
)

// TestTwoPhonesTalk is the whole way: INVITE, dispatch, a seat in a room, sound
// both ways, hanging up, and the record of it.
func TestTwoPhonesTalk(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a := d.dial(h, carol, roomNumber)
	a.waitAnswer()
	b := d.dial(h, dave, roomNumber)
	b.waitAnswer()
	a.say(440)
	b.say(1000)
	a.hears(1000, true)
	b.hears(440, true)
	if a.loudness(440) > 800 {
		t.Error("a phone hears itself")
	}
	legs := h.gate.Legs()
	if len(legs) != 2 || legs[0].State != call.LegConfirmed || legs[0].Number != carol || legs[0].Local != roomNumber {
		t.Fatalf("%+v", legs)
	}
	if _, ok := h.gate.LegOf("standup", legs[1].Identity); !ok {
		t.Error("the leg of a participant is not found")
	}
	b.call.Bye(16, "")
	a.hears(1000, false)
	last := h.ended(legs[1].ID)
	if last.Cause != call.CauseHangup || last.Codec == "" || last.Stats.Packets == 0 {
		t.Errorf("%+v", last)
	}
	records := h.gate.Records(ledger.Filter{})
	if len(records) != 1 || records[0].From != dave || records[0].Room != "standup" {
		t.Errorf("%+v", records)
	}
}

func TestMenu(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")

	right := d.dial(h, carol, menuNumber)
	right.waitAnswer()
	right.media.Press("48151623") // all PINs are as long: no # is needed
	eventually(t, "the right PIN opens the room", func() bool { return len(h.members("standup")) == 1 })
	right.say(440)

	guess := d.dial(h, dave, menuNumber)
	guess.waitAnswer()
	for range 3 {
		guess.media.Press("11112222ww")
	}
	if e := guess.waitEnd(); e.ByUs {
		t.Errorf("%+v", e)
	}
	if n := h.gate.Metrics().PINRejected; n != 3 {
		t.Errorf("%d wrong PINs are counted", n)
	}
	// Locked out: the same words, and the right PIN is not even looked up.
	again := d.dial(h, dave, menuNumber)
	again.waitAnswer()
	again.media.Press("48151623ww48151623ww48151623")
	again.waitEnd()
	if got := h.members("standup"); len(got) != 1 {
		t.Errorf("a caller who is locked out came in: %q", got)
	}
	for _, r := range h.gate.Records(ledger.Filter{}) {
		if strings.Contains(fmt.Sprintf("%+v", r), "48151623") {
			t.Errorf("the record has the PIN: %+v", r)
		}
	}
}

func TestStarCodes(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a, b := d.dial(h, carol, roomNumber), d.dial(h, dave, roomNumber)
	a.waitAnswer()
	b.waitAnswer()
	var digits atomic.Int32
	h.gate.OnDigit(func(room call.RoomName, _ call.Identity, digit byte) {
		if room == "standup" && strings.IndexByte("*65", digit) >= 0 {
			digits.Add(1)
		}
	})
	b.say(1000)
	a.hears(1000, true)
	b.media.Press("*6")
	a.hears(1000, false)
	b.media.Press("*6")
	a.hears(1000, true)
	b.media.Press("*5")
	eventually(t, "the hand is up", func() bool {
		return slices.ContainsFunc(h.gate.Legs(), func(l call.Leg) bool { return l.Number == dave && l.Hand })
	})
	if n := digits.Load(); n != 6 {
		t.Errorf("the room heard of %d keys, want 6", n)
	}
	b.media.Press("##")
	if e := b.waitEnd(); e.Q850 != 16 {
		t.Errorf("%+v", e)
	}
}

func TestRemovedAndMuted(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a, b := d.dial(h, carol, roomNumber), d.dial(h, dave, roomNumber)
	a.waitAnswer()
	b.waitAnswer()
	b.say(1000)
	a.hears(1000, true)
	of := func(number string) call.Leg {
		t.Helper()
		for _, l := range h.gate.Legs() {
			if l.Number == number {
				return l
			}
		}
		t.Fatalf("no leg of %s", number)
		return call.Leg{}
	}
	if err := h.gate.Mute(of(dave).ID, true); err != nil {
		t.Fatal(err)
	}
	a.hears(1000, false)
	leg := of(dave)
	room, ok := h.sfu.Room("standup")
	if !ok {
		t.Fatal("no room")
	}
	if err := room.Remove(leg.Identity, sfu.ReasonParticipantRemoved); err != nil {
		t.Fatal(err)
	}
	if e := b.waitEnd(); e.Q850 != 16 || e.Cause != dialog.EndBye {
		t.Errorf("%+v", e)
	}
	if last := h.ended(leg.ID); last.Cause != call.CauseRemoved {
		t.Errorf("%s %s", last.Cause, last.Text)
	}
	leg = of(carol)
	h.stop()
	if e := a.waitEnd(); e.Cause != dialog.EndBye {
		t.Errorf("a stopping gateway ends calls with %+v", e)
	}
	if last := h.ended(leg.ID); last.Cause != call.CauseShutdown {
		t.Errorf("%s %s", last.Cause, last.Text)
	}
}

// TestHold puts a phone on hold, both ways.
func TestHold(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a, b := d.dial(h, carol, roomNumber), d.dial(h, dave, roomNumber)
	a.waitAnswer()
	b.waitAnswer()
	a.say(440)
	b.say(1000)
	a.hears(1000, true)
	held := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprint("held: ", want), func() bool {
			return slices.ContainsFunc(h.gate.Legs(), func(l call.Leg) bool { return l.Number == dave && l.Held == want })
		})
	}
	reoffer := func(on bool) {
		t.Helper()
		b.media.SetHold(on)
		offer, err := b.media.Offer()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		answer, err := b.call.Offer(ctx, offer)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.media.Accept(answer, true); err != nil {
			t.Fatal(err)
		}
	}
	reoffer(true)
	held(true)
	a.hears(1000, false)
	reoffer(false)
	held(false)
	a.hears(1000, true)

	var id call.LegID
	for _, l := range h.gate.Legs() {
		if l.Number == dave {
			id = l.ID
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.gate.Hold(ctx, id, true); err != nil {
		t.Fatal(err)
	}
	held(true)
	a.hears(1000, false)
	if err := h.gate.Hold(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	a.hears(1000, true)
	b.hears(440, true)
}

func TestStrangers(t *testing.T) {
	h := newHouse(t, nil, nil)
	stranger := newDesk(t, "127.0.0.7")
	p := stranger.dial(h, carol, roomNumber)
	select {
	case e := <-p.progress:
		t.Errorf("a stranger was told %d", e.Code)
	case e := <-p.ended:
		t.Errorf("a stranger was told %d", e.Code)
	case <-time.After(1500 * time.Millisecond):
	}
	if n := len(h.gate.Legs()); n != 0 {
		t.Errorf("%d legs", n)
	}
	if h.gate.Metrics().Steps["unknown"] == 0 {
		t.Error("the stranger was not counted")
	}
}

func TestRefusals(t *testing.T) {
	dir := &fakeDirectory{}
	h := newHouse(t, dir, func(c *Config) {
		c.Dispatch[1].Action.Room = "#standup:example.org"
	})
	d := newDesk(t, "127.0.0.1")
	for _, c := range []struct {
		name, to string
		seat     error
		ring     error
		code     int
		cause    call.Cause
	}{
		{"nobody's number", "+4930999", nil, nil, 404, call.CauseWrongNumber},
		{"a full room", roomNumber, call.ErrRoomFull, nil, 486, call.CauseBusy},
		{"a locked room", roomNumber, call.ErrRoomLocked, nil, 403, call.CauseRejected},
		{"an encrypted room", roomNumber, call.ErrRoomEncrypted, nil, 403, call.CauseRejected},
		{"a room that is gone", roomNumber, call.ErrNotFound, nil, 404, call.CauseWrongNumber},
		{"a homeserver that is down", roomNumber, errors.New("no connection"), nil, 480, call.CauseNoAnswer},
		{"a user who declines", userNumber, nil, call.ErrForbidden, 486, call.CauseBusy},
		{"a user who is not there", userNumber, nil, call.ErrUnavailable, 480, call.CauseNoAnswer},
		{"no such user", userNumber, nil, call.ErrNotFound, 404, call.CauseWrongNumber},
	} {
		dir.set(c.seat, c.ring)
		p := d.dial(h, carol, c.to)
		if e := p.waitEnd(); e.Code != c.code {
			t.Errorf("%s: %d, want %d", c.name, e.Code, c.code)
		}
		eventually(t, "the record is written", func() bool { return len(h.gate.Legs()) == 0 })
		if r := h.gate.Records(ledger.Filter{Limit: 1}); len(r) != 1 || r[0].Cause != c.cause {
			t.Errorf("%s: the record says %+v, want %s", c.name, r, c.cause)
		}
	}
	if n := dir.open.Load(); n != 0 {
		t.Errorf("%d seats were not given back", n)
	}
}

// TestSlowRoom is a homeserver that hangs: the caller is told within the limit.
func TestSlowRoom(t *testing.T) {
	dir := &fakeDirectory{}
	dir.block = make(chan struct{})
	defer close(dir.block)
	h := newHouse(t, dir, func(c *Config) { c.Dispatch[1].Action.Room = "#standup:example.org" })
	d := newDesk(t, "127.0.0.1")
	started := time.Now()
	p := d.dial(h, carol, roomNumber)
	if e := p.waitEnd(); e.Code != 480 {
		t.Errorf("%d", e.Code)
	}
	if took := time.Since(started); took < joinLimit-time.Second || took > joinLimit+5*time.Second {
		t.Errorf("after %s", took)
	}
	// The caller gives up first: nothing stays behind.
	p = d.dial(h, carol, roomNumber)
	eventually(t, "the call is there", func() bool { return len(h.gate.Legs()) == 1 })
	p.call.Bye(0, "")
	if e := p.waitEnd(); e.Code != 487 {
		t.Errorf("%d %s", e.Code, e.Cause)
	}
	eventually(t, "the leg is gone", func() bool { return len(h.gate.Legs()) == 0 })
	if n := dir.open.Load(); n != 0 {
		t.Errorf("%d seats were not given back", n)
	}
}

func TestLobby(t *testing.T) {
	dir := &fakeDirectory{}
	lobby, _ := dir.wait()
	h := newHouse(t, dir, func(c *Config) { c.Dispatch[1].Action.Room = "#standup:example.org" })
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	if got := h.members("standup"); len(got) != 0 {
		t.Errorf("%q did not wait", got)
	}
	close(lobby)
	eventually(t, "the phone is let in", func() bool { return len(h.members("standup")) == 1 })
	p.call.Bye(16, "")
	eventually(t, "the seat is given back", func() bool { return dir.open.Load() == 0 })

	_, refused := dir.wait()
	p = d.dial(h, carol, roomNumber)
	p.waitAnswer()
	close(refused)
	p.waitEnd()
	eventually(t, "the record is written", func() bool { return len(h.gate.Legs()) == 0 })
	if r := h.gate.Records(ledger.Filter{Limit: 1}); len(r) == 0 || r[0].Cause != call.CauseRejected {
		t.Errorf("%+v", r)
	}
}

// TestDialOut calls telephones that answer, ring, refuse, or are not there.
func TestDialOut(t *testing.T) {
	d := newDesk(t, "127.0.0.1")
	h := newHouse(t, nil, func(c *Config) {
		c.Trunks[0].Targets = []string{"sip:" + d.addr()}
		c.Outbound.RingTimeout = 2 * time.Second
	})
	a := d.dial(h, carol, roomNumber)
	a.waitAnswer()
	request := call.DialRequest{Room: "standup", By: "key", Number: "030 12345679", Name: "Dave", Dialtone: true}

	phones := make(chan *handset, 1)
	answer := make(chan struct{})
	d.onInvite(func(c *dialog.Call) {
		if got := c.Request().User; got != "+493012345679" {
			t.Errorf("%s was called", got)
		}
		if got := c.Request().From.User; got != "+4930123450" {
			t.Errorf("%q is shown", got)
		}
		s := d.session()
		sdp, err := s.Answer(c.Request().Offer)
		if err != nil {
			t.Error(err)
		}
		p := d.pickUp(c, s)
		p.say(1000)
		_ = c.Ring()
		<-answer
		// Early media is heard in the room before the answer.
		_ = c.Progress(183, sdp)
		<-answer
		s.Start()
		if err := c.Answer(context.Background(), sdp); err != nil {
			t.Error(err)
		}
		phones <- p
	})
	leg, err := h.gate.Dial(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	wait := func(want call.LegState) call.Leg {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		l, _ := h.gate.Leg(leg.ID)
		for l.State != want && l.State != call.LegEnded && ctx.Err() == nil {
			l, _ = h.gate.Wait(ctx, leg.ID, l.State)
		}
		if l.State != want {
			t.Fatalf("the call is %s (%s), want %s", l.State, l.Text, want)
		}
		return l
	}
	wait(call.LegRinging)
	a.hears(425, true)
	answer <- struct{}{}
	wait(call.LegEarly)
	a.hears(1000, true)
	a.hears(425, false)
	answer <- struct{}{}
	if l := wait(call.LegConfirmed); l.Identity == "" || l.Number != "+493012345679" {
		t.Errorf("%+v", l)
	}
	b := <-phones
	a.say(440)
	b.hears(440, true)
	if err := h.gate.Hangup(context.Background(), leg.ID); err != nil {
		t.Fatal(err)
	}
	if e := b.waitEnd(); e.Cause != dialog.EndBye {
		t.Errorf("%+v", e)
	}

	for _, c := range []struct {
		name   string
		invite func(*dialog.Call)
		cause  call.Cause
		code   int
	}{
		{"busy", func(c *dialog.Call) { _ = c.Ring(); _ = c.Reject(486, "") }, call.CauseBusy, 486},
		{"declined", func(c *dialog.Call) { _ = c.Reject(603, "") }, call.CauseRejected, 603},
		{"no such number", func(c *dialog.Call) { _ = c.Reject(404, "") }, call.CauseWrongNumber, 404},
		{"no line", func(c *dialog.Call) { _ = c.Reject(503, "") }, call.CauseNoLine, 503},
		{"never answered", func(c *dialog.Call) { _ = c.Ring(); <-c.Done() }, call.CauseNoAnswer, 487},
	} {
		d.onInvite(func(call *dialog.Call) { go drain(call); c.invite(call) })
		l, err := h.gate.Dial(context.Background(), request)
		if err != nil && l.ID == "" {
			t.Fatalf("%s: %v", c.name, err)
		}
		if last := h.ended(l.ID); last.Cause != c.cause || last.Code != c.code {
			t.Errorf("%s: %s %d, want %s %d", c.name, last.Cause, last.Code, c.cause, c.code)
		}
	}

	// We give up while it rings.
	cancelled := make(chan struct{})
	d.onInvite(func(c *dialog.Call) { go drain(c); _ = c.Ring(); <-c.Done(); close(cancelled) })
	if leg, err = h.gate.Dial(context.Background(), request); err != nil {
		t.Fatal(err)
	}
	wait(call.LegRinging)
	if err := h.gate.Hangup(context.Background(), leg.ID); err != nil {
		t.Fatal(err)
	}
	select {
	case <-cancelled:
	case <-time.After(patience):
		t.Error("the phone rings on")
	}
	if last := h.ended(leg.ID); last.Cause != call.CauseCancelled || last.Code != 487 {
		t.Errorf("%s %d", last.Cause, last.Code)
	}
}

// TestFailOver tries the next target and the next trunk when a line does not work,
// and not when the phone has said no.
func TestFailOver(t *testing.T) {
	d, dead := newDesk(t, "127.0.0.1"), newDesk(t, "127.0.0.1")
	h := newHouse(t, nil, func(c *Config) {
		second := c.Trunks[0]
		second.ID, second.Targets, second.Priority = "second", []string{"sip:" + d.addr()}, 1
		c.Trunks[0].Targets = []string{"sip:127.0.0.1:9;transport=tcp", "sip:" + dead.addr()}
		c.Trunks = append(c.Trunks, second)
	})
	var tried atomic.Int32
	dead.onInvite(func(c *dialog.Call) { go drain(c); tried.Add(1); _ = c.Reject(500, "") })
	d.onInvite(func(c *dialog.Call) { go drain(c); _ = c.Reject(486, "") })
	request := call.DialRequest{Room: "standup", By: "key", Number: "+493012345679"}
	l, _ := h.gate.Dial(context.Background(), request)
	if last := h.ended(l.ID); last.Cause != call.CauseBusy || last.Trunk != "second" || tried.Load() != 1 {
		t.Errorf("%s over %s after %d", last.Cause, last.Trunk, tried.Load())
	}
	dead.onInvite(func(c *dialog.Call) { go drain(c); tried.Add(1); _ = c.Reject(404, "") })
	l, _ = h.gate.Dial(context.Background(), request)
	if last := h.ended(l.ID); last.Cause != call.CauseWrongNumber || last.Trunk != "desk" {
		t.Errorf("a wrong number was tried again: %s over %s", last.Cause, last.Trunk)
	}
}

// TestNothingIsSent asks for calls that the policy forbids.
func TestNothingIsSent(t *testing.T) {
	d := newDesk(t, "127.0.0.1")
	var called atomic.Int32
	d.onInvite(func(c *dialog.Call) { go drain(c); called.Add(1); _ = c.Reject(486, "") })
	h := newHouse(t, nil, func(c *Config) { c.Trunks[0].Targets = []string{"sip:" + d.addr()} })
	for _, c := range []struct {
		number string
		kind   error
		reason numbers.Reason
	}{
		{"112", call.ErrForbidden, numbers.Emergency},
		{"+49 112", call.ErrForbidden, numbers.Emergency},
		{"+1 202 555 0123", call.ErrForbidden, numbers.NoRoute},
		{"0900 1234567", call.ErrForbidden, numbers.CostlyType},
		{"bob@evil.example", call.ErrInvalid, numbers.Malformed},
		{"+4930;phone-context=x", call.ErrInvalid, numbers.Malformed},
		{roomNumber, call.ErrForbidden, numbers.OwnNumber},
	} {
		l, err := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: c.number})
		var refusal *numbers.Refusal
		if !errors.Is(err, c.kind) || !errors.As(err, &refusal) || refusal.Reason != c.reason {
			t.Errorf("%s: %v", c.number, err)
		}
		if l.State != call.LegEnded || l.Text == "" || CauseOf(err) != l.Cause {
			t.Errorf("%s: %+v", c.number, l)
		}
	}
	if _, err := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "@mallory:example.org", Number: "+493012345679"}); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a user without rights: %v", err)
	}
	if _, err := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: "+493012345679", Headers: map[string]string{"From": "x"}}); !errors.Is(err, call.ErrInvalid) {
		t.Errorf("a forged header: %v", err)
	}
	if n := called.Load(); n != 0 {
		t.Errorf("%d calls went out", n)
	}
}

// TestTransferOut sends a phone elsewhere by REFER.
func TestTransferOut(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	for _, c := range []struct {
		name string
		code int
		ok   bool
	}{{"the new call is answered", 200, true}, {"the new call is refused", 486, false}} {
		p := d.dial(h, carol, roomNumber)
		p.referred(func(e dialog.Referred) {
			if e.To.User != "+493012345679" {
				t.Errorf("referred to %q", e.To.URI)
			}
			_ = p.call.ReferResult(e.ID, 100, "Trying")
			_ = p.call.ReferResult(e.ID, c.code, "")
		})
		p.waitAnswer()
		eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
		id := h.gate.Legs()[0].ID
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := h.gate.Transfer(ctx, id, "112", nil); !errors.Is(err, call.ErrForbidden) {
			t.Errorf("transferred to an emergency number: %v", err)
		}
		err := h.gate.Transfer(ctx, id, "+49 30 12345679", map[string]string{"X-Why": "test"})
		if c.ok {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			p.waitEnd()
			if last := h.ended(id); last.Cause != call.CauseTransferred {
				t.Errorf("%s: %s", c.name, last.Cause)
			}
			continue
		}
		var status *call.StatusError
		if !errors.As(err, &status) || status.Code != c.code {
			t.Errorf("%s: %v", c.name, err)
		}
		if l, _ := h.gate.Leg(id); l.State != call.LegConfirmed {
			t.Errorf("%s: the call is %s", c.name, l.State)
		}
		p.call.Bye(16, "")
		h.ended(id)
	}
}

// TestTransferIn is a phone that wants us to call another into its room.
func TestTransferIn(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		d := newDesk(t, "127.0.0.1")
		h := newHouse(t, nil, func(c *Config) {
			c.Trunks[0].Targets = []string{"sip:" + d.addr()}
			c.Outbound.AllowRefer = allowed
		})
		var called atomic.Int32
		d.onInvite(func(c *dialog.Call) {
			called.Add(1)
			s := d.session()
			sdp, err := s.Answer(c.Request().Offer)
			if err != nil {
				t.Error(err)
			}
			d.pickUp(c, s)
			_ = c.Answer(context.Background(), sdp)
		})
		p := d.dial(h, carol, roomNumber)
		p.waitAnswer()
		eventually(t, "the phone is in its room", func() bool { return len(h.members("standup")) == 1 })
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.call.Refer(ctx, "sip:+493012345679@"+h.addr(), nil); err != nil {
			t.Fatal(err)
		}
		code := 0
		for code < 200 {
			select {
			case e := <-p.refers:
				code = e.Code
			case <-ctx.Done():
				t.Fatal("nobody says how the transfer went")
			}
		}
		if allowed != (code == 200) || allowed != (called.Load() == 1) {
			t.Errorf("allowed %v: %d, %d calls", allowed, code, called.Load())
		}
		// The one who asked hangs up; the new phone stays.
		p.call.Bye(16, "")
		p.waitEnd()
		want := 0
		if allowed {
			want = 1
		}
		eventually(t, "who is left", func() bool { return len(h.members("standup")) == want })
		h.stop()
	}
}

// TestTakenOver moves a leg to another dialog (INVITE with Replaces): the room does
// not notice.
func TestTakenOver(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a, b := d.dial(h, carol, roomNumber), d.dial(h, dave, roomNumber)
	a.waitAnswer()
	b.waitAnswer()
	a.hears(1000, false)
	eventually(t, "both are there", func() bool { return len(h.members("standup")) == 2 })
	s := d.session()
	offer, err := s.Offer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.ep.Dial(context.Background(), dialog.Outgoing{
		To: roomNumber, From: "+493012345673", SDP: offer, Target: dialog.Target{URI: "sip:" + h.addr()},
		Replaces: b.call.Dialog(), Ringing: patience,
	})
	if err != nil {
		t.Fatal(err)
	}
	n := d.pickUp(c, s)
	n.waitAnswer()
	b.waitEnd()
	n.say(1000)
	a.hears(1000, true)
	if got := h.members("standup"); len(got) != 2 {
		t.Errorf("in the room: %q", got)
	}
	n.call.Bye(16, "")
	eventually(t, "the leg ends with its new dialog", func() bool { return len(h.members("standup")) == 1 })
}

// TestKeysToPhone presses keys towards a phone, as events and by INFO.
func TestKeysToPhone(t *testing.T) {
	for _, how := range []string{"rfc4733", "info"} {
		h := newHouse(t, nil, func(c *Config) { c.Trunks[0].DTMF = how })
		d := newDesk(t, "127.0.0.1")
		p := d.dial(h, carol, roomNumber)
		p.waitAnswer()
		eventually(t, "the leg is there", func() bool { return len(h.members("standup")) == 1 })
		h.gate.DigitsTo("standup", nil, "1w2#")
		h.gate.DigitsTo("elsewhere", nil, "9")
		eventually(t, "the keys arrive by "+how, func() bool { return p.pressed() == "12#" })
		if err := h.gate.Digits(h.gate.Legs()[0].ID, "1;rm"); !errors.Is(err, call.ErrInvalid) {
			t.Errorf("%v", err)
		}
		h.stop()
	}
}

// TestEarlySound lets the caller hear ringing before the answer.
func TestEarlySound(t *testing.T) {
	dir := &fakeDirectory{ringing: make(chan struct{})}
	h := newHouse(t, dir, func(c *Config) { c.Trunks[0].EarlyMedia = true })
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, userNumber)
	p.hears(425, true)
	if l := h.gate.Legs(); len(l) != 1 || l[0].State != call.LegEarly {
		t.Errorf("%+v", l)
	}
	close(dir.ringing)
	p.waitAnswer()
	p.hears(425, false)
}

// TestDigest asks callers for a password.
func TestDigest(t *testing.T) {
	h := newHouse(t, nil, func(c *Config) {
		c.Trunks[0].In = call.TrunkInbound{Digest: true}
		c.Trunks[0].Auth = call.TrunkAuth{Username: "desk", Password: "right"}
	})
	d := newDesk(t, "127.0.0.1")
	try := func(password string) *handset {
		s := d.session()
		offer, err := s.Offer()
		if err != nil {
			t.Fatal(err)
		}
		c, err := d.ep.Dial(context.Background(), dialog.Outgoing{
			To: roomNumber, From: carol, SDP: offer, Ringing: patience,
			Target: dialog.Target{URI: "sip:" + h.addr(), Username: "desk", Password: password},
		})
		if err != nil {
			t.Fatal(err)
		}
		return d.pickUp(c, s)
	}
	try("right").waitAnswer()
	if _, known := h.gate.hostOf(h.gate.lines.Load(), netip.MustParseAddr("127.0.0.1")); !known {
		t.Error("who has the password may be slowed down and shut out like a stranger")
	}
	wrong := try("wrong")
	select {
	case <-wrong.answered:
		t.Error("a wrong password was accepted")
	case <-wrong.ended:
	}
}

// TestLimits ends a call when its time is over, and refuses more than a trunk may
// carry.
func TestLimits(t *testing.T) {
	h := newHouse(t, nil, func(c *Config) {
		c.Trunks[0].MaxDuration = 2 * time.Second
		c.Trunks[0].MaxCalls = 1
	})
	d := newDesk(t, "127.0.0.1")
	p := d.dial(h, carol, roomNumber)
	p.waitAnswer()
	full := d.dial(h, dave, roomNumber)
	if e := full.waitEnd(); e.Code != 503 {
		t.Errorf("%+v", e)
	}
	p.waitEnd()
	eventually(t, "the record is there", func() bool { return len(h.gate.Legs()) == 0 })
	if r := h.gate.Records(ledger.Filter{Limit: 1}); r[0].Cause != call.CauseLimit {
		t.Errorf("%+v", r[0])
	}
}

// TestNothingInCommon refuses what cannot be spoken.
func TestNothingInCommon(t *testing.T) {
	h := newHouse(t, nil, func(c *Config) { c.Trunks[0].Codecs = []string{"G722"}; c.Trunks[0].SRTP = "require" })
	d := newDesk(t, "127.0.0.1")
	if e := d.dial(h, carol, roomNumber).waitEnd(); e.Code != 488 {
		t.Errorf("%+v", e)
	}
}

// TestTrunksByAPI adds and removes trunks and rules while the gateway runs.
func TestTrunksByAPI(t *testing.T) {
	h := newHouse(t, nil, nil)
	ctx := context.Background()
	trunk := call.Trunk{ID: "ST_1", Direction: "inbound", In: call.TrunkInbound{CIDRs: []string{"127.0.0.7"}}, Auth: call.TrunkAuth{Username: "u", Password: "p"}}
	if err := h.gate.SetTrunk(ctx, trunk); err != nil {
		t.Fatal(err)
	}
	d := newDesk(t, "127.0.0.7")
	d.dial(h, carol, roomNumber).waitAnswer()
	states := h.gate.Trunks()
	if len(states) != 2 || states[1].Source != "api" || states[1].Trunk.Auth.Password != "" || states[1].Calls != 1 {
		t.Errorf("%+v", states)
	}
	trunk.Auth.Password = "" // stays as it was
	trunk.Name = "renamed"
	if err := h.gate.SetTrunk(ctx, trunk); err != nil {
		t.Fatal(err)
	}
	if kept, _ := h.gate.lines.Load().trunk("ST_1"); kept.Auth.Password != "p" || kept.Name != "renamed" {
		t.Errorf("%+v", kept.Trunk)
	}
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a trunk of the configuration", h.gate.SetTrunk(ctx, call.Trunk{ID: "desk", Direction: "inbound"}), call.ErrConflict},
		{"a trunk that makes no sense", h.gate.SetTrunk(ctx, call.Trunk{ID: "x", Direction: "sideways"}), call.ErrInvalid},
		{"removing what is configured", h.gate.DeleteTrunk(ctx, "desk"), call.ErrConflict},
		{"removing nothing", h.gate.DeleteTrunk(ctx, "x"), call.ErrNotFound},
		{"a rule that makes no sense", h.gate.SetRule(ctx, call.DispatchRule{ID: "r", Action: call.DispatchAction{Type: "room"}}), call.ErrInvalid},
		{"a rule of the configuration", h.gate.SetRule(ctx, call.DispatchRule{ID: "config-1", Action: call.DispatchAction{Type: "pin"}}), call.ErrConflict},
		{"removing a rule that is not there", h.gate.DeleteRule(ctx, "r"), call.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	general := call.DispatchRule{ID: "SDR_1", Action: call.DispatchAction{Type: "individual", Room: "call", Randomize: true}}
	particular := call.DispatchRule{ID: "SDR_2", Match: call.DispatchMatch{Tos: []string{"+4930777"}}, Action: call.DispatchAction{Type: "room", Room: "seven"}}
	for _, r := range []call.DispatchRule{general, particular} {
		if err := h.gate.SetRule(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	if rules := h.gate.Rules(); len(rules) != 5 || rules[3].ID != "SDR_2" {
		t.Errorf("%+v", rules)
	}
	p := d.dial(h, dave, "+4930888")
	p.waitAnswer()
	legs := h.gate.Legs()
	if room := string(legs[len(legs)-1].Room); !strings.HasPrefix(room, "call_"+dave+"_") {
		t.Errorf("room %q", room)
	}
	if err := h.gate.DeleteTrunk(ctx, "ST_1"); err != nil {
		t.Fatal(err)
	}
	if n := len(h.gate.Legs()); n != 2 {
		t.Errorf("removing a trunk ended its calls: %d left", n)
	}
}

// TestNothingStays makes calls of all kinds and looks at what is left of them.
func TestNothingStays(t *testing.T) {
	d := newDesk(t, "127.0.0.1")
	h := newHouse(t, nil, func(c *Config) {
		c.Trunks[0].Targets = []string{"sip:" + d.addr()}
		c.Limits.MaxCalls, c.Limits.UserHourly = 0, 0
		c.Dispatch[1].Action = call.DispatchAction{Type: "individual", Randomize: true}
	})
	d.onInvite(func(c *dialog.Call) { go drain(c); _ = c.Ring(); _ = c.Reject(486, "") })
	one := func() {
		t.Helper()
		for _, to := range []string{roomNumber, menuNumber, "+4930999"} {
			s := d.session()
			offer, err := s.Offer()
			if err != nil {
				t.Fatal(err)
			}
			c, err := d.ep.Dial(context.Background(), dialog.Outgoing{To: to, From: carol, SDP: offer, Target: dialog.Target{URI: "sip:" + h.addr()}})
			if err != nil {
				t.Fatal(err)
			}
			for e := range c.Events() {
				if _, ok := e.(dialog.Answered); ok {
					c.Bye(16, "")
				}
			}
			s.Close()
		}
		l, _ := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: "+493012345679"})
		h.ended(l.ID)
	}
	gone := func() bool {
		stats := h.gate.pool.Stats()
		return len(h.gate.Legs()) == 0 && stats.Open == 0 && h.gate.endpoint.Stats().Calls == 0 && h.gate.bridges.Stats().Phones == 0
	}
	one()
	eventually(t, "the first calls are gone", gone)
	before := runtime.NumGoroutine()
	for range 15 {
		one()
	}
	eventually(t, "all calls are gone", gone)
	// Rooms close a while after their last participant; transactions end by timers.
	eventually(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() < before+40 })
	if n := h.gate.limits.Calls(""); n != 0 {
		t.Errorf("%d calls are still counted", n)
	}
}

// TestAttendedTransferOut connects two phones of ours with each other.
func TestAttendedTransferOut(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	a, b := d.dial(h, carol, roomNumber), d.dial(h, dave, roomNumber)
	a.waitAnswer()
	b.waitAnswer()
	eventually(t, "both are there", func() bool { return len(h.members("standup")) == 2 })
	var of = make(map[string]call.LegID)
	for _, l := range h.gate.Legs() {
		of[l.Number] = l.ID
	}
	a.referred(func(e dialog.Referred) {
		if !strings.HasPrefix(e.Replaces, b.call.CallID()) {
			t.Errorf("replaces %q, want the dialog of the other phone", e.Replaces)
		}
		_ = a.call.ReferResult(e.ID, 200, "OK")
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := h.gate.Transfer(ctx, of[carol], string(of[dave]), nil); err != nil {
		t.Fatal(err)
	}
	a.waitEnd()
}

// TestLessIsOffered offers the least that every phone has when all was too much.
func TestLessIsOffered(t *testing.T) {
	d := newDesk(t, "127.0.0.1")
	h := newHouse(t, nil, func(c *Config) { c.Trunks[0].Targets = []string{"sip:" + d.addr()} })
	var mu sync.Mutex
	var offers []string
	d.onInvite(func(c *dialog.Call) {
		go drain(c)
		mu.Lock()
		offers = append(offers, string(c.Request().Offer))
		mu.Unlock()
		_ = c.Reject(488, "")
	})
	l, _ := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: "+493012345679"})
	if last := h.ended(l.ID); last.Cause != call.CauseMedia || last.Code != 488 {
		t.Errorf("%s %d", last.Cause, last.Code)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(offers) != 2 || !strings.Contains(offers[0], "G722") || strings.Contains(offers[1], "G722") || !strings.Contains(offers[1], "PCMU") {
		t.Errorf("%q", offers)
	}
}

// TestLineOfTheRequest calls over a trunk that comes with the request.
func TestLineOfTheRequest(t *testing.T) {
	d := newDesk(t, "127.0.0.1")
	d.onInvite(func(c *dialog.Call) { go drain(c); _ = c.Reject(486, "") })
	h := newHouse(t, nil, func(c *Config) { c.Outbound.Allow = []string{"+4930"} })
	via := &call.Trunk{Targets: []string{"sip:" + d.addr()}}
	l, _ := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: "+493012345679", Via: via})
	if last := h.ended(l.ID); last.Cause != call.CauseBusy || last.Trunk != inlineTrunk {
		t.Errorf("%s over %s", last.Cause, last.Trunk)
	}
	_, err := h.gate.Dial(context.Background(), call.DialRequest{Room: "standup", By: "key", Number: "+498912345678", Via: via})
	if !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a line of one's own goes past the operator's list: %v", err)
	}
}

// TestProviderAsks answers the OPTIONS of a provider that takes calls out alone, and
// never shuts it out.
func TestProviderAsks(t *testing.T) {
	provider := newDesk(t, "127.0.0.8")
	h := newHouse(t, nil, func(c *Config) {
		c.Block.BanAfter = 2
		c.Trunks = append(c.Trunks, call.Trunk{
			ID: "out", Direction: "outbound", Targets: []string{"sip:" + provider.addr()}, Allow: []string{"+43"},
		})
	})
	eventually(t, "the provider's host is known", func() bool {
		_, ok := h.gate.hostOf(h.gate.lines.Load(), netip.MustParseAddr("127.0.0.8"))
		return ok
	})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range 5 {
		r, err := provider.ep.Request(ctx, dialog.Message{Method: "OPTIONS", Target: dialog.Target{URI: "sip:" + h.addr()}})
		if err != nil || r.Code != 200 {
			t.Fatalf("%d %v", r.Code, err)
		}
	}
	// But calls may not come over it.
	p := provider.dial(h, carol, roomNumber)
	select {
	case e := <-p.progress:
		t.Errorf("told %d", e.Code)
	case <-p.answered:
		t.Error("a call over a trunk for calls out was answered")
	case <-time.After(time.Second):
	}
	if bans := h.gate.Bans(); len(bans) != 0 {
		t.Errorf("%+v", bans)
	}
}

// TestCrowd has many phones come, go and be thrown out at once.
func TestCrowd(t *testing.T) {
	h := newHouse(t, nil, nil)
	d := newDesk(t, "127.0.0.1")
	var all []*handset
	for i := range 24 {
		all = append(all, d.dial(h, fmt.Sprintf("+4930123457%02d", i), roomNumber))
	}
	for i, p := range all {
		p.waitAnswer()
		if i%2 == 0 {
			p.call.Bye(16, "")
		}
	}
	eventually(t, "half of them are left", func() bool { return len(h.members("standup")) == 12 })
	h.sfu.DeleteRoom("standup", sfu.ReasonRoomDeleted)
	for i, p := range all {
		if e := p.waitEnd(); i%2 == 1 && (e.Cause != dialog.EndBye || e.Q850 != 16) {
			t.Errorf("phone %d: %+v", i, e)
		}
	}
	eventually(t, "nothing is left", func() bool { return len(h.gate.Legs()) == 0 && h.gate.pool.Stats().Open == 0 })
	ended := 0
	for _, r := range h.gate.Records(ledger.Filter{}) {
		if r.Cause == call.CauseRoomEnded {
			ended++
		}
	}
	if ended != 12 {
		t.Errorf("%d records say that the room has ended", ended)
	}
}
