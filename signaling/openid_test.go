package signaling

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// strangers is an Internet with one TLS server behind every public address. Its
// certificate is for example.com and subdomains.
type strangers struct {
	*openIDVerifier
	server *httptest.Server
	paths  map[string]http.HandlerFunc

	mu     sync.Mutex
	dialed []netip.AddrPort
	names  map[string][]netip.Addr
	srvs   map[string][]*net.SRV
}

func newStrangers(t *testing.T) *strangers {
	t.Helper()
	s := &strangers{paths: map[string]http.HandlerFunc{}, names: map[string][]netip.Addr{}, srvs: map[string][]*net.SRV{}}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := s.paths[r.Host+r.URL.Path]; h != nil {
			h(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are the point
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.server.Certificate())
	real := s.server.Listener.Addr().String()
	s.openIDVerifier = newOpenIDVerifier()
	s.roots = pool
	s.limit = time.Minute // the machine may be busy
	s.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if a := s.names[host]; a != nil {
			return a, nil
		}
		return nil, &net.DNSError{Name: host, IsNotFound: true}
	}
	s.srv = func(_ context.Context, service, host string) ([]*net.SRV, error) {
		return s.srvs[service+"."+host], nil
	}
	s.dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
		s.mu.Lock()
		s.dialed = append(s.dialed, to)
		s.mu.Unlock()
		var d net.Dialer
		return d.DialContext(ctx, "tcp", real)
	}
	s.name("example.com", "93.184.216.34")
	return s
}

func (s *strangers) name(host string, addrs ...string) {
	for _, a := range addrs {
		s.names[host] = append(s.names[host], netip.MustParseAddr(a))
	}
}

// knows makes host answer userinfo requests.
func (s *strangers) knows(host, sub string) {
	s.paths[host+"/_matrix/federation/v1/openid/userinfo"] = func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("access_token") != "tok+en&x=1" {
			w.WriteHeader(401)
			return
		}
		fmt.Fprintf(w, `{"sub":%q}`, sub)
	}
}

func (s *strangers) dials() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dialed
}

func TestOpenIDDiscovery(t *testing.T) {
	for _, c := range []struct {
		name   string
		server matrix.ServerName
		set    func(s *strangers)
		dialed string // the last one
	}{
		{"explicit port", "example.com:9000", func(s *strangers) { s.knows("example.com:9000", "@a:example.com:9000") }, "93.184.216.34:9000"},
		{"no delegation at all", "example.com", func(s *strangers) { s.knows("example.com", "@a:example.com") }, "93.184.216.34:8448"},
		{"service record", "example.com", func(s *strangers) {
			s.knows("example.com", "@a:example.com")
			s.name("box.elsewhere.net", "8.8.8.8")
			s.srvs["matrix-fed.example.com"] = []*net.SRV{{Target: "box.elsewhere.net.", Port: 7777}}
		}, "8.8.8.8:7777"},
		{"old service record", "example.com", func(s *strangers) {
			s.knows("example.com", "@a:example.com")
			s.name("box.elsewhere.net", "8.8.8.8")
			s.srvs["matrix.example.com"] = []*net.SRV{{Target: "box.elsewhere.net.", Port: 7777}}
		}, "8.8.8.8:7777"},
		{"well-known with a port", "example.com", func(s *strangers) {
			s.name("www.example.com", "1.1.1.1")
			s.paths["example.com/.well-known/matrix/server"] = func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, `{"m.server":"www.example.com:443"}`)
			}
			s.knows("www.example.com:443", "@a:example.com")
		}, "1.1.1.1:443"},
		{"well-known after a redirect, without a port", "example.com", func(s *strangers) {
			s.name("www.example.com", "1.1.1.1")
			s.paths["example.com/.well-known/matrix/server"] = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://www.example.com/here", http.StatusFound)
			}
			s.paths["www.example.com/here"] = func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, `{"m.server":"www.example.com"}`)
			}
			s.knows("www.example.com", "@a:example.com")
		}, "1.1.1.1:8448"},
		{"broken well-known is none", "example.com", func(s *strangers) {
			s.paths["example.com/.well-known/matrix/server"] = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `nonsense`) }
			s.knows("example.com", "@a:example.com")
		}, "93.184.216.34:8448"},
		{"one of two addresses is private", "example.com:9000", func(s *strangers) {
			s.names["example.com"] = nil
			s.name("example.com", "10.0.0.1", "2606:4700::1")
			s.knows("example.com:9000", "@a:example.com:9000")
		}, "[2606:4700::1]:9000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStrangers(t)
			c.set(s)
			user, err := s.verify(context.Background(), c.server, "tok+en&x=1")
			if err != nil || user != "@a:"+matrix.UserID(c.server) {
				t.Fatalf("verify = %q, %v", user, err)
			}
			d := s.dials()
			if last := d[len(d)-1].String(); last != c.dialed {
				t.Errorf("asked at %s, want %s", last, c.dialed)
			}
		})
	}
}

