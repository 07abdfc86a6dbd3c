package signaling

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// rateLimits are token buckets by key. They are made for strangers to fill the key
// space: buckets that are full again are forgotten.
type rateLimits struct {
	every rate.Limit
	burst int

	mu    sync.Mutex // guards the following fields
	byKey map[string]*rate.Limiter
	sweep int // look for full buckets when there are that many
}

func newRateLimits(perSecond float64, burst int) *rateLimits {
	return &rateLimits{every: rate.Limit(perSecond), burst: burst, byKey: map[string]*rate.Limiter{}, sweep: 1024}
}

// take takes one token of key's bucket. It returns zero, or how long to wait.
func (l *rateLimits) take(key string) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.byKey[key]
	if b == nil {
		if len(l.byKey) >= l.sweep {
			for k, old := range l.byKey {
				if old.TokensAt(now) >= float64(l.burst) {
					delete(l.byKey, k)
				}
			}
			l.sweep = max(1024, 2*len(l.byKey))
		}
		b = rate.NewLimiter(l.every, l.burst)
		l.byKey[key] = b
	}
	r := b.ReserveN(now, 1)
	wait := r.DelayFrom(now)
	if wait > 0 {
		r.CancelAt(now)
	}
	return wait
}
