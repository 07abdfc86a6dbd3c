// Package web is Trunkhall's HTTP front: the listener, TLS, and the decision
// which handler answers a request. It also serves the embedded client. It knows
// nothing of Matrix or calls: it takes http.Handlers.
package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the HTTP server. A LiveKit join request travels in the query, so a
// request line may be long; long polls and WebSockets forbid a write timeout.
const (
	maxHeaderBytes    = 256 << 10
	readHeaderTimeout = 10 * time.Second
	bodyTimeout       = 60 * time.Second
	uploadTimeout     = 30 * time.Minute
	idleTimeout       = 2 * time.Minute
)

// Config is the web part of trunkhall.yaml.
type Config struct {
	// Listen is the host:port of the one HTTP port; port 0 takes any free one.
	Listen string `yaml:"listen"`
	// TLSCertFile and TLSKeyFile are PEM files; without them plain HTTP is served.
	TLSCertFile string `yaml:"tls_cert_file"`
	TLSKeyFile  string `yaml:"tls_key_file"`
	// TrustedProxies are the address ranges whose X-Forwarded-For is believed.
	TrustedProxies []string `yaml:"trusted_proxies"`
	// DrainTimeout bounds how long running requests may take at the end.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// MetricsListen is the host:port of a port of its own for /metrics; empty: none.
	MetricsListen string `yaml:"metrics_listen"`
	// MetricsToken is the bearer token for /metrics, which with it is on the one HTTP
	// port too.
	MetricsToken string `yaml:"metrics_token"`
}

// DefaultConfig returns the settings that apply where the file is silent.
func DefaultConfig() Config {
	return Config{
		Listen:         "127.0.0.1:8008",
		TrustedProxies: []string{"127.0.0.0/8", "::1/128"},
		DrainTimeout:   5 * time.Second,
	}
}

// Validate returns all complaints, each named by its YAML path.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		errs = append(errs, fmt.Errorf("web.listen: %q is not host:port", c.Listen))
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		errs = append(errs, errors.New("web.tls_cert_file, web.tls_key_file: give both or neither"))
	}
	if _, err := parsePrefixes(c.TrustedProxies); err != nil {
		errs = append(errs, fmt.Errorf("web.trusted_proxies: %w", err))
	}
	if c.DrainTimeout <= 0 {
		errs = append(errs, errors.New("web.drain_timeout: must be above 0"))
	}
	errs = append(errs, c.validateMetrics()...)
	return errors.Join(errs...)
}

// Deps are what the front serves.
type Deps struct {
	// Matrix answers /_matrix/ and /.well-known/matrix/.
	Matrix http.Handler
	// Calls answers the media signaling and token paths (see dispatch).
	Calls http.Handler
	// Phones answers /_trunkhall/; nil: there are no telephones.
	Phones http.Handler
	// Metrics returns the numbers of now, beside those of the process; may be nil.
	Metrics func() []Metric
	// ClientConfig returns the value served as /config.json; it may change while
	// the server runs, so it is asked for at each request.
	ClientConfig func() any
	Log          *slog.Logger
}

// A Server is the HTTP front. New binds the port, Run serves until its context
// ends and returns when every request has, or the drain timeout is over.
type Server struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	proxies []netip.Prefix
	client  *client
	ln      net.Listener
	http    *http.Server
	metrics http.Handler

	metricsLn   net.Listener // nil: metrics have no port of their own
	metricsHTTP *http.Server

	draining atomic.Bool
	endAll   context.CancelFunc // ends the context of every request

	mu      sync.Mutex // guards the following fields
	running int        // handlers at work, WebSockets included
	idle    chan struct{}
}

