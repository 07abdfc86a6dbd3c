package homeserver

import (
	"errors"
	"testing"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

func TestAuthenticate(t *testing.T) {
	w := newWorld(t)
	alice, guest := w.register("alice"), w.guest()
	boss, err := w.s.CreateUser(t.Context(), "boss", testPassword, true)
	if err != nil {
		t.Fatal(err)
	}
	bossToken, _, err := w.s.Login(t.Context(), boss, "phone")
	if err != nil {
		t.Fatal(err)
	}
	gone := w.register("gone")
	w.must("POST", c("/logout"), gone.token, map[string]any{})
	for _, c := range []struct {
		name, token string
		user        matrix.UserID
		admin       bool
	}{
		{"a user", alice.token, alice.id, false},
		{"an administrator", bossToken, boss, true},
		{"a guest", guest.token, "", false},
		{"somebody who logged out", gone.token, "", false},
		{"nobody", "syt_nothing", "", false},
		{"no token", "", "", false},
	} {
		user, admin, err := w.s.Authenticate(t.Context(), c.token)
		if user != c.user || admin != c.admin || (err == nil) != (c.user != "") || err != nil && !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s is %q, %t, %v", c.name, user, admin, err)
		}
	}
}
