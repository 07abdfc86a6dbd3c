package media

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/pion/dtls/v3/pkg/crypto/selfsign"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// expedited is the DSCP of telephone sound (RFC 4594 §4.1) as the TOS octet.
const expedited = 46 << 2

// leastDrain is how long a port stays closed even if no other is left.
const leastDrain = 2 * time.Second

// Pool owns the RTP ports and looks after all sessions: reports, keep-alives,
// time-outs. Run must run for that.
type Pool struct {
	cfg  Config
	log  *slog.Logger
	own  map[netip.Addr]bool // addresses of this machine
	cert tls.Certificate     // for DTLS; fingerprints vouch for it, so nobody signs it

	mu       sync.Mutex // guards the following
	sessions map[*Session]struct{}
	closed   bool
	used     map[uint16]time.Time // RTP ports: zero while open, else when it may be used again
	next     int                  // where the search for a free port goes on
}

// NewPool makes a pool. It opens no port yet.
func NewPool(cfg Config, log *slog.Logger) (*Pool, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("key for DTLS: %w", err)
	}
	cert, err := selfsign.SelfSign(key)
	if err != nil {
		return nil, fmt.Errorf("certificate for DTLS: %w", err)
	}
	p := &Pool{
		cfg: cfg, log: log, own: ownAddresses(), cert: cert,
		sessions: map[*Session]struct{}{}, used: map[uint16]time.Time{},
	}
	for _, ip := range []netip.Addr{cfg.BindIP, cfg.ExternalIP, cfg.ExternalIP6} {
		if ip.IsValid() {
			p.own[ip.Unmap()] = true
		}
	}
	p.next = mathrand.IntN(max(1, p.pairs())) // ports are no secret, but need not be guessed easily
	return p, nil
}

// first is the first even port.
func (p *Pool) first() int { return int(p.cfg.PortMin) + int(p.cfg.PortMin)%2 }

// pairs is how many pairs of ports there are.
func (p *Pool) pairs() int { return (int(p.cfg.PortMax) - p.first() + 1) / 2 }

// owns says whether an address is one of our RTP ports.
func (p *Pool) owns(a netip.AddrPort) bool {
	return a.Port() >= p.cfg.PortMin && a.Port() <= p.cfg.PortMax && p.own[a.Addr().Unmap()]
}

// Run looks after the sessions until ctx ends, then closes them all.
func (p *Pool) Run(ctx context.Context) error {
	defer p.Close()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			for _, s := range p.all() {
				s.lookAfter(now)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Pool) all() []*Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]*Session, 0, len(p.sessions))
	for s := range p.sessions {
		list = append(list, s)
	}
	return list
}

// Close closes all sessions and lets no new one open.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	for _, s := range p.all() {
		s.Close()
	}
}

// Stats counts ports.
func (p *Pool) Stats() PoolStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	st, now := PoolStats{Free: p.pairs()}, time.Now()
	for _, until := range p.used {
		switch {
		case until.IsZero():
			st.Open++
		case now.Before(until):
			st.Draining++
		}
	}
	st.Free -= st.Open + st.Draining
	return st
}

// ports opens a pair. The caller holds p.mu.
func (p *Pool) ports() (rtp, rtcp *net.UDPConn, err error) {
	// In need a port that was closed a moment ago must do.
	rtp, rtcp, err = p.portsAt(time.Now())
	if errors.Is(err, ErrNoPorts) && p.cfg.Drain > leastDrain {
		rtp, rtcp, err = p.portsAt(time.Now().Add(p.cfg.Drain - leastDrain))
	}
	return rtp, rtcp, err
}

// portsAt opens a pair that may be used again at a time.
func (p *Pool) portsAt(at time.Time) (rtp, rtcp *net.UDPConn, err error) {
	pairs := p.pairs()
	var last error
	for range pairs {
		port := p.first() + 2*p.next
		p.next = (p.next + 1) % pairs
		if until, ok := p.used[uint16(port)]; ok && (until.IsZero() || at.Before(until)) {
			continue
		}
		delete(p.used, uint16(port))
		if rtp, rtcp, last = p.listen(port); last == nil {
			p.used[uint16(port)] = time.Time{}
			return rtp, rtcp, nil
		}
		if errors.Is(last, syscall.EMFILE) {
			break
		}
	}
	if last != nil { // somebody else has them, or there is no such address
		return nil, nil, fmt.Errorf("%w (%w)", ErrNoPorts, last)
	}
	return nil, nil, ErrNoPorts
}

func (p *Pool) listen(port int) (rtp, rtcp *net.UDPConn, err error) {
	if rtp, err = p.listenOne(port); err != nil {
		return nil, nil, err
	}
	if rtcp, err = p.listenOne(port + 1); err != nil {
		return nil, nil, errors.Join(err, rtp.Close())
	}
	return rtp, rtcp, nil
}

func (p *Pool) listenOne(port int) (*net.UDPConn, error) {
	addr := &net.UDPAddr{Port: port}
	if p.cfg.BindIP.IsValid() {
		addr.IP = p.cfg.BindIP.AsSlice()
	}
	c, err := net.ListenUDP("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("RTP port: %w", err)
	}
	// A socket for all addresses has both families, if the machine has. Where it
	// fails, packets go out without a mark.
	if ip := p.cfg.BindIP; !ip.IsValid() || ip.Is4() || ip.IsUnspecified() {
		_ = ipv4.NewConn(c).SetTOS(expedited)
	}
	if ip := p.cfg.BindIP; !ip.IsValid() || ip.Is6() {
		_ = ipv6.NewConn(c).SetTrafficClass(expedited)
	}
	return c, nil
}

// free gives back a session's port.
func (p *Pool) free(s *Session, port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sessions, s)
	p.used[port] = time.Now().Add(p.cfg.Drain)
}
