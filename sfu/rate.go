package sfu

import (
	"sync/atomic"
	"time"
)

// A rateMeter measures bits per second over whole seconds. add belongs to one
// goroutine, bps to everybody.
type rateMeter struct {
	since time.Time
	bytes int
	rate  atomic.Uint64
}

func (r *rateMeter) add(bytes int, now time.Time) {
	if d := now.Sub(r.since); d >= time.Second {
		if d < 3*time.Second {
			r.rate.Store(uint64(float64(r.bytes) * 8 / d.Seconds()))
		}
		r.since, r.bytes = now, 0
	}
	r.bytes += bytes
}

// bps is the rate of the last whole second.
func (r *rateMeter) bps() uint64 { return r.rate.Load() }
