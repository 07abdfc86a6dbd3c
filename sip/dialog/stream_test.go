package dialog

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// testTLS is a certificate for 127.0.0.1 and the client configuration that
// trusts it.
func testTLS(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"sip.example.net"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool}
}

func TestTransports(t *testing.T) {
	server, client := testTLS(t)
	for _, network := range []string{"tcp", "tls", "ws", "wss"} {
		t.Run(network, func(t *testing.T) {
			listen := func(c *Config, _ *desk) {
				c.Listen = []string{network + "://127.0.0.1:0"}
				c.TLS, c.ClientTLS = server, client
			}
			a, b := newSide(t, listen), newSide(t, listen)
			out, in := join(t, a, b)
			if in.Request().Network != network {
				t.Errorf("it came over %s", in.Request().Network)
			}
			// Requests of the called side go back over the same connection.
			go func() {
				for ev := range out.Events() {
					if o, ok := ev.(Offered); ok {
						_ = out.Accept(o.ID, []byte("v=0 held\r\n"))
					}
				}
			}()
			sdp, err := in.Offer(testCtx(t), []byte("v=0 hold\r\n"))
			if err != nil || string(sdp) != "v=0 held\r\n" {
				t.Errorf("%q, %v", sdp, err)
			}
			if s := b.Stats(); s.Conns != 1 {
				t.Errorf("%d connections", s.Conns)
			}
			in.Bye(16, "")
			if e := finish(t, in); e.Cause != EndBye {
				t.Errorf("ended with %+v", e)
			}
			<-out.Done()
		})
	}
}

func TestUntrustedCertificate(t *testing.T) {
	server, _ := testTLS(t)
	a := newSide(t)
	b := newSide(t, func(c *Config, _ *desk) {
		c.Listen, c.TLS = []string{"tls://127.0.0.1:0"}, server
	})
	c := a.dial(t, b)
	if e := finish(t, c); e.Cause != EndTransport || e.Code != 503 {
		t.Errorf("ended with %+v", e)
	}
}

func optionsText(id string) string {
	return "OPTIONS sip:x@example.com SIP/2.0\r\nVia: SIP/2.0/TCP 192.0.2.1;rport;branch=z9hG4bK" + id + "\r\n" +
		"From: <sip:a@b>;tag=1\r\nTo: <sip:x@example.com>\r\nCall-ID: " + id + "\r\nCSeq: 1 OPTIONS\r\nContent-Length: 3\r\n\r\nabc"
}

// dialTCP connects to s and returns the connection and a reader of messages.
func dialTCP(t *testing.T, s *side) (net.Conn, func() *message) {
	t.Helper()
	_, addr, _ := strings.Cut(s.Addrs()[0], "://")
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	var buf []byte
	return conn, func() *message {
		t.Helper()
		for {
			if m, n, err := scan(buf, true, 65536); err == nil {
				buf = buf[n:]
				if f := m.understand(nil); f != nil {
					t.Fatal(f)
				}
				return m
			}
			more := make([]byte, 4096)
			_ = conn.SetReadDeadline(time.Now().Add(patience))
			n, err := conn.Read(more)
			if err != nil {
				return nil
			}
			buf = append(buf, more[:n]...)
		}
	}
}

func tcpSide(t *testing.T, change ...func(*Config, *desk)) *side {
	return newSide(t, append([]func(*Config, *desk){func(c *Config, _ *desk) {
		c.Listen = []string{"tcp://127.0.0.1:0"}
	}}, change...)...)
}