// New validates and binds the port; it serves nothing yet.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	proxies, err := parsePrefixes(cfg.TrustedProxies)
	if err != nil {
		return nil, err
	}
	cl, err := newClient(embedded())
	if err != nil {
		return nil, fmt.Errorf("read the embedded client: %w", err)
	}
	s := &Server{cfg: cfg, deps: deps, log: deps.Log, proxies: proxies, client: cl, metrics: newMetrics(deps.Metrics, deps.Log)}

	var tlsConfig *tls.Config
	if cfg.TLSCertFile != "" {
		certs := &certificates{certFile: cfg.TLSCertFile, keyFile: cfg.TLSKeyFile}
		if _, err := certs.get(nil); err != nil {
			return nil, fmt.Errorf("web.tls_cert_file: %w", err)
		}
		tlsConfig = &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: certs.get,
			NextProtos:     []string{"h2", "http/1.1"},
		}
	}
	ln, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("web.listen: %w", err)
	}
	s.ln = ln
	if tlsConfig != nil {
		s.ln = tls.NewListener(ln, tlsConfig)
	}
	if err := s.listenMetrics(); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	base, cancel := context.WithCancel(context.Background())
	s.endAll = cancel
	s.http = &http.Server{
		Handler:           s,
		TLSConfig:         tlsConfig,
		MaxHeaderBytes:    maxHeaderBytes,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(deps.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Addr returns the bound address.
func (s *Server) Addr() netip.AddrPort {
	return s.ln.Addr().(*net.TCPAddr).AddrPort()
}

// TLS says whether the port speaks TLS.
func (s *Server) TLS() bool { return s.cfg.TLSCertFile != "" }

// Drain makes /healthz answer 503 so that a load balancer looks elsewhere.
// Everything else is still served.
func (s *Server) Drain() { s.draining.Store(true) }

// Run serves until ctx ends. Then no connection is taken any more, short
// requests may finish, long polls and WebSockets are ended by their context.
func (s *Server) Run(ctx context.Context) error {
	served := make(chan error, 2)
	serving := 1
	go func() { served <- s.http.Serve(s.ln) }()
	if s.metricsLn != nil {
		serving++
		go func() { served <- s.runMetrics() }()
	}
	var failed error
	select {
	case err := <-served:
		serving--
		failed = fmt.Errorf("serve HTTP: %w", err)
	case <-ctx.Done():
		s.Drain()
	}
	if failed != nil {
		s.endAll() // nobody is to wait
	}
	s.shutdown()
	if s.metricsHTTP != nil {
		s.metricsHTTP.Close()
	}
	for range serving {
		<-served
	}
	return failed
}

// shutdown ends the HTTP server within the drain timeout.
func (s *Server) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.DrainTimeout)
	defer cancel()
	// A tenth of the time is for requests that end by themselves; then the
	// contexts of the others end, which answers long polls and closes WebSockets.
	patience := time.AfterFunc(s.cfg.DrainTimeout/10, s.endAll)
	defer patience.Stop()
	if err := s.http.Shutdown(ctx); err != nil {
		s.log.Warn("some HTTP requests did not end in time", "err", err)
		s.http.Close()
	}
	s.endAll()
	// Shutdown does not know of hijacked connections; their handlers are counted.
	select {
	case <-s.allEnded():
	case <-ctx.Done():
		s.log.Warn("some WebSockets did not end in time")
	}
}

func (s *Server) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running++
}

func (s *Server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if s.running == 0 && s.idle != nil {
		close(s.idle)
		s.idle = nil
	}
}

// allEnded returns a channel that closes when no handler is at work.
func (s *Server) allEnded() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	ended := make(chan struct{})
	if s.running == 0 {
		close(ended)
		return ended
	}
	s.idle = ended
	return ended
}

// Close gives back the port of a server that was never run.
func (s *Server) Close() error {
	s.endAll()
	err := s.ln.Close()
	if s.metricsLn != nil {
		err = errors.Join(err, s.metricsLn.Close())
	}
	return err
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.begin()
	defer s.end()
	defer s.recoverPanic(w, r)
	r = s.fromProxy(r)
	if s.TLS() {
		w.Header().Set("Strict-Transport-Security", "max-age=31536000")
	}
	limitBodyTime(w, r)
	switch dispatch(r.URL.Path) {
	case toMatrix:
		s.deps.Matrix.ServeHTTP(w, r)
	case toCalls:
		s.deps.Calls.ServeHTTP(w, r)
	case toPhones:
		s.phones(w, r)
	case toMetrics:
		s.serveMetrics(w, r)
	case toHealth:
		s.health(w, r)
	case toClientConfig:
		s.clientConfig(w, r)
	default:
		s.client.ServeHTTP(w, r)
	}
}

