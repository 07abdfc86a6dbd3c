package sfu

import (
	"math"
	"sync"
	"time"
)

const (
	speechLevel  = 35  // -dBov; quieter packets are not speech
	silentAfter  = 2   // windows without speech end a speaker
	speechShare  = 0.4 // of a window's packets that must be speech
	levelHistory = 2   // windows over which the level is smoothed
)

// An audioMeter turns the levels of packets (RFC 6464) into the level of a
// speaker. observe is called for each packet, take once for each window.
type audioMeter struct {
	mu      sync.Mutex // audio packets are few: 50 a second
	total   int
	speech  int
	loudest uint8 // the least -dBov among speech
	smooth  float64
	quiet   int // windows without speech
}

// observe takes the level of one packet: 0 is the loudest, 127 silence.
func (a *audioMeter) observe(level uint8) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.total++
	if level > speechLevel {
		return
	}
	if a.speech == 0 || level < a.loudest {
		a.loudest = level
	}
	a.speech++
}

// take ends a window and returns the smoothed linear level, 0 for silence.
func (a *audioMeter) take(time.Time) float64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	level := 0.0
	if a.total > 0 && float64(a.speech) >= speechShare*float64(a.total) {
		// A window that is half speech counts for less than one full of it.
		level = math.Pow(10, -float64(a.loudest)/20) * float64(a.speech) / float64(a.total)
	}
	a.total, a.speech = 0, 0
	a.smooth += (level - a.smooth) * 2 / (levelHistory + 1)
	if level == 0 {
		if a.quiet++; a.quiet >= silentAfter {
			a.smooth = 0
		}
	} else {
		a.quiet = 0
	}
	return a.smooth
}
