package turn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
	pion "github.com/pion/turn/v5"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second // for what comes at once on a machine that is not busy

// turnTest is a running relay at 127.0.0.2 and an SFU there that says back
// whatever it is told. 127.0.0.1 is just another special address to it.
type turnTest struct {
	*Server
	t    *testing.T
	sfu  netip.AddrPort
	addr string // where the clients of the test connect to
	stop func()
}

func start(t *testing.T, change func(*Config)) *turnTest {
	return startWith(t, change, nil)
}

func startWith(t *testing.T, change func(*Config), before func(*Server)) *turnTest {
	t.Helper()
	echo, err := net.ListenPacket("udp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	tt := &turnTest{t: t, sfu: echo.LocalAddr().(*net.UDPAddr).AddrPort()}
	cfg := DefaultConfig()
	cfg.Port, cfg.RelayPortMin, cfg.RelayPortMax = 0, 0, 0
	cfg.PublicIPs = []string{"127.0.0.2"}
	cfg.Secret = "a secret of the tests"
	if change != nil {
		change(&cfg)
	}
	tt.Server, err = New(cfg, Deps{MediaAddrs: func() []netip.AddrPort { return []netip.AddrPort{tt.sfu} }})
	if err != nil {
		t.Fatal(err)
	}
	tt.addr = tt.Addr().String()
	if before != nil {
		before(tt.Server)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- tt.Run(ctx) }()
	tt.stop = func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run does not end")
		}
		tt.stop = func() {}
	}
	t.Cleanup(func() {
		tt.stop()
		_ = echo.Close()
	})
	return tt
}

// credentials returns what a client of a user is told.
func (tt *turnTest) credentials(user string) (username, password string) {
	servers, _ := tt.ICEServers(user)
	return servers[0].Username, servers[0].Credential
}

// dial connects a client's transport.
func (tt *turnTest) dial(network string) net.Conn {
	tt.t.Helper()
	c, err := net.Dial(network, tt.addr)
	if err != nil {
		tt.t.Fatal(err)
	}
	tt.t.Cleanup(func() { _ = c.Close() })
	return c
}

// pionClient allocates a relay with pion's TURN client.
func (tt *turnTest) pionClient(network, user string) net.PacketConn {
	tt.t.Helper()
	username, password := tt.credentials(user)
	var conn net.PacketConn
	if network == "tcp" {
		conn = pion.NewSTUNConn(tt.dial("tcp"))
	} else {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			tt.t.Fatal(err)
		}
		conn = c
	}
	client, err := pion.NewClient(&pion.ClientConfig{
		STUNServerAddr: tt.addr, TURNServerAddr: tt.addr,
		Username: username, Password: password, Conn: conn, LoggerFactory: pionLogger{tt.log},
	})
	if err != nil {
		tt.t.Fatal(err)
	}
	tt.t.Cleanup(func() { client.Close(); _ = conn.Close() })
	if err := client.Listen(); err != nil {
		tt.t.Fatal(err)
	}
	relay, err := client.Allocate()
	if err != nil {
		tt.t.Fatalf("allocate over %s: %v", network, err)
	}
	tt.t.Cleanup(func() { _ = relay.Close() })
	return relay
}

// expect reads packets until want has come from from.
func expect(t *testing.T, c net.PacketConn, want string, from net.Addr) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 2000)
	for {
		n, addr, err := c.ReadFrom(b)
		if err != nil {
			t.Fatalf("waiting for %q: %v", want, err)
		}
		if string(b[:n]) == want && addr.String() == from.String() {
			return
		}
	}
}

func TestRelayToSFU(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			tt := start(t, nil)
			relay := tt.pionClient(network, "@alice:example.org")
			sfu := net.UDPAddrFromAddrPort(tt.sfu)
			for i := range 20 { // first as indications, then on a channel
				text := fmt.Sprintf("packet %d %s", i, strings.Repeat("x", i*60))
				if _, err := relay.WriteTo([]byte(text), sfu); err != nil {
					t.Fatal(err)
				}
				expect(t, relay, text, sfu)
			}
			eventually(t, "all packets to be counted", func() bool {
				st := tt.Stats()
				return st.PacketsToPeers == 20 && st.PacketsToClients == 20 && st.BytesToPeers == st.BytesToClients
			})
			if st := tt.Stats(); st.Relays != 1 || st.Allocations != 1 || st.PacketsDenied != 0 {
				t.Errorf("stats %+v", st)
			}
			if host := netip.MustParseAddrPort(relay.LocalAddr().String()); host.Addr() != netip.MustParseAddr("127.0.0.2") {
				t.Errorf("relayed address %s", host)
			}
		})
	}
}

// The SFU and the relays are told about by an address that this machine has not.
func TestRelayToSFUBehindNAT(t *testing.T) {
	echo, err := net.ListenPacket("udp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		b := make([]byte, 2000)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	public := netip.AddrPortFrom(netip.MustParseAddr("203.0.113.5"), addrOf(echo).Port())
	tt := startWith(t, func(cfg *Config) { cfg.PublicIPs = nil }, func(s *Server) {
		s.deps.MediaAddrs = func() []netip.AddrPort { return []netip.AddrPort{public} }
		s.ips = ownIPs(s.deps.MediaAddrs())
		s.relay = []relayFamily{newRelayFamily(s.ips[0])}
		s.peers.refresh(s.deps.MediaAddrs(), s.ips)
	})
	tt.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tt.port).String()
	relay := tt.pionClient("udp", "@alice:example.org")
	if got := netip.MustParseAddrPort(relay.LocalAddr().String()).Addr(); got != public.Addr() {
		t.Fatalf("relayed address at %s, want %s", got, public.Addr())
	}
	if _, err := relay.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(public)); err != nil {
		t.Fatal(err)
	}
	expect(t, relay, "hello", net.UDPAddrFromAddrPort(public))
}