// phones answers Trunkhall's own API. Clients take the 404 for a server without
// telephones.
func (s *Server) phones(w http.ResponseWriter, r *http.Request) {
	if s.deps.Phones != nil {
		s.deps.Phones.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_, _ = w.Write([]byte(`{"errcode":"M_UNRECOGNIZED","error":"this server has no telephones"}`))
}

// recoverPanic keeps one broken request from ending the others. net/http does
// the same; this logs with our logger and answers.
func (s *Server) recoverPanic(w http.ResponseWriter, r *http.Request) {
	v := recover()
	if v == nil {
		return
	}
	if v == http.ErrAbortHandler {
		panic(v)
	}
	s.log.Error("a request handler panicked", "method", r.Method, "path", r.URL.Path, "panic", v, "stack", stack())
	http.Error(w, `{"errcode":"M_UNKNOWN","error":"internal error"}`, http.StatusInternalServerError)
}

func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	if !readOnly(w, r) {
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if s.draining.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "draining")
		return
	}
	fmt.Fprintln(w, "ok")
}

func (s *Server) clientConfig(w http.ResponseWriter, r *http.Request) {
	if !readOnly(w, r) {
		return
	}
	// Other pages on this host may read it too: it holds nothing secret.
	w.Header().Set("Access-Control-Allow-Origin", "*")
	w.Header().Set("Cache-Control", "no-cache")
	writeJSON(w, s.deps.ClientConfig())
}

// A target is a handler that dispatch chooses.
type target int

const (
	toClient target = iota
	toMatrix
	toCalls
	toPhones
	toMetrics
	toHealth
	toClientConfig
)

// dispatch says who answers a path. http.ServeMux is not used because it
// redirects unclean paths, which LiveKit clients with a trailing slash in their
// server URL send (//rtc) and WebSockets cannot follow. The token service
// answers under any prefix, because reverse proxies strip prefixes or do not.
func dispatch(path string) target {
	clean := "/" + strings.TrimLeft(path, "/")
	switch {
	case under(clean, "/_matrix"), under(clean, "/.well-known/matrix"), under(clean, "/_synapse"):
		return toMatrix
	case under(clean, "/_trunkhall"):
		return toPhones
	case clean == "/metrics":
		return toMetrics
	case clean == "/healthz":
		return toHealth
	case clean == "/config.json":
		return toClientConfig
	case under(clean, "/rtc"), under(clean, "/twirp"), under(clean, "/livekit"):
		return toCalls
	}
	for _, end := range []string{"/sfu/get", "/get_token", "/delegate_delayed_leave"} {
		if strings.HasSuffix(clean, end) {
			return toCalls
		}
	}
	return toClient
}

// under reports whether path is dir or below it.
func under(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/')
}

// fromProxy puts the client's own address into RemoteAddr when the request
// came through a proxy we trust: the last address of X-Forwarded-For that is not
// a trusted proxy itself.
func (s *Server) fromProxy(r *http.Request) *http.Request {
	forwarded := r.Header.Values("X-Forwarded-For")
	if len(forwarded) == 0 || !s.trusted(r.RemoteAddr) {
		return r
	}
	hops := strings.Split(strings.Join(forwarded, ","), ",")
	for i := len(hops) - 1; i >= 0; i-- {
		addr, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			return r
		}
		addr = addr.Unmap()
		if i == 0 || !contains(s.proxies, addr) {
			// A shallow copy: the server still owns the original.
			c := *r
			c.RemoteAddr = netip.AddrPortFrom(addr, 0).String()
			return &c
		}
	}
	return r
}

func (s *Server) trusted(remoteAddr string) bool {
	ap, err := netip.ParseAddrPort(remoteAddr)
	return err == nil && contains(s.proxies, ap.Addr().Unmap())
}

func contains(prefixes []netip.Prefix, addr netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			addr, addrErr := netip.ParseAddr(text)
			if addrErr != nil {
				return nil, fmt.Errorf("%q is neither an address nor a range", text)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		out = append(out, p)
	}
	return out, nil
}
