package sfu

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/pion/ice/v4"
	"github.com/pion/webrtc/v4"
)

const (
	socketBuffer = 4 << 20   // kernel buffers of a media socket, bytes
	tcpWriteBuf  = 512 << 10 // what may wait for one slow ICE-TCP client, bytes
	tcpReadQueue = 64        // packets of one ICE-TCP client waiting to be read
)

// A network is the sockets that all members share: one UDP port and one TCP
// port, on each local address that is served.
type network struct {
	udpMux  ice.UDPMux
	tcpMux  ice.TCPMux // nil when ICE-TCP is off
	udpPort int
	tcpPort int
	local   []netip.Addr // the addresses candidates are gathered from
	nodeIPs []netip.Addr
	loop    bool
	sends   atomic.Uint64 // packets sent on the UDP port
}

// listen binds the sockets that cfg asks for.
func listen(cfg Config, log *slog.Logger) (*network, error) {
	n := &network{loop: cfg.Loopback}
	for _, a := range cfg.NodeIPs {
		n.nodeIPs = append(n.nodeIPs, netip.MustParseAddr(a).Unmap()) // checked by Validate
	}
	var err error
	if n.local, err = localAddresses(cfg); err != nil {
		return nil, err
	}
	if len(n.local) == 0 {
		log.Warn("no network address found: media is served on 127.0.0.1 only")
		n.local = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	n.loop = n.loop || slices.ContainsFunc(n.local, netip.Addr.IsLoopback)

	conns, err := bindUDP(n.socketAddresses(cfg), cfg.UDPPort)
	if err != nil {
		return nil, fmt.Errorf("sfu.udp_port: %w", err)
	}
	muxes := make([]ice.UDPMux, 0, len(conns))
	for _, c := range conns {
		_ = c.SetReadBuffer(socketBuffer) // best effort: the kernel has its own limit
		_ = c.SetWriteBuffer(socketBuffer)
		muxes = append(muxes, ice.NewUDPMuxDefault(ice.UDPMuxParams{
			UDPConn: newMediaSocket(c, cfg.AudioHold, &n.sends), Logger: pionLogger{log, "ice"},
		}))
	}
	n.udpPort = conns[0].LocalAddr().(*net.UDPAddr).Port
	n.udpMux = muxes[0]
	if len(muxes) > 1 {
		n.udpMux = ice.NewMultiUDPMuxDefault(muxes...)
	}
	if cfg.TCPPort >= 0 {
		if err := n.listenTCP(cfg, log); err != nil {
			return nil, errors.Join(fmt.Errorf("sfu.tcp_port: %w", err), n.udpMux.Close())
		}
	}
	return n, nil
}

// localAddresses returns the addresses to gather candidates from.
func localAddresses(cfg Config) ([]netip.Addr, error) {
	var out []netip.Addr
	if len(cfg.BindAddresses) > 0 {
		for _, a := range cfg.BindAddresses {
			ip := netip.MustParseAddr(a).Unmap()
			if ip.IsUnspecified() {
				cfg.BindAddresses = nil
				return localAddresses(cfg)
			}
			out = append(out, ip)
		}
		if cfg.Loopback && !slices.ContainsFunc(out, netip.Addr.IsLoopback) {
			out = append(out, netip.AddrFrom4([4]byte{127, 0, 0, 1}))
		}
		return out, nil
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list network addresses: %w", err)
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		ip := p.Addr().Unmap()
		switch {
		case ip.IsLoopback():
			if !cfg.Loopback {
				continue
			}
		case !ip.IsGlobalUnicast(): // link-local, multicast
			continue
		}
		if !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out, nil
}

// socketAddresses returns what to bind. Behind 1:1 NAT all IPv4 addresses share
// one candidate, so one socket must hear all of them.
func (n *network) socketAddresses(cfg Config) []netip.Addr {
	if len(cfg.BindAddresses) > 0 || !slices.ContainsFunc(n.nodeIPs, netip.Addr.Is4) {
		return n.local
	}
	out := []netip.Addr{netip.IPv4Unspecified()}
	for _, a := range n.local {
		if a.Is6() {
			out = append(out, a)
		}
	}
	return out
}

// bindUDP opens one socket for each address, all on the same port.
func bindUDP(addrs []netip.Addr, port int) ([]*net.UDPConn, error) {
	const attempts = 20 // for port 0: the port free on one address may be taken on another
	var err error
	for range attempts {
		var conns []*net.UDPConn
		want := port
		for _, a := range addrs {
			network := "udp4"
			if a.Is6() {
				network = "udp6"
			}
			var c *net.UDPConn
			c, err = net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, uint16(want))))
			if err != nil {
				break
			}
			want = c.LocalAddr().(*net.UDPAddr).Port
			conns = append(conns, c)
		}
		if err == nil {
			return conns, nil
		}
		for _, c := range conns {
			_ = c.Close()
		}
		if port != 0 {
			break
		}
	}
	return nil, err
}

