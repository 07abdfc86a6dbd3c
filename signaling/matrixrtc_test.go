package signaling

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/sfu"
	"github.com/trunkhall/trunkhall/storage"
)

// fakeRooms is a homeserver with as much in it as a test puts there.
type fakeRooms struct {
	mu        sync.Mutex
	tokens    map[string]matrix.UserID
	joined    map[string]matrix.Membership // room + user
	rooms     map[matrix.RoomID]bool
	devices   map[string]bool // user + device
	delayed   map[string]matrix.DelayedEvent
	restarted map[string]int
	sent      []string
	fail      error // of restart and send
	watchers  map[int]func(matrix.MembershipChange)
}

func newFakeRooms() *fakeRooms {
	return &fakeRooms{
		tokens: map[string]matrix.UserID{}, joined: map[string]matrix.Membership{}, rooms: map[matrix.RoomID]bool{},
		devices: map[string]bool{}, delayed: map[string]matrix.DelayedEvent{}, restarted: map[string]int{},
		watchers: map[int]func(matrix.MembershipChange){},
	}
}

func (f *fakeRooms) ServerName() matrix.ServerName { return "example.org" }

func (f *fakeRooms) OpenIDUser(_ context.Context, token string) (matrix.UserID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	u, ok := f.tokens[token]
	if !ok {
		return "", fmt.Errorf("openid: %w", call.ErrNotFound)
	}
	return u, nil
}

func (f *fakeRooms) Membership(_ context.Context, room matrix.RoomID, user matrix.UserID) (matrix.Membership, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.rooms[room] {
		return "", fmt.Errorf("room: %w", call.ErrNotFound)
	}
	return f.joined[string(room)+string(user)], nil
}

func (f *fakeRooms) DeviceExists(_ context.Context, user matrix.UserID, device matrix.DeviceID) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.devices[string(user)+string(device)], nil
}

func (f *fakeRooms) WatchMemberships(w func(matrix.MembershipChange)) func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.watchers)
	f.watchers[n] = w
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, n)
	}
}

func (f *fakeRooms) setMembership(room matrix.RoomID, user matrix.UserID, to matrix.Membership) {
	f.mu.Lock()
	f.rooms[room] = true
	from := f.joined[string(room)+string(user)]
	f.joined[string(room)+string(user)] = to
	watchers := maps.Clone(f.watchers)
	f.mu.Unlock()
	for _, w := range watchers {
		w(matrix.MembershipChange{Room: room, User: user, Sender: user, From: from, To: to})
	}
}

func (f *fakeRooms) DelayedEvent(_ context.Context, id string) (matrix.DelayedEvent, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ev, ok := f.delayed[id]
	if !ok {
		return ev, fmt.Errorf("delayed event: %w", call.ErrNotFound)
	}
	return ev, nil
}

func (f *fakeRooms) RestartDelayedEvent(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if _, ok := f.delayed[id]; !ok {
		return fmt.Errorf("delayed event: %w", call.ErrNotFound)
	}
	f.restarted[id]++
	return nil
}

func (f *fakeRooms) SendDelayedEvent(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return f.fail
	}
	if _, ok := f.delayed[id]; !ok {
		return fmt.Errorf("delayed event: %w", call.ErrNotFound)
	}
	delete(f.delayed, id)
	f.sent = append(f.sent, id)
	return nil
}

func (f *fakeRooms) schedule(id string, room matrix.RoomID, user matrix.UserID, delay time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delayed[id] = matrix.DelayedEvent{ID: id, RoomID: room, UserID: user, Delay: delay}
}

// rtcTest is a running MatrixRTC half over a fake homeserver and a real store.
// Its "tokens" are the grants as JSON.
type rtcTest struct {
	*matrixRTC
	t     *testing.T
	rooms *fakeRooms
	stop  func() // ends run, and waits

	mu      sync.Mutex
	evicted []rtcKey
}

