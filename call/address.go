package call

import "net/netip"

// notPublic lists the address blocks that are not for unicast between strangers
// on the Internet: the IANA special-purpose registries for IPv4 and IPv6 (RFC
// 6890 and its successors) where they are not globally reachable, multicast,
// and the blocks that wrap an IPv4 address and so can name a private one.
var notPublic = prefixes(
	"0.0.0.0/8",       // "this network", RFC 791
	"10.0.0.0/8",      // private, RFC 1918
	"100.64.0.0/10",   // carrier-grade NAT, RFC 6598; some clouds keep their metadata here
	"127.0.0.0/8",     // loopback
	"169.254.0.0/16",  // link-local, RFC 3927; cloud metadata
	"172.16.0.0/12",   // private
	"192.0.0.0/24",    // protocol assignments, RFC 6890; some clouds keep their metadata here
	"192.0.2.0/24",    // documentation, RFC 5737
	"192.31.196.0/24", // AS112, RFC 7535
	"192.52.193.0/24", // AMT, RFC 7450
	"192.88.99.0/24",  // 6to4 relay anycast, deprecated by RFC 7526
	"192.168.0.0/16",  // private
	"192.175.48.0/24", // AS112, RFC 7534
	"198.18.0.0/15",   // benchmarking, RFC 2544
	"198.51.100.0/24", // documentation
	"203.0.113.0/24",  // documentation
	"224.0.0.0/4",     // multicast
	"240.0.0.0/4",     // reserved, and the limited broadcast

	"::/3",              // everything below 2000::/3: unspecified, loopback, IPv4-compatible, IPv4-mapped, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), discard (100::/64)
	"2001::/23",         // protocol assignments, RFC 2928: Teredo, benchmarking, ORCHID, drone IDs
	"2001:db8::/32",     // documentation, RFC 3849
	"2002::/16",         // 6to4, RFC 3056
	"2620:4f:8000::/48", // AS112
	"3ffe::/16",         // the old 6bone, RFC 3701
	"3fff::/20",         // documentation, RFC 9637
	"4000::/2",          // not allocated
	"8000::/1",          // not allocated, unique local fc00::/7, link-local fe80::/10, site-local fec0::/10, multicast ff00::/8; 5f00::/16 (SRv6 SIDs) is in 4000::/2
)

func prefixes(texts ...string) []netip.Prefix {
	ps := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		ps[i] = netip.MustParsePrefix(t)
	}
	return ps
}

// PublicUnicast reports whether a is an address of one host on the public
// Internet, in its one plain spelling. Every special-purpose address is
// refused, and so is every IPv6 address that wraps an IPv4 one (IPv4-mapped,
// IPv4-compatible, NAT64, 6to4, Teredo): what it leads to depends on the
// network. Addresses with a zone are refused. Callers that mean IPv4 by an
// IPv4-mapped address unmap it first.
func PublicUnicast(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