func TestRelayToRelay(t *testing.T) {
	for _, c := range []struct{ name, ip string }{
		{"at an address of this machine", "127.0.0.2"},
		{"behind a one-to-one NAT", "203.0.113.5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tt := start(t, func(cfg *Config) { cfg.PublicIPs = []string{c.ip} })
			if c.ip != "127.0.0.2" { // the clients of the test do not cross the NAT
				tt.addr = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), tt.port).String()
			}
			alice := tt.pionClient("udp", "@alice:example.org")
			bob := tt.pionClient("tcp", "@bob:example.org")
			if got := netip.MustParseAddrPort(alice.LocalAddr().String()).Addr().String(); got != c.ip {
				t.Fatalf("relayed address %s, want one at %s", alice.LocalAddr(), c.ip)
			}
			// Both need a permission before either hears the other.
			if _, err := bob.WriteTo([]byte("knock"), alice.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			if _, err := alice.WriteTo([]byte("hello bob"), bob.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			expect(t, bob, "hello bob", alice.LocalAddr())
			if _, err := bob.WriteTo([]byte("hello alice"), alice.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			expect(t, alice, "hello alice", bob.LocalAddr())
		})
	}
}

// rawClient speaks STUN word by word, for what real clients would not say.
type rawClient struct {
	t                  *testing.T
	conn               net.Conn
	username, password string
	realm, nonce       string
}

func (tt *turnTest) raw(network, user string) *rawClient {
	c := &rawClient{t: tt.t, conn: tt.dial(network)}
	c.username, c.password = tt.credentials(user)
	return c
}

// ask sends a request and returns the answer, nil if none comes. It answers a
// challenge, if it has credentials and has not used them with that nonce.
func (c *rawClient) ask(method stun.Method, attrs ...stun.Setter) *stun.Message {
	c.t.Helper()
	kind := stun.NewType(method, stun.ClassRequest)
	used := c.nonce != ""
	answer := c.roundTrip(c.build(kind, attrs...))
	code := errorCode(answer)
	if c.username != "" && (code == stun.CodeUnauthorized && !used || code == stun.CodeStaleNonce) && c.challenge(answer) {
		return c.roundTrip(c.build(kind, attrs...))
	}
	return answer
}

// challenge takes nonce and realm from an answer.
func (c *rawClient) challenge(answer *stun.Message) bool {
	var nonce stun.Nonce
	var itsRealm stun.Realm
	if nonce.GetFrom(answer) != nil || itsRealm.GetFrom(answer) != nil {
		return false
	}
	c.nonce, c.realm = nonce.String(), itsRealm.String()
	return true
}

func (c *rawClient) build(kind stun.MessageType, attrs ...stun.Setter) *stun.Message {
	c.t.Helper()
	setters := append([]stun.Setter{stun.TransactionID, kind}, attrs...)
	if c.nonce != "" {
		setters = append(setters, stun.NewUsername(c.username), stun.NewRealm(c.realm), stun.NewNonce(c.nonce),
			stun.NewLongTermIntegrity(c.username, c.realm, c.password))
	}
	m, err := stun.Build(setters...)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

func (c *rawClient) roundTrip(m *stun.Message) *stun.Message {
	c.t.Helper()
	if _, err := c.conn.Write(m.Raw); err != nil {
		return nil
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	for {
		answer := c.read()
		if answer == nil || answer.TransactionID == m.TransactionID {
			return answer
		}
	}
}

// read returns the next message.
func (c *rawClient) read() *stun.Message {
	b := make([]byte, 2000)
	n := 0
	var err error
	if c.conn.LocalAddr().Network() == "tcp" {
		if _, err = io.ReadFull(c.conn, b[:20]); err == nil {
			n = 20 + int(b[2])<<8 + int(b[3])
			_, err = io.ReadFull(c.conn, b[20:n])
		}
	} else {
		n, err = c.conn.Read(b)
	}
	if err != nil {
		return nil
	}
	m := &stun.Message{Raw: b[:n]}
	if m.Decode() != nil {
		return nil
	}
	return m
}

func errorCode(m *stun.Message) stun.ErrorCode {
	var code stun.ErrorCodeAttribute
	if m == nil || code.GetFrom(m) != nil {
		return 0
	}
	return code.Code
}

// want fails unless the answer has this error code; 0 is success.
func want(t *testing.T, what string, answer *stun.Message, code stun.ErrorCode) {
	t.Helper()
	switch {
	case answer == nil:
		t.Errorf("%s: no answer, want %d", what, code)
	case errorCode(answer) != code:
		t.Errorf("%s: answer %d, want %d", what, errorCode(answer), code)
	}
}

// attr is any attribute, right or wrong.
type attr struct {
	kind  stun.AttrType
	value []byte
}

func (a attr) AddTo(m *stun.Message) error {
	m.Add(a.kind, a.value)
	return nil
}

// peer is an XOR-PEER-ADDRESS exactly as spelt: an IPv4-mapped address stays
// an IPv6 one.
type peer netip.AddrPort

func (p peer) AddTo(m *stun.Message) error {
	a := netip.AddrPort(p)
	v := []byte{0, familyIPv4, 0, 0}
	if a.Addr().Is6() {
		v[1] = familyIPv6
	}
	port := a.Port() ^ 0x2112
	v[2], v[3] = byte(port>>8), byte(port)
	mask := append([]byte{0x21, 0x12, 0xa4, 0x42}, m.TransactionID[:]...)
	for i, b := range a.Addr().AsSlice() {
		v = append(v, b^mask[i])
	}
	m.Add(stun.AttrXORPeerAddress, v)
	return nil
}

func at(addr string, port uint16) peer {
	return peer(netip.AddrPortFrom(netip.MustParseAddr(addr), port))
}

var (
	udpRelay = attr{stun.AttrRequestedTransport, []byte{17, 0, 0, 0}}
	tcpRelay = attr{stun.AttrRequestedTransport, []byte{6, 0, 0, 0}}
)

func channel(n uint16) attr {
	return attr{stun.AttrChannelNumber, []byte{byte(n >> 8), byte(n), 0, 0}}
}

// allocate gets a relay.
func (c *rawClient) allocate() {
	c.t.Helper()
	want(c.t, "allocate", c.ask(stun.MethodAllocate, udpRelay), 0)
}

func TestCredentials(t *testing.T) {
	tt := start(t, nil)
	servers, ttl := tt.ICEServers("@alice:example.org")
	if ttl != 12*time.Hour || len(servers) != 1 {
		t.Fatalf("ICEServers = %v, %v", servers, ttl)
	}
	wantURLs := []string{
		"turn:" + tt.Addr().String() + "?transport=udp",
		"turn:" + tt.Addr().String() + "?transport=tcp",
	}
	if fmt.Sprint(servers[0].URLs) != fmt.Sprint(wantURLs) {
		t.Errorf("URLs %v, want %v", servers[0].URLs, wantURLs)
	}
	expiry, name, ok := splitUsername(servers[0].Username)
	if !ok || name != "@alice:example.org" {
		t.Errorf("username %q", servers[0].Username)
	}
	if left := time.Until(time.Unix(expiry, 0)); left < 11*time.Hour || left > 12*time.Hour {
		t.Errorf("the credentials end in %s, want 12h", left)
	}
	// The same by another implementation.
	other := &Server{cfg: Config{Secret: "north"}}
	if got, want := other.password("1700000000:@a:b"), "ZUBxv6nu5rqRM9tDC+rpXnE5ZgA="; got != want {
		t.Errorf("password %s, want %s", got, want)
	}
}

func TestWrongCredentials(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			tt := start(t, nil)
			none := tt.raw(network, "@alice:example.org")
			none.username = ""
			first := none.roundTrip(none.build(stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpRelay))
			want(t, "no credentials", first, stun.CodeUnauthorized)
			if first == nil || !none.challenge(first) {
				t.Error("the challenge has no nonce or realm")
			}

			bobs, _ := tt.credentials("@bob:example.org")
			_, alices := tt.credentials("@alice:example.org")
			past := strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10) + ":@alice:example.org"
			future := strconv.FormatInt(time.Now().Add(1000*time.Hour).Unix(), 10) + ":@alice:example.org"
			for _, c := range []struct{ name, username, password string }{
				{"wrong password", "", "wrong"},
				{"empty password", "", ""},
				{"another user's name", bobs, alices},
				{"a longer life than was given", future, alices},
				{"expired", past, tt.password(past)},
				{"no expiry", "@alice:example.org", tt.password("@alice:example.org")},
				{"no user", "9999999999:", tt.password("9999999999:")},
				{"negative expiry", "-1:x", tt.password("-1:x")},
				{"endless expiry", "99999999999999999999:x", tt.password("99999999999999999999:x")},
			} {
				r := tt.raw(network, "@alice:example.org")
				if c.username != "" {
					r.username = c.username
				}
				r.password = c.password
				want(t, c.name, r.ask(stun.MethodAllocate, udpRelay), stun.CodeUnauthorized)
			}
			if st := tt.Stats(); st.Relays != 0 || st.AuthFailures < 8 {
				t.Errorf("stats %+v", st)
			}
		})
	}
}

