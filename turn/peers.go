package turn

import (
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"github.com/trunkhall/trunkhall/call"
)

// peerPolicy says which peers relays may exchange packets with.
type peerPolicy struct {
	public bool // public unicast addresses too
	facts  atomic.Pointer[peerFacts]
}

// peerFacts are what the policy goes by at the moment. Never changed once made.
type peerFacts struct {
	media    map[netip.AddrPort]netip.AddrPort // exactly these of our SFU, and where packets for them go
	mediaAt  map[netip.AddrPort]netip.AddrPort // the other way round
	mediaIPs map[netip.Addr]bool
	own      map[netip.Addr]bool // every address of this machine
	relayIPs map[netip.Addr]bool // those of our relays
}

// refresh takes in where the SFU and this machine are now.
func (p *peerPolicy) refresh(media []netip.AddrPort, relayIPs []netip.Addr) {
	f := &peerFacts{
		media: map[netip.AddrPort]netip.AddrPort{}, mediaAt: map[netip.AddrPort]netip.AddrPort{},
		mediaIPs: map[netip.Addr]bool{}, own: map[netip.Addr]bool{}, relayIPs: map[netip.Addr]bool{},
	}
	old := p.facts.Load()
	addrs, err := net.InterfaceAddrs()
	if err != nil && old != nil {
		for a := range old.own {
			f.own[a] = true // better too many than too few
		}
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				f.own[ip.Unmap()] = true
			}
		}
	}
	for _, m := range media {
		m = netip.AddrPortFrom(m.Addr().Unmap(), m.Port())
		at, known := netip.AddrPort{}, false
		if old != nil {
			at, known = old.media[m]
		}
		if !known {
			at = mediaSocket(m, f.own)
		}
		f.media[m], f.mediaAt[at] = at, m
		f.mediaIPs[m.Addr()] = true
		f.own[m.Addr()] = true
	}
	for _, a := range relayIPs {
		f.relayIPs[a] = true
		f.own[a] = true
	}
	p.facts.Store(f)
}

// mediaSocket returns where this machine reaches the SFU that its clients reach
// at m. Behind a one-to-one NAT, m is not ours and the NAT may not turn packets
// around; then the SFU's socket is the one that has m's port here.
func mediaSocket(m netip.AddrPort, own map[netip.Addr]bool) netip.AddrPort {
	if own[m.Addr()] || m.Addr().IsLoopback() {
		return m
	}
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if m.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	candidates := []netip.Addr{loopback} // where a socket for all addresses listens too
	for a := range own {
		if a.Is4() == m.Addr().Is4() && !a.IsLoopback() {
			candidates = append(candidates, a)
		}
	}
	for _, a := range candidates {
		at := netip.AddrPortFrom(a, m.Port())
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err == nil {
			_ = c.Close() // nobody is there
		} else if errors.Is(err, syscall.EADDRINUSE) {
			return at
		}
	}
	return m
}

// mayPermit reports whether a permission for ip may be given. Permissions are
// by address alone (RFC 8656 section 9), so for our own addresses kind has the
// last word about each packet.
func (p *peerPolicy) mayPermit(ip netip.Addr) bool {
	f := p.facts.Load()
	if f.mediaIPs[ip] || f.relayIPs[ip] {
		return true
	}
	return p.public && !f.own[ip] && call.PublicUnicast(ip)
}

// A peerKind is what the policy says of a peer's address and port.
type peerKind int

const (
	peerDenied  peerKind = iota
	peerGranted          // public
	peerRelay            // at our relays' address: only if it is one of them
)

// kind judges an address and port, other than our SFU's, that packets go to or
// come from.
func (p *peerPolicy) kind(peer netip.AddrPort) peerKind {
	f := p.facts.Load()
	switch {
	case f.relayIPs[peer.Addr()]:
		return peerRelay
	case p.public && peer.Port() != 0 && !f.own[peer.Addr()] && call.PublicUnicast(peer.Addr()):
		return peerGranted
	}
	return peerDenied
}

// peerIP converts the address of a STUN attribute. One that spells an IPv4
// address as IPv6 stays what it is, and no policy allows it.
func peerIP(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}

// permit is pion/turn's PermissionHandler.
func (s *Server) permit(_ net.Addr, ip net.IP) bool {
	if s.peers.mayPermit(peerIP(ip)) {
		return true
	}
	s.stats.permissionsDenied.Add(1)
	return false
}
