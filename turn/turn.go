// Package turn is Trunkhall's TURN relay (RFC 8656), for clients that cannot
// reach the SFU directly and for one-to-one calls. It is deliberately narrow:
// it relays UDP to our own SFU, between its own relayed addresses and, if the
// operator likes, to public unicast addresses; to nothing else, whatever the
// spelling. Credentials are the time-limited ones of the TURN REST API
// (draft-uberti-behave-turn-rest-00), which Matrix and LiveKit clients use.
package turn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pion "github.com/pion/turn/v5"

	"github.com/trunkhall/trunkhall/call"
)

const (
	realm = "trunkhall"

	// A client refreshes before these end. The second and third are fixed by RFC
	// 8656 (sections 9 and 12); the first is told to the client, and shorter than
	// usual, so that the relays of one that died soon leave its user's quota.
	allocationLifetime = 3 * time.Minute
	permissionLifetime = 5 * time.Minute
	channelLifetime    = 10 * time.Minute

	housekeeping = 5 * time.Second // how often expired credentials are looked for
)

// Deps are the parts that the relay works with.
type Deps struct {
	// MediaAddrs returns the addresses at which our SFU takes media: those that
	// its clients are told. Relays reach exactly these, wherever they are.
	MediaAddrs func() []netip.AddrPort
	Log        *slog.Logger
}

// A Server is one TURN relay. New opens its sockets, Run serves until its
// context is done. The other methods may be called at any time.
type Server struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	ips   []netip.Addr // told to clients; the first is preferred
	port  uint16
	relay []relayFamily
	peers peerPolicy
	times streamTimes
	stats counters
	asks  *askLimits

	packets   []*clientSocket
	listeners []*clientListener
	open      sync.WaitGroup // relays and client connections

	mu      sync.Mutex // guards the following fields
	closed  bool
	users   map[string]*user
	clients map[string]string // username of each client that has a relay, by clientKey

	index  sync.RWMutex                  // guards the following fields; looked at for packets between relays
	relays map[netip.AddrPort]*relayConn // by the address that peers see; nil when closed
	locals map[netip.AddrPort]*relayConn // by the address at which this machine reaches them
}

// New checks cfg, opens the sockets for clients and returns the server. Nothing
// is answered before Run.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.MediaAddrs == nil {
		deps.MediaAddrs = func() []netip.AddrPort { return nil }
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	ips, err := parseIPs(cfg.PublicIPs)
	if err != nil {
		return nil, fmt.Errorf("turn.public_ips: %w", err)
	}
	if len(ips) == 0 {
		ips = ownIPs(deps.MediaAddrs())
	}
	s := &Server{
		cfg: cfg, deps: deps, log: deps.Log, ips: ips, times: defaultStreamTimes(),
		users: map[string]*user{}, relays: map[netip.AddrPort]*relayConn{}, locals: map[netip.AddrPort]*relayConn{},
		clients: map[string]string{}, asks: newAskLimits(),
	}
	s.peers.public = cfg.PublicPeers
	s.peers.refresh(deps.MediaAddrs(), ips)
	for _, ip := range ips {
		s.relay = append(s.relay, newRelayFamily(ip))
	}
	if err := s.listen(); err != nil {
		return nil, err
	}
	return s, nil
}

// listen opens the sockets for clients, all on one port. With port 0, the port
// that one socket got may be taken for another: it tries again.
func (s *Server) listen() error {
	var err error
	for range 20 {
		if err = s.listenOnce(); err == nil {
			return nil
		}
		s.closeSockets()
		s.packets, s.listeners = nil, nil
		if s.cfg.Port != 0 {
			break
		}
	}
	return fmt.Errorf("turn.port: %w", err)
}

