package audio

import (
	"fmt"
	"math"
)

// resampleReach is how many samples of the lower rate the filter reaches to each side,
// and so its delay.
const resampleReach = 16

// Resampler converts sound between 8, 16 and 48 kHz by a windowed sinc in polyphase
// form. The pass band (to 42 % of the lower rate) is flat to 0.1 dB, what would alias
// from above 57 % is 55 dB down. It delays by 16 samples of the lower rate: 2 ms if
// that is 8 kHz, 1 ms if it is 16 kHz.
type Resampler struct {
	up, down int
	phases   [][]float32 // filter for each phase of the output, newest sample last
	line     []float32   // the end of what came before, then what came
	keep     int
}

// NewResampler returns a converter. Frames must hold a whole number of steps: those of
// 20 ms always do.
func NewResampler(from, to int) (*Resampler, error) {
	if from < 8000 || to < 8000 || from > 48000 || to > 48000 || from%8000 != 0 || to%8000 != 0 {
		return nil, fmt.Errorf("audio: cannot convert %d Hz to %d Hz", from, to)
	}
	a, b := to/8000, from/8000
	for x, y := a, b; ; x, y = y, x%y {
		if y == 0 {
			a, b = a/x, b/x
			break
		}
	}
	r := &Resampler{up: a, down: b}
	// The prototype runs at from*up = to*down.
	half := resampleReach * max(a, b)
	if from == to {
		half = 0
	}
	taps := 2*half/a + 1
	r.keep = taps - 1
	r.line = make([]float32, r.keep, r.keep+48000*int(MaxPacket.Milliseconds())/1000)
	const beta = 5.65 // Kaiser: 60 dB
	cut := 0.5 / float64(max(a, b)) * 0.985
	for phase := range a {
		filter, sum := make([]float32, taps), 0.0
		for k := range taps {
			t := float64(k*a + phase - half) // distance from the middle; k counts back in time
			if math.Abs(t) > float64(half) {
				continue
			}
			w := 1.0
			if half > 0 {
				w = bessel(beta*math.Sqrt(1-t*t/float64(half*half))) / bessel(beta)
			}
			v := 2 * cut * w
			if t != 0 {
				v = math.Sin(2*math.Pi*cut*t) / (math.Pi * t) * w
			}
			filter[taps-1-k] = float32(v)
			sum += v
		}
		for k := range filter {
			filter[k] /= float32(sum) // each phase passes a constant unchanged
		}
		r.phases = append(r.phases, filter)
	}
	return r, nil
}

// bessel is the modified Bessel function of the first kind and order zero.
func bessel(x float64) float64 {
	sum, term := 1.0, 1.0
	for k := 1.0; term > 1e-10*sum; k++ {
		term *= x * x / (4 * k * k)
		sum += term
	}
	return sum
}

// Convert writes the converted sound of in, at most 120 ms, to out and returns its length.
func (r *Resampler) Convert(in, out []int16) (int, error) {
	n := len(in) * r.up / r.down
	if len(in)%r.down != 0 || r.keep+len(in) > cap(r.line) {
		return 0, fmt.Errorf("audio: cannot convert %d samples at once", len(in))
	}
	if len(out) < n {
		return 0, ErrBuffer
	}
	line := r.line[:r.keep]
	for _, x := range in {
		line = append(line, float32(x))
	}
	for i := range n {
		at := i * r.down
		filter := r.phases[at%r.up]
		window := line[at/r.up:][:len(filter)]
		window = window[:len(filter)]
		var v, v1, v2, v3 float32 // apart, because each sum waits for the one before
		k := 0
		for ; k+3 < len(filter); k += 4 {
			v += filter[k] * window[k]
			v1 += filter[k+1] * window[k+1]
			v2 += filter[k+2] * window[k+2]
			v3 += filter[k+3] * window[k+3]
		}
		for ; k < len(filter); k++ {
			v += filter[k] * window[k]
		}
		v += v1 + v2 + v3
		out[i] = int16(math.RoundToEven(float64(max(-32768, min(32767, v)))))
	}
	copy(r.line[:r.keep], line[len(line)-r.keep:])
	return n, nil
}
