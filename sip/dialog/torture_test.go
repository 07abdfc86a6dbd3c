package dialog

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// torture is what RFC 4475 asks of an element like this one: a user agent that
// takes calls (the test refuses them with 480, so 480 means that a message was
// understood as a call), asks a password of those who register, and serves
// nothing else. 0 is silence. tcp is set where a stream differs.
var torture = []struct {
	name string
	udp  int
	tcp  int
	why  string
}{
	{"wsinv", 481, 0, "§3.1.1.1 well-formed; it has a To tag, and that call is not ours"},
	{"intmeth", 501, 0, "§3.1.1.2 well-formed, unknown method"},
	{"esc01", 480, 0, "§3.1.1.3 escapes are valid"},
	{"escnull", 401, 0, "§3.1.1.4 escaped NULs are valid"},
	{"esc02", 501, 0, "§3.1.1.5 a method is never unescaped"},
	{"lwsdisp", 200, 0, "§3.1.1.6 no space between display name and <"},
	{"longreq", 480, 0, "§3.1.1.7 long values"},
	{"dblreq", 401, 0, "§3.1.1.8 what follows the first message of a datagram is ignored"},
	{"semiuri", 200, 0, "§3.1.1.9 semicolon in the user part"},
	{"transports", 200, 0, "§3.1.1.10 unknown transports in lower Vias"},
	{"mpart01", 405, 0, "§3.1.1.11 multipart MESSAGE: not served here"},
	{"unreason", 0, 0, "§3.1.1.12 a response to nothing"},
	{"noreason", 0, 0, "§3.1.1.13 a response to nothing"},
	{"badinv01", 400, 0, "§3.1.2.1 extraneous separators"},
	{"clerr", 400, -1, "§3.1.2.2 Content-Length larger than the datagram; a stream waits for the rest"},
	{"ncl", 400, 0, "§3.1.2.3 negative Content-Length"},
	{"scalar02", 400, 0, "§3.1.2.4 overlarge numbers"},
	{"scalarlg", 0, -1, "§3.1.2.5 a response with overlarge numbers is dropped"},
	{"quotbal", 400, 0, "§3.1.2.6 unterminated quoted string"},
	{"ltgtruri", 400, 0, "§3.1.2.7 <> around the Request-URI"},
	{"lwsruri", 400, 0, "§3.1.2.8 space inside the Request-URI"},
	{"lwsstart", 400, 0, "§3.1.2.9 several spaces in the start line"},
	{"trws", 400, 0, "§3.1.2.10 spaces after the start line"},
	{"escruri", 400, 0, "§3.1.2.11 headers in the Request-URI"},
	{"baddate", 400, 0, "§3.1.2.12 Date not in GMT"},
	{"regbadct", 400, 0, "§3.1.2.13 Contact with ? needs <>"},
	{"badaspec", 400, 0, "§3.1.2.14 spaces inside <>"},
	{"baddn", 400, -1, "§3.1.2.15 display name with a comma needs quotes; the file has no empty line at its end"},
	{"badvers", 505, 0, "§3.1.2.16 SIP/7.0"},
	{"mismatch01", 400, 0, "§3.1.2.17 CSeq of another method"},
	{"mismatch02", 501, 0, "§3.1.2.18 the same with an unknown method: 501 or 400"},
	{"bigcode", 0, -1, "§3.1.2.19 overlarge status code"},
	{"badbranch", 400, 0, "§3.2.1 branch of the magic cookie alone"},
	{"insuf", 400, 0, "§3.3.1 no Call-ID, From or To"},
	{"unkscm", 416, 0, "§3.3.2 unknown URI scheme"},
	{"novelsc", 416, 0, "§3.3.3 known scheme that is not SIP's"},
	{"unksm2", 401, 0, "§3.3.4 other schemes in header fields are valid"},
	{"bext01", 420, 0, "§3.3.5 Require of what nobody supports"},
	{"invut", 415, 0, "§3.3.6 unknown body type"},
	{"regaut01", 401, 0, "§3.3.7 unknown authorization scheme counts as none"},
	{"multi01", 400, 0, "§3.3.8 single-valued fields twice"},
	{"mcl01", 400, 0, "§3.3.9 two Content-Lengths"},
	{"bcast", 0, 0, "§3.3.10 a response with a Via of somebody else"},
	{"zeromf", 483, 0, "§3.3.11 Max-Forwards 0"},
	{"cparam01", 401, 0, "§3.3.12 contact parameter"},
	{"cparam02", 401, 0, "§3.3.13 URI parameter"},
	{"regescrt", 401, 0, "§3.3.14 escaped header in a Contact is valid in REGISTER"},
	{"sdp01", 406, 0, "§3.3.15 caller accepts no SDP"},
	{"inv2543", 480, 400, "§3.4.1 an INVITE of RFC 2543; without Content-Length no stream can carry it"},
	{"test", 0, 0, "no Via, so nobody to answer"},
}

