package turn

import (
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/trunkhall/trunkhall/call"
)

// peerPolicy says which peers relays may exchange packets with.
type peerPolicy struct {
	public bool // public unicast addresses too
	facts  atomic.Pointer[peerFacts]
}

// peerFacts are what the policy goes by at the moment. Never changed once made.
type peerFacts struct {
	media    map[netip.AddrPort]bool // exactly these of our SFU
	mediaIPs map[netip.Addr]bool
	own      map[netip.Addr]bool // every address of this machine
	relayIPs map[netip.Addr]bool // those of our relays
}

// refresh takes in where the SFU and this machine are now.
func (p *peerPolicy) refresh(media []netip.AddrPort, relayIPs []netip.Addr) {
	f := &peerFacts{
		media: map[netip.AddrPort]bool{}, mediaIPs: map[netip.Addr]bool{},
		own: map[netip.Addr]bool{}, relayIPs: map[netip.Addr]bool{},
	}
	for _, m := range media {
		a := m.Addr().Unmap()
		f.media[netip.AddrPortFrom(a, m.Port())] = true
		f.mediaIPs[a] = true
		f.own[a] = true
	}
	for _, a := range relayIPs {
		f.relayIPs[a] = true
		f.own[a] = true
	}
	addrs, err := net.InterfaceAddrs()
	if old := p.facts.Load(); err != nil && old != nil {
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
	p.facts.Store(f)
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
	peerGranted          // our SFU, or public
	peerRelay            // at our relays' address: only if it is one of them
)

// kind judges an address and port that packets go to or come from.
func (p *peerPolicy) kind(peer netip.AddrPort) peerKind {
	f := p.facts.Load()
	switch {
	case f.media[peer]:
		return peerGranted
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
