package signaling

import (
	"errors"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// TestLobbyOfARoomThatIsEncrypted encrypts a room while a phone waits in its lobby:
// the phone has no keys, and nothing may be said in clear there any more.
func TestLobbyOfARoomThatIsEncrypted(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	ctx := t.Context()
	alice := w.register("alice")
	room := w.room(alice, []any{map[string]any{"type": dialInType, "content": map[string]any{"lobby": true, "e2ee": "allow"}}})
	seat, err := w.d.Seat(ctx, w.at(room), inboundPhone)
	if err != nil || seat.Lobby == nil || seat.Keys != nil {
		t.Fatalf("seat %+v, %v", seat, err)
	}
	defer seat.Leave(ctx)
	if _, err := w.home.SendStateAs(ctx, room, alice.id, "", "m.room.encryption", "", map[string]any{"algorithm": "m.megolm.v1.aes-sha2"}); err != nil {
		t.Fatal(err)
	}
	if err := w.d.Admit(ctx, "SCL_in", string(alice.id), true); !errors.Is(err, call.ErrRoomEncrypted) {
		t.Errorf("let in: %v", err)
	}
	select {
	case <-seat.Refused:
	case <-seat.Lobby:
		t.Error("a phone without keys is in an encrypted call")
	case <-time.After(patience):
		t.Error("the phone waits on")
	}
	if n := len(w.calls(room)); n != 0 {
		t.Errorf("%d call memberships", n)
	}
}

// TestEncryptionMayBeKept asks who may let encryption end at the gateway.
func TestEncryptionMayBeKept(t *testing.T) {
	w := newPhoneWorld(t, t.TempDir())
	alice, bob := w.register("alice"), w.register("bob")
	room := w.room(alice, nil)
	for _, c := range []struct {
		name, e2ee string
		direct     bool
		phone      call.Phone
		may        bool
	}{
		{"the room says so", "allow", false, inboundPhone, true},
		{"the room says nothing", "", false, inboundPhone, false},
		{"the room says no", "deny", false, inboundPhone, false},
		{"whoever has the power dials", "", false, call.Phone{Direction: call.Outbound, By: string(alice.id)}, true},
		{"and the room says no", "deny", false, call.Phone{Direction: call.Outbound, By: string(alice.id)}, false},
		{"a stranger dials", "", false, call.Phone{Direction: call.Outbound, By: string(bob.id)}, false},
		{"an API key dials", "", false, call.Phone{Direction: call.Outbound, By: "key"}, false},
		{"a conversation of two", "", true, inboundPhone, true},
		{"a conversation of two says no", "deny", true, inboundPhone, false},
	} {
		err := w.d.mayEndEncryption(t.Context(), room, dialIn{e2ee: c.e2ee}, &phoneSeat{phone: c.phone, direct: c.direct})
		if (err == nil) != c.may || err != nil && !errors.Is(err, call.ErrRoomEncrypted) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
