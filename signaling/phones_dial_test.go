package signaling

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// comes lets a user's client come into the call of a room, as after asking for a
// token; the returned function lets it go.
func (w *phoneWorld) comes(p phonePerson, room matrix.RoomID) (goes func()) {
	w.t.Helper()
	name, id := mediaRoom(room, legacySlot), plainIdentity(p.id, p.device)
	err := w.db.SaveMinted(w.t.Context(), call.Minted{
		Room: name, Identity: id, RoomID: string(room), UserID: string(p.id), DeviceID: string(p.device), Expires: time.Now().Add(time.Hour),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.s.rtc.here(name, id)
	return func() { w.s.rtc.gone(name, id, true) }
}

// sit does what the gateway does for a call that it has begun.
func (w *phoneWorld) sit(r call.DialRequest, leg call.LegID) call.Seat {
	w.t.Helper()
	at, err := w.d.Room(w.t.Context(), r.RoomID)
	if err != nil {
		w.t.Fatal(err)
	}
	seat, err := w.d.Seat(w.t.Context(), at, call.Phone{Number: r.Number, Direction: call.Outbound, By: r.By, Leg: leg})
	if err != nil {
		w.t.Fatal(err)
	}
	return seat
}

func TestInvitedPhoneIsCalled(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice := w.register("alice")
	room := w.room(alice, nil)
	invite := func() {
		t.Helper()
		w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/invite", alice.token, map[string]any{"user_id": testGhost})
	}
	left := func() bool { return w.members(room)[testGhost] == "" }

	// Answered.
	invite()
	eventually(t, "the number is called", func() bool { return len(w.phones.dials()) == 1 })
	r := w.phones.dials()[0]
	if r.Number != "+49301234567" || r.By != string(alice.id) || r.RoomID != string(room) || r.Room != mediaRoom(room, legacySlot) {
		t.Errorf("dialled %+v", r)
	}
	seat := w.sit(r, "SCL_1")
	w.phones.set("SCL_1", func(l *call.Leg) { l.State, l.Answered = call.LegAnswered, time.Now() })
	if w.members(room)[testGhost] != matrix.MembershipJoin || len(w.calls(room)) != 1 {
		t.Errorf("members %v, calls %q", w.members(room), w.calls(room))
	}
	seat.Leave(ctx)
	eventually(t, "the phone leaves the room", left)
	if words := w.said(room, alice); len(words) != 0 {
		t.Errorf("said of a call that went well: %q", words)
	}
	if n := len(w.phones.dials()); n != 1 {
		t.Errorf("%d calls for one invitation; the gateway's own invitations count", n)
	}

	// Everything else is said, and the phone goes.
	for i, c := range []struct {
		cause call.Cause
		words string
	}{
		{call.CauseBusy, "+49301234567: busy."},
		{call.CauseNoAnswer, "+49301234567: no answer."},
		{call.CauseWrongNumber, "+49301234567: this number does not exist."},
		{call.CauseRejected, "+49301234567: the call was rejected."},
		{call.CauseNoLine, "+49301234567: no line is free."},
	} {
		invite()
		id := call.LegID(fmt.Sprintf("SCL_%d", i+2))
		eventually(t, "the number is called", func() bool { return len(w.phones.dials()) == i+2 })
		seat := w.sit(w.phones.dials()[i+1], id)
		w.phones.set(id, func(l *call.Leg) { l.State = call.LegRinging })
		seat.Leave(ctx)
		w.phones.set(id, func(l *call.Leg) { l.State, l.Cause = call.LegEnded, c.cause })
		eventually(t, "the phone leaves the room", left)
		if words := w.said(room, alice); !slices.Contains(words, c.words) {
			t.Errorf("said %q, want %q among it", words, c.words)
		}
	}

	// What the gateway does not even try.
	w.phones.mu.Lock()
	w.phones.refuse = fmt.Errorf("calls to +4930 are not allowed: %w", call.ErrForbidden)
	w.phones.mu.Unlock()
	invite()
	const refused = "+49301234567: not called. calls to +4930 are not allowed"
	eventually(t, "the refusal is said", func() bool { return slices.Contains(w.said(room, alice), refused) && left() })
}

func TestInvitationsThatCallNobody(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	alice := w.register("alice")
	room := w.room(alice, nil)
	for _, user := range []string{"@_phone_1:test.example", "@_phone_1234567890123456:test.example", "@_phone_x:test.example", "@_phone_49a301:test.example"} {
		status, _ := w.do("POST", "/_matrix/client/v3/rooms/"+string(room)+"/invite", alice.token, map[string]any{"user_id": user})
		if status == 200 {
			t.Errorf("%s could be invited", user)
		}
	}
	// A seat's own invitation is no wish to call.
	seat, err := w.d.Seat(t.Context(), w.at(room), inboundPhone)
	if err != nil {
		t.Fatal(err)
	}
	seat.Leave(t.Context())
	// Somebody who may not be in calls.
	bob := w.register("bob")
	quiet := w.room(alice, []any{map[string]any{"type": "m.room.power_levels", "content": map[string]any{
		"users": map[string]any{}, "invite": 0, "events": map[string]any{callMemberType: 50},
	}}}, bob)
	w.must("POST", "/_matrix/client/v3/rooms/"+string(quiet)+"/invite", bob.token, map[string]any{"user_id": testGhost})
	eventually(t, "the refusal is said", func() bool {
		return slices.ContainsFunc(w.said(quiet, alice), func(s string) bool { return strings.Contains(s, "may not take part in calls") })
	})
	if n := len(w.phones.dials()); n != 0 {
		t.Errorf("%d numbers were called", n)
	}
}

func TestMayDial(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice, eve := w.register("alice"), w.register("eve")
	room := w.room(alice, []any{map[string]any{"type": "m.room.guest_access", "content": map[string]any{"guest_access": "can_join"}}})
	out := w.must("POST", "/_matrix/client/v3/register?kind=guest", "", map[string]any{})
	guest := phonePerson{id: matrix.UserID(out["user_id"].(string)), token: out["access_token"].(string)}
	w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/invite", alice.token, map[string]any{"user_id": guest.id})
	w.must("POST", "/_matrix/client/v3/rooms/"+string(room)+"/join", guest.token, map[string]any{})
	for _, c := range []struct {
		name, by, room string
		may            bool
	}{
		{"a member", string(alice.id), string(room), true},
		{"a stranger", string(eve.id), string(room), false},
		{"a guest", string(guest.id), string(room), false},
		{"nobody", "@nobody:test.example", string(room), false},
		{"a member of no room", string(alice.id), "!none:test.example", false},
		{"an API key", "APIkey", string(room), true},
		{"a media room", string(alice.id), "", true},
	} {
		err := w.d.MayDial(ctx, c.by, c.room)
		if (err == nil) != c.may || err != nil && !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := w.home.CreateUser(ctx, "root", "correct horse", true); err != nil {
		t.Fatal(err)
	}
	for user, old := range map[string]bool{"@root:test.example": true, string(alice.id): false} {
		if made, err := w.d.AccountCreated(ctx, user); err != nil || (time.Since(made) > time.Hour) != old {
			t.Errorf("account of %s made at %v, %v", user, made, err)
		}
	}
}

func TestRing(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice := w.register("alice")
	type result struct {
		seat call.Seat
		err  error
	}
	ring := func(ctx context.Context, timeout time.Duration) chan result {
		done := make(chan result, 1)
		go func() {
			seat, err := w.d.Ring(ctx, string(alice.id), inboundPhone, timeout)
			done <- result{seat, err}
		}()
		return done
	}
	await := func(done chan result) result {
		t.Helper()
		select {
		case r := <-done:
			return r
		case <-time.After(patience):
			t.Fatal("Ring does not return")
		}
		return result{}
	}
	// The room in which it rings, and the notification.
	var room matrix.RoomID
	var rung []string
	rings := func() bool {
		out := w.must("GET", "/_matrix/client/v3/joined_rooms", alice.token, nil)
		rooms := out["joined_rooms"].([]any)
		if len(rooms) != 1 {
			return false
		}
		room = matrix.RoomID(rooms[0].(string))
		n := len(rung)
		rung = nil
		for _, e := range w.timeline(room, alice) {
			if e["type"] == notificationType && e["content"].(map[string]any)["notification_type"] == "ring" {
				rung = append(rung, e["event_id"].(string))
			}
		}
		return len(rung) > n
	}

	done := ring(ctx, time.Minute)
	eventually(t, "it rings", rings)
	direct := w.must("GET", "/_matrix/client/v3/user/"+string(alice.id)+"/account_data/m.direct", alice.token, nil)
	if rooms, _ := direct[testGhost].([]any); len(rooms) != 1 || rooms[0] != string(room) {
		t.Errorf("m.direct %v", direct)
	}
	second := func(state string) {
		t.Helper()
		if r := await(ring(ctx, time.Minute)); !errors.Is(r.err, call.ErrForbidden) {
			t.Errorf("a second caller while the first one %s: %+v, %v", state, r.seat, r.err)
		}
	}
	second("rings")
	goes := w.comes(alice, room)
	r := await(done)
	second("speaks")
	if r.err != nil || r.seat.RoomID != string(room) || len(w.calls(room)) != 1 {
		t.Fatalf("answered: %+v, %v, calls %q", r.seat, r.err, w.calls(room))
	}
	// The user hangs up: so must the phone, and it stays for the next call.
	goes()
	eventually(t, "the phone is hung up", func() bool {
		w.phones.mu.Lock()
		defer w.phones.mu.Unlock()
		return slices.Contains(w.phones.hungUp, inboundPhone.Leg)
	})
	r.seat.Leave(ctx)
	if len(w.calls(room)) != 0 || w.members(room)[testGhost] != matrix.MembershipJoin {
		t.Errorf("after the call: calls %q, members %v", w.calls(room), w.members(room))
	}

	// Declined; other people's declines, or of other calls, do not count.
	done = ring(ctx, time.Minute)
	eventually(t, "it rings again in the same room", rings)
	decline := func(id string) {
		w.must("PUT", "/_matrix/client/v3/rooms/"+string(room)+"/send/"+declineType+"/"+id[1:9], alice.token, map[string]any{
			"m.relates_to": map[string]any{"rel_type": "m.reference", "event_id": id},
		})
	}
	decline(rung[0])
	select {
	case r := <-done:
		t.Fatalf("declining an old call ended this one: %v", r.err)
	case <-time.After(50 * time.Millisecond):
	}
	decline(rung[len(rung)-1])
	if r = await(done); !errors.Is(r.err, call.ErrForbidden) {
		t.Errorf("declined: %v", r.err)
	}

	// Nobody answers.
	if r = await(ring(ctx, 10*time.Millisecond)); !errors.Is(r.err, call.ErrUnavailable) {
		t.Errorf("no answer: %v", r.err)
	}
	// The caller gives up.
	short, cancel := context.WithCancel(ctx)
	done = ring(short, time.Minute)
	eventually(t, "it rings", rings)
	cancel()
	if r = await(done); !errors.Is(r.err, call.ErrUnavailable) {
		t.Errorf("the caller gave up: %v", r.err)
	}
	if len(w.calls(room)) != 0 {
		t.Errorf("calls that nobody is in: %q", w.calls(room))
	}
	if _, err := w.d.Ring(ctx, "@nobody:test.example", inboundPhone, time.Second); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("ringing nobody: %v", err)
	}
}

// TestConversationWithAPhone opens a chat with a number, as Element does when one
// starts a direct message, and begins a call in it.
func TestConversationWithAPhone(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	alice := w.register("alice")
	out := w.must("POST", "/_matrix/client/v3/createRoom", alice.token, map[string]any{
		"preset": "trusted_private_chat", "is_direct": true, "invite": []any{testGhost},
	})
	room := matrix.RoomID(out["room_id"].(string))
	eventually(t, "the phone accepts", func() bool { return w.members(room)[testGhost] == matrix.MembershipJoin })
	eventually(t, "it says what to do", func() bool { return len(w.said(room, alice)) == 1 })
	if n := len(w.phones.dials()); n != 0 {
		t.Fatal("opening a chat let a telephone ring")
	}
	goes := w.comes(alice, room)
	eventually(t, "the number is called", func() bool { return len(w.phones.dials()) == 1 })
	seat := w.sit(w.phones.dials()[0], "SCL_1")
	if len(w.calls(room)) != 1 {
		t.Errorf("calls %q", w.calls(room))
	}
	goes() // before anybody answers
	eventually(t, "the call is given up", func() bool {
		w.phones.mu.Lock()
		defer w.phones.mu.Unlock()
		return slices.Contains(w.phones.hungUp, "SCL_1")
	})
	w.phones.set("SCL_1", func(l *call.Leg) { l.State, l.Cause = call.LegEnded, call.CauseCancelled })
	seat.Leave(t.Context())
	if w.members(room)[testGhost] != matrix.MembershipJoin {
		t.Error("the phone left the conversation: it could not be called again")
	}
	// Again.
	eventually(t, "the first call is over", func() bool {
		w.d.mu.Lock()
		defer w.d.mu.Unlock()
		return len(w.d.directs) == 0
	})
	w.comes(alice, room)
	eventually(t, "the number is called again", func() bool { return len(w.phones.dials()) == 2 })
	w.phones.set("SCL_2", func(l *call.Leg) { l.State, l.Cause = call.LegEnded, call.CauseBusy })
	eventually(t, "it is said", func() bool { return slices.Contains(w.said(room, alice), "+49301234567: busy.") })
}