func TestRelayOfSomebodyElse(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		tt := start(t, nil)
		c := tt.raw(network, "@alice:example.org")
		want(t, network+": permission without a relay", c.ask(stun.MethodCreatePermission, peer(tt.sfu)), stun.CodeAllocMismatch)
		c.allocate()
		username, password := c.username, c.password
		c.username, c.password = tt.credentials("@bob:example.org")
		want(t, network+": refresh by another user", c.ask(stun.MethodRefresh), stun.CodeWrongCredentials)
		want(t, network+": permission by another user", c.ask(stun.MethodCreatePermission, peer(tt.sfu)), stun.CodeWrongCredentials)
		c.username, c.password = username, password
		want(t, network+": refresh by its user", c.ask(stun.MethodRefresh), 0)
	}
}

func TestNonceOfAnotherClient(t *testing.T) {
	for _, network := range []string{"udp", "tcp"} {
		tt := start(t, nil)
		a := tt.raw(network, "@alice:example.org")
		a.allocate()
		b := tt.raw(network, "@alice:example.org")
		b.nonce, b.realm = a.nonce, a.realm
		answer := b.roundTrip(b.build(stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpRelay))
		want(t, network+": a nonce from another 5-tuple", answer, stun.CodeStaleNonce)
		if answer == nil || !b.challenge(answer) {
			t.Fatal("no new nonce")
		}
		b.allocate()
	}
}

// Peers that nobody may relay to, in every spelling.
func TestDeniedPeers(t *testing.T) {
	tt := start(t, nil)
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	want(t, "our SFU", c.ask(stun.MethodCreatePermission, peer(tt.sfu)), 0)
	denied := []string{
		"127.0.0.1", "127.0.0.3", "0.0.0.0", "::1", "::",
		"::ffff:127.0.0.1", "::ffff:127.0.0.2", "::ffff:8.8.8.8", "::127.0.0.1", "::127.0.0.2",
		"64:ff9b::7f00:1", "64:ff9b::7f00:2", "64:ff9b:1::1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::1",
		"10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1",
		"192.0.2.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
		"fd00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1", "5f00::1",
	}
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			denied = append(denied, n.IP.String()) // this machine's own
		}
	}
	before := tt.Stats().PermissionsDenied
	for _, ip := range denied {
		want(t, "permission for "+ip, c.ask(stun.MethodCreatePermission, at(ip, 443)), stun.CodeForbidden)
		want(t, "channel to "+ip, c.ask(stun.MethodChannelBind, channel(0x4001), at(ip, 443)), stun.CodeForbidden)
		want(t, "connection to "+ip, c.ask(stun.MethodConnect, at(ip, 443)), stun.CodeForbidden)
	}
	want(t, "one good and one bad", c.ask(stun.MethodCreatePermission, peer(tt.sfu), at("10.0.0.1", 1)), stun.CodeForbidden)
	if got := tt.Stats().PermissionsDenied - before; got != uint64(3*len(denied)+1) {
		t.Errorf("counted %d denied permissions, want %d", got, 3*len(denied)+1)
	}
	// The good one still works: a channel to the SFU.
	want(t, "channel to the SFU", c.ask(stun.MethodChannelBind, channel(0x4000), peer(tt.sfu)), 0)
}

