package turn

import (
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"time"
)

// What clients without a relay may ask by UDP. A client gets its relay with two
// requests; whole offices may be behind one address.
const (
	sourceRate  = 100 // requests a second from one source
	sourceBurst = 1000
	totalRate   = 10_000 // and from all of them
	totalBurst  = 20_000
)

// askLimits bound what is answered to sources that have not proved anything: the
// source address of a UDP packet may be somebody else's, who must not be
// flooded with our answers, and each answer costs an HMAC. Sources share a
// fixed number of buckets, so that a flood of them takes no memory.
type askLimits struct {
	seed maphash.Seed

	mu      sync.Mutex // guards the following fields
	total   bucket
	sources [4096]bucket
}

func newAskLimits() *askLimits { return &askLimits{seed: maphash.MakeSeed()} }

// allow reports whether a request of a source may be answered now.
func (l *askLimits) allow(source netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bucket(source).take(now, sourceRate, sourceBurst) && l.total.take(now, totalRate, totalBurst)
}

func (l *askLimits) bucket(source netip.Addr) *bucket {
	if source = source.Unmap(); source.Is6() {
		network, _ := source.WithZone("").Prefix(64) // one customer's
		source = network.Addr()
	}
	return &l.sources[maphash.Comparable(l.seed, source)%uint64(len(l.sources))]
}

// A bucket is a token bucket; the zero one is full.
type bucket struct {
	used float64
	at   time.Time
}

func (b *bucket) take(now time.Time, rate, burst float64) bool {
	if !b.at.IsZero() {
		b.used = max(0, b.used-now.Sub(b.at).Seconds()*rate)
	}
	b.at = now
	if b.used+1 > burst {
		return false
	}
	b.used++
	return true
}

// mayAsk reports whether a packet of a UDP client is to be looked at at all.
func (c *clientSocket) mayAsk(client string, from net.Addr) bool {
	if c.s.hasRelay(client) {
		return true
	}
	udp, ok := from.(*net.UDPAddr)
	if !ok || !c.s.asks.allow(udp.AddrPort().Addr(), time.Now()) {
		c.s.stats.limited.Add(1)
		return false
	}
	return true
}
