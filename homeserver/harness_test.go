package homeserver

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
	"github.com/trunkhall/trunkhall/storage"
)

// A world is one homeserver with a store of its own, called without a network.
type world struct {
	t   testing.TB
	s   *Server
	db  *storage.DB
	log *bytes.Buffer
}

// emptyDatabase is a database file with today's schema: making it once instead of
// migrating for every test halves the time that they take.
var emptyDatabase = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "homeserver-test-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a leftover in the temporary folder
	path := filepath.Join(dir, "empty.db")
	db, err := storage.OpenSQLite(context.Background(), path, nil)
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// newWorld builds a homeserver with open registration and no rate limits;
// change may alter its configuration and what it is given.
func newWorld(t testing.TB, change ...func(*Config, *Deps)) *world {
	t.Helper()
	dir := t.TempDir()
	empty, err := emptyDatabase()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "test.db"), empty, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := storage.OpenSQLite(t.Context(), filepath.Join(dir, "test.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	log := new(bytes.Buffer)
	cfg := DefaultConfig()
	cfg.ServerName, cfg.Registration, cfg.RateLimits = "test.example", RegistrationOpen, false
	deps := Deps{
		Store: db, MediaDir: filepath.Join(dir, "media"), Log: slog.New(slog.NewTextHandler(log, nil)),
		Endpoints: func() Endpoints {
			return Endpoints{BaseURL: "https://test.example", LiveKitServiceURL: "https://test.example/livekit/jwt", LiveKitURL: "wss://test.example"}
		},
		ICEServers: func(user string) ([]call.ICEServer, time.Duration) {
			return []call.ICEServer{{URLs: []string{"turn:192.0.2.1:3478?transport=udp"}, Username: "1:" + user, Credential: "secret"}}, time.Hour
		},
	}
	for _, c := range change {
		c(&cfg, &deps)
	}
	s, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	s.passwords.time, s.passwords.memory = 1, 64 // tests make many accounts
	return &world{t: t, s: s, db: db, log: log}
}

// A reply is an answer: its status, and its body if that is a JSON object.
type reply struct {
	status int
	header http.Header
	raw    []byte
	body   map[string]any
}

// code returns the errcode.
func (r reply) code() string {
	c, _ := r.body["errcode"].(string)
	return c
}

// str returns a string of the body.
func (r reply) str(key string) string {
	s, _ := r.body[key].(string)
	return s
}

// send makes a request. body may be nil, a string, an io.Reader, or what becomes JSON.
func (w *world) send(method, path, token string, body any, header ...string) reply {
	w.t.Helper()
	var rd io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		rd = strings.NewReader(b)
	case io.Reader:
		rd = b
	default:
		j, err := json.Marshal(b)
		if err != nil {
			w.t.Fatal(err)
		}
		rd = bytes.NewReader(j)
	}
	r := httptest.NewRequestWithContext(w.t.Context(), method, path, rd)
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.s.Handler().ServeHTTP(rec, r)
	rep := reply{status: rec.Code, header: rec.Header(), raw: rec.Body.Bytes()}
	_ = json.Unmarshal(rep.raw, &rep.body)
	return rep
}

// c is a path of the client-server API.
func c(path string) string { return "/_matrix/client/v3" + path }

// must is send for a request that must be answered with 200.
func (w *world) must(method, path, token string, body any) reply {
	w.t.Helper()
	rep := w.send(method, path, token, body)
	if rep.status != http.StatusOK {
		w.t.Fatalf("%s %s: %d %s", method, path, rep.status, rep.raw)
	}
	return rep
}

// refuse is send for a request that must be answered with an error.
func (w *world) refuse(method, path, token string, body any, status int, code matrix.Code) reply {
	w.t.Helper()
	rep := w.send(method, path, token, body)
	if rep.status != status || rep.code() != string(code) {
		w.t.Errorf("%s %s: %d %s, want %d %s", method, path, rep.status, rep.raw, status, code)
	}
	return rep
}

const testPassword = "correct horse"

// A person is a logged-in user.
type person struct {
	id     matrix.UserID
	device matrix.DeviceID
	token  string
}

// register makes an account with testPassword and logs it in.
func (w *world) register(name string) person {
	w.t.Helper()
	rep := w.must("POST", c("/register"), "", map[string]any{
		"username": name, "password": testPassword, "auth": map[string]any{"type": "m.login.dummy"},
	})
	return person{matrix.UserID(rep.str("user_id")), matrix.DeviceID(rep.str("device_id")), rep.str("access_token")}
}

// guest makes a guest.
func (w *world) guest() person {
	w.t.Helper()
	rep := w.must("POST", c("/register?kind=guest"), "", map[string]any{})
	return person{matrix.UserID(rep.str("user_id")), matrix.DeviceID(rep.str("device_id")), rep.str("access_token")}
}

// dig returns what is at a path of keys and indexes in a decoded JSON value.
func dig(v any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			o, _ := v.(map[string]any)
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