func TestPublicPeersCanBeSwitchedOff(t *testing.T) {
	for _, on := range []bool{true, false} {
		tt := start(t, func(c *Config) { c.PublicPeers = on })
		c := tt.raw("udp", "@alice:example.org")
		c.allocate()
		code := stun.ErrorCode(stun.CodeForbidden)
		if on {
			code = 0
		}
		want(t, fmt.Sprintf("public peer with public_peers %v", on), c.ask(stun.MethodCreatePermission, at("8.8.8.8", 9)), code)
		want(t, "our SFU", c.ask(stun.MethodCreatePermission, peer(tt.sfu)), 0)
	}
}

// Permissions are by address: at the SFU's address, only its port is reached.
func TestOtherPortsOfTheSFUsAddress(t *testing.T) {
	tt := start(t, nil)
	secret, err := net.ListenPacket("udp4", "127.0.0.2:0") // some service of this machine
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	want(t, "channel to another port", c.ask(stun.MethodChannelBind, channel(0x4000), peer(addrOf(secret))), 0)
	want(t, "channel to the SFU", c.ask(stun.MethodChannelBind, channel(0x4001), peer(tt.sfu)), 0)
	for range 3 {
		c.send([]byte{0x40, 0, 0, 2, 'h', 'i', 0, 0})
	}
	c.send(c.build(stun.NewType(stun.MethodSend, stun.ClassIndication), peer(addrOf(secret)), attr{stun.AttrData, []byte("hi")}).Raw)
	// What was sent before is dealt with when the answer to this is here.
	c.send([]byte{0x40, 1, 0, 4, 'd', 'o', 'n', 'e'})
	if got := c.channelData(); string(got) != "done" {
		t.Fatalf("the SFU answered %q", got)
	}
	eventually(t, "the packets to be counted", func() bool {
		return tt.Stats().PacketsDenied == 4 && tt.Stats().PacketsToPeers == 1
	})
	// And nothing from there reaches the client.
	relay := tt.onlyRelay()
	if _, err := secret.WriteTo([]byte("inside"), net.UDPAddrFromAddrPort(relay)); err != nil {
		t.Fatal(err)
	}
	c.send([]byte{0x40, 1, 0, 4, 'd', 'o', 'n', 'e'})
	if got := c.channelData(); string(got) != "done" {
		t.Fatalf("the client got %q", got)
	}
	eventually(t, "the packet to be counted", func() bool { return tt.Stats().PacketsDenied == 5 })
	_ = secret.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 100)
	if n, from, err := secret.ReadFrom(b); err == nil {
		t.Errorf("a service of this machine got %q from %s", b[:n], from)
	}
}

func TestSendToDeniedPeerAfterAPermittedOne(t *testing.T) {
	tt := start(t, nil)
	victim, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer victim.Close()
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	want(t, "channel to the SFU", c.ask(stun.MethodChannelBind, channel(0x4000), peer(tt.sfu)), 0)
	want(t, "the same channel for another peer", c.ask(stun.MethodChannelBind, channel(0x4000), peer(addrOf(victim))), stun.CodeForbidden)
	want(t, "permission", c.ask(stun.MethodCreatePermission, peer(addrOf(victim))), stun.CodeForbidden)
	for range 3 {
		c.send(c.build(stun.NewType(stun.MethodSend, stun.ClassIndication), peer(addrOf(victim)), attr{stun.AttrData, []byte("hi")}).Raw)
	}
	c.send([]byte{0x40, 0, 0, 4, 'd', 'o', 'n', 'e'})
	if got := c.channelData(); string(got) != "done" {
		t.Fatalf("the SFU answered %q", got)
	}
	_ = victim.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	b := make([]byte, 100)
	if n, from, err := victim.ReadFrom(b); err == nil {
		t.Errorf("the denied peer got %q from %s", b[:n], from)
	}
}

func addrOf(c net.PacketConn) netip.AddrPort { return c.LocalAddr().(*net.UDPAddr).AddrPort() }

func (c *rawClient) send(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// channelData returns the payload of the next channel data.
func (c *rawClient) channelData() []byte {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 2000)
	n, err := c.conn.Read(b)
	if err != nil || n < 4 {
		c.t.Fatalf("no channel data: %v", err)
	}
	return b[4 : 4+int(b[2])<<8+int(b[3])]
}

