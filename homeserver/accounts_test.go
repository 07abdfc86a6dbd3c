package homeserver

import (
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

func userPath(p person, rest string) string {
	return c("/user/" + url.PathEscape(string(p.id)) + rest)
}

func TestRegistrationAsksInTwoSteps(t *testing.T) {
	w := newWorld(t)
	first := w.send("POST", c("/register"), "", "{}")
	if first.status != 401 || first.str("session") == "" || first.body["params"] == nil || first.body["errcode"] != nil {
		t.Fatalf("first step: %d %s", first.status, first.raw)
	}
	if got := dig(first.body, "flows", 0, "stages", 0); got != "m.login.dummy" {
		t.Errorf("flow begins with %v", got)
	}
	// Clients ask first with nothing, then with all, then with auth: in one session.
	auth := map[string]any{"type": "m.login.dummy", "session": first.str("session")}
	rep := w.must("POST", c("/register"), "", map[string]any{"username": "Alice", "password": testPassword, "auth": auth, "initial_device_display_name": "kitchen"})
	if rep.str("user_id") != "@alice:test.example" || rep.str("device_id") == "" || rep.str("access_token") == "" {
		t.Fatalf("registered: %s", rep.raw)
	}
	// The session is spent: a second account needs a new one.
	if again := w.send("POST", c("/register"), "", map[string]any{"username": "bob", "password": testPassword, "auth": map[string]any{"session": first.str("session")}}); again.status != 401 || again.str("session") == first.str("session") {
		t.Errorf("a finished session made another account: %d %s", again.status, again.raw)
	}
	// Parameters may stand in the first request alone.
	bound := w.send("POST", c("/register"), "", map[string]any{"username": "carol", "password": testPassword})
	rep = w.must("POST", c("/register"), "", map[string]any{"auth": map[string]any{"type": "m.login.dummy", "session": bound.str("session")}})
	if rep.str("user_id") != "@carol:test.example" {
		t.Errorf("the first request's parameters were forgotten: %s", rep.raw)
	}
}

func TestRegistrationRefuses(t *testing.T) {
	w := newWorld(t)
	w.register("alice")
	auth := map[string]any{"type": "m.login.dummy"}
	for name, row := range map[string]struct {
		body map[string]any
		code matrix.Code
	}{
		"a taken name":             {map[string]any{"username": "alice", "password": testPassword}, "M_USER_IN_USE"},
		"a taken name in capitals": {map[string]any{"username": "ALICE", "password": testPassword}, "M_USER_IN_USE"},
		"a name with a space":      {map[string]any{"username": "a b", "password": testPassword}, "M_INVALID_USERNAME"},
		"a name beyond ASCII":      {map[string]any{"username": "älice", "password": testPassword}, "M_INVALID_USERNAME"},
		"a name with a colon":      {map[string]any{"username": "a:b", "password": testPassword}, "M_INVALID_USERNAME"},
		"a bridge's name":          {map[string]any{"username": "_phone", "password": testPassword}, "M_INVALID_USERNAME"},
		"an endless name":          {map[string]any{"username": strings.Repeat("a", 250), "password": testPassword}, "M_INVALID_USERNAME"},
		"a weak password":          {map[string]any{"username": "bob", "password": "1234567"}, "M_WEAK_PASSWORD"},
		"no password":              {map[string]any{"username": "bob", "auth": auth}, "M_MISSING_PARAM"},
		"a name that is a number":  {map[string]any{"username": 7}, "M_BAD_JSON"},
	} {
		if got := w.send("POST", c("/register"), "", row.body); got.status != 400 || got.code() != string(row.code) {
			t.Errorf("%s: %d %s, want %s", name, got.status, got.raw, row.code)
		}
	}
	w.refuse("POST", c("/register?kind=robot"), "", "{}", 400, "M_INVALID_PARAM")
	w.refuse("GET", c("/register/available?username=alice"), "", nil, 400, "M_USER_IN_USE")
	if got := w.must("GET", c("/register/available?username=q.u-i_e=t/1"), "", nil); got.body["available"] != true {
		t.Errorf("available: %s", got.raw)
	}
}

func TestRegistrationModes(t *testing.T) {
	closed := newWorld(t, func(cfg *Config, _ *Deps) { cfg.Registration, cfg.Guests = RegistrationClosed, false })
	closed.refuse("POST", c("/register"), "", "{}", 403, "M_FORBIDDEN")
	closed.refuse("POST", c("/register?kind=guest"), "", "{}", 403, "M_GUEST_ACCESS_FORBIDDEN")
	if _, err := closed.s.CreateUser(t.Context(), "operator", testPassword, true); err != nil {
		t.Errorf("the operator cannot make accounts: %v", err)
	}

	w := newWorld(t, func(cfg *Config, _ *Deps) {
		cfg.Registration, cfg.RegistrationTokens = RegistrationToken, []string{"open sesame", "other"}
	})
	first := w.send("POST", c("/register"), "", map[string]any{"username": "bob", "password": testPassword})
	if dig(first.body, "flows", 0, "stages", 0) != "m.login.registration_token" {
		t.Fatalf("flows: %s", first.raw)
	}
	auth := map[string]any{"type": "m.login.registration_token", "session": first.str("session"), "token": "wrong"}
	if got := w.send("POST", c("/register"), "", map[string]any{"auth": auth}); got.status != 401 || got.code() != "M_FORBIDDEN" || got.str("session") != first.str("session") {
		t.Errorf("wrong token: %d %s", got.status, got.raw)
	}
	auth["type"] = "m.login.dummy"
	if got := w.send("POST", c("/register"), "", map[string]any{"auth": auth}); got.status != 401 {
		t.Errorf("a stage of no flow let somebody in: %d %s", got.status, got.raw)
	}
	auth["type"], auth["token"] = "m.login.registration_token", "open sesame"
	w.must("POST", c("/register"), "", map[string]any{"auth": auth})
	validity := "/_matrix/client/v1/register/m.login.registration_token/validity?token="
	if w.must("GET", validity+"other", "", nil).body["valid"] != true || w.must("GET", validity+"third", "", nil).body["valid"] != false {
		t.Error("validity of tokens is told wrongly")
	}
}

func TestLogin(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	login := func(user, password string, more ...any) reply {
		body := map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": user}, "password": password}
		for i := 0; i+1 < len(more); i += 2 {
			body[more[i].(string)] = more[i+1]
		}
		return w.send("POST", c("/login"), "", body)
	}
	for _, name := range []string{"alice", "@alice:test.example", "Alice"} {
		if got := login(name, testPassword); got.status != 200 || got.str("user_id") != string(alice.id) || got.str("device_id") == string(alice.device) {
			t.Errorf("login as %s: %d %s", name, got.status, got.raw)
		}
	}
	for _, row := range [][2]string{{"alice", "wrong horse"}, {"nobody", testPassword}, {"@alice:other.example", testPassword}, {"alice", ""}} {
		if got := login(row[0], row[1]); got.status != 403 || got.code() != "M_FORBIDDEN" {
			t.Errorf("login %v: %d %s", row, got.status, got.raw)
		}
	}
	w.refuse("POST", c("/login"), "", map[string]any{"type": "m.login.magic"}, 400, "M_UNKNOWN")
	w.refuse("POST", c("/login"), "", map[string]any{}, 400, "M_MISSING_PARAM")
	w.refuse("POST", c("/login"), "", map[string]any{"type": "m.login.password"}, 400, "M_MISSING_PARAM")
	w.refuse("POST", c("/login"), "", map[string]any{"type": "m.login.password", "identifier": "alice", "password": "x"}, 400, "M_BAD_JSON")

	// A login on a known device ends its older token and keeps the device.
	same := login("alice", testPassword, "device_id", alice.device)
	if same.str("device_id") != string(alice.device) {
		t.Fatalf("device was not taken over: %s", same.raw)
	}
	w.refuse("GET", c("/account/whoami"), alice.token, nil, 401, "M_UNKNOWN_TOKEN")
	who := w.must("GET", c("/account/whoami"), same.str("access_token"), nil)
	if who.str("user_id") != string(alice.id) || who.str("device_id") != string(alice.device) || who.body["is_guest"] != false {
		t.Errorf("whoami: %s", who.raw)
	}
	w.must("POST", c("/logout"), same.str("access_token"), nil)
	w.refuse("GET", c("/account/whoami"), same.str("access_token"), nil, 401, "M_UNKNOWN_TOKEN")
	if ok, err := w.s.DeviceExists(t.Context(), alice.id, alice.device); ok || err != nil {
		t.Errorf("device after logout: %v, %v", ok, err)
	}
}

func TestLogoutAllLeavesNothing(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	token, _, err := w.s.Login(t.Context(), alice.id, "second")
	if err != nil {
		t.Fatal(err)
	}
	w.must("POST", c("/logout/all"), token, "{}")
	w.refuse("GET", c("/account/whoami"), token, nil, 401, "M_UNKNOWN_TOKEN")
	w.refuse("GET", c("/account/whoami"), alice.token, nil, 401, "M_UNKNOWN_TOKEN")
	w.must("GET", c("/account/whoami"), bob.token, nil)
}

func TestRefreshTokens(t *testing.T) {
	w := newWorld(t)
	w.register("alice")
	rep := w.must("POST", c("/login"), "", map[string]any{"type": "m.login.password", "user": "alice", "password": testPassword, "refresh_token": true})
	if rep.str("refresh_token") == "" || rep.body["expires_in_ms"] == nil {
		t.Fatalf("login: %s", rep.raw)
	}
	refresh := func(token string) reply {
		return w.send("POST", c("/refresh"), "", map[string]any{"refresh_token": token})
	}
	whoami := func(token string) int { return w.send("GET", c("/account/whoami"), token, nil).status }
	second := refresh(rep.str("refresh_token"))
	if second.status != 200 || second.str("access_token") == "" || second.str("refresh_token") == rep.str("refresh_token") {
		t.Fatalf("refresh: %d %s", second.status, second.raw)
	}
	// The reply was lost: the old token still works, and replaces the lost one.
	third := refresh(rep.str("refresh_token"))
	if third.status != 200 {
		t.Fatalf("refresh again after a lost reply: %d %s", third.status, third.raw)
	}
	if whoami(second.str("access_token")) != 401 {
		t.Error("the lost access token works")
	}
	if whoami(third.str("access_token")) != 200 {
		t.Fatal("the new access token does not work")
	}
	// Now it has been used: everything before it is over.
	if whoami(rep.str("access_token")) != 401 {
		t.Error("the first access token outlived its successor")
	}
	if got := refresh(rep.str("refresh_token")); got.status != 401 || got.code() != "M_UNKNOWN_TOKEN" {
		t.Errorf("a used refresh token: %d %s", got.status, got.raw)
	}
	fourth := refresh(third.str("refresh_token"))
	if fourth.status != 200 || whoami(fourth.str("access_token")) != 200 {
		t.Errorf("the chain ends: %d %s", fourth.status, fourth.raw)
	}
	// Expiry is a soft logout: the client keeps its keys and refreshes.
	hash := hashToken(fourth.str("refresh_token"))
	if err := w.db.RefreshSession(t.Context(), hash, hashToken("late"), time.Now().Add(-time.Second), hashToken("next")); err != nil {
		t.Fatal(err)
	}
	if got := w.refuse("GET", c("/account/whoami"), "late", nil, 401, "M_UNKNOWN_TOKEN"); got.body["soft_logout"] != true {
		t.Errorf("expired token: %s", got.raw)
	}
}

func TestDangerousThingsNeedThePassword(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	other, otherDevice, err := w.s.Login(t.Context(), alice.id, "old phone")
	if err != nil {
		t.Fatal(err)
	}
	path := c("/devices/" + string(otherDevice))
	auth := func(session, user, password string) map[string]any {
		return map[string]any{"auth": map[string]any{"type": "m.login.password", "session": session, "identifier": map[string]any{"type": "m.id.user", "user": user}, "password": password}}
	}
	ask := w.send("DELETE", path, alice.token, nil)
	if ask.status != 401 || dig(ask.body, "flows", 0, "stages", 0) != "m.login.password" {
		t.Fatalf("delete a device: %d %s", ask.status, ask.raw)
	}
	if got := w.send("DELETE", path, alice.token, auth(ask.str("session"), "alice", "wrong horse")); got.status != 401 || got.code() != "M_FORBIDDEN" {
		t.Errorf("wrong password: %d %s", got.status, got.raw)
	}
	if got := w.send("DELETE", path, alice.token, auth(ask.str("session"), "bob", testPassword)); got.status != 403 {
		t.Errorf("another user's password: %d %s", got.status, got.raw)
	}
	if got := w.send("DELETE", c("/devices/"+string(bob.device)), bob.token, auth(ask.str("session"), "bob", "wrong horse")); got.status != 401 || got.str("session") == ask.str("session") {
		t.Errorf("a session wandered to another user: %d %s", got.status, got.raw)
	}
	w.must("GET", c("/account/whoami"), other, nil)
	w.must("DELETE", path, alice.token, auth(ask.str("session"), "alice", testPassword))
	w.refuse("GET", c("/account/whoami"), other, nil, 401, "M_UNKNOWN_TOKEN")

	// The body of the first request is what is confirmed, not another one.
	first := w.send("POST", c("/delete_devices"), alice.token, map[string]any{"devices": []string{"A"}})
	body := auth(first.str("session"), "alice", testPassword)
	body["devices"] = []string{"B"}
	w.refuse("POST", c("/delete_devices"), alice.token, body, 403, "M_FORBIDDEN")
	body["devices"] = []string{"A"}
	w.must("POST", c("/delete_devices"), alice.token, body)

	// Password change: wrong ones are refused before anything is asked.
	w.refuse("POST", c("/account/password"), alice.token, map[string]any{"new_password": "short"}, 400, "M_WEAK_PASSWORD")
	third, _, err := w.s.Login(t.Context(), alice.id, "third")
	if err != nil {
		t.Fatal(err)
	}
	body = auth("", "@alice:test.example", testPassword)
	body["new_password"] = "battery staple"
	w.must("POST", c("/account/password"), alice.token, body)
	w.must("GET", c("/account/whoami"), alice.token, nil)
	w.refuse("GET", c("/account/whoami"), third, nil, 401, "M_UNKNOWN_TOKEN")
	login := func(password string) int {
		return w.send("POST", c("/login"), "", map[string]any{"type": "m.login.password", "user": "alice", "password": password}).status
	}
	if login(testPassword) != 403 || login("battery staple") != 200 {
		t.Error("the password was not changed")
	}
	room := matrix.RoomID(w.must("POST", c("/createRoom"), alice.token, map[string]any{"preset": "public_chat"}).str("room_id"))
	body = auth("", "alice", "battery staple")
	body["erase"] = true
	w.must("POST", c("/account/deactivate"), alice.token, body)
	w.refuse("GET", c("/account/whoami"), alice.token, nil, 401, "M_UNKNOWN_TOKEN")
	if login("battery staple") != 403 {
		t.Error("a deactivated user logged in")
	}
	if m, err := w.s.Membership(t.Context(), room, alice.id); err != nil || m != matrix.MembershipLeave {
		t.Errorf("a deactivated user is still in a room: %s, %v", m, err)
	}
	w.refuse("POST", c("/register"), "", map[string]any{"username": "alice", "password": testPassword}, 400, "M_USER_IN_USE")
}

func TestGuests(t *testing.T) {
	w := newWorld(t)
	g := w.guest()
	if g.id == "" || g.token == "" || g.device == "" {
		t.Fatalf("guest: %+v", g)
	}
	if w.must("GET", c("/account/whoami"), g.token, nil).body["is_guest"] != true {
		t.Error("a guest is not told so")
	}
	// What a guest in a call needs ...
	w.must("POST", c("/keys/upload"), g.token, map[string]any{})
	w.must("GET", "/_matrix/client/v1/rtc/transports", g.token, nil)
	w.must("POST", userPath(g, "/openid/request_token"), g.token, "{}")
	w.must("GET", c("/voip/turnServer"), g.token, nil)
	w.must("PUT", c("/profile/"+url.PathEscape(string(g.id))+"/displayname"), g.token, map[string]any{"displayname": "Gast"})
	w.must("PUT", c("/sendToDevice/m.test/1"), g.token, map[string]any{"messages": map[string]any{}})
	// ... and what one must not do.
	w.refuse("POST", "/_matrix/media/v3/upload", g.token, "x", 403, "M_GUEST_ACCESS_FORBIDDEN")
	w.refuse("POST", c("/createRoom"), g.token, "{}", 403, "M_GUEST_ACCESS_FORBIDDEN")
	w.refuse("POST", c("/account/password"), g.token, "{}", 403, "M_GUEST_ACCESS_FORBIDDEN")
	w.refuse("POST", c("/user_directory/search"), g.token, map[string]any{"search_term": "a"}, 403, "M_GUEST_ACCESS_FORBIDDEN")
	if users, err := w.s.ListUsers(t.Context()); err != nil || len(users) != 0 {
		t.Errorf("guests are listed as accounts: %v, %v", users, err)
	}
}

func TestDevices(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	path := c("/devices/" + string(alice.device))
	w.must("PUT", path, alice.token, map[string]any{"display_name": "kitchen"})
	if got := w.must("GET", path, alice.token, nil); got.str("display_name") != "kitchen" || got.str("last_seen_ip") == "" {
		t.Errorf("device: %s", got.raw)
	}
	if got := w.must("GET", c("/devices"), alice.token, nil); dig(got.body, "devices", 0, "device_id") != string(alice.device) {
		t.Errorf("devices: %s", got.raw)
	}
	w.refuse("GET", c("/devices/NOPE"), alice.token, nil, 404, "M_NOT_FOUND")
	w.refuse("PUT", c("/devices/NOPE"), alice.token, map[string]any{"display_name": "x"}, 404, "M_NOT_FOUND")
	for range maxDevices + 5 {
		if _, _, err := w.s.Login(t.Context(), alice.id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := w.db.Devices(t.Context(), alice.id); err != nil || len(all) != maxDevices {
		t.Errorf("%d devices, %v", len(all), err)
	}
}

func TestProfiles(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	path := c("/profile/" + url.PathEscape(string(alice.id)))
	w.refuse("GET", path+"/displayname", "", nil, 404, "M_NOT_FOUND")
	w.must("PUT", path+"/displayname", alice.token, map[string]any{"displayname": "Älice"})
	w.must("PUT", path+"/avatar_url", alice.token, map[string]any{"avatar_url": "mxc://test.example/x"})
	w.must("PUT", path+"/m.tz", alice.token, map[string]any{"m.tz": "Europe/Berlin"})
	if got := w.must("GET", path, "", nil); got.str("displayname") != "Älice" || got.str("avatar_url") != "mxc://test.example/x" || got.str("m.tz") != "Europe/Berlin" {
		t.Errorf("profile: %s", got.raw)
	}
	if got := w.must("GET", path+"/displayname", "", nil); got.str("displayname") != "Älice" {
		t.Errorf("name: %s", got.raw)
	}
	w.must("DELETE", path+"/m.tz", alice.token, nil)
	w.refuse("GET", path+"/m.tz", "", nil, 404, "M_NOT_FOUND")
	w.must("PUT", path+"/avatar_url", alice.token, map[string]any{"avatar_url": ""})
	w.refuse("GET", path+"/avatar_url", "", nil, 404, "M_NOT_FOUND")
	w.refuse("PUT", path+"/displayname", bob.token, map[string]any{"displayname": "x"}, 403, "M_FORBIDDEN")
	w.refuse("PUT", path+"/displayname", alice.token, map[string]any{}, 400, "M_MISSING_PARAM")
	w.refuse("PUT", path+"/displayname", alice.token, map[string]any{"displayname": 7}, 400, "M_BAD_JSON")
	w.refuse("PUT", path+"/displayname", alice.token, map[string]any{"displayname": strings.Repeat("x", 300)}, 400, "M_INVALID_PARAM")
	w.refuse("PUT", path+"/Ünicode", alice.token, map[string]any{"Ünicode": 7}, 400, "M_INVALID_PARAM")
	w.refuse("PUT", path+"/m.big", alice.token, map[string]any{"m.big": strings.Repeat("x", 65_000+600)}, 400, "M_PROFILE_TOO_LARGE")
	w.refuse("PUT", path+"/"+strings.Repeat("k", 300), alice.token, map[string]any{}, 400, "M_KEY_TOO_LARGE")
	w.refuse("GET", c("/profile/@nobody:test.example"), "", nil, 404, "M_NOT_FOUND")
}

func TestUserDirectoryKnowsOnlySharers(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	w.register("bobby") // shares nothing with alice
	w.must("PUT", c("/profile/"+url.PathEscape(string(bob.id))+"/displayname"), bob.token, map[string]any{"displayname": "Robert Ström"})
	room := w.must("POST", c("/createRoom"), alice.token, map[string]any{"preset": "public_chat"}).str("room_id")
	w.must("POST", c("/join/"+url.PathEscape(room)), bob.token, "{}")
	for term, want := range map[string]int{"bob": 1, "STRÖM": 1, "robert": 1, "alice": 0, "zzz": 0} {
		got := w.must("POST", c("/user_directory/search"), alice.token, map[string]any{"search_term": term})
		if l, _ := got.body["results"].([]any); len(l) != want {
			t.Errorf("search %q: %s", term, got.raw)
		}
	}
}

func TestFiltersAndAccountData(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	filter := map[string]any{"room": map[string]any{"timeline": map[string]any{"limit": 7.0}}}
	one := w.must("POST", userPath(alice, "/filter"), alice.token, filter).str("filter_id")
	if two := w.must("POST", userPath(alice, "/filter"), alice.token, filter).str("filter_id"); one != two || one == "" {
		t.Errorf("the same filter has two IDs: %q, %q", one, two)
	}
	if got := w.must("GET", userPath(alice, "/filter/"+one), alice.token, nil); !reflect.DeepEqual(got.body, filter) {
		t.Errorf("filter: %s", got.raw)
	}
	w.refuse("GET", userPath(alice, "/filter/"+one), bob.token, nil, 403, "M_FORBIDDEN")
	w.refuse("GET", userPath(bob, "/filter/99"), bob.token, nil, 404, "M_NOT_FOUND")
	w.refuse("GET", userPath(bob, "/filter/x"), bob.token, nil, 404, "M_NOT_FOUND")

	for _, base := range []string{"", "/rooms/!room:test.example"} {
		path := userPath(alice, base+"/account_data/org.example")
		w.refuse("GET", path, alice.token, nil, 404, "M_NOT_FOUND")
		w.must("PUT", path, alice.token, map[string]any{"a": base})
		w.must("PUT", path, alice.token, map[string]any{"b": base})
		if got := w.must("GET", path, alice.token, nil); got.body["b"] != base || got.body["a"] != nil {
			t.Errorf("%s: %s", path, got.raw)
		}
		w.refuse("PUT", path, bob.token, map[string]any{}, 403, "M_FORBIDDEN")
		w.refuse("GET", path, bob.token, nil, 403, "M_FORBIDDEN")
		w.refuse("PUT", path, alice.token, "[]", 400, "M_BAD_JSON")
	}
	w.refuse("PUT", userPath(alice, "/account_data/m.push_rules"), alice.token, "{}", 405, "M_BAD_JSON")
	w.refuse("PUT", userPath(alice, "/rooms/!r:x/account_data/m.fully_read"), alice.token, "{}", 405, "M_BAD_JSON")
	w.refuse("PUT", userPath(alice, "/rooms/nonsense/account_data/a"), alice.token, "{}", 400, "M_INVALID_PARAM")

	tags := userPath(alice, "/rooms/!r:x/tags")
	w.must("PUT", tags+"/m.favourite", alice.token, map[string]any{"order": 0.5})
	w.must("PUT", tags+"/u.work", alice.token, "{}")
	w.must("DELETE", tags+"/u.work", alice.token, nil)
	if got := w.must("GET", tags, alice.token, nil); dig(got.body, "tags", "m.favourite", "order") != 0.5 || dig(got.body, "tags", "u.work") != nil {
		t.Errorf("tags: %s", got.raw)
	}

	pos, err := w.db.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	all, err := w.db.GlobalAccountData(t.Context(), alice.id, 0, pos)
	if err != nil || !slices.ContainsFunc(all, func(d matrix.AccountData) bool { return d.Type == "m.push_rules" && json.Valid(d.Content) }) {
		t.Errorf("a first sync would show no push rules: %v, %v", all, err)
	}
	rooms, err := w.db.RoomAccountData(t.Context(), alice.id, 0, pos)
	if err != nil || len(rooms["!r:x"]) != 1 || len(rooms["!room:test.example"]) != 1 {
		t.Errorf("room account data: %v, %v", rooms, err)
	}
}

func TestToDevice(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	_, second, err := w.s.Login(t.Context(), bob.id, "second")
	if err != nil {
		t.Fatal(err)
	}
	woken, cancel := w.s.notify.wait(bob.id)
	defer cancel()
	messages := func(devices map[string]any) map[string]any {
		return map[string]any{"messages": map[string]any{string(bob.id): devices, "@far:away.example": map[string]any{"*": map[string]any{}}}}
	}
	w.must("PUT", c("/sendToDevice/m.test/txn1"), alice.token, messages(map[string]any{"*": map[string]any{"n": 1}, string(second): map[string]any{"n": 2}, "NOPE": map[string]any{"n": 3}}))
	select {
	case <-woken:
	default:
		t.Error("the receiver's sync was not woken")
	}
	w.must("PUT", c("/sendToDevice/m.test/txn1"), alice.token, messages(map[string]any{"*": map[string]any{"n": 9}})) // repeated: ignored
	w.must("PUT", c("/sendToDevice/m.other/txn1"), alice.token, messages(map[string]any{"*": map[string]any{"n": 4}}))
	pos, err := w.db.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	get := func(d matrix.DeviceID, limit int) (string, int64) {
		events, last, err := w.db.ToDevice(t.Context(), bob.id, d, pos, limit)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, e := range events {
			var ev struct {
				Type, Sender string
				Content      struct{ N int }
			}
			if err := json.Unmarshal(e, &ev); err != nil || ev.Sender != string(alice.id) {
				t.Errorf("event %s: %v", e, err)
			}
			all = append(all, fmt.Sprint(ev.Type, ev.Content.N))
		}
		return strings.Join(all, " "), last
	}
	if got, last := get(bob.device, 10); got != "m.test1 m.other4" || last != pos {
		t.Errorf("first device: %s, %d", got, last)
	}
	if got, _ := get(second, 10); got != "m.test2 m.other4" {
		t.Errorf("second device: %s", got)
	}
	got, last := get(bob.device, 1)
	if got != "m.test1" || last >= pos {
		t.Errorf("one at a time: %s, %d of %d", got, last, pos)
	}
	if err := w.db.AckToDevice(t.Context(), bob.id, bob.device, last); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(bob.device, 10); got != "m.other4" {
		t.Errorf("after the acknowledgement: %s", got)
	}
	if got, _ := get(second, 10); got != "m.test2 m.other4" {
		t.Errorf("another device's acknowledgement took events away: %s", got)
	}
	w.refuse("PUT", c("/sendToDevice/m.test/txn9"), alice.token, "{}", 400, "M_MISSING_PARAM")
	w.refuse("PUT", c("/sendToDevice/m.test/txn9"), alice.token, messages(map[string]any{"*": 7}), 400, "M_BAD_JSON")
	w.refuse("PUT", c("/sendToDevice/m.test/txn9"), alice.token, messages(map[string]any{"*": map[string]any{"x": strings.Repeat("x", maxToDevice)}}), 413, "M_TOO_LARGE")
}

func TestOpenSessionsAreBounded(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	first := w.send("POST", c("/delete_devices"), alice.token, map[string]any{"devices": []string{"A"}})
	for range uiaMaxUser {
		w.send("POST", c("/delete_devices"), alice.token, map[string]any{"devices": []string{"A"}})
	}
	if n := len(w.s.uia.open); n != uiaMaxUser {
		t.Errorf("a user has %d open sessions", n)
	}
	if w.s.uia.open[first.str("session")] != nil {
		t.Error("the oldest session is not the one that ended")
	}
	now := time.Now()
	for range uiaMax + 10 {
		w.s.uia.take("", "", "x", now)
	}
	if n := len(w.s.uia.open); n > uiaMax {
		t.Errorf("%d open sessions", n)
	}
	w.s.uia.sweep(now.Add(2 * uiaLifetime))
	if n := len(w.s.uia.open); n != 0 {
		t.Errorf("%d sessions outlive their time", n)
	}
	w.refuse("POST", c("/register"), "", map[string]any{"x": strings.Repeat("x", uiaMaxBody)}, 413, "M_TOO_LARGE")
}

func TestLoginFoldsCase(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	for _, name := range []string{"alice", "Alice", "@alice:test.example", "@Alice:test.example"} {
		rep := w.must("POST", c("/login"), "", map[string]any{
			"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": name}, "password": testPassword,
		})
		if rep.str("user_id") != string(alice.id) {
			t.Errorf("%s logs in as %s", name, rep.str("user_id"))
		}
	}
	w.refuse("POST", c("/login"), "", map[string]any{
		"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "@alice:Other.example"}, "password": testPassword,
	}, 403, matrix.CodeForbidden)
}
