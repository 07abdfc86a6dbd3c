package audio

import "slices"

// Mixer is the sound of a conference. In each tick of 20 ms every Source may Write a
// frame; Mix then adds up the loudest of them once, and Read gives each listener the
// sum without its own part.
//
// Who is heard changes without clicks and with hysteresis: a source stays for half a
// second after its last word, and another must be clearly louder to take its place.
type Mixer struct {
	samples int
	loudest int
	sources []*Source
	order   []*Source // scratch
	sum     []int32
	common  []int16 // what listeners without a part in the sum hear
}

// Source is one who speaks (and may listen) in a Mixer.
type Source struct {
	mixer   *Mixer
	frame   []int16 // written for this tick
	part    []int32 // its share of the sum
	gain    int32   // wanted volume, 256 is unchanged
	volume  int32   // volume at the end of the last tick
	level   uint8   // of this tick, -dBov
	score   int     // loudness with memory: 127-level, slowly falling, times 8
	written bool
	heard   bool // chosen
	inSum   bool
}

const (
	unity       = 256
	scoreFall   = 8 * 2  // 2 dB a tick: half a second from speech to silence
	scoreLead   = 8 * 6  // dB by which a challenger must be louder
	scoreSilent = 8 * 57 // below -70 dBov nobody speaks
)

// NewMixer returns a mixer at a sample rate that lets the loudest n speak at once.
func NewMixer(rate, n int) *Mixer {
	samples := FrameSamples(rate)
	return &Mixer{samples: samples, loudest: n, sum: make([]int32, samples), common: make([]int16, samples)}
}

// Add returns a new source.
func (m *Mixer) Add() *Source {
	s := &Source{mixer: m, gain: unity, level: 127, frame: make([]int16, m.samples), part: make([]int32, m.samples)}
	m.sources = append(m.sources, s)
	m.order = slices.Grow(m.order[:0], len(m.sources))
	return s
}

// Remove ends a source. Its sound is gone from the next Mix on.
func (m *Mixer) Remove(s *Source) {
	m.sources = slices.DeleteFunc(m.sources, func(o *Source) bool { return o == s })
	s.inSum = false
}

// Write gives the source's frame for this tick. Without it the source is silent.
func (s *Source) Write(pcm []int16) {
	n := copy(s.frame, pcm)
	clear(s.frame[n:])
	s.written = true
}

// SetGain sets the volume: 1 leaves sound as it is, 0 mutes, 4 is the most.
func (s *Source) SetGain(g float64) { s.gain = int32(max(0, min(g, 4)) * unity) }

// Level returns how loud the source was in the last tick, in -dBov (RFC 6464).
func (s *Source) Level() uint8 { return s.level }

// Heard says whether the source is one of the loudest.
func (s *Source) Heard() bool { return s.heard }

// Mix makes one tick of sound of what was written.
func (m *Mixer) Mix() {
	for _, s := range m.sources {
		s.level = 127
		if s.written && s.gain > 0 {
			s.level = Level(s.frame)
		}
		s.score = max(8*(127-int(s.level)), s.score-scoreFall, 0)
	}
	m.choose()
	clear(m.sum)
	for _, s := range m.sources {
		s.add(m.sum)
	}
	for i, v := range m.sum {
		m.common[i] = limit(v)
	}
}

// choose marks the sources to be heard.
func (m *Mixer) choose() {
	m.order = m.order[:0]
	for _, s := range m.sources {
		if s.score > scoreSilent {
			m.order = append(m.order, s)
		} else {
			s.heard = false
		}
	}
	if len(m.order) > m.loudest {
		slices.SortStableFunc(m.order, func(a, b *Source) int { return b.rank() - a.rank() })
	}
	for i, s := range m.order {
		s.heard = i < m.loudest
	}
}

func (s *Source) rank() int {
	if s.heard {
		return s.score + scoreLead
	}
	return s.score
}

// add puts the source's frame into sum, the volume sliding to where it should be.
func (s *Source) add(sum []int32) {
	want := int32(0)
	if s.heard {
		want = s.gain
	}
	from := s.volume
	s.volume = want
	s.inSum = s.written && (from > 0 || want > 0)
	s.written = false
	if !s.inSum {
		return
	}
	n := int32(len(sum))
	for i, x := range s.frame {
		v := int32(x) * (from + (want-from)*int32(i+1)/n) / unity
		s.part[i] = v
		sum[i] += v
	}
}

// Read writes what the source's owner hears: everybody but itself.
func (s *Source) Read(pcm []int16) {
	if !s.inSum {
		copy(pcm, s.mixer.common)
		return
	}
	for i := range min(len(pcm), len(s.part)) {
		pcm[i] = limit(s.mixer.sum[i] - s.part[i])
	}
}

// ReadWithout writes what a listener hears who may not hear all: everybody but the
// source itself and others.
func (s *Source) ReadWithout(pcm []int16, others []*Source) {
	sum := s.mixer.sum
	for i := range min(len(pcm), len(sum)) {
		v := sum[i]
		if s.inSum {
			v -= s.part[i]
		}
		for _, o := range others {
			if o.inSum {
				v -= o.part[i]
			}
		}
		pcm[i] = limit(v)
	}
}

// Read writes what a listener who does not speak hears: everybody.
func (m *Mixer) Read(pcm []int16) { copy(pcm, m.common) }

// limit is linear up to -3 dBFS and then bends towards full scale without reaching it.
func limit(v int32) int16 {
	const knee, room = 23197, 32767 - 23197
	switch {
	case v > knee:
		return int16(knee + room*int64(v-knee)/int64(room+v-knee))
	case v < -knee:
		return int16(-knee - room*int64(-v-knee)/int64(room-v-knee))
	}
	return int16(v)
}
