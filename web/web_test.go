package web

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDispatch(t *testing.T) {
	for _, c := range []struct {
		path string
		want target
	}{
		{"/", toClient},
		{"/index.html", toClient},
		{"/room/!abc:example.org", toClient},
		{"/_matrix/client/versions", toMatrix},
		{"/_matrix", toMatrix},
		{"/_matrixes", toClient},
		{"/_synapse/admin/v1/register", toMatrix},
		{"/_matrix/client/unstable/io.element.msc4195/rtc/livekit/delegate_delayed_leave", toMatrix},
		{"/.well-known/matrix/client", toMatrix},
		{"/.well-known/other", toClient},
		{"/rtc", toCalls},
		{"/rtc/v1", toCalls},
		{"//rtc/v1/validate", toCalls},
		{"/rtcs", toClient},
		{"/twirp/livekit.RoomService/ListRooms", toCalls},
		{"/sfu/get", toCalls},
		{"/get_token", toCalls},
		{"/delegate_delayed_leave", toCalls},
		{"/livekit/jwt/sfu/get", toCalls},
		{"/livekit/jwt/healthz", toCalls},
		{"/livekit/sfu/rtc/v1", toCalls},
		{"/any/prefix/get_token", toCalls},
		{"/_trunkhall/phones/v1/config", toPhones},
		{"/_trunkhalls", toClient},
		{"/operator", toClient},
		{"/metrics", toMetrics},
		{"/metrics/x", toClient},
		{"/healthz", toHealth},
		{"/config.json", toClientConfig},
	} {
		if got := dispatch(c.path); got != c.want {
			t.Errorf("dispatch(%q) = %d, want %d", c.path, got, c.want)
		}
	}
}

func answer(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, text) })
}

func testDeps() Deps {
	return Deps{
		Matrix:       answer("matrix"),
		Calls:        answer("calls"),
		ClientConfig: func() any { return map[string]string{"name": "<a>"} },
		Log:          slog.New(slog.DiscardHandler),
	}
}

// start runs a server on a free port and stops it with the test.
func start(t *testing.T, cfg Config, deps Deps) (*Server, func()) {
	t.Helper()
	cfg.Listen = "127.0.0.1:0"
	s, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		http.DefaultClient.CloseIdleConnections()
	}
	t.Cleanup(stop)
	return s, stop
}

func get(t *testing.T, s *Server, path string) (*http.Response, string) {
	t.Helper()
	resp, err := http.Get("http://" + s.Addr().String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

func TestServe(t *testing.T) {
	s, _ := start(t, DefaultConfig(), testDeps())
	for path, want := range map[string]string{
		"/_matrix/client/versions": "matrix",
		"/rtc/v1":                  "calls",
		"/healthz":                 "ok\n",
		"/config.json":             `{"name":"<a>"}` + "\n",
	} {
		if resp, body := get(t, s, path); resp.StatusCode != 200 || body != want {
			t.Errorf("GET %s = %d %q, want %q", path, resp.StatusCode, body, want)
		}
	}
	s.Drain()
	if resp, _ := get(t, s, "/healthz"); resp.StatusCode != 503 {
		t.Errorf("GET /healthz while draining = %d", resp.StatusCode)
	}
}

func TestHeadOfThePage(t *testing.T) {
	s, _ := start(t, DefaultConfig(), testDeps())
	resp, err := http.Head("http://" + s.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Security-Policy") == "" {
		t.Errorf("HEAD / = %d, %v", resp.StatusCode, resp.Header)
	}
}

func TestLongRequestLine(t *testing.T) {
	s, _ := start(t, DefaultConfig(), testDeps())
	// LiveKit's join_request is a query parameter of some 100 kB at its largest.
	if resp, body := get(t, s, "/rtc/v1?join_request="+strings.Repeat("a", 100_000)); resp.StatusCode != 200 || body != "calls" {
		t.Errorf("a long join request = %d", resp.StatusCode)
	}
	if resp, _ := get(t, s, "/rtc/v1?join_request="+strings.Repeat("a", 1<<20)); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("an endless one = %d", resp.StatusCode)
	}
}

func TestPanicHurtsOneRequest(t *testing.T) {
	deps := testDeps()
	deps.Matrix = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("boom") })
	s, _ := start(t, DefaultConfig(), deps)
	if resp, body := get(t, s, "/_matrix/x"); resp.StatusCode != 500 || !strings.Contains(body, "M_UNKNOWN") {
		t.Errorf("panic = %d %q", resp.StatusCode, body)
	}
	if resp, _ := get(t, s, "/healthz"); resp.StatusCode != 200 {
		t.Errorf("afterwards = %d", resp.StatusCode)
	}
}

