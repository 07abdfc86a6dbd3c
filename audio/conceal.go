package audio

// Concealment hides lost sound of codecs that cannot do so themselves, in the spirit of
// ITU-T G.711 appendix I: it repeats the last pitch period, without a seam, fades it
// out within 60 ms and leaves comfort noise. It adds no delay.
type Concealment struct {
	rate    int
	history []int16 // the last 50 ms played
	lag     int     // the period that is repeated; zero when nothing was lost
	at      int     // samples concealed in a row
	noise   Noise
	floor   float64 // level of the quietest sound lately, in -dBov
}

// NewConcealment returns a concealment for sound at rate.
func NewConcealment(rate int) *Concealment {
	c := &Concealment{rate: rate, history: make([]int16, rate/20), floor: 70}
	c.noise.SetLevel(70)
	return c
}

func (c *Concealment) ms(n int) int { return c.rate * n / 1000 }

// Received takes sound that came. After a loss its beginning is blended with what was
// invented, in place.
func (c *Concealment) Received(pcm []int16) {
	if c.at > 0 {
		n := min(c.ms(5), len(pcm))
		for i := range n {
			pcm[i] = int16((int(c.next())*(n-i) + int(pcm[i])*i) / n)
		}
		c.lag, c.at = 0, 0
	}
	// The floor follows quiet frames at once and rises 3 dB a second otherwise.
	if level := float64(Level(pcm)); level < 127 {
		c.floor = max(c.floor-0.06*float64(len(pcm))/float64(c.ms(20)), min(level, 80))
		c.floor = max(c.floor, 50) // noise louder than this is no comfort
		c.noise.SetLevel(uint8(c.floor))
	}
	c.remember(pcm)
}

// Lost fills pcm with what could have been.
func (c *Concealment) Lost(pcm []int16) {
	if c.at == 0 {
		c.lag = c.pitch()
		c.seam()
	}
	for i := range pcm {
		pcm[i] = c.next()
	}
}

// Quiet fills pcm with comfort noise, blended with the end of a repetition.
func (c *Concealment) Quiet(pcm []int16) {
	if c.at == 0 {
		c.noise.Fill(pcm)
	} else {
		for i := range pcm {
			pcm[i] = c.next()
		}
	}
	c.remember(pcm)
}

// SetSID takes a comfort noise packet (RFC 3389).
func (c *Concealment) SetSID(payload []byte) { c.noise.SetSID(payload) }

// next returns the next invented sample: full volume for 10 ms, silent after 60 ms.
func (c *Concealment) next() int16 {
	full, gone := c.ms(10), c.ms(60)
	noise := int(c.noise.sample())
	v := noise
	if c.at < gone {
		start := len(c.history) - c.lag
		v = int(c.history[start+c.at%c.lag])
		if c.at > full {
			v = (v*(gone-c.at) + noise*(c.at-full)) / (gone - full)
		}
	}
	c.at++
	return int16(v)
}

// pitch returns the lag, 5 to 15 ms, at which the end of the history resembles what
// was before it most.
func (c *Concealment) pitch() int {
	n, step := c.ms(20), max(1, c.rate/8000)
	end := c.history[len(c.history)-n:]
	best, lag := -1.0, c.ms(10)
	for l := c.ms(5); l <= c.ms(15); l++ {
		before := c.history[len(c.history)-n-l:]
		var cross, energy float64
		for i := 0; i < n; i += step {
			cross += float64(end[i]) * float64(before[i])
			energy += float64(before[i]) * float64(before[i])
		}
		if cross <= 0 {
			continue
		}
		if score := cross * cross / (energy + 1); score > best*1.0001 {
			best, lag = score, l
		}
	}
	return lag
}

// seam makes the repeated period join its own end: the last quarter of it is blended
// into what came before its beginning (appendix I, overlap-add).
func (c *Concealment) seam() {
	n := c.lag / 4
	end := len(c.history)
	for i := range n {
		a, b := int(c.history[end-n+i]), int(c.history[end-n-c.lag+i])
		c.history[end-n+i] = int16((a*(n-i) + b*i) / n)
	}
}

func (c *Concealment) remember(pcm []int16) {
	if len(pcm) >= len(c.history) {
		copy(c.history, pcm[len(pcm)-len(c.history):])
		return
	}
	copy(c.history, c.history[len(pcm):])
	copy(c.history[len(c.history)-len(pcm):], pcm)
}