// onlyRelay returns the one relayed address there is.
func (tt *turnTest) onlyRelay() netip.AddrPort {
	tt.t.Helper()
	tt.index.RLock()
	defer tt.index.RUnlock()
	if len(tt.relays) != 1 {
		tt.t.Fatalf("%d relays, want 1", len(tt.relays))
	}
	for a := range tt.relays {
		return a
	}
	panic("not reached")
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !done(); {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func TestTCPRelaysAreRefused(t *testing.T) {
	tt := start(t, nil)
	listener, err := net.Listen("tcp4", tt.sfu.String()) // the SFU's own address and port, in TCP
	for tries := 0; err != nil && tries < 5; tries++ {   // somebody else may have it
		tt = start(t, nil)
		listener, err = net.Listen("tcp4", tt.sfu.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	c := tt.raw("tcp", "@alice:example.org")
	want(t, "allocate a TCP relay", c.ask(stun.MethodAllocate, tcpRelay), stun.CodeUnsupportedTransProto)
	wrong := tt.raw("tcp", "@alice:example.org")
	wrong.password = "wrong"
	want(t, "the same with a wrong password", wrong.ask(stun.MethodAllocate, tcpRelay), stun.CodeUnauthorized)
	c.allocate()
	if code := errorCode(c.ask(stun.MethodConnect, peer(tt.sfu))); code == 0 {
		t.Error("Connect succeeded")
	}
	_ = listener.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
	if conn, err := listener.Accept(); err == nil {
		_ = conn.Close()
		t.Error("the relay opened a TCP connection")
	}
	if tt.Stats().TransportRefused != 1 {
		t.Errorf("stats %+v", tt.Stats())
	}
}

func TestAddressFamilies(t *testing.T) {
	tt := start(t, nil)
	c := tt.raw("udp", "@alice:example.org")
	want(t, "IPv6 relay of a server that has none", c.ask(stun.MethodAllocate, udpRelay, attr{stun.AttrRequestedAddressFamily, []byte{familyIPv6, 0, 0, 0}}), stun.CodeAddrFamilyNotSupported)
	want(t, "no family at all", c.ask(stun.MethodAllocate, udpRelay, attr{stun.AttrRequestedAddressFamily, []byte{7, 0, 0, 0}}), stun.CodeAddrFamilyNotSupported)
	want(t, "IPv4 relay", c.ask(stun.MethodAllocate, udpRelay, attr{stun.AttrRequestedAddressFamily, []byte{familyIPv4, 0, 0, 0}}), 0)
}

func TestIPv6Relay(t *testing.T) {
	echo, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatalf("the loopback address of IPv6 is needed: %v", err)
	}
	defer echo.Close()
	tt := startWith(t, func(cfg *Config) { cfg.PublicIPs = []string{"127.0.0.2", "::1"} }, func(s *Server) {
		media := append(s.deps.MediaAddrs(), addrOf(echo))
		s.deps.MediaAddrs = func() []netip.AddrPort { return media }
		s.peers.refresh(media, s.ips)
	})
	c := tt.raw("udp", "@alice:example.org")
	want(t, "IPv6 relay", c.ask(stun.MethodAllocate, udpRelay, attr{stun.AttrRequestedAddressFamily, []byte{familyIPv6, 0, 0, 0}}), 0)
	for _, ip := range []string{"::", "::ffff:127.0.0.1", "::ffff:127.0.0.2", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "fd00::1", "fe80::1", "ff02::1", "fec0::1", "10.0.0.1"} {
		want(t, "permission for "+ip, c.ask(stun.MethodCreatePermission, at(ip, 443)), stun.CodeForbidden)
	}
	want(t, "our SFU", c.ask(stun.MethodChannelBind, channel(0x4000), peer(addrOf(echo))), 0)
	c.send([]byte{0x40, 0, 0, 4, 'd', 'o', 'n', 'e'})
	b := make([]byte, 100)
	_ = echo.SetReadDeadline(time.Now().Add(patience))
	n, from, err := echo.ReadFrom(b)
	if err != nil || string(b[:n]) != "done" {
		t.Fatalf("the SFU got %q, %v", b[:n], err)
	}
	if relay := tt.onlyRelay(); from.String() != relay.String() || !relay.Addr().Is6() {
		t.Errorf("from %s, want the relay %s", from, relay)
	}
}

func TestQuota(t *testing.T) {
	tt := start(t, func(c *Config) { c.UserQuota = 3 })
	var mine []*rawClient
	for range 3 {
		c := tt.raw("udp", "@alice:example.org")
		c.allocate()
		mine = append(mine, c)
	}
	over := tt.raw("udp", "@alice:example.org")
	want(t, "over the quota", over.ask(stun.MethodAllocate, udpRelay), stun.CodeAllocQuotaReached)
	over = tt.raw("tcp", "@alice:example.org")
	want(t, "over the quota by TCP", over.ask(stun.MethodAllocate, udpRelay), stun.CodeAllocQuotaReached)
	bob := tt.raw("udp", "@bob:example.org")
	bob.allocate()
	want(t, "give one back", mine[0].ask(stun.MethodRefresh, attr{stun.AttrLifetime, []byte{0, 0, 0, 0}}), 0)
	again := tt.raw("udp", "@alice:example.org")
	again.allocate()
	if st := tt.Stats(); st.Relays != 4 || st.QuotaRefused != 2 {
		t.Errorf("stats %+v", st)
	}
}

func TestRevoke(t *testing.T) {
	tt := start(t, nil)
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	bob := tt.raw("udp", "@bob:example.org")
	bob.allocate()
	tt.Revoke("@alice:example.org")
	if st := tt.Stats(); st.Relays != 1 || st.Revoked != 1 {
		t.Errorf("after Revoke: stats %+v", st)
	}
	want(t, "refresh after Revoke", c.ask(stun.MethodRefresh), stun.CodeUnauthorized)
	want(t, "allocate after Revoke", c.ask(stun.MethodAllocate, udpRelay), stun.CodeUnauthorized)
	want(t, "somebody else's refresh", bob.ask(stun.MethodRefresh), 0)
	fresh := tt.raw("udp", "@alice:example.org") // allowed in again
	fresh.allocate()
}

func TestCredentialsEndTheRelay(t *testing.T) {
	tt := start(t, nil)
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	tt.expire(time.Now().Add(11 * time.Hour))
	if tt.Stats().Relays != 1 {
		t.Fatal("the relay ended before its credentials")
	}
	tt.expire(time.Now().Add(13 * time.Hour))
	if tt.Stats().Relays != 0 {
		t.Error("the relay outlived its credentials")
	}
	tt.mu.Lock()
	defer tt.mu.Unlock()
	if len(tt.users) != 0 {
		// gone with the next look
		tt.mu.Unlock()
		tt.expire(time.Now().Add(13 * time.Hour))
		tt.mu.Lock()
		if len(tt.users) != 0 {
			t.Errorf("%d users are kept for nothing", len(tt.users))
		}
	}
}

func TestRelayPortsAreBounded(t *testing.T) {
	probe, err := net.ListenPacket("udp4", "127.0.0.2:0")
	if err != nil {
		t.Fatal(err)
	}
	port := int(addrOf(probe).Port())
	_ = probe.Close()
	tt := start(t, func(c *Config) { c.RelayPortMin, c.RelayPortMax = port, port })
	c := tt.raw("udp", "@alice:example.org")
	c.allocate()
	if got := tt.onlyRelay(); int(got.Port()) != port {
		t.Errorf("relay at %s, want port %d", got, port)
	}
	want(t, "no port left", tt.raw("udp", "@bob:example.org").ask(stun.MethodAllocate, udpRelay), stun.CodeInsufficientCapacity)
	if tt.Stats().CapacityRefused == 0 {
		t.Error("not counted")
	}
}

func TestStopsWithClientsConnected(t *testing.T) {
	tt := start(t, nil)
	for _, network := range []string{"udp", "tcp"} {
		c := tt.raw(network, "@alice:example.org")
		c.allocate()
	}
	idle := tt.dial("tcp")
	eventually(t, "the idle client", func() bool { return tt.Stats().Connections == 2 })
	tt.stop()
	_ = idle.SetReadDeadline(time.Now().Add(patience))
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is still open")
	}
	if st := tt.Stats(); st.Relays != 0 || st.Connections != 0 {
		t.Errorf("after the end: stats %+v", st)
	}
}

// closedWithin fails unless the server closes the connection.
func closedWithin(t *testing.T, what string, c net.Conn, atMost time.Duration) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(atMost))
	for {
		_, err := c.Read(make([]byte, 2000))
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			t.Errorf("%s: the connection is still open after %s", what, atMost)
			return
		default:
			return
		}
	}
}