// TestStopEndsLongPollsAndWebSockets has one request that waits for its context
// and one connection that its handler has taken over.
func TestStopEndsLongPollsAndWebSockets(t *testing.T) {
	var ended atomic.Int32
	entered := make(chan struct{}, 2)
	deps := testDeps()
	deps.Matrix = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
		io.WriteString(w, "{}")
		ended.Add(1)
	})
	deps.Calls = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		entered <- struct{}{}
		<-r.Context().Done()
		ended.Add(1)
	})
	cfg := DefaultConfig()
	cfg.DrainTimeout = 20 * time.Second
	s, stop := start(t, cfg, deps)

	poll := make(chan string, 1)
	go func() {
		resp, err := http.Get("http://" + s.Addr().String() + "/_matrix/sync")
		if err != nil {
			poll <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		poll <- string(body)
	}()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /rtc HTTP/1.1\r\nHost: x\r\n\r\n")
	<-entered
	<-entered

	began := time.Now()
	stop()
	if n := ended.Load(); n != 2 {
		t.Errorf("%d of 2 handlers had ended when Run returned", n)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("stopping took %v", took)
	}
	if body := <-poll; body != "{}" {
		t.Errorf("the long poll got %q, not its answer", body)
	}
	if _, err := bufio.NewReader(conn).ReadByte(); err == nil {
		t.Error("the taken-over connection is still open")
	}
}

// writeCertificate makes a self-signed certificate with a serial number.
func writeCertificate(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{"calls.test"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	cfg := DefaultConfig()
	cfg.TLSCertFile, cfg.TLSKeyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if _, err := New(cfg, testDeps()); err == nil || !strings.Contains(err.Error(), "web.tls_cert_file") {
		t.Errorf("a certificate that is not there: %v", err)
	}
	writeCertificate(t, cfg.TLSCertFile, cfg.TLSKeyFile, 7)
	s, _ := start(t, cfg, testDeps())
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // self-signed
		ForceAttemptHTTP2: true,
	}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + s.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.ProtoMajor != 2 || resp.Header.Get("Strict-Transport-Security") == "" {
		t.Errorf("%s %s %v", resp.Proto, resp.Status, resp.Header)
	}
	if serial := resp.TLS.PeerCertificates[0].SerialNumber.Int64(); serial != 7 {
		t.Errorf("certificate %d", serial)
	}
}

