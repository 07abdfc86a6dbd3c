package audio

// DCBlock takes the constant part out of sound: old telephone lines and converters add
// one, and it costs headroom in a mix and clicks where sound begins. It passes speech
// unchanged (-3 dB at 10 Hz for 8 kHz, 20 Hz for 16 kHz). The zero value is ready.
type DCBlock struct {
	in, out float32
}

// Apply filters pcm in place.
func (d *DCBlock) Apply(pcm []int16) {
	const keep = 0.992
	in, out := d.in, d.out
	for i, x := range pcm {
		v := float32(x)
		out = v - in + keep*out
		in = v
		pcm[i] = int16(max(-32768, min(32767, out)))
	}
	if out < 1e-6 && out > -1e-6 {
		out = 0 // very small numbers are slow to reckon with
	}
	d.in, d.out = in, out
}