var topVia = regexp.MustCompile(`(?mi)^(via|v)\s*:[^\r]*`)

// tortured is a message of testdata with rport in its top Via, so that the
// answer comes back to us.
func tortured(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "torture", name+".dat"))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case bytes.HasPrefix(b, []byte("SIP/")) || name == "badinv01":
	case name == "wsinv": // its top Via goes over three lines
		b = bytes.Replace(b, []byte(";branch"), []byte(";rport;branch"), 1)
	default:
		if at := topVia.FindIndex(b); at != nil {
			b = append(append(append([]byte{}, b[:at[1]]...), ";rport"...), b[at[1]:]...)
		}
	}
	return b
}

func tortureSide(t *testing.T, listen string, cert *tls.Config) *side {
	s := newSide(t, func(c *Config, d *desk) {
		c.Listen, c.TLS = []string{listen}, cert
		c.ReadTimeout = time.Second
		d.verdict = func(r *Request) Verdict {
			if r.Method == "REGISTER" {
				return Verdict{Action: Challenge}
			}
			return Verdict{Action: Accept}
		}
	})
	done := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case c := <-s.calls:
				_ = c.Reject(480, "")
				for range c.Events() {
				}
			case <-stop:
				return
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return s
}

// status is the first final status that conn brings, or 0.
func status(conn net.Conn, wait time.Duration) int {
	buf := make([]byte, 65536)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(buf)
		if err != nil {
			return 0
		}
		data := buf[:n]
		for len(data) > 0 {
			m, took, err := scan(data, false, 65536)
			if m == nil {
				break
			}
			if m.code >= 200 {
				return m.code
			}
			if err != nil || took == 0 {
				break
			}
			data = data[took:]
		}
	}
}

func TestTorture(t *testing.T) {
	files, err := filepath.Glob("testdata/torture/*.dat")
	if err != nil || len(files) != len(torture) || len(files) != 50 {
		t.Fatalf("%d files and %d rows, want 50 of each (%v)", len(files), len(torture), err)
	}
	const options = "OPTIONS sip:x@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bKalive\r\n" +
		"From: <sip:a@b>;tag=1\r\nTo: <sip:x@example.com>\r\nCall-ID: alive\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
	server, client := testTLS(t)
	for _, network := range []string{"udp", "tcp", "tls"} {
		dial := func(addr string) (net.Conn, error) {
			if network == "tls" {
				return tls.Dial("tcp", addr, client)
			}
			return net.Dial(network, addr)
		}
		t.Run(network, func(t *testing.T) {
			for _, c := range torture {
				t.Run(c.name, func(t *testing.T) {
					// Each has an endpoint of its own: some share their branch.
					s := tortureSide(t, network+"://127.0.0.1:0", server)
					_, addr, _ := strings.Cut(s.Addrs()[0], "://")
					conn, err := dial(addr)
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
					if _, err := conn.Write(tortured(t, c.name)); err != nil {
						t.Fatal(err)
					}
					want := c.udp
					if network != "udp" && c.tcp != 0 {
						want = max(c.tcp, 0)
					}
					wait := patience
					if want == 0 {
						wait = 100 * time.Millisecond
					}
					if got := status(conn, wait); got != want {
						t.Errorf("%d, want %d: %s", got, want, c.why)
					}
					again, err := dial(addr)
					if err != nil {
						t.Fatal(err)
					}
					defer again.Close()
					_, _ = again.Write([]byte(options))
					if got := status(again, patience); got != 200 {
						t.Errorf("afterwards OPTIONS is answered with %d", got)
					}
				})
			}
		})
	}
}

// TestTortureStrangers plays the messages to an endpoint that knows nobody: it
// says nothing at all.
func TestTortureStrangers(t *testing.T) {
	s := newSide(t, func(_ *Config, d *desk) {
		d.verdict = func(*Request) Verdict { return Verdict{Action: Drop} }
	})
	_, addr, _ := strings.Cut(s.Addrs()[0], "://")
	conn, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, c := range torture {
		if _, err := conn.Write(tortured(t, c.name)); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	if got := status(conn, 200*time.Millisecond); got != 0 {
		t.Errorf("a stranger was answered with %d", got)
	}
	if st := s.Stats(); st.Transactions != 0 || st.Calls != 0 {
		t.Errorf("strangers left %d transactions and %d calls", st.Transactions, st.Calls)
	}
}
