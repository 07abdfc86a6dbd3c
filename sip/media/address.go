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

func within(ip netip.Addr, sources []netip.Prefix) bool {
	return slices.ContainsFunc(sources, func(p netip.Prefix) bool { return p.Contains(ip) })
}

// target decides about the address in a description. to is where media may be sent at
// once; it is zero if nothing may be sent before the other side has. expected is the
// address that may then send, besides the sources. An error is an attempt to make us
// send to nobody, to ourselves or to where the other side cannot be.
//
// A public address is believed, as everywhere in SIP. Addresses of networks that are
// not everybody's could be those of our neighbours: if they are not among the sources,
// their owner must send first.
func target(a netip.AddrPort, sources []netip.Prefix, own func(netip.AddrPort) bool) (to netip.AddrPort, expected netip.Addr, err error) {
	ip, k := a.Addr(), kindOf(a.Addr())
	near, ours := false, false
	for _, p := range sources {
		if kindOf(p.Masked().Addr()) == k {
			near, ours = true, ours || p.Contains(ip)
		}
	}
	switch {
	case !ip.IsValid() || ip.IsUnspecified():
		return to, expected, nil // a host name; or hold
	case k == unusable:
		return to, expected, fmt.Errorf("media to a group or to nobody: %w", ErrNotAcceptable)
	case own(a):
		return to, expected, fmt.Errorf("media to our own ports: %w", ErrNotAcceptable)
	case k == public || ours:
		return a, ip, nil
	case near:
		return to, ip, nil
	case k == private: // of a telephone behind NAT
		return to, expected, nil
	}
	return to, expected, fmt.Errorf("media to an address that is not on this network: %w", ErrNotAcceptable)
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
