package turn

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	pion "github.com/pion/turn/v5"
)

// A relayFamily is where relayed addresses of one address family are opened.
type relayFamily struct {
	network string     // "udp4" or "udp6"
	public  netip.Addr // what peers see
	bind    netip.Addr // what the sockets are bound to
	local   netip.Addr // at which this machine reaches them
}

// newRelayFamily binds to public itself if it is an address of this machine.
// Otherwise there is a one-to-one NAT: it binds to all addresses, and our relays
// reach each other by loopback, because few NATs turn packets around.
func newRelayFamily(public netip.Addr) relayFamily {
	f := relayFamily{network: "udp4", public: public, bind: public, local: public}
	if public.Is6() {
		f.network = "udp6"
	}
	if c, err := net.ListenUDP(f.network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(public, 0))); err == nil {
		_ = c.Close()
		return f
	}
	f.bind, f.local = netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if public.Is6() {
		f.bind, f.local = netip.IPv6Unspecified(), netip.IPv6Loopback()
	}
	return f
}

// relayGenerator gives pion/turn its relayed addresses.
type relayGenerator struct{ s *Server }

// Validate has nothing to complain of.
func (g relayGenerator) Validate() error { return nil }

// AllocatePacketConn opens a relayed address.
func (g relayGenerator) AllocatePacketConn(conf pion.AllocateListenerConfig) (net.PacketConn, net.Addr, error) {
	for _, f := range g.s.relay {
		if f.network == conf.Network {
			r, err := g.s.openRelay(f, conf.UserID, conf.RequestedPort)
			if err != nil {
				return nil, nil, err
			}
			return r, net.UDPAddrFromAddrPort(r.public), nil
		}
	}
	return nil, nil, fmt.Errorf("no relayed addresses for %s", conf.Network)
}

var errNoTCP = errors.New("TCP relays (RFC 6062) are not offered")

// AllocateListener refuses: nothing needs TCP relays, and each would be a way
// to reach the services of others.
func (g relayGenerator) AllocateListener(pion.AllocateListenerConfig) (net.Listener, net.Addr, error) {
	return nil, nil, errNoTCP
}

// AllocateConn refuses, see AllocateListener.
func (g relayGenerator) AllocateConn(pion.AllocateConnConfig) (net.Conn, error) {
	return nil, errNoTCP
}

// openRelay opens a relayed address for the user of a username. Without one it
// is pion/turn looking for a free port.
func (s *Server) openRelay(f relayFamily, username string, port int) (*relayConn, error) {
	expiry, name, _ := splitUsername(username)
	r := &relayConn{s: s, user: name, expiry: expiry}
	s.mu.Lock()
	switch u := s.users[name]; {
	case s.closed:
		s.mu.Unlock()
		return nil, errClosed
	case name == "":
	case u != nil && len(u.relays) >= s.cfg.UserQuota:
		// Two requests at once got past the quota handler.
		s.mu.Unlock()
		s.stats.quotaRefused.Add(1)
		return nil, errors.New("over quota")
	default:
		s.user(name).relays[r] = true
	}
	s.open.Add(1) // under mu and not closed: Run waits later
	s.mu.Unlock()

	conn, err := s.bindRelay(f, port)
	if err != nil {
		s.stats.capacityRefused.Add(1)
		r.release()
		return nil, err
	}
	_ = conn.SetReadBuffer(1 << 20)
	_ = conn.SetWriteBuffer(1 << 20)
	bound := conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	r.conn = conn
	r.public = netip.AddrPortFrom(f.public, bound)
	r.local = netip.AddrPortFrom(f.local, bound)
	s.index.Lock()
	closed := s.relays == nil
	if !closed {
		s.relays[r.public] = r
		s.locals[r.local] = r
	}
	s.index.Unlock()
	if closed {
		_ = r.Close()
		return nil, errClosed
	}
	return r, nil
}

func (s *Server) bindRelay(f relayFamily, port int) (*net.UDPConn, error) {
	lo, hi := s.cfg.RelayPortMin, s.cfg.RelayPortMax
	listen := func(port int) (*net.UDPConn, error) {
		return net.ListenUDP(f.network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(f.bind, uint16(port))))
	}
	if port != 0 { // one of a pair, RFC 8656 section 7.2
		if port > 65535 || hi != 0 && (port < lo || port > hi) {
			return nil, fmt.Errorf("port %d is none for relays", port)
		}
		return listen(port)
	}
	if hi == 0 {
		return listen(0)
	}
	// Random, so that nobody can guess the next one.
	n := hi - lo + 1
	start := rand.IntN(n)
	for i := range n {
		if c, err := listen(lo + (start+i)%n); err == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("all relay ports %d-%d are taken", lo, hi)
}

