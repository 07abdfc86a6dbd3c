package homeserver

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

func TestPhoneGhost(t *testing.T) {
	w := newWorld(t)
	for number, want := range map[string]matrix.UserID{
		"+49 30 123456": "@_phone_4930123456:test.example", "4930123456": "@_phone_4930123456:test.example", "101": "@_phone_101:test.example",
		"": "", "1": "", "anonymous": "", "1234567890123456": "",
	} {
		if got := w.s.PhoneGhost(number); got != want {
			t.Errorf("PhoneGhost(%q) = %q, want %q", number, got, want)
		}
	}
	for user, want := range map[matrix.UserID]string{
		"@_phone_4930123456:test.example": "4930123456", "@_phone_4930123456:elsewhere.example": "", "@_phone_anonymous:test.example": "",
		"@_phone_+4930:test.example": "", "@alice:test.example": "", "@_phone_1:test.example": "",
	} {
		if got := w.s.phoneOf(user); got != want {
			t.Errorf("phoneOf(%q) = %q, want %q", user, got, want)
		}
	}
}

// TestGhostProfile proves that nobody learns from profiles which numbers have
// called or been called here.
func TestGhostProfile(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	known, unknown := "/profile/@_phone_4930111111:test.example", "/profile/@_phone_4930222222:test.example"
	w.refuse("GET", c(unknown), alice.token, nil, http.StatusNotFound, matrix.CodeNotFound)
	w.s.SetPhones(func(digits string) string { return "+" + digits })
	if _, err := w.s.EnsureGhost(t.Context(), "_phone_4930111111", "+4930111111"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{known: "+4930111111", unknown: "+4930222222"} {
		rep := w.must("GET", c(path), alice.token, nil)
		if len(rep.body) != 1 || rep.str("displayname") != want {
			t.Errorf("%s: %s", path, rep.raw)
		}
		if rep = w.must("GET", c(path+"/displayname"), alice.token, nil); rep.str("displayname") != want {
			t.Errorf("%s/displayname: %s", path, rep.raw)
		}
		w.refuse("GET", c(path+"/avatar_url"), alice.token, nil, http.StatusNotFound, matrix.CodeNotFound)
	}
	if all, err := w.s.ListUsers(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("the operator's list of users: %+v, %v", all, err)
	}
}

func TestGhostInvited(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	room := w.must("POST", c("/createRoom"), alice.token, map[string]any{"preset": "private_chat"}).str("room_id")
	invite := map[string]any{"user_id": "@_phone_4930123456:test.example"}
	w.refuse("POST", c("/rooms/"+room+"/invite"), alice.token, invite, http.StatusNotFound, matrix.CodeNotFound)
	w.s.SetPhones(func(digits string) string { return "+" + digits })
	w.must("POST", c("/rooms/"+room+"/invite"), alice.token, invite)
	e, err := w.s.RoomStateEvent(t.Context(), matrix.RoomID(room), "m.room.member", "@_phone_4930123456:test.example")
	if err != nil || e == nil || e.Membership() != matrix.MembershipInvite || e.ContentString("displayname") != "+4930123456" {
		t.Errorf("member event %+v, %v", e, err)
	}
	w.refuse("POST", c("/rooms/"+room+"/invite"), alice.token, map[string]any{"user_id": "@_phone_anonymous:test.example"}, http.StatusNotFound, matrix.CodeNotFound)
}

// TestOnlyGhosts proves that what is for ghosts cannot be turned on people.
func TestOnlyGhosts(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	alice := w.register("alice")
	_, receiveErr := w.s.ReceiveToDevice(ctx, alice.id, alice.device)
	_, directErr := w.s.DirectRoom(ctx, alice.id, alice.id)
	for what, err := range map[string]error{
		"a device":           w.s.AddGhostDevice(ctx, alice.id, "D", "x"),
		"losing a device":    w.s.DeleteGhostDevice(ctx, alice.id, alice.device),
		"keys":               w.s.UploadGhostKeys(ctx, alice.id, alice.device, matrix.KeyUpload{}),
		"cross-signing keys": w.s.SetGhostCrossSigning(ctx, alice.id, nil),
		"sending":            w.s.SendToDeviceAs(ctx, alice.id, alice.device, "t", nil),
		"receiving":          receiveErr,
		"a conversation":     directErr,
	} {
		if !errors.Is(err, call.ErrForbidden) && !errors.Is(err, call.ErrNotFound) {
			t.Errorf("%s of a person: %v", what, err)
		}
	}
	if _, err := w.s.EnsureGhost(ctx, "alice", "x"); !errors.Is(err, call.ErrInvalid) {
		t.Errorf("a person as a ghost: %v", err)
	}
}

func TestDirectRoomOfAGhost(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	alice, guest := w.register("alice"), w.guest()
	ghost, err := w.s.EnsureGhost(ctx, "_phone_4930123456", "+4930123456")
	if err != nil {
		t.Fatal(err)
	}
	room, err := w.s.DirectRoom(ctx, ghost, alice.id)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := w.s.DirectRoom(ctx, ghost, alice.id); err != nil || again != room {
		t.Errorf("the second time: %s, %v, want %s", again, err, room)
	}
	if m, err := w.s.Membership(ctx, room, alice.id); err != nil || m != matrix.MembershipJoin {
		t.Errorf("the user is %q, %v: their clients cannot ring", m, err)
	}
	rep := w.must("GET", c("/user/"+string(alice.id)+"/account_data/m.direct"), alice.token, nil)
	if rooms, _ := rep.body[string(ghost)].([]any); len(rooms) != 1 || rooms[0] != string(room) {
		t.Errorf("m.direct: %s", rep.raw)
	}
	// Who has left it gets a new one, and so does who is no longer alone there.
	w.must("POST", c("/rooms/"+string(room)+"/leave"), alice.token, map[string]any{})
	next, err := w.s.DirectRoom(ctx, ghost, alice.id)
	if err != nil || next == room {
		t.Errorf("after leaving: %s, %v", next, err)
	}
	bob := w.register("bob")
	w.must("POST", c("/rooms/"+string(next)+"/invite"), alice.token, map[string]any{"user_id": bob.id})
	if third, err := w.s.DirectRoom(ctx, ghost, alice.id); err != nil || third == next {
		t.Errorf("with a third in the room: %s, %v: others would hear it ring", third, err)
	}
	for _, who := range []matrix.UserID{guest.id, "@nobody:test.example", ghost} {
		if _, err := w.s.DirectRoom(ctx, ghost, who); !errors.Is(err, call.ErrNotFound) {
			t.Errorf("DirectRoom with %s: %v", who, err)
		}
	}
}

func TestReceiveToDevice(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	ghost, err := w.s.EnsureGhost(t.Context(), "_phone_4930123456", "")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.s.AddGhostDevice(t.Context(), ghost, "PHONE", "Telephone"); err != nil {
		t.Fatal(err)
	}
	got := make(chan int, 1)
	go func() {
		events, _ := w.s.ReceiveToDevice(t.Context(), ghost, "PHONE")
		got <- len(events)
	}()
	w.must("PUT", c("/sendToDevice/a.type/1"), alice.token, map[string]any{
		"messages": map[string]any{string(ghost): map[string]any{"PHONE": map[string]any{"n": 1}}},
	})
	if n := <-got; n != 1 {
		t.Errorf("%d messages", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if events, err := w.s.ReceiveToDevice(ctx, ghost, "PHONE"); len(events) != 0 || err == nil {
		t.Errorf("a message came twice: %s, %v", events, err)
	}
}