const testRoom matrix.RoomID = "!abc:example.org"

func newRTCTest(t *testing.T) *rtcTest {
	t.Helper()
	db, err := storage.OpenSQLite(context.Background(), filepath.Join(t.TempDir(), "t.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	rt := &rtcTest{t: t, rooms: newFakeRooms()}
	rt.rooms.tokens["alice-token"] = "@alice:example.org"
	rt.rooms.tokens["bob-token"] = "@bob:example.org"
	rt.rooms.devices["@alice:example.orgPHONE"] = true
	rt.rooms.devices["@bob:example.orgLAPTOP"] = true
	rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipJoin)
	m, err := newMatrixRTC(
		Config{TokenTTL: 10 * time.Minute, LeaveGrace: 15 * time.Second},
		Deps{Rooms: rt.rooms, Store: db, LiveKitURL: func() string { return "wss://sfu.example.org" }},
		func(room call.RoomName, id call.Identity, _ sfu.Reason) {
			rt.mu.Lock()
			defer rt.mu.Unlock()
			rt.evicted = append(rt.evicted, rtcKey{room, id})
		},
		func(g call.Grant, ttl time.Duration) (string, error) {
			g.Expires = time.Now().Add(ttl)
			b, err := json.Marshal(g)
			return string(b), err
		})
	if err != nil {
		t.Fatal(err)
	}
	rt.matrixRTC = m
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.run(ctx) }()
	rt.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		rt.stop()
		_ = db.Close()
	})
	return rt
}

func (rt *rtcTest) do(method, path, body string) (*http.Response, map[string]any) {
	rt.t.Helper()
	w := httptest.NewRecorder()
	rt.handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	resp := w.Result()
	b, _ := io.ReadAll(resp.Body)
	var out map[string]any
	if len(b) > 0 {
		if err := json.Unmarshal(b, &out); err != nil {
			rt.t.Fatalf("%s %s answered %q, which is not JSON", method, path, b)
		}
	}
	if got := resp.Header.Get("Access-Control-Allow-Origin"); got != "*" {
		rt.t.Errorf("%s %s: status %d has Access-Control-Allow-Origin %q; a browser would see a network error", method, path, resp.StatusCode, got)
	}
	return resp, out
}

// grant asks for a token and returns what it grants.
func (rt *rtcTest) grant(path, body string) call.Grant {
	rt.t.Helper()
	resp, out := rt.do("POST", path, body)
	if resp.StatusCode != 200 {
		rt.t.Fatalf("POST %s %s: %d %v", path, body, resp.StatusCode, out)
	}
	if out["url"] != "wss://sfu.example.org" {
		rt.t.Errorf("url = %v", out["url"])
	}
	var g call.Grant
	if err := json.Unmarshal([]byte(out["jwt"].(string)), &g); err != nil {
		rt.t.Fatal(err)
	}
	return g
}

// settle waits until all work that was noted before is done.
func (rt *rtcTest) settle() {
	rt.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := rt.work.do(ctx, func(context.Context) error { return nil }); err != nil {
		rt.t.Fatal(err)
	}
}

func (rt *rtcTest) wasEvicted(g call.Grant) bool {
	rt.mu.Lock()
	defer rt.mu.Unlock()
	for _, p := range rt.evicted {
		if p == (rtcKey{g.Room, g.Identity}) {
			return true
		}
	}
	return false
}

const aliceLegacy = `{"room":"!abc:example.org","device_id":"PHONE","openid_token":{"access_token":"alice-token","token_type":"Bearer","matrix_server_name":"example.org","expires_in":3600}}`