func TestOpenIDRefusals(t *testing.T) {
	for _, c := range []struct {
		name, server string
		set          func(s *strangers)
	}{
		{"a user of another server", "example.com:9000", func(s *strangers) { s.knows("example.com:9000", "@victim:good.example") }},
		{"a user of the same host with another port", "example.com:9000", func(s *strangers) { s.knows("example.com:9000", "@victim:example.com") }},
		{"no user ID", "example.com:9000", func(s *strangers) { s.knows("example.com:9000", "a:example.com:9000") }},
		{"empty answer", "example.com:9000", func(s *strangers) { s.knows("example.com:9000", "") }},
		{"unknown token", "example.com:9000", nil},
		{"certificate for another name", "other.example", func(s *strangers) { s.name("other.example", "8.8.8.8"); s.knows("other.example", "@a:other.example") }},
		{"redirect of userinfo", "example.com:9000", func(s *strangers) {
			s.paths["example.com:9000/_matrix/federation/v1/openid/userinfo"] = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "https://example.com:9000/elsewhere", http.StatusFound)
			}
			s.paths["example.com:9000/elsewhere"] = func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"sub":"@a:example.com:9000"}`) }
		}},
		{"a gigabyte", "example.com:9000", func(s *strangers) {
			s.paths["example.com:9000/_matrix/federation/v1/openid/userinfo"] = func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprint(w, `{"sub":"@a:example.com:9000","pad":"`)
				junk := []byte(strings.Repeat("x", 1<<16))
				for range 1 << 14 {
					if _, err := w.Write(junk); err != nil {
						return
					}
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStrangers(t)
			if c.set != nil {
				c.set(s)
			}
			if user, err := s.verify(context.Background(), matrix.ServerName(c.server), "tok+en&x=1"); err == nil {
				t.Errorf("verify vouches for %s", user)
			} else if strings.Contains(err.Error(), "tok+en") || strings.Contains(err.Error(), "tok%2Ben") {
				t.Errorf("the error has the token in it: %v", err)
			}
		})
	}
}

// Server names, delegations, service records and redirects that lead inside.
func TestOpenIDConnectsNowhereInside(t *testing.T) {
	delegateTo := func(to string) func(s *strangers) {
		return func(s *strangers) {
			s.paths["example.com/.well-known/matrix/server"] = func(w http.ResponseWriter, _ *http.Request) {
				fmt.Fprintf(w, `{"m.server":%q}`, to)
			}
		}
	}
	redirectTo := func(to string) func(s *strangers) {
		return func(s *strangers) {
			s.paths["example.com/.well-known/matrix/server"] = func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, to, http.StatusFound)
			}
		}
	}
	for _, c := range []struct {
		server string
		set    func(s *strangers)
	}{
		{"127.0.0.1", nil}, {"127.0.0.1:8448", nil}, {"localhost:22", nil}, {"localhost", nil}, {"[::1]", nil}, {"[::1]:8448", nil},
		{"[::ffff:127.0.0.1]:8448", nil}, {"[::ffff:10.0.0.1]", nil}, {"[64:ff9b::7f00:1]", nil}, {"[2002:7f00:1::]", nil}, {"[fe80::1]", nil}, {"[fd00:ec2::254]", nil},
		{"169.254.169.254", nil}, {"169.254.169.254:443", nil}, {"100.100.100.200", nil}, {"0.0.0.0:8448", nil}, {"10.1.2.3:8448", nil},
		{"127.1:8448", nil}, {"2130706433:8448", nil}, {"0x7f000001:8448", nil},
		{"inside.example:8448", nil}, {"mixed.example:8448", nil},
		{"93.184.216.34:22", nil}, {"example.com:25", nil}, {"example.com:80", nil},
		{"user@example.com", nil}, {"example.com/path", nil}, {"example.com?x", nil}, {"example.com#x", nil}, {"example.com:99999", nil}, {"example.com:0", nil},
		{"example.com:", nil}, {":8448", nil}, {"[fe80::1%25eth0]", nil}, {"[::1", nil}, {"exa mple.com", nil}, {"example.com:8448:1", nil}, {"ex\u00e4mple.com", nil},
		{"example.com", delegateTo("127.0.0.1:8448")}, {"example.com", delegateTo("[::1]")}, {"example.com", delegateTo("inside.example")},
		{"example.com", delegateTo("inside.example:443")}, {"example.com", delegateTo("93.184.216.34:22")}, {"example.com", delegateTo("x/../y")},
		{"example.com", redirectTo("https://127.0.0.1/latest/meta-data")}, {"example.com", redirectTo("https://169.254.169.254/")},
		{"example.com", redirectTo("https://inside.example/")}, {"example.com", redirectTo("http://93.184.216.34:8448/")},
		{"example.com", redirectTo("file:///etc/passwd")}, {"example.com", redirectTo("https://[::1]:8448/")}, {"example.com", redirectTo("https://example.com:22/")},
		{"example.com", redirectTo("https://example.com/.well-known/matrix/server")},
		{"example.com", func(s *strangers) {
			s.srvs["matrix-fed.example.com"] = []*net.SRV{{Target: "inside.example.", Port: 8448}}
		}},
		{"example.com", func(s *strangers) { s.srvs["matrix.example.com"] = []*net.SRV{{Target: "example.com.", Port: 22}} }},
	} {
		t.Run(c.server, func(t *testing.T) {
			s := newStrangers(t)
			s.name("localhost", "127.0.0.1", "::1")
			s.name("127.1", "127.0.0.1")
			s.name("2130706433", "127.0.0.1")
			s.name("0x7f000001", "127.0.0.1")
			s.name("inside.example", "10.0.0.7", "fd00::7", "::ffff:192.168.0.1")
			s.name("mixed.example", "169.254.169.254", "224.0.0.1")
			if c.set != nil {
				c.set(s)
			}
			user, err := s.verify(context.Background(), matrix.ServerName(c.server), "token")
			if err == nil {
				t.Errorf("verify vouches for %s", user)
			}
			for _, to := range s.dials() {
				if !call.PublicUnicast(to.Addr()) || to.Port() < 1024 && to.Port() != 443 {
					t.Errorf("dialled %s", to)
				}
			}
			if c.set == nil && len(s.dials()) > 0 {
				t.Errorf("dialled %v", s.dials())
			}
		})
	}
}

