package node

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/config"
	"go.uber.org/goleak"
)

// testConfig is a node on free ports of the loopback address with data of its
// own.
func testConfig(t testing.TB) config.Config {
	cfg := config.Default()
	cfg.DataDir = t.TempDir()
	cfg.Web.Listen = "127.0.0.1:0"
	cfg.SFU.UDPPort, cfg.SFU.TCPPort = 0, 0
	cfg.SFU.BindAddresses = []string{"127.0.0.1"}
	cfg.TURN.Port = 0
	return cfg
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a node; the function it returns stops it and waits.
func start(t testing.TB, cfg config.Config) (*Node, func()) {
	t.Helper()
	n, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	return n, func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("the node does not stop")
		}
	}
}

// get returns status and body of a path.
func get(t testing.TB, n *Node, path string) (int, string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}
	resp, err := client.Get(n.LocalURL() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestStartServeStopFiftyTimes(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cfg := testConfig(t) // one data directory: each start finds what the last one left
	for range 50 {
		n, stop := start(t, cfg)
		if status, body := get(t, n, "/healthz"); status != 200 {
			t.Fatalf("/healthz: %d %s", status, body)
		}
		if status, body := get(t, n, "/_matrix/client/versions"); status != 200 || !strings.Contains(body, "org.matrix.msc4140") {
			t.Fatalf("/versions: %d %s", status, body)
		}
		stop()
	}
}

func TestEveryPartAnswers(t *testing.T) {
	n, stop := start(t, testConfig(t))
	defer stop()
	for path, want := range map[string]int{
		"/":                                 200,
		"/healthz":                          200,
		"/_matrix/client/v3/login":          200,
		"/_matrix/client/v3/account/whoami": 401,
		"/_matrix/nothing":                  404,
		"/.well-known/matrix/client":        200,
		"/livekit/jwt/healthz":              200,
		"/livekit/jwt/sfu/get":              405,
		"/rtc/validate":                     401,
	} {
		if status, body := get(t, n, path); status != want {
			t.Errorf("GET %s = %d %s, want %d", path, status, body, want)
		}
	}

	_, body := get(t, n, "/config.json")
	var c clientConfig
	if err := json.Unmarshal([]byte(body), &c); err != nil || c.HomeserverBaseURL != n.BaseURL() || c.ServerName != "localhost" {
		t.Errorf("/config.json = %s (%v)", body, err)
	}
	// What discovery tells must be what this node serves.
	if _, body := get(t, n, "/.well-known/matrix/client"); !strings.Contains(body, n.BaseURL()) || !strings.Contains(body, n.LiveKitServiceURL()) {
		t.Errorf("well-known %s does not name %s", body, n.BaseURL())
	}
}

func TestNewWithoutRunGivesEverythingBack(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	cfg := testConfig(t)
	for range 2 { // the second time would find locks and ports taken
		n, err := New(context.Background(), cfg, discard())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Web.Listen = n.Addr().String()
		n.Close()
	}
}

func TestFailedNewGivesEverythingBack(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := testConfig(t)
	cfg.Web.Listen = taken.Addr().String()
	if _, err := New(context.Background(), cfg, discard()); err == nil || !strings.Contains(err.Error(), "web.listen") {
		t.Fatalf("a taken port: %v", err)
	}
	cfg.Web.Listen = "127.0.0.1:0"
	n, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatalf("afterwards: %v", err)
	}
	n.Close()
}

func TestOneProcessPerDataDirectory(t *testing.T) {
	cfg := testConfig(t)
	_, stop := start(t, cfg)
	_, err := New(context.Background(), cfg, discard())
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), cfg.DataDir) {
		t.Errorf("a second node: %v", err)
	}
	stop()
	n, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatalf("after the first has stopped: %v", err)
	}
	n.Close()
}

