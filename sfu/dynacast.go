package sfu

import "time"

// dynacastPause is how long a layer must go unwatched before its publisher is
// told to stop it: people switch back and forth.
const dynacastPause = 5 * time.Second

// A dynacast follows the best quality that anybody watches. More is passed on
// at once, less only after dynacastPause.
type dynacast struct {
	told    bool
	current Quality // what the publisher was told
	lower   Quality // what it will be told at due
	due     time.Time
}

// rank orders qualities with QualityOff as the least.
func (q Quality) rank() int {
	if q == QualityOff {
		return -1
	}
	return int(q)
}

// want reports whether the publisher must be told now.
func (d *dynacast) want(q Quality, now time.Time) bool {
	switch {
	case !d.told || q.rank() > d.current.rank():
		d.told, d.current, d.due = true, q, time.Time{}
		return true
	case q == d.current:
		d.due = time.Time{}
	case d.due.IsZero():
		d.lower, d.due = q, now.Add(dynacastPause)
	default:
		d.lower = q
	}
	return false
}

// tick reports whether a lower quality must be told now.
func (d *dynacast) tick(now time.Time) bool {
	if d.due.IsZero() || now.Before(d.due) {
		return false
	}
	d.current, d.due = d.lower, time.Time{}
	return true
}

// qualities lists all three, enabled up to the current one.
func (d *dynacast) qualities() []SubscribedQuality {
	out := make([]SubscribedQuality, 0, 3)
	for _, q := range []Quality{QualityLow, QualityMedium, QualityHigh} {
		out = append(out, SubscribedQuality{Quality: q, Enabled: q.rank() <= d.current.rank()})
	}
	return out
}
