package sfu

import "time"

const (
	badLoss      = 0.10 // share of packets lost that means too much is sent
	fineLoss     = 0.02 // below this, more may be tried
	tightShare   = 0.7  // of what is sent; an estimate below it means too much is sent
	lossFor      = time.Second
	tightFor     = 3 * time.Second // estimates also drop when a machine is busy for a moment
	firstRetry   = 6 * time.Second
	longestRetry = time.Minute
	settleTime   = 2 * time.Second // after a step, until its effect can be seen
)

// A congestion decides how many steps of quality a subscriber's connection must
// go without. It steps down when the client reports heavy loss or estimates
// less than is sent (REMB), and tries a step up again after a time that doubles
// whenever the try fails. It is a ladder and no bandwidth estimator: a receiver
// can only estimate what is sent to it.
type congestion struct {
	steps   int // 0: everything as wanted
	max     int // as many steps make sense
	changed time.Time
	tried   bool // the last change was a step up
	retry   time.Duration

	lossSince  time.Time // how long it has been bad without a break
	tightSince time.Time
}

// A linkSample is what a subscriber's connection showed since the last one.
type linkSample struct {
	sent     uint64  // bit/s
	estimate uint64  // bit/s, 0 if the client says nothing
	loss     float64 // share
}

// observe takes a sample and reports whether steps has changed.
func (c *congestion) observe(s linkSample, now time.Time) bool {
	tight := s.estimate > 0 && s.sent > 100_000 && float64(s.estimate) < tightShare*float64(s.sent)
	bad := lasts(&c.lossSince, s.loss > badLoss, lossFor, now)
	bad = lasts(&c.tightSince, tight, tightFor, now) || bad
	if now.Sub(c.changed) < settleTime {
		return false
	}
	switch {
	case bad:
		if c.steps >= c.max {
			return false
		}
		if c.tried && now.Sub(c.changed) < firstRetry {
			c.retry = min(2*c.retry, longestRetry)
		}
		c.steps++
		c.changed, c.tried = now, false
		c.retry = max(c.retry, firstRetry)
		return true
	case c.steps > 0 && !tight && s.loss < fineLoss && now.Sub(c.changed) >= c.retry:
		c.steps--
		c.changed, c.tried = now, true
		return true
	case c.steps == 0 && now.Sub(c.changed) > longestRetry:
		c.retry = firstRetry
	}
	return false
}

// lasts reports whether a condition has held for a time; since remembers.
func lasts(since *time.Time, holds bool, long time.Duration, now time.Time) bool {
	if !holds {
		*since = time.Time{}
		return false
	}
	if since.IsZero() {
		*since = now
	}
	return now.Sub(*since) >= long
}

// A demand is one video that a subscriber wants.
type demand struct {
	want     int // highest layer it would get
	priority uint32
	screen   bool
}

// share spreads steps over the videos: a step lowers the one that stands
// highest, the least important first; no video goes below floor, which is its
// lowest layer (0) or nothing at all (-1). It returns the highest layer for each.
func share(steps, floor int, videos []demand) []int {
	out := make([]int, len(videos))
	for i, v := range videos {
		out[i] = v.want
	}
	for range steps {
		best := -1
		for i, v := range videos {
			if out[i] <= floor {
				continue
			}
			if best < 0 || lessImportant(v, out[i], videos[best], out[best]) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		out[best]--
	}
	return out
}

// lessImportant reports whether video a at layer i should be lowered before
// video b at layer j.
func lessImportant(a demand, i int, b demand, j int) bool {
	if a.screen != b.screen {
		return b.screen
	}
	if a.priority != b.priority {
		return a.priority < b.priority
	}
	return i > j
}
