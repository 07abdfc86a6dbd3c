package deploy

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestProxies runs nginx and Caddy with the samples in front of a server and
// does what clients do: a long request line, a WebSocket, an upload.
func TestProxies(t *testing.T) {
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") == "" {
			body, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %d %s", len(r.URL.RawQuery), body, r.Header.Get("X-Forwarded-For"))
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		kind, data, err := conn.Read(r.Context())
		if err == nil {
			_ = conn.Write(r.Context(), kind, append([]byte("echo "), data...))
		}
		_, _, _ = conn.Read(r.Context()) // until the client closes
	}))
	defer backend.Close()
	upstream := backend.Listener.Addr().String()

	t.Run("nginx", func(t *testing.T) {
		dir := t.TempDir()
		front := freeAddress(t)
		cert, key := selfSigned(t, dir)
		site := write(t, dir, "site.conf", replaceAll(t, read(t, "nginx.conf"),
			"/etc/ssl/calls.example.org/fullchain.pem", cert,
			"/etc/ssl/calls.example.org/privkey.pem", key,
			"listen 443 ssl", "listen "+front+" ssl",
			"listen [::]:443 ssl http2;", "",
			"server 127.0.0.1:8008;", "server "+upstream+";",
		))
		whole := write(t, dir, "nginx.conf", nginxAround(dir, site))
		serve(t, exec.Command(program(t, "nginx"), "-e", "stderr", "-p", dir, "-c", whole), front)
		clients(t, front, "localhost")
	})
	t.Run("caddy", func(t *testing.T) {
		dir := t.TempDir()
		front := freeAddress(t)
		_, port, _ := net.SplitHostPort(front)
		// The first site of the sample, on a free port and with Caddy's own certificate.
		sample, _, _ := strings.Cut(read(t, "Caddyfile"), "\n# Where user IDs")
		file := write(t, dir, "Caddyfile", "{\n\tadmin off\n\tskip_install_trust\n\tauto_https disable_redirects\n}\n"+replaceAll(t, sample,
			"\ncalls.example.org {", "\nhttps://localhost:"+port+" {\n\ttls internal\n\tbind 127.0.0.1",
			"127.0.0.1:8008", upstream,
		))
		cmd := exec.Command(program(t, "caddy"), "run", "--adapter", "caddyfile", "--config", file)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		serve(t, cmd, front)
		clients(t, front, "localhost")
	})
}

// replaceAll replaces each old text by its new one; the sample must have it.
func replaceAll(t *testing.T, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("the sample has no %q", pairs[i])
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// freeAddress returns a loopback address that nobody listens on at the moment.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// serve runs a proxy until the test ends and waits until it listens.
func serve(t *testing.T, cmd *exec.Cmd, addr string) {
	t.Helper()
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("log of the proxy:\n%s", &log)
		}
	})
	deadline := time.Now().Add(60 * time.Second)
	for {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("the proxy ended: %s", &log)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatal("the proxy does not listen")
		}
	}
}

// clients does through the proxy at addr what clients do.
func clients(t *testing.T, addr, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // made for this test
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	_, port, _ := net.SplitHostPort(addr)
	base := name + ":" + port

	request := func(method, path string, body io.Reader) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "https://"+base+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Forwarded-For", "203.0.113.9") // what a client makes up
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("%s %.30s: %v", method, path, err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s %.30s: %s %v", method, path, resp.Status, err)
		}
		return string(text)
	}
	if got := request("GET", "/rtc/v1?"+strings.Repeat("a", 60_000), nil); !strings.HasPrefix(got, "60000 0 ") || !strings.HasSuffix(got, "127.0.0.1") {
		t.Errorf("a long request line arrives as %q; the last forwarded address must be the client's own", got)
	}
	if got := request("POST", "/_matrix/media/v3/upload", strings.NewReader(strings.Repeat("b", 20<<20))); !strings.HasPrefix(got, "0 20971520 ") {
		t.Errorf("an upload arrives as %q", got)
	}

	conn, _, err := websocket.Dial(ctx, "wss://"+base+"/rtc", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatalf("WebSocket: %v", err)
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageBinary, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := conn.Read(ctx); err != nil || string(data) != "echo hello" {
		t.Errorf("WebSocket: %q, %v", data, err)
	}
}