func TestSecrets(t *testing.T) {
	cfg := testConfig(t)
	first, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	made := first.Secrets()
	if len(made.APISecret) < 32 || len(made.TURNSecret) < 32 || made.APIKey == "" || made.APISecret == made.TURNSecret {
		t.Errorf("weak secrets: %+v", made)
	}
	file := filepath.Join(cfg.DataDir, "secrets.json")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}

	second, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if second.Secrets() != made {
		t.Error("the secrets changed with a restart")
	}

	other := cfg
	other.DataDir = t.TempDir()
	third, err := New(context.Background(), other, discard())
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
	if third.Secrets().APISecret == made.APISecret {
		t.Error("two servers have the same secret")
	}

	cfg.Signaling.APISecret = strings.Repeat("given", 10)
	fourth, err := New(context.Background(), cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	fourth.Close()
	if fourth.Secrets().APISecret != cfg.Signaling.APISecret {
		t.Error("the configured secret is not used")
	}

	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := New(context.Background(), cfg, discard()); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("secrets that everybody can read: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct {
		name, listen, public string
		want                 func(port string) string
	}{
		{"an address", "127.0.0.1:0", "", func(p string) string { return "http://127.0.0.1:" + p }},
		{"a name", "localhost:0", "", func(p string) string { return "http://localhost:" + p }},
		{"every address", ":0", "", func(p string) string { return "http://localhost:" + p }},
		{"a public name", "127.0.0.1:0", "https://calls.example.org", func(string) string { return "https://calls.example.org" }},
	} {
		cfg := testConfig(t)
		cfg.Web.Listen, cfg.PublicURL = c.listen, c.public
		n, err := New(context.Background(), cfg, discard())
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(n.Addr().String())
		want := c.want(port)
		if n.BaseURL() != want || n.LiveKitServiceURL() != want+"/livekit/jwt" || n.LiveKitURL() != strings.Replace(want, "http", "ws", 1) {
			t.Errorf("%s: %s, %s, %s; want %s", c.name, n.BaseURL(), n.LiveKitServiceURL(), n.LiveKitURL(), want)
		}
		n.Close()
	}
}

// TestUsers manages accounts with the server stopped and with it running.
func TestUsers(t *testing.T) {
	cfg := testConfig(t)
	ctx := context.Background()
	add := func(name string) {
		t.Helper()
		users, err := OpenUsers(ctx, cfg, discard())
		if err != nil {
			t.Fatal(err)
		}
		defer users.Close()
		id, err := users.Add(ctx, name, "correct horse battery", false)
		if err != nil || id != "@"+name+":localhost" {
			t.Fatalf("add %s: %q, %v", name, id, err)
		}
		if _, err := users.Add(ctx, name, "correct horse battery", false); err == nil {
			t.Errorf("%s was made twice", name)
		}
		if err := users.SetPassword(ctx, name, "another battery staple"); err != nil {
			t.Errorf("passwd %s: %v", name, err)
		}
		if err := users.SetPassword(ctx, "nobody", "another battery staple"); err == nil {
			t.Error("the password of nobody was changed")
		}
	}
	add("stopped")
	n, stop := start(t, cfg)
	add("running")

	resp, err := http.Post(n.LocalURL()+"/_matrix/client/v3/login", "application/json", strings.NewReader(
		`{"type":"m.login.password","identifier":{"type":"m.id.user","user":"running"},"password":"another battery staple"}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if resp.StatusCode != 200 {
		t.Errorf("signing in with the new password: %s", resp.Status)
	}

	users, err := OpenUsers(ctx, cfg, discard())
	if err != nil {
		t.Fatal(err)
	}
	list, err := users.List(ctx)
	users.Close()
	if err != nil || len(list) != 2 || list[0].ID != "@running:localhost" || list[1].ID != "@stopped:localhost" {
		t.Errorf("%v, %v", list, err)
	}
	if info, err := os.Stat(filepath.Join(cfg.DataDir, adminSocket)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the admin socket: %v, %v", info, err)
	}
	stop()
}