func TestOpenIDTakesFiveSecondsAtMost(t *testing.T) {
	t.Parallel()
	s := newStrangers(t)
	s.limit = newOpenIDVerifier().limit
	s.paths["example.com:9000/_matrix/federation/v1/openid/userinfo"] = func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil { // a never-ending body, a byte at a time
			_, _ = w.Write([]byte{' '})
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}
	start := time.Now()
	_, err := s.verify(context.Background(), "example.com:9000", "token")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("verify: %v, want a timeout", err)
	}
	if took := time.Since(start); took < 4*time.Second || took > time.Minute {
		t.Errorf("took %s", took)
	}
}

func TestForeignUserIsVerifiedAndRefused(t *testing.T) {
	rt := newRTCTest(t)
	s := newStrangers(t)
	s.knows("example.com:9000", "@eve:example.com:9000")
	rt.openID = s.openIDVerifier
	body := func(token string) string {
		return `{"room":"!abc:example.org","device_id":"X","openid_token":{"access_token":"` + token + `","matrix_server_name":"example.com:9000"}}`
	}
	if resp, out := rt.do("POST", "/sfu/get", body("tok+en&x=1")); resp.StatusCode != 403 || out["errcode"] != "M_FORBIDDEN" {
		t.Errorf("a real user of another server: %d %v, want 403", resp.StatusCode, out)
	}
	if resp, out := rt.do("POST", "/sfu/get", body("forged")); resp.StatusCode != 401 || out["errcode"] != "M_UNAUTHORIZED" {
		t.Errorf("a forged token of another server: %d %v, want 401", resp.StatusCode, out)
	}
	// Evil answers that it is one of us.
	s.knows("example.com:9000", "@alice:example.org")
	if resp, out := rt.do("POST", "/sfu/get", strings.Replace(body("tok+en&x=1"), `"X"`, `"PHONE"`, 1)); resp.StatusCode != 401 {
		t.Errorf("another server vouches for our user: %d %v, want 401", resp.StatusCode, out)
	}
	rt.perServer = newRateLimits(0.001, 1)
	rt.do("POST", "/sfu/get", body("forged"))
	if resp, _ := rt.do("POST", "/sfu/get", body("forged")); resp.StatusCode != 429 {
		t.Errorf("the second question within the limit's time: %d, want 429", resp.StatusCode)
	}
}

func TestOpenIDWantsARealCertificate(t *testing.T) {
	s := newStrangers(t)
	s.roots = nil // the system's do not know the test server
	s.knows("example.com:9000", "@a:example.com:9000")
	_, err := s.verify(context.Background(), "example.com:9000", "tok+en&x=1")
	var bad *tls.CertificateVerificationError
	if !errors.As(err, &bad) {
		t.Errorf("verify: %v, want a certificate error", err)
	}
}

func FuzzSplitServerName(f *testing.F) {
	for _, s := range []string{"example.org", "example.org:8448", "[::1]:1", "1.2.3.4", ":", "[", "a:b:c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		hp, _, err := splitServerName(name)
		if err == nil && (hp.host == "" || hp.port < 1 || hp.port > 65535 || strings.ContainsAny(hp.host, "/@?# ")) {
			t.Errorf("%q is taken for %+v", name, hp)
		}
	})
}
