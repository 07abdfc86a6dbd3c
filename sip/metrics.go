package sip

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// setupBounds are the buckets of the time from INVITE to 200.
var setupBounds = []float64{0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}

// counters count since the start.
type counters struct {
	pinWrong atomic.Uint64
	digits   atomic.Uint64 // keys, both ways

	mu     sync.Mutex // guards the following fields
	steps  map[string]uint64
	setups Histogram
	lost   uint64 // of legs that have ended
}

// left counts what a leg that has ended lost.
func (c *counters) left(stats call.LegStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost += stats.Lost
}

// step counts a message or a call that got no further than that.
func (c *counters) step(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.steps == nil {
		c.steps = make(map[string]uint64)
	}
	c.steps[name]++
}

// setup counts how long a call took from INVITE to 200.
func (c *counters) setup(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := &c.setups
	if h.Counts == nil {
		h.Bounds, h.Counts = setupBounds, make([]uint64, len(setupBounds)+1)
	}
	i := 0
	for i < len(setupBounds) && d.Seconds() > setupBounds[i] {
		i++
	}
	h.Counts[i]++
	h.Count++
	h.Sum += d.Seconds()
}

// A Histogram counts observations up to each bound, in seconds.
type Histogram struct {
	Bounds []float64
	Counts []uint64 // one more than Bounds: the rest
	Sum    float64
	Count  uint64
}

// Metrics are counters since the start and gauges of now.
type Metrics struct {
	Active       map[ActiveKey]int
	Responses    map[int]uint64 // final responses, ours and theirs, by code
	Setup        Histogram      // seconds from INVITE to 200
	Bans         uint64
	Dropped      uint64            // messages of strangers left without an answer
	Steps        map[string]uint64 // what got no further than a step of screening, by its name
	Lost         uint64            // RTP packets
	Jitter       []float64         // ms, of each leg now
	MOS          []float64         // of each leg now whose is known
	Digits       uint64            // keys pressed, both ways
	Banned       int               // addresses that are shut out now
	Starved      uint64            // mixer frames that had to be concealed
	OpusPanics   uint64
	Registered   map[string]bool    // trunk
	Ping         map[string]float64 // trunk: ms
	PINRejected  uint64
	MinutesToday float64 // of calls out
}

// An ActiveKey is what legs are counted by.
type ActiveKey struct {
	Direction call.Direction
	Trunk     string
}

// Metrics returns what the gateway counts.
func (s *Server) Metrics() Metrics {
	stats := s.endpoint.Stats()
	m := Metrics{
		Active:      make(map[ActiveKey]int),
		Responses:   stats.Responses,
		Bans:        s.bans.Total(),
		Dropped:     stats.Screened + stats.Dropped,
		Registered:  make(map[string]bool),
		Ping:        make(map[string]float64),
		PINRejected: s.count.pinWrong.Load(),
		Digits:      s.count.digits.Load(),
		Banned:      len(s.Bans()),
	}
	mixing := s.bridges.Stats()
	m.Starved, m.OpusPanics = mixing.Concealed, mixing.Panics
	s.count.mu.Lock()
	m.Steps, m.Lost = maps.Clone(s.count.steps), s.count.lost
	m.Setup = Histogram{Bounds: setupBounds, Counts: append([]uint64(nil), s.count.setups.Counts...), Sum: s.count.setups.Sum, Count: s.count.setups.Count}
	s.count.mu.Unlock()
	for _, l := range s.live() {
		now := l.snapshot()
		m.Active[ActiveKey{now.Direction, now.Trunk}]++
		m.Lost += now.Stats.Lost
		m.Jitter = append(m.Jitter, float64(now.Stats.Jitter.Microseconds())/1000)
		if now.Stats.MOS > 0 {
			m.MOS = append(m.MOS, now.Stats.MOS)
		}
	}
	for _, t := range s.Trunks() {
		if t.Trunk.Register.AOR != "" {
			m.Registered[t.Trunk.ID] = t.Registered == "registered"
		}
		if t.Ping > 0 {
			m.Ping[t.Trunk.ID] = float64(t.Ping.Microseconds()) / 1000
		}
	}
	total, _ := s.limits.Spent(time.Now())
	m.MinutesToday = total.Minutes()
	return m
}