func TestSlowAndIdleConnections(t *testing.T) {
	tt := startWith(t, nil, func(s *Server) {
		s.times = streamTimes{idle: 2 * time.Second, relay: 5 * time.Second, frame: 2 * time.Second, write: 10 * time.Second}
	})

	t.Run("silent", func(t *testing.T) {
		t.Parallel()
		closedWithin(t, "silent", tt.dial("tcp"), patience)
	})
	t.Run("one byte now and then", func(t *testing.T) {
		t.Parallel()
		c := tt.dial("tcp")
		request, _ := stun.Build(stun.TransactionID, stun.BindingRequest)
		stop := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for _, b := range request.Raw {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				select {
				case <-stop:
					return
				case <-time.After(300 * time.Millisecond):
				}
			}
		}()
		closedWithin(t, "slowloris", c, patience)
		close(stop)
		<-ended
		if tt.Stats().ConnectionsTimedOut == 0 {
			t.Errorf("stats %+v", tt.Stats())
		}
	})
	t.Run("talks but never allocates", func(t *testing.T) {
		t.Parallel()
		c := &rawClient{t: t, conn: tt.dial("tcp")}
		for deadline := time.Now().Add(patience); c.ask(stun.MethodBinding) != nil; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("still open")
			}
		}
	})
	t.Run("silent with a relay", func(t *testing.T) {
		t.Parallel()
		c := tt.raw("tcp", "@alice:example.org")
		c.allocate()
		_ = c.conn.SetReadDeadline(time.Now().Add(6 * time.Second))
		if _, err := c.conn.Read(make([]byte, 1)); !errors.As(err, new(net.Error)) {
			t.Errorf("the connection of a silent relay: %v", err)
		}
		want(t, "refresh after the silence", c.ask(stun.MethodRefresh), 0)
	})
}

func TestMalformedStreams(t *testing.T) {
	tt := start(t, nil)
	for name, bytes := range map[string][]byte{
		"a web browser":             []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"a TLS client":              {0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc},
		"a STUN length of 64 KiB":   {0, 1, 0xff, 0xfc, 0x21, 0x12, 0xa4, 0x42},
		"a STUN length that is odd": {0, 1, 0, 3, 0x21, 0x12, 0xa4, 0x42},
		"channel data of 64 KiB":    {0x40, 0, 0xff, 0xff},
		"a reserved channel":        {0x80, 0, 0, 4, 1, 2, 3, 4},
	} {
		c := tt.dial("tcp")
		if _, err := c.Write(bytes); err != nil {
			t.Fatal(err)
		}
		closedWithin(t, name, c, patience)
	}
	if tt.Stats().Malformed != 6 {
		t.Errorf("stats %+v", tt.Stats())
	}
	c := tt.raw("tcp", "@alice:example.org")
	c.allocate()
}

func TestConnectionsAreCapped(t *testing.T) {
	tt := start(t, nil)
	for range maxConnectionsIP + 20 {
		tt.dial("tcp")
	}
	eventually(t, "the connections over the limit to be refused", func() bool { return tt.Stats().ConnectionsRefused == 20 })
	if n := tt.Stats().Connections; n != maxConnectionsIP {
		t.Errorf("%d connections, want %d", n, maxConnectionsIP)
	}
	tt.raw("udp", "@alice:example.org").allocate() // the others are served on
}

