package homeserver

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

func TestOpenIDTokens(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.register("alice"), w.register("bob")
	path := userPath(alice, "/openid/request_token")
	got := w.must("POST", path, alice.token, "{}")
	token := got.str("access_token")
	if token == "" || got.str("token_type") != "Bearer" || got.str("matrix_server_name") != "test.example" || got.body["expires_in"] != 3600.0 {
		t.Fatalf("token: %s", got.raw)
	}
	w.refuse("POST", path, bob.token, "{}", 403, "M_FORBIDDEN")
	w.refuse("POST", path, "", "{}", 401, "M_MISSING_TOKEN")
	info := "/_matrix/federation/v1/openid/userinfo?access_token="
	for range 2 { // it is good for as often as one likes
		if got := w.must("GET", info+url.QueryEscape(token), "", nil); got.str("sub") != string(alice.id) {
			t.Errorf("userinfo: %s", got.raw)
		}
	}
	w.refuse("GET", info+"nonsense", "", nil, 401, "M_UNKNOWN_TOKEN")
	w.refuse("GET", info+url.QueryEscape(alice.token), "", nil, 401, "M_UNKNOWN_TOKEN")
	w.refuse("GET", info, "", nil, 401, "M_MISSING_TOKEN")
	w.refuse("GET", c("/account/whoami"), token, nil, 401, "M_UNKNOWN_TOKEN")

	if user, err := w.s.OpenIDUser(t.Context(), token); user != alice.id || err != nil {
		t.Errorf("in process: %s, %v", user, err)
	}
	if _, err := w.s.OpenIDUser(t.Context(), "nonsense"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("unknown token: %v", err)
	}
	if _, err := w.db.OpenIDUser(t.Context(), hashToken(token), time.Now().Add(2*openIDLifetime)); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("expired token: %v", err)
	}
	if err := w.db.Expire(t.Context(), time.Now().Add(2*openIDLifetime)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.s.OpenIDUser(t.Context(), token); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("expired tokens stay: %v", err)
	}
}

func TestTurnServer(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	got := w.must("GET", c("/voip/turnServer"), alice.token, nil)
	if got.str("username") != "1:"+string(alice.id) || got.str("password") != "secret" || got.body["ttl"] != 3600.0 || dig(got.body, "uris", 0) == nil {
		t.Errorf("turnServer: %s", got.raw)
	}
	none := newWorld(t, func(_ *Config, d *Deps) { d.ICEServers = nil })
	none.refuse("GET", c("/voip/turnServer"), none.register("alice").token, nil, 404, "M_NOT_FOUND")
	stun := newWorld(t, func(_ *Config, d *Deps) {
		d.ICEServers = func(string) ([]call.ICEServer, time.Duration) {
			return []call.ICEServer{{URLs: []string{"stun:192.0.2.1"}}}, 0
		}
	})
	stun.refuse("GET", c("/voip/turnServer"), stun.register("alice").token, nil, 404, "M_NOT_FOUND")
}

func TestTransports(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	for _, path := range []string{"/_matrix/client/v1/rtc/transports", "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"} {
		w.refuse("GET", path, "", nil, 401, "M_MISSING_TOKEN")
		got := w.must("GET", path, alice.token, nil)
		for _, key := range []string{"rtc_transports", "transports"} {
			if dig(got.body, key, 0, "type") != "livekit" || dig(got.body, key, 0, "livekit_service_url") != "https://test.example/livekit/jwt" || dig(got.body, key, 1, "type") != "m.livekit" {
				t.Errorf("%s, %s: %s", path, key, got.raw)
			}
		}
	}
}

