package homeserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// probe runs one handler and returns what a client sees.
func (w *world) probe(h handler) reply {
	w.t.Helper()
	w.s.routes.literal["probe"] = nil // the one before
	w.s.mount([]route{{http.MethodGet, []string{"/probe"}, accessPublic, limitNone, h}})
	return w.send("GET", "/probe", "", nil)
}

func TestEveryKindOfErrorHasItsAnswer(t *testing.T) {
	want := map[error]struct {
		status int
		code   matrix.Code
	}{
		call.ErrNotFound:    {404, matrix.CodeNotFound},
		call.ErrForbidden:   {403, matrix.CodeForbidden},
		call.ErrInvalid:     {400, matrix.CodeInvalidParam},
		call.ErrConflict:    {409, matrix.CodeUnknown},
		call.ErrUnavailable: {503, matrix.CodeUnknown},
	}
	world := newWorld(t)
	for _, kind := range call.Kinds() {
		w, ok := want[kind]
		if !ok {
			t.Errorf("kind %q is in no row of this table", kind)
			continue
		}
		got := world.probe(func(*request) (any, error) { return nil, fmt.Errorf("open the door: %w", kind) })
		if got.status != w.status || got.code() != string(w.code) {
			t.Errorf("%v: %d %s, want %d %s", kind, got.status, got.raw, w.status, w.code)
		}
	}
}

