package audio

import "math"

// Level returns how loud pcm is, in dB below overload, 0 to 127: the unit of RFC 3389
// and RFC 6464 (-dBov). 127 is silence.
func Level(pcm []int16) uint8 {
	var sum int64
	for _, x := range pcm {
		sum += int64(x) * int64(x)
	}
	if sum == 0 {
		return 127
	}
	db := -10 * math.Log10(float64(sum)/float64(len(pcm))/(32768*32768))
	return uint8(max(0, min(127, math.Round(db))))
}

// Noise is comfort noise: the hiss of a quiet line. The zero value is silent until a
// level is set.
type Noise struct {
	rnd    uint32
	last   float32
	volume float32 // of the white noise, before the filter
}

// SetLevel sets the level in -dBov.
func (n *Noise) SetLevel(level uint8) {
	// A uniform distribution of +-1 has an RMS of 1/sqrt(3); the filter below passes
	// 1/3 of the power.
	n.volume = float32(32768 * 3 * math.Pow(10, -float64(min(level, 127))/20))
	if level >= 127 {
		n.volume = 0
	}
}

// SetSID takes the payload of a comfort noise packet (RFC 3389 §3). Only the level is
// used: a receiver may ignore the spectrum.
func (n *Noise) SetSID(payload []byte) {
	if len(payload) > 0 {
		n.SetLevel(payload[0] & 0x7f)
	}
}

// Fill writes noise into pcm.
func (n *Noise) Fill(pcm []int16) {
	for i := range pcm {
		pcm[i] = n.sample()
	}
}

func (n *Noise) sample() int16 {
	n.rnd = n.rnd*1664525 + 1013904223
	white := float32(int32(n.rnd)) / (1 << 31)
	n.last += (white*n.volume - n.last) / 2 // softer than white noise
	return int16(max(-32768, min(32767, n.last)))
}