func (n *network) listenTCP(cfg Config, log *slog.Logger) error {
	binds := n.local
	if len(cfg.BindAddresses) == 0 {
		binds = []netip.Addr{netip.IPv6Unspecified()}
	}
	var muxes []ice.TCPMux
	port := cfg.TCPPort
	for _, a := range binds {
		addr := netip.AddrPortFrom(a, uint16(port)).String()
		if len(cfg.BindAddresses) == 0 {
			addr = fmt.Sprintf(":%d", port)
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			for _, m := range muxes {
				_ = m.Close()
			}
			return err
		}
		port = l.Addr().(*net.TCPAddr).Port
		muxes = append(muxes, ice.NewTCPMuxDefault(ice.TCPMuxParams{
			Listener: l, Logger: pionLogger{log, "ice-tcp"},
			ReadBufferSize: tcpReadQueue, WriteBufferSize: tcpWriteBuf,
		}))
	}
	n.tcpPort = port
	n.tcpMux = muxes[0]
	if len(muxes) > 1 {
		n.tcpMux = ice.NewMultiTCPMuxDefault(muxes...)
	}
	return nil
}

// apply makes a connection use these sockets.
func (n *network) apply(s *webrtc.SettingEngine) error {
	s.SetICEUDPMux(n.udpMux)
	types := []webrtc.NetworkType{webrtc.NetworkTypeUDP4, webrtc.NetworkTypeUDP6}
	if n.tcpMux != nil {
		s.SetICETCPMux(n.tcpMux)
		types = append(types, webrtc.NetworkTypeTCP4, webrtc.NetworkTypeTCP6)
	}
	s.SetNetworkTypes(types)
	s.DisableActiveTCP(true)
	s.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	s.SetIncludeLoopbackCandidate(n.loop)
	s.SetIPFilter(func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && slices.Contains(n.local, a.Unmap())
	})
	if len(n.nodeIPs) == 0 {
		return nil
	}
	rules := []webrtc.ICEAddressRewriteRule{}
	for _, a := range n.local {
		if a.IsLoopback() && !slices.ContainsFunc(n.nodeIPs, netip.Addr.IsLoopback) {
			rules = append(rules, webrtc.ICEAddressRewriteRule{
				External: []string{a.String()}, Local: a.String(),
				AsCandidateType: webrtc.ICECandidateTypeHost, Mode: webrtc.ICEAddressRewriteReplace,
			})
		}
	}
	for _, is4 := range []bool{true, false} {
		var ips []string
		for _, a := range n.nodeIPs {
			if a.Is4() == is4 {
				ips = append(ips, a.String())
			}
		}
		if len(ips) > 0 {
			rules = append(rules, webrtc.ICEAddressRewriteRule{
				External: ips, AsCandidateType: webrtc.ICECandidateTypeHost, Mode: webrtc.ICEAddressRewriteReplace,
			})
		}
	}
	return s.SetICEAddressRewriteRules(rules...)
}

// mayCheck reports whether full ICE may send connectivity checks to a client's
// address. Private networks are reached only from an address in one; nothing
// special-purpose is (RFC 6890), but loopback where that is configured.
func (n *network) mayCheck(ip net.IP) bool {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return false
	}
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return n.loop
	case !a.IsGlobalUnicast(), inPrefixes(a, specialPurpose):
		return false
	case a.IsPrivate():
		return slices.ContainsFunc(n.local, netip.Addr.IsPrivate)
	}
	return true
}

// specialPurpose lists what netip does not already tell apart.
var specialPurpose = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("::/96"),
	netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/48"), netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"), netip.MustParsePrefix("fec0::/10"),
}

func inPrefixes(a netip.Addr, list []netip.Prefix) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// advertised returns the UDP address of every host candidate, and the local
// address behind each node IP, which a relay on this machine may have to use.
func (n *network) advertised() []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range slices.Concat(n.nodeIPs, n.local) {
		p := netip.AddrPortFrom(a, uint16(n.udpPort))
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func (n *network) close() error {
	err := n.udpMux.Close()
	if n.tcpMux != nil {
		err = errors.Join(err, n.tcpMux.Close())
	}
	return err
}