func TestInternalErrorsTellStrangersNothing(t *testing.T) {
	world := newWorld(t)
	for name, h := range map[string]handler{
		"an error of no kind":   func(*request) (any, error) { return nil, errors.New("disk /dev/sda1 is full") },
		"a panic":               func(*request) (any, error) { panic("disk /dev/sda1 is full") },
		"a reply that is wrong": func(*request) (any, error) { return func() {}, nil },
	} {
		got := world.probe(h)
		if got.status != 500 || got.code() != "M_UNKNOWN" || strings.Contains(string(got.raw), "sda1") {
			t.Errorf("%s: %d %s", name, got.status, got.raw)
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	for _, row := range []struct {
		method, path string
		status       int
	}{
		{"GET", "/_matrix/client/v3/nothing", 404},
		{"GET", "/_matrix/unknown", 404},
		{"GET", "/_matrix/key/v2/nothing", 404},
		{"GET", "/", 404},
		{"GET", "//", 404},
		{"GET", "/_matrix/client/v3//", 404},
		{"PATCH", "/_matrix/client/v3/login", 405},
		{"DELETE", "/_matrix/client/versions", 405},
		{"PUT", "/_matrix/client/v3/keys/upload", 405},
		{"PUT", "/_matrix/media/v3/upload", 405},
		{"POST", "/_matrix/federation/v1/openid/userinfo", 405},
	} {
		w.refuse(row.method, row.path, alice.token, nil, row.status, "M_UNRECOGNIZED")
	}
	w.refuse("GET", "/_matrix/client/v3/profile/%ff", "", nil, 400, "M_INVALID_PARAM")
}

func TestCORS(t *testing.T) {
	w := newWorld(t)
	for _, row := range [][2]string{{"OPTIONS", c("/login")}, {"OPTIONS", "/_matrix/nothing"}, {"GET", c("/login")}, {"GET", c("/sync")}, {"GET", "/_matrix/nothing"}, {"GET", "/.well-known/matrix/client"}} {
		got := w.send(row[0], row[1], "", nil)
		if got.header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(got.header.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("%s %s: a browser may not read this: %v", row[0], row[1], got.header)
		}
		if row[0] == "OPTIONS" && got.status/100 != 2 {
			t.Errorf("preflight %s: %d", row[1], got.status)
		}
	}
}

func TestRoutesMatchWithoutSurprises(t *testing.T) {
	var tree routeTree
	for _, p := range []string{"/a/{x}", "/a/b", "/a/{y}/c", "/a/b/{$}", "/a/b/d", "/f/{rest...}"} {
		tree.add(p, &route{method: p})
	}
	for path, want := range map[string]string{
		"/a/b": "/a/b", "/a/q": "/a/{x}", "/a/b/c": "/a/{y}/c", "/a/q/c": "/a/{y}/c", "/a/b/": "/a/b/{$}",
		"/a/b/d": "/a/b/d", "/a/": "", "/a/q/": "", "/a": "", "/f/1/2/3": "/f/{rest...}", "/f/": "/f/{rest...}", "": "",
	} {
		m, _ := tree.find(strings.Split(strings.TrimPrefix(path, "/"), "/"), nil)
		got := ""
		for k := range m {
			got = k
		}
		if got != want {
			t.Errorf("%q goes to %q, want %q", path, got, want)
		}
	}
}

func TestEncodedSlashStaysInItsSegment(t *testing.T) {
	w := newWorld(t)
	var got string
	w.s.mount([]route{{http.MethodGet, []string{"/probe/{id}/x"}, accessPublic, limitNone, func(r *request) (any, error) {
		got = r.PathValue("id")
		return nil, nil
	}}})
	w.must("GET", "/probe/%21a%2Fb%3Fc/x", "", nil)
	if got != "!a/b?c" {
		t.Errorf("path value %q", got)
	}
}

func TestBadBodies(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	filter := c("/user/" + url.PathEscape(string(alice.id)) + "/filter")
	for name, row := range map[string]struct {
		body   string
		status int
		code   matrix.Code
	}{
		"no body":                    {"", 400, "M_NOT_JSON"},
		"not JSON":                   {"{", 400, "M_NOT_JSON"},
		"two values":                 {"{}{}", 400, "M_NOT_JSON"},
		"an array":                   {"[]", 400, "M_BAD_JSON"},
		"a string":                   {`"x"`, 400, "M_BAD_JSON"},
		"null":                       {"null", 400, "M_BAD_JSON"},
		"a field of a wrong type":    {`{"room":7}`, 400, "M_BAD_JSON"},
		"invalid UTF-8":              {"{\"a\":\"\xff\"}", 400, "M_NOT_JSON"},
		"deep arrays":                {`{"a":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + "}", 400, "M_BAD_JSON"},
		"deep, never closed":         {strings.Repeat(`{"a":`, 100_000), 400, "M_BAD_JSON"},
		"more than a megabyte":       {`{"a":"` + strings.Repeat("x", maxJSONBody) + `"}`, 413, "M_TOO_LARGE"},
		"only spaces":                {"   ", 400, "M_NOT_JSON"},
		"a number that is no number": {`{"a":01}`, 400, "M_NOT_JSON"},
	} {
		got := w.send("POST", filter, alice.token, row.body)
		if got.status != row.status || got.code() != string(row.code) {
			t.Errorf("%s: %d %s, want %d %s", name, got.status, got.raw, row.status, row.code)
		}
	}
	// A body that lies about its length must not be believed either.
	r := httptest.NewRequestWithContext(t.Context(), "POST", filter, struct{ *strings.Reader }{strings.NewReader(`{"a":"` + strings.Repeat("x", 2*maxJSONBody) + `"}`)})
	r.ContentLength = -1
	r.Header.Set("Authorization", "Bearer "+alice.token)
	rec := httptest.NewRecorder()
	w.s.Handler().ServeHTTP(rec, r)
	if rec.Code != 413 {
		t.Errorf("a body of unknown length without end: %d", rec.Code)
	}
	if got := w.send("POST", filter, alice.token, "{}", "Content-Type", "text/plain"); got.status != 200 {
		t.Errorf("the content type must not matter: %d %s", got.status, got.raw)
	}
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	alice := w.register("alice")
	whoami := c("/account/whoami")
	w.refuse("GET", whoami, "", nil, 401, "M_MISSING_TOKEN")
	w.refuse("GET", whoami, "syt_unknown", nil, 401, "M_UNKNOWN_TOKEN")
	w.refuse("GET", whoami, strings.Repeat("x", 10_000), nil, 401, "M_UNKNOWN_TOKEN")
	w.refuse("GET", whoami+"?access_token=nonsense", "", nil, 401, "M_UNKNOWN_TOKEN")
	if got := w.send("GET", whoami, "", nil, "Authorization", "Basic abc"); got.status != 401 || got.code() != "M_MISSING_TOKEN" {
		t.Errorf("another scheme: %d %s", got.status, got.raw)
	}
	if got := w.must("GET", whoami+"?access_token="+alice.token, "", nil); got.str("user_id") != string(alice.id) {
		t.Errorf("token in the query: %s", got.raw)
	}
	if got := w.send("GET", whoami, "", nil, "Authorization", "bearer "+alice.token); got.status != 200 {
		t.Errorf("scheme in lower case: %d %s", got.status, got.raw)
	}
	if strings.Contains(w.log.String(), alice.token) {
		t.Error("an access token stands in the log")
	}
}

// TestEverySpecifiedEndpointExists asks for endpoints of the client-server API
// as the specification lists them: each must be routed, with or without success.
func TestEverySpecifiedEndpointExists(t *testing.T) {
	w := newWorld(t)
	list, err := os.ReadFile("testdata/endpoints.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(list)) {
		method, path, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(method, "#") {
			continue
		}
		n++
		for strings.Contains(path, "{") {
			before, rest, _ := strings.Cut(path, "{")
			_, after, _ := strings.Cut(rest, "}")
			path = before + "x" + after
		}
		segs := strings.Split(strings.TrimPrefix(path, "/"), "/")
		methods, _ := w.s.routes.find(segs, nil)
		if _, ok := methods[method]; !ok {
			t.Errorf("%s %s is not served", method, path)
		}
	}
	if n < 60 {
		t.Errorf("only %d endpoints were looked at", n)
	}
}

// eachRoute calls f for every route of the server.
func (t *routeTree) eachRoute(path string, f func(path string, rt *route)) {
	for _, ep := range t.methods {
		f(path, ep.route)
	}
	for _, ep := range t.rest {
		f(path+"/...", ep.route)
	}
	for seg, next := range t.literal {
		next.eachRoute(path+"/"+seg, f)
	}
	if t.wild != nil {
		t.wild.eachRoute(path+"/{}", f)
	}
}

func TestHeartbeatsAreNeverLimited(t *testing.T) {
	w := newWorld(t, func(cfg *Config, _ *Deps) { cfg.RateLimits = true })
	never := []string{"/sync", "/delayed_events/{}/{}", ".msc4140/delayed_events/{}", "/rtc/transports", "/openid/request_token", "/sendToDevice/{}/{}", "/voip/turnServer", "/keys/query"}
	seen := make(map[string]bool)
	w.s.routes.eachRoute("", func(path string, rt *route) {
		for _, n := range never {
			if !strings.HasSuffix(path, n) {
				continue
			}
			seen[n] = true
			if rt.limit != limitNone {
				t.Errorf("%s %s is rate limited: a call would lose people", rt.method, path)
			}
		}
	})
	for _, n := range never {
		if !seen[n] {
			t.Errorf("no route ends with %s: this test looks at nothing", n)
		}
	}
	// The heartbeats of fifty people behind one address, ten times as fast as they come.
	for range 2000 {
		if got := w.send("POST", "/_matrix/client/unstable/org.matrix.msc4140/delayed_events/syd_x/restart", "", "{}"); got.status == 429 {
			t.Fatalf("a heartbeat was refused: %s", got.raw)
		}
	}
}

func TestRateLimitsSayWhenToComeBack(t *testing.T) {
	w := newWorld(t, func(cfg *Config, _ *Deps) { cfg.RateLimits = true })
	body := map[string]any{"type": "m.login.password", "identifier": map[string]any{"type": "m.id.user", "user": "nobody"}, "password": "x"}
	var limited reply
	for range 40 {
		if limited = w.send("POST", c("/login"), "", body); limited.status == 429 {
			break
		}
	}
	if limited.status != 429 || limited.code() != "M_LIMIT_EXCEEDED" || limited.header.Get("Retry-After") == "" || limited.body["retry_after_ms"] == nil {
		t.Fatalf("guessing passwords is not slowed down: %d %s %v", limited.status, limited.raw, limited.header)
	}
	if n := len(w.s.limiter.buckets); n == 0 {
		t.Error("no bucket is in use")
	}
}

func TestLimiterRefills(t *testing.T) {
	var l limiter
	now := time.Unix(1000, 0)
	for range int(limitSpecs[limitLoginAccount].burst) {
		if l.take(limitLoginAccount, "a", now) != 0 {
			t.Fatal("the burst is smaller than promised")
		}
	}
	wait := l.take(limitLoginAccount, "a", now)
	if wait <= 0 || wait > limitSpecs[limitLoginAccount].every {
		t.Fatalf("wait %v", wait)
	}
	if l.take(limitLoginAccount, "b", now) != 0 {
		t.Error("one account's limit hits another")
	}
	if l.take(limitLoginAccount, "a", now.Add(wait)) != 0 {
		t.Error("the promised time was not long enough")
	}
	l.take(limitLoginAccount, "c", now.Add(time.Hour))
	if len(l.buckets) != 1 {
		t.Errorf("%d buckets are kept, want the newest alone", len(l.buckets))
	}
}

func TestAddressBehindProxy(t *testing.T) {
	for _, row := range []struct{ remote, forwarded, want string }{
		{"192.0.2.1:5", "203.0.113.9", "192.0.2.1"},
		{"127.0.0.1:5", "203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:5", "10.0.0.1, 203.0.113.9", "203.0.113.9"},
		{"127.0.0.1:5", "not an address", "127.0.0.1"},
		{"[::1]:5", "", "::1"},
	} {
		r := &request{Request: httptest.NewRequestWithContext(t.Context(), "GET", "/", nil)}
		r.RemoteAddr = row.remote
		if row.forwarded != "" {
			r.Header.Set("X-Forwarded-For", row.forwarded)
		}
		if got := r.addr(); got != row.want {
			t.Errorf("%v: %s", row, got)
		}
	}
}

func FuzzJSONBody(f *testing.F) {
	for _, seed := range []string{`{}`, `{"room":{"timeline":{"limit":1}}}`, `[]`, `{"a":"\ud800"}`, "{\"\xff\":1}", strings.Repeat("[", 200), `{"room":{"timeline":{"limit":1e400}}}`, `"\"{"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if err := checkObject(raw); err != nil {
			if e := errorReply(err); e.Status != 400 || e.Code != "M_NOT_JSON" && e.Code != "M_BAD_JSON" {
				t.Fatalf("%q: %v", raw, err)
			}
			return
		}
		if !utf8.Valid(raw) || !json.Valid(raw) {
			t.Fatalf("%q was let through", raw)
		}
		for _, v := range []any{new(syncFilter), new(registerBody), new(backupRoom), new(map[string]any)} {
			if err := decodeJSON(raw, v); err != nil && errorReply(err).Status != 400 {
				t.Fatalf("%q into %T: %v", raw, v, err)
			}
		}
	})
}

func TestKindsOfAccessAreAllUsed(t *testing.T) {
	w := newWorld(t)
	var used []access
	w.s.routes.eachRoute("", func(_ string, rt *route) {
		if !slices.Contains(used, rt.access) {
			used = append(used, rt.access)
		}
		if rt.handle == nil {
			t.Errorf("%s %v has no handler", rt.method, rt.paths)
		}
	})
	if !slices.Contains(used, accessUser) || !slices.Contains(used, accessGuest) || !slices.Contains(used, accessPublic) {
		t.Errorf("access in use: %v", used)
	}
}