func TestRenewedCertificateIsTakenUp(t *testing.T) {
	dir := t.TempDir()
	c := &certificates{certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem")}
	serial := func() int64 {
		t.Helper()
		cert, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(cert.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return parsed.SerialNumber.Int64()
	}
	writeCertificate(t, c.certFile, c.keyFile, 1)
	if got := serial(); got != 1 {
		t.Fatalf("certificate %d", got)
	}
	writeCertificate(t, c.certFile, c.keyFile, 2)
	later := time.Now().Add(time.Hour) // whatever the file system's clock resolves
	if err := os.Chtimes(c.certFile, later, later); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 1 {
		t.Errorf("looked again at once: %d", got)
	}
	c.lookedAt = time.Time{}
	if got := serial(); got != 2 {
		t.Errorf("the renewed certificate is not served: %d", got)
	}
	if err := os.WriteFile(c.certFile, []byte("half a cert"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.lookedAt = time.Time{}
	if got := serial(); got != 2 {
		t.Errorf("a broken renewal: %d", got)
	}
}

// deadlines records what a handler does to its connection.
type deadlines struct {
	http.ResponseWriter
	read []time.Time
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.read = append(d.read, t)
	return nil
}

func TestBodyHasATimeLimitThatEndsWithIt(t *testing.T) {
	for _, c := range []struct {
		name, method, path, body string
		limit                    time.Duration // 0: none
	}{
		{"a message", "PUT", "/_matrix/client/v3/rooms/x/send/y/z", "{}", bodyTimeout},
		{"an upload", "POST", "/_matrix/media/v3/upload", "picture", uploadTimeout},
		{"a long poll has no body", "GET", "/_matrix/client/v3/sync", "", 0},
	} {
		d := &deadlines{ResponseWriter: httptest.NewRecorder()}
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		limitBodyTime(d, r)
		if c.limit == 0 {
			if len(d.read) != 0 {
				t.Errorf("%s: deadlines %v", c.name, d.read)
			}
			continue
		}
		if len(d.read) != 1 || time.Until(d.read[0]) > c.limit || time.Until(d.read[0]) < c.limit-time.Minute {
			t.Errorf("%s: deadlines %v", c.name, d.read)
		}
		if _, err := io.ReadAll(r.Body); err != nil {
			t.Fatal(err)
		}
		if last := d.read[len(d.read)-1]; !last.IsZero() {
			t.Errorf("%s: after the body the deadline %v stays and would end the answer", c.name, last)
		}
	}
}

func TestForwardedFor(t *testing.T) {
	proxies, err := parsePrefixes([]string{"127.0.0.0/8", "10.1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{proxies: proxies}
	for _, c := range []struct {
		name, remote, forwarded, want string
	}{
		{"no proxy", "127.0.0.1:5", "", "127.0.0.1:5"},
		{"a stranger's header is not believed", "192.0.2.1:5", "198.51.100.7", "192.0.2.1:5"},
		{"a trusted proxy's is", "127.0.0.1:5", "198.51.100.7", "198.51.100.7:0"},
		{"what the client made up is left of the truth", "127.0.0.1:5", "203.0.113.9, 198.51.100.7", "198.51.100.7:0"},
		{"two trusted proxies", "127.0.0.1:5", "198.51.100.7, 10.1.2.3", "198.51.100.7:0"},
		{"IPv6", "[::ffff:127.0.0.1]:5", "2001:db8::1", "[2001:db8::1]:0"},
		{"garbage", "127.0.0.1:5", "unknown", "127.0.0.1:5"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.remote
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := s.fromProxy(r).RemoteAddr; got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestClientFiles(t *testing.T) {
	cl, err := newClient(fstest.MapFS{
		"index.html":           {Data: []byte("<page>")},
		"assets/app-abc.js":    {Data: []byte("code")},
		"assets/app-abc.js.gz": {Data: []byte("packed")},
		"favicon.svg":          {Data: []byte("<svg/>")},
		".keep":                {},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, method, path, encoding string
		status                       int
		body, cache                  string
	}{
		{"the page", "GET", "/", "", 200, "<page>", "no-cache"},
		{"a route of the application", "GET", "/room/!x:example.org", "", 200, "<page>", "no-cache"},
		{"a hashed asset", "GET", "/assets/app-abc.js", "", 200, "code", "public, max-age=31536000, immutable"},
		{"packed for who takes it", "GET", "/assets/app-abc.js", "br, gzip", 200, "packed", "public, max-age=31536000, immutable"},
		{"not for who refuses it", "GET", "/assets/app-abc.js", "gzip;q=0", 200, "code", "public, max-age=31536000, immutable"},
		{"an asset of an older build is not the page", "GET", "/assets/app-old.js", "", 404, "not found\n", "no-store"},
		{"a file that is not there", "GET", "/robots.txt", "", 404, "not found\n", "no-store"},
		{"a plain file", "GET", "/favicon.svg", "", 200, "<svg/>", "no-cache"},
		{"a hidden file", "GET", "/.keep", "", 200, "<page>", "no-cache"},
		{"a way out of the folder", "GET", "/../../etc/passwd", "", 200, "<page>", "no-cache"},
		{"a form sent here", "POST", "/", "", 405, "method not allowed\n", ""},
	} {
		r := httptest.NewRequest(c.method, "/", nil)
		r.URL.Path = c.path
		if c.encoding != "" {
			r.Header.Set("Accept-Encoding", c.encoding)
		}
		w := httptest.NewRecorder()
		cl.ServeHTTP(w, r)
		if w.Code != c.status || w.Body.String() != c.body || w.Header().Get("Cache-Control") != c.cache {
			t.Errorf("%s: %d %q, Cache-Control %q", c.name, w.Code, w.Body, w.Header().Get("Cache-Control"))
		}
	}

	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("If-None-Match", cl.etag)
	w := httptest.NewRecorder()
	cl.ServeHTTP(w, r)
	if w.Code != http.StatusNotModified {
		t.Errorf("the page again: %d, want 304", w.Code)
	}
}

func TestPageWithoutABuild(t *testing.T) {
	cl, err := newClient(fstest.MapFS{".keep": {}})
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	cl.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	if w.Code != 200 || !strings.Contains(w.Body.String(), "make build") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func TestValidate(t *testing.T) {
	bad := Config{Listen: "nonsense", TLSCertFile: "x", TrustedProxies: []string{"10.0.0.0/99"}}
	err := bad.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, name := range []string{"web.listen", "web.tls_cert_file", "web.trusted_proxies", "web.drain_timeout"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("no complaint about %s in %q", name, err)
		}
	}
}