// aliceMember returns a /get_token body with some parts replaced.
func aliceMember(replace ...string) string {
	return strings.NewReplacer(replace...).Replace(`{"room_id":"!abc:example.org","slot_id":"m.call#ROOM",
		"openid_token":{"access_token":"alice-token","token_type":"Bearer","matrix_server_name":"example.org","expires_in":3600},
		"member":{"id":"11111111-2222-3333-4444-555555555555","claimed_user_id":"@alice:example.org","claimed_device_id":"PHONE"}}`)
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		names []string
		want  string
	}{
		{[]string{"!roomid:example.com", "slot1234"}, "O8437W3+jmzMVjoIP3tNwbm+XxHQk2iKpOA7aqw3qSc"},
		{[]string{"!abc:example.org", "m.call#ROOM"}, "9YzbCxM8P0fwObUtiQ9m/ujMP9ruNMxS7SOsugBEaxA"},
		{[]string{"@alice:example.org", "DEVICE1", "11111111-2222-3333-4444-555555555555"}, "Ox2u57aPMd/a5UYO23jHvyYUK8BxDmpKJm12FV64hk4"},
		{[]string{"@alice:example.com", "memberABC"}, "M3VnsLXrkbxIDINXO64u8PZzFyD9ZYFiQULR2dshWYs"},
	} {
		if got := hashNames(c.names...); got != c.want {
			t.Errorf("hashNames(%q) = %s, want %s: clients would not find each other", c.names, got, c.want)
		}
	}
}

func TestNamesAreJSONAsBrowsersWriteIt(t *testing.T) {
	got := string(appendJSONString(nil, "<&>\"\\/\b\t\n\f\r\x01\x1f\x7fé\u2028\u2029😀"))
	want := `"<&>\"\\/\b\t\n\f\r\u0001\u001f` + "\x7fé\u2028\u2029😀\""
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func FuzzJSONString(f *testing.F) {
	f.Add("plain")
	f.Add("\"\\\u2028<\x00\x1f")
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		var back string
		if err := json.Unmarshal(appendJSONString(nil, s), &back); err != nil || back != s {
			t.Fatalf("%q came back as %q, %v", s, back, err)
		}
	})
}

func TestTokenForMember(t *testing.T) {
	rt := newRTCTest(t)
	for _, path := range []string{"/sfu/get", "/livekit/jwt/sfu/get", "//sfu/get"} {
		g := rt.grant(path, aliceLegacy)
		if g.Room != "9YzbCxM8P0fwObUtiQ9m/ujMP9ruNMxS7SOsugBEaxA" || g.Identity != "@alice:example.org:PHONE" {
			t.Errorf("%s: room %s, identity %s", path, g.Room, g.Identity)
		}
		if !g.CanPublish || !g.CanSubscribe || g.CanUpdateOwnMetadata || g.Hidden {
			t.Errorf("%s: permissions %+v", path, g)
		}
		if ttl := time.Until(g.Expires); ttl < 9*time.Minute || ttl > 10*time.Minute {
			t.Errorf("%s: token lives %s, want 10m", path, ttl)
		}
		if err := rt.check(context.Background(), g); err != nil {
			t.Errorf("%s: the fresh token is refused: %v", path, err)
		}
	}
	g := rt.grant("/any/prefix/get_token", aliceMember())
	if want := memberIdentity("@alice:example.org", "PHONE", "11111111-2222-3333-4444-555555555555"); g.Identity != want {
		t.Errorf("identity %s, want %s", g.Identity, want)
	}
	if g.Room != "9YzbCxM8P0fwObUtiQ9m/ujMP9ruNMxS7SOsugBEaxA" {
		t.Errorf("room %s: the two endpoints must lead to the same one", g.Room)
	}
}

