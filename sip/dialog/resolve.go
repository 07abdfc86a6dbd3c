package dialog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sort"
	"strings"
	"time"
)

// A Hop is one address to send to.
type Hop struct {
	Network string // udp, tcp, tls, ws, wss
	Addr    netip.AddrPort
	Name    string // host name for TLS
}

func (h Hop) String() string { return h.Network + "://" + h.Addr.String() }

func defaultPort(network string) int {
	switch network {
	case "tls":
		return 5061
	case "ws":
		return 80
	case "wss":
		return 443
	}
	return 5060
}

// Resolve finds the addresses of a URI in the order they are tried (RFC 3263
// §4): a numeric address or a port as it is, else SRV records, else A and AAAA.
// NAPTR is not asked; the transport is that of the URI, or of the first SRV
// service that exists. Hops that failed in the last 30 seconds come last.
func (e *Endpoint) Resolve(ctx context.Context, uri string) ([]Hop, error) {
	u, ok := parseURI(uri)
	if !ok {
		return nil, fmt.Errorf("%q is no SIP URI", uri)
	}
	network := ""
	for _, p := range u.UriParams {
		if strings.EqualFold(p.K, "transport") {
			network = strings.ToLower(p.V)
		}
	}
	if u.Scheme == "sips" {
		switch network {
		case "ws", "wss":
			network = "wss"
		default:
			network = "tls"
		}
	}
	switch network {
	case "", "udp", "tcp", "tls", "ws", "wss":
	default:
		return nil, fmt.Errorf("%q: unknown transport", uri)
	}
	host := strings.Trim(u.Host, "[]")
	plainNetwork := network
	if plainNetwork == "" {
		plainNetwork = "udp"
	}
	port := u.Port
	if a, err := netip.ParseAddr(host); err == nil {
		if port == 0 {
			port = defaultPort(plainNetwork)
		}
		return []Hop{{plainNetwork, netip.AddrPortFrom(a.Unmap(), uint16(port)), host}}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var hops []Hop
	if port == 0 && network != "ws" && network != "wss" {
		hops = e.services(ctx, host, network)
	}
	if len(hops) == 0 {
		if port == 0 {
			port = defaultPort(plainNetwork)
		}
		addrs, err := e.lookup(ctx, host)
		if err != nil {
			return nil, fmt.Errorf("look up %s: %w", host, err)
		}
		for _, a := range addrs {
			hops = append(hops, Hop{plainNetwork, netip.AddrPortFrom(a, uint16(port)), host})
		}
	}
	return e.rank(hops), nil
}

// services asks for SRV records (RFC 3263 §4.1, §4.2).
func (e *Endpoint) services(ctx context.Context, host, network string) (hops []Hop) {
	for _, s := range []struct{ network, service, proto string }{
		{"udp", "sip", "udp"}, {"tcp", "sip", "tcp"}, {"tls", "sips", "tcp"},
	} {
		if network != "" && network != s.network {
			continue
		}
		_, records, err := e.cfg.Resolver.LookupSRV(ctx, s.service, s.proto, host)
		if err != nil {
			continue
		}
		for _, r := range records {
			if r.Target == "." || r.Port == 0 {
				continue
			}
			addrs, err := e.lookup(ctx, strings.TrimSuffix(r.Target, "."))
			if err != nil {
				continue
			}
			for _, a := range addrs {
				// RFC 5922 §4: the certificate is for the domain asked for.
				hops = append(hops, Hop{s.network, netip.AddrPortFrom(a, r.Port), host})
			}
		}
		if len(hops) > 0 {
			return hops
		}
	}
	return nil
}

// lookup returns IPv4 before IPv6 addresses, of those families that we can send
// from.
func (e *Endpoint) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	addrs, err := e.cfg.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	sort.SliceStable(addrs, func(i, j int) bool { return addrs[i].Is4() && !addrs[j].Is4() })
	if len(addrs) == 0 {
		return nil, errors.New("no address")
	}
	return addrs, nil
}