func TestDiscovery(t *testing.T) {
	w := newWorld(t)
	got := w.must("GET", "/_matrix/client/versions", "a token that is nonsense", nil)
	for _, f := range []string{"org.matrix.msc4140", "org.matrix.msc4354", "org.matrix.msc4222", "org.matrix.msc4143"} {
		if dig(got.body, "unstable_features", f) != true {
			t.Errorf("%s is not announced: clients make calls without it", f)
		}
	}
	if !strings.Contains(string(got.raw), `"v1.11"`) || strings.Contains(string(got.raw), `"v1.15"`) {
		t.Errorf("versions: %s", got.raw)
	}
	well := w.must("GET", "/.well-known/matrix/client", "", nil)
	if dig(well.body, "m.homeserver", "base_url") != "https://test.example" || dig(well.body, "org.matrix.msc4143.rtc_foci", 0, "livekit_service_url") != "https://test.example/livekit/jwt" {
		t.Errorf("well-known: %s", well.raw)
	}
	for base, want := range map[string]string{"https://test.example": "test.example:443", "http://127.0.0.1:8008": "127.0.0.1:8008", "https://[2001:db8::1]": "[2001:db8::1]:443"} {
		o := newWorld(t, func(_ *Config, d *Deps) { d.Endpoints = func() Endpoints { return Endpoints{BaseURL: base} } })
		if got := o.must("GET", "/.well-known/matrix/server", "", nil).str("m.server"); got != want {
			t.Errorf("%s is found at %s, want %s", base, got, want)
		}
	}
	w.refuse("GET", "/.well-known/matrix/support", "", nil, 404, "M_NOT_FOUND")
	if _, err := w.s.CreateUser(t.Context(), "boss", testPassword, true); err != nil {
		t.Fatal(err)
	}
	if got := w.must("GET", "/.well-known/matrix/support", "", nil); dig(got.body, "contacts", 0, "matrix_id") != "@boss:test.example" {
		t.Errorf("support: %s", got.raw)
	}
	alice := w.register("alice")
	caps := w.must("GET", c("/capabilities"), alice.token, nil)
	if dig(caps.body, "capabilities", "m.room_versions", "default") != "12" || dig(caps.body, "capabilities", "m.delayed_events", "max_delay_ms") == nil {
		t.Errorf("capabilities: %s", caps.raw)
	}
}

func TestSmallEndpoints(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	if got := w.must("GET", c("/thirdparty/protocols"), alice.token, nil); string(got.raw) != "{}" {
		t.Errorf("protocols: %s", got.raw)
	}
	if got := w.must("GET", c("/account/3pid"), alice.token, nil); got.body["threepids"] == nil {
		t.Errorf("3pid: %s", got.raw)
	}
	w.refuse("POST", c("/account/3pid/add"), alice.token, "{}", 403, "M_THREEPID_DENIED")
	w.refuse("GET", "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device", alice.token, nil, 404, "M_NOT_FOUND")
	presence := c("/presence/" + url.PathEscape(string(alice.id)) + "/status")
	if got := w.must("GET", presence, alice.token, nil); got.str("presence") != "offline" {
		t.Errorf("presence: %s", got.raw)
	}
	w.must("PUT", presence, alice.token, map[string]any{"presence": "unavailable", "status_msg": "in a call"})
	if got := w.must("GET", presence, alice.token, nil); got.str("presence") != "unavailable" || got.str("status_msg") != "in a call" {
		t.Errorf("presence: %s", got.raw)
	}
	w.refuse("PUT", presence, alice.token, map[string]any{"presence": "asleep"}, 400, "M_INVALID_PARAM")
	w.refuse("GET", c("/presence/@nobody:test.example/status"), alice.token, nil, 404, "M_NOT_FOUND")
}