func TestTokenRefused(t *testing.T) {
	rt := newRTCTest(t)
	rt.rooms.setMembership("!left:example.org", "@alice:example.org", matrix.MembershipLeave)
	rt.rooms.setMembership("!banned:example.org", "@alice:example.org", matrix.MembershipBan)
	rt.rooms.setMembership("!invited:example.org", "@alice:example.org", matrix.MembershipInvite)
	rt.rooms.setMembership("!knocked:example.org", "@alice:example.org", matrix.MembershipKnock)
	rt.rooms.setMembership("!never:example.org", "@bob:example.org", matrix.MembershipJoin)
	rt.rooms.schedule("bobs", testRoom, "@bob:example.org", time.Hour)
	rt.rooms.schedule("elsewhere", "!other:example.org", "@alice:example.org", time.Hour)
	legacy := func(replace ...string) string { return strings.NewReplacer(replace...).Replace(aliceLegacy) }
	delay := func(fields string) string { return legacy(`"device_id"`, fields+`,"device_id"`) }

	for _, c := range []struct {
		name, path, body string
		status           int
		code             string
	}{
		{"a probe has no body", "/delegate_delayed_leave", "", 400, "M_NOT_JSON"},
		{"broken JSON", "/sfu/get", `{"room":`, 400, "M_NOT_JSON"},
		{"something after the JSON", "/sfu/get", aliceLegacy + "x", 400, "M_NOT_JSON"},
		{"not UTF-8", "/sfu/get", legacy("PHONE", "PH\xffNE"), 400, "M_NOT_JSON"},
		{"too deep", "/sfu/get", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), 400, "M_NOT_JSON"},
		{"not an object", "/sfu/get", `[]`, 400, "M_BAD_JSON"},
		{"wrong type", "/sfu/get", legacy(`"PHONE"`, `7`), 400, "M_BAD_JSON"},
		{"too large", "/sfu/get", `{"room":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "M_TOO_LARGE"},
		{"no room", "/sfu/get", legacy("!abc:example.org", ""), 400, "M_BAD_JSON"},
		{"no device", "/sfu/get", legacy("PHONE", ""), 400, "M_BAD_JSON"},
		{"no token", "/sfu/get", legacy("alice-token", ""), 400, "M_BAD_JSON"},
		{"no server", "/sfu/get", legacy(`"matrix_server_name":"example.org"`, `"x":1`), 400, "M_BAD_JSON"},
		{"endless device", "/sfu/get", legacy("PHONE", strings.Repeat("P", 256)), 400, "M_BAD_JSON"},
		{"control character in the device", "/sfu/get", legacy("PHONE", `PH\u0000NE`), 400, "M_BAD_JSON"},
		{"endless token", "/sfu/get", legacy("alice-token", strings.Repeat("t", 4096)), 400, "M_BAD_JSON"},
		{"delay_id alone", "/sfu/get", delay(`"delay_id":"x"`), 400, "M_BAD_JSON"},
		{"delay_timeout alone", "/sfu/get", delay(`"delay_timeout":1000`), 400, "M_BAD_JSON"},
		{"delay of zero", "/sfu/get", delay(`"delay_id":"x","delay_timeout":0`), 400, "M_BAD_JSON"},
		{"negative delay", "/sfu/get", delay(`"delay_id":"x","delay_timeout":-5`), 400, "M_BAD_JSON"},
		{"half a millisecond", "/sfu/get", delay(`"delay_id":"x","delay_timeout":1.5`), 400, "M_BAD_JSON"},
		{"endless delay", "/sfu/get", delay(`"delay_id":"x","delay_timeout":1e300`), 400, "M_BAD_JSON"},
		{"unknown delayed event", "/sfu/get", delay(`"delay_id":"x","delay_timeout":1000`), 400, "M_BAD_JSON"},
		{"somebody else's delayed event", "/sfu/get", delay(`"delay_id":"bobs","delay_timeout":1000`), 400, "M_BAD_JSON"},
		{"delayed event of another room", "/sfu/get", delay(`"delay_id":"elsewhere","delay_timeout":1000`), 400, "M_BAD_JSON"},
		{"unknown token", "/sfu/get", legacy("alice-token", "stolen"), 401, "M_UNAUTHORIZED"},
		{"unknown room", "/sfu/get", legacy("!abc:", "!unknown:"), 403, "M_FORBIDDEN"},
		{"left", "/sfu/get", legacy("!abc:", "!left:"), 403, "M_FORBIDDEN"},
		{"banned", "/sfu/get", legacy("!abc:", "!banned:"), 403, "M_FORBIDDEN"},
		{"invited only", "/sfu/get", legacy("!abc:", "!invited:"), 403, "M_FORBIDDEN"},
		{"knocking", "/sfu/get", legacy("!abc:", "!knocked:"), 403, "M_FORBIDDEN"},
		{"never a member", "/sfu/get", legacy("!abc:", "!never:"), 403, "M_FORBIDDEN"},
		{"somebody else's device", "/sfu/get", legacy("PHONE", "LAPTOP"), 403, "M_FORBIDDEN"},
		{"claims to be somebody else", "/get_token", aliceMember("@alice:example.org", "@bob:example.org"), 401, "M_UNAUTHORIZED"},
		{"no slot", "/get_token", aliceMember("m.call#ROOM", ""), 400, "M_BAD_JSON"},
		{"no member", "/get_token", aliceMember(`"id"`, `"x"`), 400, "M_BAD_JSON"},
		{"no claimed device", "/get_token", aliceMember("claimed_device_id", "x"), 400, "M_BAD_JSON"},
		{"endless member", "/get_token", aliceMember("11111111", strings.Repeat("1", 300)), 400, "M_BAD_JSON"},
		{"nothing to delegate", "/delegate_delayed_leave", aliceMember(), 400, "M_BAD_JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, out := rt.do("POST", c.path, c.body)
			if resp.StatusCode != c.status || out["errcode"] != c.code {
				t.Errorf("answered %d %v, want %d %s", resp.StatusCode, out, c.status, c.code)
			}
			if c.code == "M_FORBIDDEN" && out["error"] != "You are not a member of this room" {
				t.Errorf("error %q tells rooms and reasons apart", out["error"])
			}
		})
	}
}

func TestPathsAndMethods(t *testing.T) {
	rt := newRTCTest(t)
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{"OPTIONS", "/sfu/get", 200},
		{"OPTIONS", "/livekit/jwt/get_token", 200},
		{"GET", "/sfu/get", 405},
		{"PUT", "/delegate_delayed_leave", 405},
		{"GET", "/healthz", 200},
		{"HEAD", "/livekit/jwt/healthz", 200},
		{"POST", "/healthz", 405},
		{"POST", "/sfu/put", 404},
		{"POST", "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/get_token", 404},
		{"POST", "/_matrix/client/unstable/io.element.msc4195/rtc/livekit/delegate_delayed_leave", 404},
		{"POST", "/prefix/_matrix/client/v1/rtc/livekit/delegate_delayed_leave", 404},
	} {
		if resp, out := rt.do(c.method, c.path, ""); resp.StatusCode != c.status {
			t.Errorf("%s %s answered %d %v, want %d", c.method, c.path, resp.StatusCode, out, c.status)
		}
	}
	resp, _ := rt.do("OPTIONS", "/sfu/get", "")
	if got := resp.Header.Get("Access-Control-Allow-Methods"); got != "POST" {
		t.Errorf("Access-Control-Allow-Methods = %q", got)
	}
	for _, want := range []string{"Content-Type", "Authorization"} {
		if got := resp.Header.Get("Access-Control-Allow-Headers"); !strings.Contains(got, want) {
			t.Errorf("Access-Control-Allow-Headers = %q lacks %s", got, want)
		}
	}
}

func TestEveryKindOfErrorHasAnAnswer(t *testing.T) {
	for _, kind := range call.Kinds() {
		if _, ok := tokenErrors[kind]; !ok {
			t.Errorf("no answer for %q", kind)
		}
		if e := apiError(fmt.Errorf("doing: %w", kind)); e.Status >= 500 && kind != call.ErrUnavailable {
			t.Errorf("%q is answered %d", kind, e.Status)
		}
	}
	if e := apiError(errors.New("secret detail")); e.Status != 500 || e.Code != matrix.CodeUnknown || strings.Contains(e.Message, "secret") {
		t.Errorf("an internal error is answered %+v", e)
	}
}

func TestKickEndsTokens(t *testing.T) {
	for _, to := range []matrix.Membership{matrix.MembershipLeave, matrix.MembershipBan} {
		rt := newRTCTest(t)
		ctx := context.Background()
		old := rt.grant("/sfu/get", aliceLegacy)
		hashed := rt.grant("/get_token", aliceMember())
		rt.here(old.Room, old.Identity)
		rt.rooms.setMembership(testRoom, "@alice:example.org", to)
		rt.settle()
		if !rt.wasEvicted(old) || !rt.wasEvicted(hashed) {
			t.Errorf("%s: evicted %v; a removed member still hears the call", to, rt.evicted)
		}
		if err := rt.check(ctx, old); !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s: check of the old token: %v", to, err)
		}
		// Back in the room at once, within the same second.
		rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipJoin)
		if err := rt.check(ctx, old); !errors.Is(err, call.ErrForbidden) {
			t.Errorf("%s: the old token lives again after the user came back: %v", to, err)
		}
		fresh := rt.grant("/sfu/get", aliceLegacy)
		if err := rt.check(ctx, fresh); err != nil {
			t.Errorf("%s: the new token of a user who came back is refused: %v", to, err)
		}
		if ahead := time.Until(fresh.NotBefore); ahead > time.Second {
			t.Errorf("%s: the new token becomes valid only in %s", to, ahead)
		}
		if fresh.NotBefore.Nanosecond() != 0 {
			t.Errorf("%s: nbf %v is not a whole second", to, fresh.NotBefore)
		}
	}
}

func TestKickBetweenCheckAndJoin(t *testing.T) {
	rt := newRTCTest(t)
	g := rt.grant("/sfu/get", aliceLegacy)
	if err := rt.check(context.Background(), g); err != nil {
		t.Fatal(err)
	}
	rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipLeave)
	rt.settle()
	rt.mu.Lock()
	rt.evicted = nil // it was not there yet: nothing happened
	rt.mu.Unlock()
	rt.here(g.Room, g.Identity)
	rt.settle()
	if !rt.wasEvicted(g) {
		t.Error("who was kicked while connecting stays in the call")
	}
}

func TestKickRacesWithMinting(t *testing.T) {
	rt := newRTCTest(t)
	ctx := context.Background()
	for range 50 {
		var wg sync.WaitGroup
		wg.Go(func() { rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipLeave) })
		var g call.Grant
		var minted bool
		wg.Go(func() {
			token, err := rt.admit(ctx, admission{
				room: testRoom, slot: legacySlot, user: "@alice:example.org", device: "PHONE", identity: "@alice:example.org:PHONE",
			})
			if err == nil {
				minted = json.Unmarshal([]byte(token), &g) == nil
			}
		})
		wg.Wait()
		rt.settle()
		if minted {
			if err := rt.check(ctx, g); !errors.Is(err, call.ErrForbidden) {
				t.Fatalf("a token that was minted during the kick works after it: %v", err)
			}
		}
		rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipJoin)
	}
}

func TestCheckLeavesOthersAlone(t *testing.T) {
	rt := newRTCTest(t)
	ctx := context.Background()
	if err := rt.check(ctx, call.Grant{Room: "api-room", Identity: "someone", NotBefore: time.Now()}); err != nil {
		t.Errorf("a token made with the API key is refused: %v", err)
	}
	g := rt.grant("/sfu/get", aliceLegacy)
	rt.rooms.setMembership(testRoom, "@bob:example.org", matrix.MembershipLeave)
	rt.rooms.setMembership(testRoom, "@alice:example.org", matrix.MembershipJoin) // a new display name
	rt.settle()
	if rt.wasEvicted(g) {
		t.Error("somebody else's leave or a new display name removed a member")
	}
	rt.rooms.mu.Lock()
	delete(rt.rooms.devices, "@alice:example.orgPHONE")
	rt.rooms.mu.Unlock()
	if err := rt.check(ctx, g); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("the token of a device that was logged out: %v", err)
	}
}

func TestSweepKeepsThePresent(t *testing.T) {
	rt := newRTCTest(t)
	ctx := context.Background()
	g := rt.grant("/sfu/get", aliceLegacy)
	minted := time.Now()
	rt.here(g.Room, g.Identity)
	time.Sleep(2 * time.Millisecond)
	rt.sweep(ctx)
	if err := rt.store.ForgetExpired(ctx, minted.Add(mintedKept+time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if _, err := rt.store.Minted(ctx, g.Room, g.Identity); err != nil {
		t.Errorf("a participant that is here was forgotten: a kick would not find it: %v", err)
	}
}

func TestMintingIsLimited(t *testing.T) {
	rt := newRTCTest(t)
	rt.perUser = newRateLimits(0.001, 3)
	for i := range 3 {
		if resp, out := rt.do("POST", "/sfu/get", aliceLegacy); resp.StatusCode != 200 {
			t.Fatalf("request %d: %d %v", i, resp.StatusCode, out)
		}
	}
	resp, out := rt.do("POST", "/sfu/get", aliceLegacy)
	if resp.StatusCode != 429 || out["errcode"] != "M_LIMIT_EXCEEDED" || resp.Header.Get("Retry-After") == "" || out["retry_after_ms"] == nil {
		t.Errorf("request over the limit: %d %v, Retry-After %q", resp.StatusCode, out, resp.Header.Get("Retry-After"))
	}
}

func TestRateLimitsForget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newRateLimits(10, 2)
		for i := range 5000 {
			l.take(fmt.Sprint(i))
			time.Sleep(time.Millisecond)
		}
		if len(l.byKey) > 2048 {
			t.Errorf("%d buckets are kept, most of them full", len(l.byKey))
		}
	})
}

func TestStoppedServerAnswers503(t *testing.T) {
	rt := newRTCTest(t)
	rt.stop()
	if resp, out := rt.do("POST", "/sfu/get", aliceLegacy); resp.StatusCode != 503 || out["errcode"] != "M_UNKNOWN" {
		t.Errorf("answered %d %v, want 503 M_UNKNOWN", resp.StatusCode, out)
	}
}

func FuzzTokenRequest(f *testing.F) {
	f.Add([]byte(aliceLegacy))
	f.Add([]byte(aliceMember()))
	f.Add([]byte(`{"room":"!r:x","delay_id":"d","delay_timeout":1e3,"member":[],"openid_token":null}`))
	f.Add([]byte(`{"delay_timeout":"5","delay_id":"\u0000","room_id":7}`))
	m := &matrixRTC{rooms: newFakeRooms(), openID: newOpenIDVerifier(), perUser: newRateLimits(1, 1), perServer: newRateLimits(1, 1)}
	m.openID.lookup = func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no network") }
	m.openID.srv = func(context.Context, string, string) ([]*net.SRV, error) { return nil, errors.New("no network") }
	m.openID.dial = func(context.Context, netip.AddrPort) (net.Conn, error) { return nil, errors.New("no network") }
	m.log = slog.New(slog.DiscardHandler)
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := m.admission(context.Background(), body); err == nil {
			t.Error("admitted with a token that nobody gave out")
		} else if e := apiError(err); e.Status >= 500 {
			t.Errorf("status %d for %q: %v", e.Status, body, err)
		}
		if _, err := m.sfuGet(context.Background(), body); err == nil {
			t.Error("a token for a token that nobody gave out")
		} else if e := apiError(err); e.Status >= 500 {
			t.Errorf("status %d for %q: %v", e.Status, body, err)
		}
	})
}