// listenOnce opens one TCP socket for each address family and one UDP socket for
// each address of this machine: a UDP socket for all addresses would answer
// from another one than a client has asked.
func (s *Server) listenOnce() error {
	port := s.cfg.Port
	for _, network := range []string{"tcp4", "tcp6"} {
		l, err := net.Listen(network, net.JoinHostPort("", strconv.Itoa(port)))
		if err != nil {
			if network == "tcp6" && !errors.Is(err, syscall.EADDRINUSE) {
				continue // a machine without IPv6
			}
			return err
		}
		port = l.Addr().(*net.TCPAddr).Port
		s.listeners = append(s.listeners, newClientListener(s, l))
	}
	for _, a := range s.localAddresses() {
		network := "udp4"
		if a.Is6() {
			network = "udp6"
		}
		c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, uint16(port))))
		if err != nil {
			if errors.Is(err, syscall.EADDRINUSE) {
				return err
			}
			continue // not ours (any more, or not yet)
		}
		_ = c.SetReadBuffer(4 << 20) // as much as the system allows
		_ = c.SetWriteBuffer(4 << 20)
		s.packets = append(s.packets, newClientSocket(s, c))
	}
	if len(s.packets) == 0 {
		return errors.New("this machine has no address to listen on")
	}
	s.port = uint16(port)
	return nil
}

// localAddresses returns the addresses to listen on: those of the interfaces,
// and those of the configuration, which may be local without being listed.
func (s *Server) localAddresses() []netip.Addr {
	all := slices.Clone(s.ips)
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		s.log.Warn("list the addresses of this machine", "err", err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.IsLinkLocalUnicast() && !slices.Contains(all, ip.Unmap()) {
			all = append(all, ip.Unmap())
		}
	}
	return all
}

// Run serves until ctx is done, then drops every relay and returns when all
// goroutines have ended.
func (s *Server) Run(ctx context.Context) error {
	config := pion.ServerConfig{
		Realm:               realm,
		AuthHandler:         s.authenticate,
		QuotaHandler:        s.withinQuota,
		EventHandler:        s.events(),
		LoggerFactory:       pionLogger{s.log},
		AllocationLifetime:  allocationLifetime,
		PermissionTimeout:   permissionLifetime,
		ChannelBindTimeout:  channelLifetime,
		StrictAddressFamily: !s.hasFamily(familyIPv6),
		InboundMTU:          maxFrame + 1,
	}
	generator := relayGenerator{s}
	for _, c := range s.packets {
		config.PacketConnConfigs = append(config.PacketConnConfigs, pion.PacketConnConfig{
			PacketConn: c, RelayAddressGenerator: generator, PermissionHandler: s.permit,
		})
	}
	for _, l := range s.listeners {
		config.ListenerConfigs = append(config.ListenerConfigs, pion.ListenerConfig{
			Listener: l, RelayAddressGenerator: generator, PermissionHandler: s.permit,
		})
	}
	server, err := pion.NewServer(config)
	if err != nil {
		s.closeSockets()
		return fmt.Errorf("start TURN: %w", err)
	}
	s.log.Info("TURN is ready", "addr", s.Addr(), "relay_ports", fmt.Sprintf("%d-%d", s.cfg.RelayPortMin, s.cfg.RelayPortMax), "public_peers", s.cfg.PublicPeers)

	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case now := <-tick.C:
			s.peers.refresh(s.deps.MediaAddrs(), s.ips)
			s.expire(now)
		}
	}
	_ = server.Close() // its sockets are ours
	s.closeSockets()
	s.closeRelays()
	s.open.Wait()
	return nil
}

// Addr returns the address that clients are told to connect to.
func (s *Server) Addr() netip.AddrPort { return netip.AddrPortFrom(s.ips[0], s.port) }

func (s *Server) closeSockets() {
	for _, c := range s.packets {
		_ = c.Close()
	}
	for _, l := range s.listeners {
		_ = l.Close()
	}
}

func (s *Server) closeRelays() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.index.Lock()
	all := make([]*relayConn, 0, len(s.relays))
	for _, r := range s.relays {
		all = append(all, r)
	}
	s.relays, s.locals = nil, nil
	s.index.Unlock()
	for _, r := range all {
		_ = r.Close()
	}
}

// counters count what happened since the start.
type counters struct {
	allocations, authFailures, quotaRefused, capacityRefused, transportRefused atomic.Uint64
	permissionsDenied, packetsDenied, revoked                                  atomic.Uint64
	packetsToPeers, packetsToClients, bytesToPeers, bytesToClients             atomic.Uint64
	connections, connectionsRefused, connectionsTimedOut, malformed, limited   atomic.Uint64
}