// hostile are packets that no client should send.
func hostile() [][]byte {
	build := func(setters ...stun.Setter) []byte {
		m, err := stun.Build(append([]stun.Setter{stun.TransactionID}, setters...)...)
		if err != nil {
			panic(err)
		}
		return m.Raw
	}
	allocate := stun.NewType(stun.MethodAllocate, stun.ClassRequest)
	garbageIntegrity := attr{stun.AttrMessageIntegrity, make([]byte, 20)}
	all := [][]byte{
		nil, {0}, {0, 1}, {0x40, 0}, {0x40, 0, 0xff, 0xff}, {0x7f, 0xff, 0, 0}, {0xff, 0xff, 0xff, 0xff},
		build(stun.BindingRequest, attr{0x7fff, nil}),
		build(stun.BindingRequest, attr{0x0001, []byte{1}}, attr{0x0001, []byte{1}}),
		build(stun.BindingRequest, attr{stun.AttrFingerprint, []byte{1, 2, 3, 4}}),
		build(allocate, attr{stun.AttrUsername, bytes.Repeat([]byte("x"), 1400)}, garbageIntegrity),
		build(allocate, attr{stun.AttrUsername, nil}, attr{stun.AttrRealm, nil}, attr{stun.AttrNonce, nil}, garbageIntegrity),
		build(allocate, attr{stun.AttrNonce, []byte("x")}, attr{stun.AttrNonce, []byte("y")}, garbageIntegrity),
		build(allocate, attr{stun.AttrMessageIntegrity, nil}),
		build(allocate, attr{stun.AttrMessageIntegrity, make([]byte, 3)}),
		build(allocate, garbageIntegrity, udpRelay),
		build(stun.NewType(stun.MethodCreatePermission, stun.ClassRequest), attr{stun.AttrXORPeerAddress, []byte{0, 1}}, garbageIntegrity),
		build(stun.NewType(stun.MethodSend, stun.ClassIndication)),
		build(stun.NewType(stun.MethodSend, stun.ClassIndication), attr{stun.AttrXORPeerAddress, nil}, attr{stun.AttrData, nil}),
		build(stun.NewType(stun.MethodConnectionBind, stun.ClassRequest), attr{stun.AttrConnectionID, nil}, garbageIntegrity),
		build(stun.NewType(0xfff, stun.ClassRequest)),
		build(stun.NewType(stun.MethodAllocate, stun.ClassSuccessResponse)),
		build(stun.NewType(stun.MethodAllocate, stun.ClassErrorResponse), attr{stun.AttrErrorCode, nil}),
	}
	long := build(stun.BindingRequest)
	long[2], long[3] = 0xff, 0xff // a length that lies
	all = append(all, long)
	short := build(allocate, attr{stun.AttrUsername, []byte("someone")}, garbageIntegrity)
	short[22], short[23] = 0xff, 0xff // an attribute that lies
	return append(all, short, short[:len(short)-5])
}

func TestHostilePackets(t *testing.T) {
	tt := start(t, nil)
	good := tt.raw("udp", "@alice:example.org")
	good.allocate()
	stranger := tt.dial("udp")
	challenged := tt.raw("udp", "@alice:example.org")
	want(t, "refresh without a relay", challenged.ask(stun.MethodRefresh), stun.CodeAllocMismatch)
	for _, p := range hostile() {
		for _, c := range []net.Conn{stranger, challenged.conn, good.conn} {
			_, _ = c.Write(p)
		}
	}
	for _, p := range hostile() {
		c := tt.dial("tcp")
		_, _ = c.Write(p)
		_ = c.Close()
	}
	want(t, "an attribute that must be understood", (&rawClient{t: t, conn: tt.dial("udp")}).ask(stun.MethodBinding, attr{0x7ffe, []byte{1, 2, 3, 4}}), stun.CodeUnknownAttribute)
	fresh := tt.raw("udp", "@bob:example.org")
	fresh.allocate()
	want(t, "a relay that was there before", good.ask(stun.MethodRefresh), 0)
}

// Without credentials, an answer is hardly longer than what asked for it: the
// relay is no amplifier.
func TestNoAmplification(t *testing.T) {
	tt := start(t, nil)
	c := &rawClient{t: t, conn: tt.dial("udp")}
	m := c.build(stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpRelay)
	answer := c.roundTrip(m)
	if answer == nil || len(answer.Raw) > 4*len(m.Raw) {
		t.Errorf("%d bytes answer %d", len(answer.Raw), len(m.Raw))
	}
	if _, err := c.conn.Write([]byte("not TURN at all")); err != nil {
		t.Fatal(err)
	}
}

// TestUnprovenSourcesAreLimited sends what somebody would send who forges the
// source address of another: that one must not be flooded with our answers.
func TestUnprovenSourcesAreLimited(t *testing.T) {
	tt := start(t, nil)
	flood := &rawClient{t: t, conn: tt.dial("udp")}
	m := flood.build(stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpRelay)
	began := time.Now()
	answers := make(chan int)
	go func() {
		b, n := make([]byte, 2000), 0
		for {
			if _, err := flood.conn.Read(b); err != nil {
				answers <- n
				return
			}
			n++
		}
	}()
	for deadline := began.Add(patience); tt.Stats().Limited < 1000 && time.Now().Before(deadline); {
		if _, err := flood.conn.Write(m.Raw); err != nil {
			t.Fatal(err)
		}
	}
	// A client from elsewhere is served meanwhile, and keeps its relay.
	elsewhere := netip.MustParseAddr("127.0.0.3")
	for tt.asks.bucket(elsewhere) == tt.asks.bucket(netip.MustParseAddr("127.0.0.1")) {
		elsewhere = elsewhere.Next()
	}
	c := tt.raw("udp", "alice")
	c.conn = dialFrom(t, elsewhere.String(), tt.addr)
	c.knock() // what has filled the socket's buffer must be read first
	c.allocate()
	if tt.Stats().Limited < 1000 {
		t.Errorf("%d requests were dropped", tt.Stats().Limited)
	}
	_ = flood.conn.Close()
	n := <-answers
	if allowed := sourceBurst + int(time.Since(began).Seconds()*sourceRate) + 1; n > allowed {
		t.Errorf("%d answers to one source, want at most %d", n, allowed)
	}
}

// knock asks again and again until there is an answer.
func (c *rawClient) knock() {
	c.t.Helper()
	binding := c.build(stun.NewType(stun.MethodBinding, stun.ClassRequest))
	b := make([]byte, 2000)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if _, err := c.conn.Write(binding.Raw); err != nil {
			c.t.Fatal(err)
		}
		_ = c.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if n, err := c.conn.Read(b); err == nil && n > 0 {
			return
		}
	}
	c.t.Fatal("no answer to anything")
}