func TestFraming(t *testing.T) {
	s := tcpSide(t)
	conn, read := dialTCP(t, s)
	// Two in one write, keep-alive before, between and after.
	fmt.Fprint(conn, "\r\n\r\n"+optionsText("one")+"\r\n\r\n"+optionsText("two")+"\r\n")
	for _, id := range []string{"one", "two"} {
		m := read()
		if m == nil || m.callID != id || m.code != 200 {
			t.Fatalf("%+v, want the answer to %s", m, id)
		}
	}
	for _, b := range []byte(optionsText("bytes")) { // one byte at a time
		if _, err := conn.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if m := read(); m == nil || m.callID != "bytes" {
		t.Fatalf("%+v", m)
	}
}

// A length that cannot be believed ends the connection, after a 400.
func TestBadFraming(t *testing.T) {
	for name, change := range map[string][2]string{
		"negative":        {"Content-Length: 3", "Content-Length: -3"},
		"2^31":            {"Content-Length: 3", "Content-Length: 2147483648"},
		"2^64+3":          {"Content-Length: 3", "Content-Length: 18446744073709551619"},
		"above our limit": {"Content-Length: 3", "Content-Length: 65536"},
		"signed":          {"Content-Length: 3", "Content-Length: +3"},
		"none":            {"Content-Length: 3\r\n", ""},
		"two":             {"Content-Length: 3", "Content-Length: 3\r\nl: 3"},
		"two that differ": {"Content-Length: 3", "Content-Length: 3\r\nContent-Length: 30"},
		"bare LF":         {"Call-ID", "X: y\nCall-ID"},
		"bare CR":         {"Call-ID", "X: y\rCall-ID"},
		"NUL":             {"Call-ID", "X: \x00\r\nCall-ID"},
		"no colon":        {"Call-ID", "hello\r\nCall-ID"},
		"space in a name": {"Call-ID: ", "X Y: z\r\nCall-ID: "},
	} {
		t.Run(name, func(t *testing.T) {
			text := optionsText("bad")
			if !strings.Contains(text, change[0]) {
				t.Fatal("nothing to change")
			}
			text = strings.Replace(text, change[0], change[1], 1)
			s := tcpSide(t)
			conn, read := dialTCP(t, s)
			// What follows must not be taken for a message of its own.
			fmt.Fprint(conn, text+optionsText("smuggled"))
			m := read()
			if m == nil || m.code != 400 {
				t.Fatalf("%+v, want 400", m)
			}
			if m := read(); m != nil {
				t.Errorf("another message was read: %d %s", m.code, m.callID)
			}
			u := newSide(t)
			c, err := net.Dial("udp", strings.TrimPrefix(u.uri, "sip:"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, text)
			want := 400
			if name == "none" {
				want = 200 // a datagram ends by itself
			}
			if got := status(c, patience); got != want {
				t.Errorf("%d over UDP, want %d", got, want)
			}
		})
	}
}

// Connections that say nothing cannot use the server up.
func TestIdleConnections(t *testing.T) {
	server, _ := testTLS(t)
	s := newSide(t, func(c *Config, _ *desk) {
		c.Listen = []string{"udp://127.0.0.1:0", "tcp://127.0.0.1:0", "tls://127.0.0.1:0"}
		c.TLS = server
		c.MaxConns, c.MaxConnsPerIP = 30, 20
		c.ReadTimeout = 500 * time.Millisecond
	})
	addrs := s.Addrs()
	var conns []net.Conn
	for i := range 100 {
		_, addr, _ := strings.Cut(addrs[1+i%2], "://")
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if i%3 == 0 {
			fmt.Fprint(conn, "OPTIONS sip:x SIP/2.0\r\nVia: S") // and no more
		}
		conns = append(conns, conn)
	}
	for i, conn := range conns { // all are closed in the end
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.Copy(io.Discard, conn); err != nil {
			if ne, ok := err.(net.Error); ok && ne.Timeout() {
				t.Fatalf("connection %d is still open", i)
			}
		}
	}
	if st := s.Stats(); st.ConnsRefused < 50 {
		t.Errorf("only %d were refused", st.ConnsRefused)
	}
	u, err := net.Dial("udp", strings.TrimPrefix(addrs[0], "udp://"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	fmt.Fprint(u, optionsText("alive"))
	if got := status(u, patience); got != 200 {
		t.Errorf("UDP answers %d", got)
	}
}

// Large and strange messages are bounded.
func TestLargeMessages(t *testing.T) {
	s := newSide(t)
	u, err := net.Dial("udp", strings.TrimPrefix(s.uri, "sip:"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	for name, c := range map[string]struct {
		text string
		want int
	}{
		"a Call-ID of 60 KiB": {strings.Replace(optionsText("a"), "Call-ID: a", "Call-ID: "+strings.Repeat("a", 60<<10), 1), 400},
		"a Call-ID of 1 KiB":  {strings.Replace(optionsText("a"), "Call-ID: a", "Call-ID: "+strings.Repeat("a", 1<<10), 1), 400},
		"5000 Vias":           {strings.Replace(optionsText("b"), "From", strings.Repeat("v: SIP/2.0/UDP h\r\n", 3000)+"From", 1), 400},
		"70 fields":           {strings.Replace(optionsText("c"), "From", strings.Repeat("X-A: b\r\n", 70)+"From", 1), 200},
		"much folding":        {strings.Replace(optionsText("d"), "From", "X: y\r\n"+strings.Repeat(" z\r\n", 10000)+"From", 1), 400},
		"UTF-8 that is none":  {strings.Replace(optionsText("e"), "<sip:a@b>", "\"M\xfcller\" <sip:a@b>", 1), 200},
	} {
		if _, err := u.Write([]byte(c.text)); err != nil {
			t.Fatal(err)
		}
		if got := status(u, patience); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

// RFC 3261 §18.1.1: what is too large for UDP goes by TCP, if there is one.
func TestLargeRequest(t *testing.T) {
	// The same port for both.
	var b *side
	for range 20 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		pc, err := net.ListenPacket("udp", addr)
		if err != nil {
			l.Close()
			continue
		}
		b = newSide(t, func(c *Config, _ *desk) {
			c.Listen = []string{"udp://" + addr, "tcp://" + addr}
			c.ListenPacket = func(string, string) (net.PacketConn, error) { return pc, nil }
			c.ListenStream = func(string, string) (net.Listener, error) { return l, nil }
		})
		break
	}
	if b == nil {
		t.Fatal("no port that is free for both")
	}
	a := newSide(t)
	large := func(o *Outgoing) { o.SDP = bytes.Repeat([]byte("a=x\r\n"), 400) }
	a.dial(t, b, large)
	if in := b.incoming(t); in.Request().Network != "tcp" || len(in.Request().Offer) != 2000 {
		t.Errorf("it came over %s with %d bytes", in.Request().Network, len(in.Request().Offer))
	}
	// Nobody listens on TCP: UDP after all.
	c := newSide(t)
	a.dial(t, c, large)
	if in := c.incoming(t); in.Request().Network != "udp" || len(in.Request().Offer) != 2000 {
		t.Errorf("it came over %s with %d bytes", in.Request().Network, len(in.Request().Offer))
	}
}

func TestIPv6(t *testing.T) {
	l, err := net.ListenPacket("udp", "[::1]:0")
	if err != nil {
		t.Fatalf("the loopback address of IPv6 is needed: %v", err)
	}
	l.Close()
	v6 := func(c *Config, _ *desk) { c.Listen = []string{"udp://[::1]:0"} }
	a, b := newSide(t, v6), newSide(t, v6)
	_, in := join(t, a, b)
	in.Bye(0, "")
	finish(t, in)
}

// names is a Resolver for tests.
type names struct {
	srv map[string][]*net.SRV
	ip  map[string][]netip.Addr
}

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if a, ok := n.ip[host]; ok {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
}

func (n names) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	key := "_" + service + "._" + proto + "." + name
	if r, ok := n.srv[key]; ok {
		return key, r, nil
	}
	return "", nil, &net.DNSError{Err: "no such host", Name: key, IsNotFound: true}
}

func TestResolve(t *testing.T) {
	ip := netip.MustParseAddr
	s := newSide(t, func(c *Config, _ *desk) {
		c.Resolver = names{
			srv: map[string][]*net.SRV{
				"_sip._udp.example.net":  {{Target: "a.example.net.", Port: 5070}, {Target: "b.example.net.", Port: 5080}},
				"_sip._tcp.example.net":  {{Target: "a.example.net.", Port: 5071}},
				"_sips._tcp.example.net": {{Target: "b.example.net.", Port: 5081}},
				"_sip._tcp.tcponly.net":  {{Target: "a.example.net.", Port: 5071}},
			},
			ip: map[string][]netip.Addr{
				"a.example.net": {ip("2001:db8::1"), ip("192.0.2.1")},
				"b.example.net": {ip("192.0.2.2")},
				"plain.net":     {ip("192.0.2.9")},
			},
		}
	})
	for uri, want := range map[string]string{
		"sip:192.0.2.7":                         "udp://192.0.2.7:5060",
		"sip:[2001:db8::7]:5062":                "udp://[2001:db8::7]:5062",
		"sips:192.0.2.7":                        "tls://192.0.2.7:5061",
		"sip:x@192.0.2.7;transport=ws":          "ws://192.0.2.7:80",
		"sip:example.net":                       "udp://192.0.2.1:5070 udp://[2001:db8::1]:5070 udp://192.0.2.2:5080",
		"sip:example.net;transport=tcp":         "tcp://192.0.2.1:5071 tcp://[2001:db8::1]:5071",
		"sips:example.net":                      "tls://192.0.2.2:5081",
		"sip:example.net;transport=tls":         "tls://192.0.2.2:5081",
		"sip:tcponly.net":                       "tcp://192.0.2.1:5071 tcp://[2001:db8::1]:5071",
		"sip:plain.net":                         "udp://192.0.2.9:5060",
		"sip:plain.net:5099;transport=TCP":      "tcp://192.0.2.9:5099",
		"sip:a.example.net:5060":                "udp://192.0.2.1:5060 udp://[2001:db8::1]:5060",
		"sip:none.net":                          "",
		"sip:192.0.2.7;transport=carrierpigeon": "",
		"tel:+49":                               "",
	} {
		hops, err := s.Resolve(testCtx(t), uri)
		var got []string
		for _, h := range hops {
			got = append(got, h.String())
		}
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%s: %v, %v; want %s", uri, got, err, want)
		}
	}
	s.punish(Hop{"udp", netip.MustParseAddrPort("192.0.2.1:5070"), "example.net"})
	hops, _ := s.Resolve(testCtx(t), "sip:example.net")
	if len(hops) != 3 || hops[2].Addr.String() != "192.0.2.1:5070" {
		t.Errorf("a hop that failed is not last: %v", hops)
	}
}

// A hop that is down is left for the next.
func TestFailover(t *testing.T) {
	b := newSide(t)
	port := netip.MustParseAddrPort(strings.TrimPrefix(b.uri, "sip:")).Port()
	dead, err := net.ListenPacket("udp", "127.0.0.1:0") // hears and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer dead.Close()
	a := newSide(t, func(c *Config, _ *desk) {
		c.T1 = 30 * time.Millisecond
		c.Resolver = names{
			srv: map[string][]*net.SRV{"_sip._udp.example.net": {
				{Target: "d.example.net.", Port: addrPort(dead.LocalAddr()).Port()}, {Target: "d.example.net.", Port: port}}},
			ip: map[string][]netip.Addr{"d.example.net": {netip.MustParseAddr("127.0.0.1")}},
		}
	})
	out := a.dial(t, b, func(o *Outgoing) { o.Target.URI = "sip:example.net" })
	in := b.incoming(t)
	_ = in.Reject(503, "")
	if e := finish(t, out); e.Code != 503 {
		t.Errorf("ended with %+v", e)
	}
	r, err := a.Endpoint.Request(testCtx(t), Message{Method: "OPTIONS", Target: Target{URI: "sip:example.net"}})
	if err != nil || r.Code != 200 {
		t.Errorf("%+v, %v", r, err)
	}
}