func TestOperatorsCommands(t *testing.T) {
	w := newWorld(t, func(cfg *Config, _ *Deps) { cfg.Registration = RegistrationClosed })
	id, err := w.s.CreateUser(t.Context(), "Alice", testPassword, false)
	if err != nil || id != "@alice:test.example" {
		t.Fatalf("create: %s, %v", id, err)
	}
	for name, want := range map[string]matrix.Code{"alice": matrix.CodeUserInUse, "a b": matrix.CodeInvalidUsername} {
		var e *matrix.Error
		if _, err := w.s.CreateUser(t.Context(), name, testPassword, false); !errors.As(err, &e) || e.Code != want {
			t.Errorf("create %q: %v", name, err)
		}
	}
	token, device, err := w.s.Login(t.Context(), id, "command line")
	if err != nil || device == "" {
		t.Fatal(err)
	}
	if ok, err := w.s.DeviceExists(t.Context(), id, device); !ok || err != nil {
		t.Errorf("device: %v, %v", ok, err)
	}
	w.must("GET", c("/account/whoami"), token, nil)
	if err := w.s.SetPassword(t.Context(), id, "short"); err == nil {
		t.Error("a weak password was set")
	}
	if err := w.s.SetPassword(t.Context(), id, "battery staple"); err != nil {
		t.Fatal(err)
	}
	w.refuse("GET", c("/account/whoami"), token, nil, 401, "M_UNKNOWN_TOKEN")
	if err := w.s.SetPassword(t.Context(), "@nobody:test.example", "battery staple"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("password of nobody: %v", err)
	}
	users, err := w.s.ListUsers(t.Context())
	if err != nil || len(users) != 1 || users[0].ID != id {
		t.Errorf("users: %v, %v", users, err)
	}
	if _, _, err := w.s.Login(t.Context(), "@nobody:test.example", ""); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("login of nobody: %v", err)
	}
}

// Memberships of calls are their users' own, whatever they contain.
func TestCallMemberships(t *testing.T) {
	h := newHouse(t)
	alice, bob, eve := h.user("alice"), h.user("bob"), h.user("eve")
	room := alice.room(obj{"preset": "public_chat"})
	bob.join(room)
	path := func(key string) string {
		return "/v3/rooms/" + esc(room) + "/state/org.matrix.msc3401.call.member/" + esc(key)
	}
	key := func(u *resident, device string) string { return "_" + string(u.id) + "_" + device + "_m.call" }
	member := obj{"application": "m.call", "foci_preferred": []obj{{"type": "unknown"}}, "expires": 14400000}

	bob.want(200, "PUT", path(key(bob, "D")), member)
	alice.want(200, "PUT", path(key(alice, "D")), member)
	eve.wantError(403, matrix.CodeForbidden, "PUT", path(key(eve, "D")), member) // is not in the room
	for _, other := range []string{key(alice, "D"), key(alice, "NEW"), "_@alice:other.test_D_m.call", "_" + string(bob.id) + "x_D_m.call"} {
		bob.wantError(403, matrix.CodeForbidden, "PUT", path(other), obj{})
		bob.wantError(403, matrix.CodeForbidden, "PUT", path(other), member)
	}
	bob.wantError(403, matrix.CodeForbidden, "PUT", path(string(alice.id)), member)
	later := bob.want(200, "PUT", path(key(alice, "D"))+"?org.matrix.msc4140.delay=60000", obj{}).str("delay_id")
	bob.want(403, "POST", "/unstable/org.matrix.msc4140/delayed_events/"+later+"/send", obj{})
	if got := bob.want(200, "GET", path(key(alice, "D")), nil).str("application"); got != "m.call" {
		t.Errorf("alice's membership is gone: %q", got)
	}
	alice.want(200, "PUT", path(key(bob, "D")), obj{}) // tidies up

	bob.wantError(413, matrix.CodeTooLarge, "PUT", path(key(bob, "D")), obj{"x": strings.Repeat("x", 65536)})
	bob.wantError(400, matrix.CodeBadJSON, "PUT", path(key(bob, "D")), `{"x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`}`)
	bob.wantError(400, matrix.CodeBadJSON, "PUT", path(key(bob, "D")), `[]`)
	bob.want(200, "PUT", path(key(bob, "D")), obj{}) // leaves
}
