package bridge

// A trust compares how loud a speaker's packets say that they are with how loud they
// turn out to be, second by second. Whoever claims more than it says would otherwise
// keep others from being heard.
type trust struct {
	frames int
	now    second
	before second
	excess int // dB by which the claims are too loud
	left   int // seconds for which that is held against the speaker
}

// A second is the loudest that was claimed and heard in it, in -dBov.
type second struct {
	claimed, heard uint8
	missed         bool // some of it was not decoded
}

const (
	trustSlack = 15 // dB; what is left of a voice at 8 kHz may well be that much quieter
	trustFor   = 30 // seconds
)

func newTrust() trust {
	return trust{now: second{127, 127, false}, before: second{127, 127, true}}
}

// claim takes what a packet says, hear what was decoded, miss that nothing was.
func (t *trust) claim(level uint8) { t.now.claimed = min(t.now.claimed, level) }
func (t *trust) hear(level uint8)  { t.now.heard = min(t.now.heard, level) }
func (t *trust) miss()             { t.now.missed = true }

// tick ends a frame. Claims are judged a second later: until then their sound has
// come out of the jitter buffer.
func (t *trust) tick() {
	if t.frames++; t.frames < 50 {
		return
	}
	t.frames = 0
	heard := min(t.before.heard, t.now.heard)
	switch {
	case t.before.missed || t.now.missed:
		if t.left--; t.left <= 0 {
			t.excess = 0
		}
	case int(heard) > int(t.before.claimed)+trustSlack:
		t.excess, t.left = int(heard)-int(t.before.claimed), trustFor
	default:
		t.excess = 0
	}
	t.before, t.now = t.now, second{127, 127, false}
}