const penaltyTime = 30 * time.Second

// rank puts hops that failed lately last.
func (e *Endpoint) rank(hops []Hop) []Hop {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	failed := func(h Hop) bool { return now.Before(e.penalty[h]) }
	sort.SliceStable(hops, func(i, j int) bool { return !failed(hops[i]) && failed(hops[j]) })
	return hops
}

// punish remembers a hop that could not be reached.
func (e *Endpoint) punish(h Hop) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := time.Now()
	for k, until := range e.penalty {
		if now.After(until) {
			delete(e.penalty, k)
		}
	}
	if len(e.penalty) < 10000 {
		e.penalty[h] = now.Add(penaltyTime)
	}
}

// inside says whether an address is of a network that no router passes on.
func inside(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || sharedNet.Contains(a)
}

var sharedNet = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

// ownAddr is what localAddr found, for as long as routes may be expected to stay.
type ownAddr struct {
	addr  netip.Addr
	until time.Time
}

const ownAddrLife = time.Minute

// localAddr is our own address as remote can reach it: the socket's, or of the
// interface that leads there.
func (e *Endpoint) localAddr(bound, remote netip.Addr) netip.Addr {
	if bound.IsValid() && !bound.IsUnspecified() {
		return bound
	}
	e.mu.Lock()
	known := e.locals[remote]
	e.mu.Unlock()
	if time.Now().Before(known.until) {
		return known.addr
	}
	a := netip.IPv6Unspecified()
	if remote.Is4() {
		a = netip.IPv4Unspecified()
	}
	// Connecting a datagram socket sends nothing; it asks the routing table.
	if c, err := net.Dial("udp", netip.AddrPortFrom(remote, 5060).String()); err == nil {
		a = addrPort(c.LocalAddr()).Addr()
		_ = c.Close()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.locals) > 1000 {
		clear(e.locals)
	}
	e.locals[remote] = ownAddr{a, time.Now().Add(ownAddrLife)}
	return a
}

// shown is the address for Via and Contact towards the peer of f.
func (e *Endpoint) shown(f *flow, external netip.AddrPort) netip.AddrPort {
	if !external.Addr().IsValid() {
		external = netip.AddrPortFrom(e.cfg.ExternalIP, 0)
	}
	port := f.local.Port()
	if f.conn != nil {
		// The peer may come back by a connection of its own: say where we listen.
		port = 0
		for _, l := range e.listeners {
			if l.network == f.network {
				port = l.local.Port()
			}
		}
		if port == 0 {
			port = f.local.Port()
		}
	}
	if a := external.Addr(); a.IsValid() && !inside(f.remote.Addr()) && a.Is4() == f.remote.Addr().Is4() {
		if external.Port() != 0 {
			return external
		}
		return netip.AddrPortFrom(a, port)
	}
	return netip.AddrPortFrom(e.localAddr(f.local.Addr(), f.remote.Addr()), port)
}

var errNoSocket = errors.New("no socket of that kind")

// flowTo finds or makes the way to a hop.
func (e *Endpoint) flowTo(ctx context.Context, h Hop) (*flow, error) {
	if h.Network != "udp" {
		return e.openConn(ctx, h)
	}
	if f := e.udpTo(h.Addr); f != nil {
		return f, nil
	}
	return nil, errNoSocket
}

// udpTo picks the socket for a peer: one that is bound to everything, or on the
// same side of the loopback, before any other of its family.
func (e *Endpoint) udpTo(to netip.AddrPort) (f *flow) {
	for _, s := range e.udp {
		b := s.local.Addr()
		if b.Is4() != to.Addr().Is4() && !(b.Is6() && b.IsUnspecified()) {
			continue
		}
		g := &flow{network: "udp", local: s.local, remote: to, udp: s}
		if b.IsUnspecified() || b.IsLoopback() == to.Addr().IsLoopback() {
			return g
		}
		if f == nil {
			f = g
		}
	}
	return f
}
