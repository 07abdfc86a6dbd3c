package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/storage"
)

// A house is a homeserver on a database of its own, for tests of rooms.
type house struct {
	*Server
	t    testing.TB
	path string
}

// newHouse builds a server; its background work is not started.
func newHouse(t testing.TB) *house {
	t.Helper()
	path := filepath.Join(t.TempDir(), "house.db")
	empty, err := emptyDatabase()
	if err == nil {
		err = os.WriteFile(path, empty, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return openHouse(t, path)
}

// openHouse builds a server on a database that may exist.
func openHouse(t testing.TB, path string) *house {
	t.Helper()
	db, err := storage.OpenSQLite(context.Background(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	cfg := DefaultConfig()
	cfg.ServerName = "hs.test"
	cfg.Registration = RegistrationOpen
	cfg.RateLimits = false
	s, err := New(cfg, Deps{
		Store: db, MediaDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		Endpoints: func() Endpoints { return Endpoints{BaseURL: "http://hs.test"} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return &house{s, t, path}
}

// A resident is a user with a device.
type resident struct {
	h      *house
	id     matrix.UserID
	device matrix.DeviceID
	token  string
}

// user makes an account, or logs in again as one that exists.
func (h *house) user(name string) *resident {
	h.t.Helper()
	id := matrix.UserID("@" + name + ":hs.test")
	if _, err := h.deps.Store.User(h.t.Context(), id); err != nil {
		if _, err := h.CreateUser(h.t.Context(), name, "", false); err != nil {
			h.t.Fatal(err)
		}
	}
	token, device, err := h.Login(h.t.Context(), id, "test")
	if err != nil {
		h.t.Fatal(err)
	}
	return &resident{h, id, device, token}
}

// guest registers a guest through the API.
func (h *house) guest() *resident {
	h.t.Helper()
	r := h.anonymous().want(200, "POST", "/v3/register?kind=guest", obj{})
	return &resident{h, matrix.UserID(r.str("user_id")), matrix.DeviceID(r.str("device_id")), r.str("access_token")}
}

// anonymous is somebody without a token.
func (h *house) anonymous() *resident { return &resident{h: h} }

type obj = map[string]any

// A seen is a decoded JSON answer.
type seen struct {
	t      testing.TB
	status int
	raw    []byte
	body   any
}

// do sends a request; path is below /_matrix/client. A []byte or string body is
// sent as it is, anything else as JSON.
func (u *resident) do(method, path string, body any) seen {
	u.h.t.Helper()
	return u.doCtx(u.h.t.Context(), method, path, body)
}

func (u *resident) doCtx(ctx context.Context, method, path string, body any) seen {
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case []byte:
		rd = bytes.NewReader(b)
	case string:
		rd = strings.NewReader(b)
	default:
		raw, err := json.Marshal(body)
		if err != nil {
			panic(err)
		}
		rd = bytes.NewReader(raw)
	}
	req := httptest.NewRequestWithContext(ctx, method, "http://hs.test/_matrix/client"+path, rd)
	if u.token != "" {
		req.Header.Set("Authorization", "Bearer "+u.token)
	}
	rec := httptest.NewRecorder()
	u.h.Handler().ServeHTTP(rec, req)
	r := seen{t: u.h.t, status: rec.Code, raw: rec.Body.Bytes()}
	_ = json.Unmarshal(r.raw, &r.body)
	return r
}

// want is do, and fails the test unless the status is as wanted.
func (u *resident) want(status int, method, path string, body any) seen {
	u.h.t.Helper()
	r := u.do(method, path, body)
	if r.status != status {
		u.h.t.Fatalf("%s %s %s: status %d, want %d: %s", u.id, method, path, r.status, status, r.raw)
	}
	return r
}

// wantError is want, and fails unless the errcode is as wanted too.
func (u *resident) wantError(status int, code matrix.Code, method, path string, body any) seen {
	u.h.t.Helper()
	r := u.want(status, method, path, body)
	if got := r.str("errcode"); got != string(code) {
		u.h.t.Fatalf("%s %s: errcode %s, want %s: %s", method, path, got, code, r.raw)
	}
	return r
}

// at walks into the answer: keys of objects, indexes of arrays. nil if there is
// nothing.
func (r seen) at(path ...any) any { return digIn(r.body, path...) }

func digIn(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			o, _ := v.(obj)
			v = o[p]
		case int:
			l, _ := v.([]any)
			if p >= len(l) {
				return nil
			}
			v = l[p]
		}
	}
	return v
}

func (r seen) str(path ...any) string {
	s, _ := r.at(path...).(string)
	return s
}

func (r seen) list(path ...any) []any {
	l, _ := r.at(path...).([]any)
	return l
}

// room creates a room and returns its ID.
func (u *resident) room(body obj) string {
	u.h.t.Helper()
	return u.want(200, "POST", "/v3/createRoom", body).str("room_id")
}

// esc escapes a path segment.
func esc(s string) string { return url.PathEscape(s) }

func (u *resident) join(room string) {
	u.h.t.Helper()
	u.want(200, "POST", "/v3/join/"+esc(room), obj{})
}

// say sends a message and returns its event ID.
func (u *resident) say(room, text, txn string) string {
	u.h.t.Helper()
	return u.want(200, "PUT", "/v3/rooms/"+esc(room)+"/send/m.room.message/"+txn, obj{"msgtype": "m.text", "body": text}).str("event_id")
}

// sync syncs without waiting; since may be empty.
func (u *resident) sync(since string, query ...string) seen {
	u.h.t.Helper()
	q := ""
	if since != "" {
		q = "&since=" + since
	}
	for _, x := range query {
		q += "&" + x
	}
	return u.want(200, "GET", "/v3/sync?timeout=0"+q, nil)
}

func (r seen) next() string { return r.str("next_batch") }

// joined walks into a joined room of a sync.
func (r seen) joined(room string, path ...any) any {
	return r.at(append([]any{"rooms", "join", room}, path...)...)
}

// bodies returns the message bodies of a list of events.
func bodies(events any) []string {
	var out []string
	l, _ := events.([]any)
	for _, e := range l {
		if b, ok := digIn(e, "content", "body").(string); ok {
			out = append(out, b)
		}
	}
	return out
}

// types returns "type|state_key" of a list of events.
func types(events any) map[string]any {
	out := make(map[string]any)
	l, _ := events.([]any)
	for _, e := range l {
		key, ok := digIn(e, "state_key").(string)
		name := digIn(e, "type").(string)
		if ok {
			name += "|" + key
		}
		out[name] = digIn(e, "content")
	}
	return out
}
