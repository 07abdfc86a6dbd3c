package bridge

// A gate tells a voice from a silent line by the level of its frames. It rather
// lets noise pass than cut off a word.
type gate struct {
	floor float64 // the level of silence, in dBov
	hang  int     // frames for which it stays open
}

const (
	gateLoud  = -45.0 // dBov; louder sound always passes, also music
	gateDeaf  = -72.0 // quieter sound never does
	gateAbove = 7.0   // dB above the silence of this line
	gateHang  = 20    // frames
)

func newGate() gate { return gate{floor: -60} }

// open reports whether a frame of that level, in -dBov, is to be sent.
func (g *gate) open(level uint8) bool {
	db := -float64(level)
	if db < g.floor {
		g.floor += (db - g.floor) / 4
	} else {
		g.floor += min(db-g.floor, 0.06) // 3 dB a second
	}
	g.floor = max(min(g.floor, gateLoud), gateDeaf)
	if db > gateLoud || db > gateDeaf && db > g.floor+gateAbove {
		g.hang = gateHang
		return true
	}
	if g.hang > 0 {
		g.hang--
		return true
	}
	return false
}
