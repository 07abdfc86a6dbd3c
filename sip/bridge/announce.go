package bridge

import (
	"time"

	"github.com/trunkhall/trunkhall/audio"
)

// A clip is a sound for one phone. It is at any rate and converted as it plays.
type clip struct {
	rate int
	pcm  []int16
	at   int

	convert *audio.Resampler
	to      int
	scratch []int16
}

// The tones that phones hear of what happens in the room.
var (
	joinTone  = chime(523, 659)
	leaveTone = chime(659, 523)
	muteTones = map[bool]func() *clip{true: chime(392, 392), false: chime(659)}
)

// chime returns a maker of a clip of short tones, one after the other.
func chime(hz ...float64) func() *clip {
	const rate = 16000
	var pcm []int16
	for _, f := range hz {
		t := audio.Tone{Hz: [2]float64{f}, Level: -24, On: 110 * time.Millisecond, Off: 30 * time.Millisecond}
		part := make([]int16, rate*140/1000)
		audio.NewPlayer(t, rate).Fill(part)
		pcm = append(pcm, part...)
	}
	return func() *clip { return &clip{rate: rate, pcm: pcm} }
}

// recording returns a maker of a clip of pcm.
func recording(pcm []int16, rate int) func() *clip {
	return func() *clip { return &clip{rate: rate, pcm: pcm} }
}

// enqueue plays a clip to the phone after those that it hears already.
func (p *Phone) enqueue(c func() *clip) {
	if len(p.clips) < maxClips {
		p.clips = append(p.clips, c())
	}
}

// announce plays the first clip over what the phone hears. On hold it waits.
func (p *Phone) announce() {
	for len(p.clips) > 0 && !p.held.Load() && !p.clips[0].fill(p.clipFrame, rates[p.at]) {
		copy(p.clips, p.clips[1:])
		p.clips[len(p.clips)-1] = nil
		p.clips = p.clips[:len(p.clips)-1]
	}
	from, to := p.volume, int32(loud)
	if len(p.clips) > 0 && !p.held.Load() {
		to = ducked
	} else {
		clear(p.clipFrame)
	}
	p.volume = to
	if from == loud && to == loud {
		return
	}
	n := int32(len(p.out))
	for i, x := range p.clipFrame { // the conference gets quieter and louder without a click
		volume := from + (to-from)*int32(i+1)/n
		v := int32(p.out[i])*volume/loud + int32(x)
		p.out[i] = int16(max(-32768, min(32767, v)))
	}
}

// fill writes the clip's next frame at a rate. It reports false at the end.
func (c *clip) fill(pcm []int16, rate int) bool {
	if c.at >= len(c.pcm) {
		return false
	}
	n := min(audio.FrameSamples(c.rate), len(c.pcm)-c.at)
	part := c.pcm[c.at : c.at+n]
	c.at += n
	if c.rate == rate {
		clear(pcm[copy(pcm, part):])
		return true
	}
	if c.convert == nil || c.to != rate {
		r, err := audio.NewResampler(c.rate, rate)
		if err != nil {
			return false
		}
		c.convert, c.to, c.scratch = r, rate, make([]int16, audio.FrameSamples(c.rate))
	}
	clear(c.scratch[copy(c.scratch, part):])
	if _, err := c.convert.Convert(c.scratch, pcm); err != nil {
		return false
	}
	return true
}
