package homeserver

import (
	"sync"
	"time"
)

// A limit names the rate limiter that an endpoint draws from.
type limit int

const (
	limitNone         limit = iota // never limited: sync, heartbeats, reads
	limitMessage                   // send, state, redact: per user
	limitLogin                     // login, per address
	limitLoginAccount              // login, per account (drawn by the handler)
	limitSession                   // registrations begun, per address (drawn by the frame)
	limitRegister                  // accounts made, per address (drawn by the handler)
	limitJoin                      // joins: per user
	limitDelayed                   // scheduling delayed events: generous, per user or address
)

// limitSpecs are the token buckets: the count that may come at once and how
// long one takes to come back.
var limitSpecs = map[limit]struct {
	burst float64
	every time.Duration
}{
	limitMessage:      {50, time.Second / 10},
	limitLogin:        {60, time.Second / 3},
	limitLoginAccount: {10, 30 * time.Second},
	limitSession:      {300, time.Second / 10},
	limitRegister:     {100, 20 * time.Second},
	limitJoin:         {30, 10 * time.Second},
	limitDelayed:      {1000, time.Second / 100},
}

const maxBuckets = 100_000 // beyond it full buckets are dropped at once

// A limiter holds the token buckets. Safe for concurrent use.
type limiter struct {
	mu      sync.Mutex
	buckets map[bucketKey]bucket
	swept   time.Time
}

type bucketKey struct {
	limit limit
	who   string
}

type bucket struct {
	tokens float64
	at     time.Time
}

// take draws one token and reports how long to wait if there is none.
func (l *limiter) take(lim limit, who string, now time.Time) (wait time.Duration) {
	spec := limitSpecs[lim]
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.buckets == nil {
		l.buckets = make(map[bucketKey]bucket)
	}
	if now.Sub(l.swept) > time.Minute || len(l.buckets) > maxBuckets && now.Sub(l.swept) > time.Second {
		l.sweep(now)
	}
	key := bucketKey{lim, who}
	b, ok := l.buckets[key]
	if !ok {
		b = bucket{spec.burst, now}
	}
	b.tokens = min(spec.burst, b.tokens+float64(now.Sub(b.at))/float64(spec.every))
	b.at = now
	if b.tokens < 1 {
		wait = time.Duration((1 - b.tokens) * float64(spec.every))
	} else {
		b.tokens--
	}
	l.buckets[key] = b
	return wait
}

// sweep forgets buckets that are full again.
func (l *limiter) sweep(now time.Time) {
	l.swept = now
	for k, b := range l.buckets {
		spec := limitSpecs[k.limit]
		if b.tokens+float64(now.Sub(b.at))/float64(spec.every) >= spec.burst {
			delete(l.buckets, k)
		}
	}
}

// allow draws from a route's limiter for the caller: by user where there is
// one, else by address.
func (s *Server) allow(r *request, lim limit) error {
	who := string(r.user)
	if who == "" {
		who = r.addr()
	}
	return s.allowFor(r, lim, who)
}

// allowFor draws from a limiter for a name that the handler chooses.
func (s *Server) allowFor(r *request, lim limit, who string) error {
	if !s.cfg.RateLimits || lim == limitNone {
		return nil
	}
	if wait := s.limiter.take(lim, who, time.Now()); wait > 0 {
		s.log.Info("rate limited", "path", r.URL.Path, "user", r.user, "addr", r.addr())
		return limitExceeded(r.w, wait)
	}
	return nil
}
