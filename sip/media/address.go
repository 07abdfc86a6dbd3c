package media

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// kind sorts addresses by who can reach them.
type kind uint8

const (
	public kind = iota
	private
	loopback
	linkLocal
	unusable // unspecified, multicast, broadcast
)

var (
	shared    = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598: behind a provider's NAT
	reserved  = netip.MustParsePrefix("240.0.0.0/4")
	thisHost  = netip.MustParsePrefix("0.0.0.0/8")
	translate = netip.MustParsePrefix("64:ff9b::/96")
)

func kindOf(ip netip.Addr) kind {
	ip = ip.Unmap()
	if translate.Contains(ip) { // NAT64: it means the IPv4 address within
		b := ip.As16()
		ip = netip.AddrFrom4([4]byte(b[12:]))
	}
	switch {
	case !ip.IsValid(), ip.IsUnspecified(), ip.IsMulticast(), reserved.Contains(ip), thisHost.Contains(ip):
		return unusable
	case ip.IsLoopback():
		return loopback
	case ip.IsLinkLocalUnicast():
		return linkLocal
	case ip.IsPrivate(), shared.Contains(ip):
		return private
	}
	return public
}

// near says whether an address of this kind can be meant for us: it is public, or the
// other side's signalling comes from such a network too.
func near(k kind, sources []netip.Prefix) bool {
	if k == unusable {
		return false
	}
	return k == public || slices.ContainsFunc(sources, func(p netip.Prefix) bool { return kindOf(p.Addr()) == k })
}

// target decides about the address in a description. It returns the zero address if
// nothing may be sent there until packets have come from an allowed network, and an
// error if the address is an attempt to make us send to a third party or to ourselves.
func target(a netip.AddrPort, sources []netip.Prefix, own func(netip.AddrPort) bool) (netip.AddrPort, error) {
	ip := a.Addr()
	switch k := kindOf(ip); {
	case !ip.IsValid() || ip.IsUnspecified():
		return netip.AddrPort{}, nil // a host name; or hold
	case k == unusable:
		return netip.AddrPort{}, fmt.Errorf("media to a group or to nobody: %w", ErrNotAcceptable)
	case own(a):
		return netip.AddrPort{}, fmt.Errorf("media to our own ports: %w", ErrNotAcceptable)
	case near(k, sources):
		return a, nil
	case k == loopback || k == linkLocal:
		return netip.AddrPort{}, fmt.Errorf("media to an address that is not on this network: %w", ErrNotAcceptable)
	}
	return netip.AddrPort{}, nil // the private address of a telephone behind NAT
}

// towards returns the address from which this machine reaches another. Nothing is sent.
func towards(ip netip.Addr) (netip.Addr, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 9)))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("own address towards the other side: %w", err)
	}
	defer c.Close() //nolint:errcheck // nothing was written
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

// ownAddresses are those of this machine's interfaces.
func ownAddresses() map[netip.Addr]bool {
	own := map[netip.Addr]bool{}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return own
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr().Unmap()] = true
		}
	}
	return own
}