// Stats are figures for operators. All but the first two only grow.
type Stats struct {
	Relays      int // relayed addresses at the moment
	Connections int // TCP connections of clients at the moment

	Allocations         uint64 // relayed addresses given out
	AuthFailures        uint64 // wrong, expired or revoked credentials
	QuotaRefused        uint64 // a user wanted more than UserQuota
	CapacityRefused     uint64 // no relay port was free
	TransportRefused    uint64 // TCP relays (RFC 6062) and missing address families
	PermissionsDenied   uint64 // peers that may not be reached
	PacketsDenied       uint64 // packets to or from such peers and ports
	Revoked             uint64 // relays ended because the user was revoked or the credentials expired
	PacketsToPeers      uint64
	PacketsToClients    uint64
	BytesToPeers        uint64
	BytesToClients      uint64
	ConnectionsAccepted uint64
	ConnectionsRefused  uint64 // too many of them
	ConnectionsTimedOut uint64 // idle, or too slow to finish a message
	Malformed           uint64 // connections that did not speak TURN
	Limited             uint64 // packets of clients without a relay that came too fast
}

// Stats returns the figures of the moment.
func (s *Server) Stats() Stats {
	s.index.RLock()
	relays := len(s.relays)
	s.index.RUnlock()
	conns := 0
	for _, l := range s.listeners {
		conns += l.count()
	}
	c := &s.stats
	return Stats{
		Relays: relays, Connections: conns,
		Allocations: c.allocations.Load(), AuthFailures: c.authFailures.Load(),
		QuotaRefused: c.quotaRefused.Load(), CapacityRefused: c.capacityRefused.Load(), TransportRefused: c.transportRefused.Load(),
		PermissionsDenied: c.permissionsDenied.Load(), PacketsDenied: c.packetsDenied.Load(), Revoked: c.revoked.Load(),
		PacketsToPeers: c.packetsToPeers.Load(), PacketsToClients: c.packetsToClients.Load(),
		BytesToPeers: c.bytesToPeers.Load(), BytesToClients: c.bytesToClients.Load(),
		ConnectionsAccepted: c.connections.Load(), ConnectionsRefused: c.connectionsRefused.Load(),
		ConnectionsTimedOut: c.connectionsTimedOut.Load(), Malformed: c.malformed.Load(), Limited: c.limited.Load(),
	}
}

// events returns what pion/turn tells us of its allocations.
func (s *Server) events() pion.EventHandler {
	return pion.EventHandler{
		OnAuth: func(_, _ net.Addr, _, _, _, _ string, ok bool) {
			if !ok {
				s.stats.authFailures.Add(1)
			}
		},
		OnAllocationCreated: func(client, at net.Addr, _, username, _ string, _ net.Addr, _ int) {
			s.stats.allocations.Add(1)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.clients[clientKey(client, at)] = username
		},
		OnAllocationDeleted: func(client, at net.Addr, _, _, _ string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.clients, clientKey(client, at))
		},
	}
}

// clientKey names a client's 5-tuple: its address, ours, and the transport.
func clientKey(client, at net.Addr) string {
	return at.Network() + " " + client.String() + " " + at.String()
}

// hasRelay reports whether a client has a relayed address.
func (s *Server) hasRelay(client string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clients[client] != ""
}

// ownIPs returns the addresses that clients reach this machine at: those that
// the SFU tells its clients, or the one that the route to the Internet starts
// with.
func ownIPs(media []netip.AddrPort) []netip.Addr {
	var ips []netip.Addr
	for _, is4 := range []bool{true, false} {
		best := netip.Addr{}
		for _, m := range media {
			a := m.Addr().Unmap()
			if a.Is4() != is4 || a.IsLinkLocalUnicast() {
				continue
			}
			if !best.IsValid() || best.IsLoopback() {
				best = a
			}
		}
		if best.IsValid() && !(best.IsLoopback() && len(ips) > 0) {
			ips = append(ips, best)
		}
	}
	if len(ips) > 0 {
		return ips
	}
	// Connecting a UDP socket looks up the route and sends nothing.
	if c, err := net.Dial("udp4", "192.0.2.1:9"); err == nil {
		defer c.Close()
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			return []netip.Addr{a.AddrPort().Addr().Unmap()}
		}
	}
	return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
}

var errClosed = errors.New("TURN is closed")

var _ call.ICEServersFunc = (*Server)(nil).ICEServers