func dialFrom(t *testing.T, local, to string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(local)}}
	conn, err := d.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestAskLimits(t *testing.T) {
	l := newAskLimits()
	now := time.Now()
	count := func(n int, source func(int) netip.Addr) (allowed int) {
		for i := range n {
			if l.allow(source(i), now) {
				allowed++
			}
		}
		return allowed
	}
	one := func(int) netip.Addr { return netip.MustParseAddr("192.0.2.1") }
	mapped := func(int) netip.Addr { return netip.MustParseAddr("::ffff:192.0.2.1") }
	if n := count(2*sourceBurst, one); n != sourceBurst {
		t.Errorf("%d requests of one source at once, want %d", n, sourceBurst)
	}
	if n := count(10, mapped); n != 0 {
		t.Errorf("the same source in IPv6 spelling got %d more", n)
	}
	now = now.Add(time.Second)
	if n := count(2*sourceBurst, one); n != sourceRate {
		t.Errorf("%d requests a second later, want %d", n, sourceRate)
	}
	neighbours := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 2: 0xd, 3: 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	if n := count(2*sourceBurst, neighbours); n > sourceBurst {
		t.Errorf("%d requests of one IPv6 network, want at most %d", n, sourceBurst)
	}
	now = now.Add(time.Minute)
	many := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
	}
	if n := count(3*totalBurst, many); n != totalBurst {
		t.Errorf("%d requests of everybody at once, want %d", n, totalBurst)
	}
}

func FuzzScreen(f *testing.F) {
	for _, p := range hostile() {
		f.Add(p, true)
		f.Add(p, false)
	}
	cfg := DefaultConfig()
	cfg.Secret = "a secret of the tests"
	s := &Server{cfg: cfg, users: map[string]*user{}, ips: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	s.peers.refresh(nil, s.ips)
	f.Fuzz(func(t *testing.T, p []byte, challenged bool) {
		if len(p) > maxFrame {
			return
		}
		pass, answer := s.screen(bytes.Clone(p), "", challenged)
		if pass && answer != nil || answer != nil && len(answer) > 200 {
			t.Errorf("%x: %v, %x", p, pass, answer)
		}
		isChallenge(p)
		if len(p) >= 4 {
			if n, err := frameSize(p); err == nil && (n < 4 || n > maxFrame) {
				t.Errorf("%x: a frame of %d bytes", p[:4], n)
			}
		}
	})
}

// coturn's client against our server.
func TestTurnutils(t *testing.T) {
	path, err := exec.LookPath("turnutils_uclient")
	if err != nil {
		t.Fatal("turnutils_uclient is not installed (Debian package coturn; 'make test' installs it)")
	}
	for _, c := range []struct {
		name string
		args []string
	}{
		{"UDP", nil},
		{"UDP with send indications", []string{"-s"}},
		{"TCP", []string{"-t"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			tt := start(t, nil)
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			args := append([]string{
				"-u", "alice", "-W", tt.cfg.Secret, "-p", strconv.Itoa(int(tt.port)), "-L", "127.0.0.1",
				"-e", tt.sfu.Addr().String(), "-r", strconv.Itoa(int(tt.sfu.Port())),
				"-n", "20", "-m", "2", "-l", "200", "-c", "-X",
			}, c.args...)
			out, err := exec.CommandContext(ctx, path, append(args, "127.0.0.1")...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			// All 40, unless the machine was too busy to wait for the last ones.
			if tt.Stats().PacketsToClients < 20 {
				t.Errorf("packets were lost; stats %+v\n%s", tt.Stats(), out)
			}
		})
	}
}

func TestConfigValidate(t *testing.T) {
	good := DefaultConfig()
	good.Secret = "0123456789abcdef"
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults with a secret: %v", err)
	}
	off := Config{}
	if err := off.Validate(); err != nil {
		t.Errorf("switched off: %v", err)
	}
	bad := Config{Enabled: true, Port: 70000, PublicIPs: []string{"example.org"}, RelayPortMin: 50000, RelayPortMax: 40000}
	err := bad.Validate()
	for _, key := range []string{"turn.port", "turn.public_ips", "turn.relay_port_min", "turn.secret", "turn.ttl", "turn.user_quota"} {
		if err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("no complaint about %s in %v", key, err)
		}
	}
	for _, ips := range [][]string{{"0.0.0.0"}, {"224.0.0.1"}, {"1.1.1.1", "8.8.8.8"}, {"fe80::1%eth0"}} {
		if _, err := parseIPs(ips); err == nil {
			t.Errorf("%v is accepted", ips)
		}
	}
}

func TestOwnIPs(t *testing.T) {
	parse := func(texts ...string) (all []netip.AddrPort) {
		for _, s := range texts {
			all = append(all, netip.MustParseAddrPort(s))
		}
		return all
	}
	for _, c := range []struct {
		media []netip.AddrPort
		want  string
	}{
		{parse("127.0.0.1:7882"), "[127.0.0.1]"},
		{parse("127.0.0.1:7882", "[::1]:7882"), "[127.0.0.1]"},
		{parse("127.0.0.1:7882", "192.168.1.5:7882", "10.0.0.1:7882"), "[192.168.1.5]"},
		{parse("[fe80::1]:7882", "192.168.1.5:7882", "[2a00::1]:7882"), "[192.168.1.5 2a00::1]"},
	} {
		if got := fmt.Sprint(ownIPs(c.media)); got != c.want {
			t.Errorf("with the SFU at %v: %s, want %s", c.media, got, c.want)
		}
	}
	if got := ownIPs(nil); len(got) != 1 || got[0].IsUnspecified() {
		t.Errorf("without an SFU: %v", got)
	}
}