// A relayConn is one relayed address. pion/turn reads and writes it as a
// net.PacketConn; every packet in either direction must pass the peer policy.
type relayConn struct {
	s      *Server
	conn   *net.UDPConn
	public netip.AddrPort
	local  netip.AddrPort
	user   string
	expiry int64 // Unix time at which its credentials end

	once sync.Once

	lastFrom netip.AddrPort // of the one reader: saves an allocation per packet
	lastAddr *net.UDPAddr
}

// maxReadErrors bounds the errors in a row after which a socket counts as broken.
const maxReadErrors = 100

// ReadFrom returns the next packet from a peer that may be heard.
func (r *relayConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for failed := 0; ; {
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			if failed++; errors.Is(err, net.ErrClosed) || failed > maxReadErrors {
				return 0, nil, err
			}
			continue // an ICMP error of an earlier packet
		}
		failed = 0
		from, ok := r.s.heard(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		if !ok {
			r.s.stats.packetsDenied.Add(1)
			continue
		}
		r.s.stats.packetsToClients.Add(1)
		r.s.stats.bytesToClients.Add(uint64(n))
		if from != r.lastFrom {
			r.lastFrom, r.lastAddr = from, net.UDPAddrFromAddrPort(from)
		}
		return n, r.lastAddr, nil
	}
}

// WriteTo sends a packet to a peer that may be reached. Other packets vanish,
// as RFC 8656 section 11.2 allows.
func (r *relayConn) WriteTo(b []byte, to net.Addr) (int, error) {
	udp, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, errors.New("not a UDP address")
	}
	peer, ok := r.s.reached(netip.AddrPortFrom(peerIP(udp.IP), uint16(udp.Port)))
	if !ok {
		r.s.stats.packetsDenied.Add(1)
		return len(b), nil
	}
	n, err := r.conn.WriteToUDPAddrPort(b, peer)
	if err == nil {
		r.s.stats.packetsToPeers.Add(1)
		r.s.stats.bytesToPeers.Add(uint64(n))
	}
	return n, err
}

// SetDeadline is the socket's.
func (r *relayConn) SetDeadline(t time.Time) error { return r.conn.SetDeadline(t) }

// SetReadDeadline is the socket's.
func (r *relayConn) SetReadDeadline(t time.Time) error { return r.conn.SetReadDeadline(t) }

// SetWriteDeadline is the socket's.
func (r *relayConn) SetWriteDeadline(t time.Time) error { return r.conn.SetWriteDeadline(t) }

// Close closes the relayed address. pion/turn notices and forgets it.
func (r *relayConn) Close() error {
	r.once.Do(func() {
		_ = r.conn.Close()
		r.s.index.Lock()
		if r.s.relays[r.public] == r {
			delete(r.s.relays, r.public)
		}
		if r.s.locals[r.local] == r {
			delete(r.s.locals, r.local)
		}
		r.s.index.Unlock()
		r.release()
	})
	return nil
}

// release gives back the place in the user's quota.
func (r *relayConn) release() {
	r.s.mu.Lock()
	if u := r.s.users[r.user]; u != nil {
		delete(u.relays, r)
	}
	r.s.mu.Unlock()
	r.s.open.Done()
}

// LocalAddr returns the address that peers see.
func (r *relayConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(r.public) }

// reached returns where to send a packet for peer, and whether that is allowed.
func (s *Server) reached(peer netip.AddrPort) (netip.AddrPort, bool) {
	if at, ok := s.peers.facts.Load().media[peer]; ok {
		return at, true
	}
	switch s.peers.kind(peer) {
	case peerGranted:
		return peer, true
	case peerRelay:
		s.index.RLock()
		defer s.index.RUnlock()
		if r := s.relays[peer]; r != nil {
			return r.local, true
		}
	}
	return peer, false
}

// heard returns the address that a packet's sender has for peers, and whether
// it may be heard. The opposite of reached.
func (s *Server) heard(from netip.AddrPort) (netip.AddrPort, bool) {
	if media, ok := s.peers.facts.Load().mediaAt[from]; ok {
		return media, true
	}
	if s.peers.kind(from) == peerGranted {
		return from, true
	}
	s.index.RLock()
	defer s.index.RUnlock()
	if r := s.locals[from]; r != nil {
		return r.public, true
	}
	return from, false
}
