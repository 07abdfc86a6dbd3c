package audio

import (
	"math"
	"math/rand/v2"
)

// sine returns n samples of a tone; amplitude 1 is full scale.
func sine(rate int, hz, amplitude float64, n int) []int16 {
	pcm := make([]int16, n)
	for i := range pcm {
		pcm[i] = int16(math.Round(32767 * amplitude * math.Sin(2*math.Pi*hz*float64(i)/float64(rate))))
	}
	return pcm
}

// speech returns n samples that behave like voiced speech: a buzz of harmonics under
// formants, in syllables with pauses. It is not pretty, but it has pitch, onsets and
// a spectrum that falls.
func speech(rate, n int, seed uint64) []int16 {
	rnd := rand.New(rand.NewPCG(seed, 1))
	if longest := 2 * rate; n > longest { // more of it is slow to make
		pcm := speech(rate, longest, seed)
		for len(pcm) < n {
			pcm = append(pcm, pcm[:min(longest, n-len(pcm))]...)
		}
		return pcm
	}
	pcm := make([]int16, n)
	phase, f0 := 0.0, 120.0
	for i := range pcm {
		t := float64(i) / float64(rate)
		if i%(rate/4) == 0 {
			f0 = 100 + 60*rnd.Float64()
		}
		phase += 2 * math.Pi * f0 * (1 + 0.03*math.Sin(7*t)) / float64(rate)
		envelope := max(0, math.Sin(2*math.Pi*2.3*t))
		var v float64
		for h := 1; float64(h)*f0 < 3200; h++ {
			f := float64(h) * f0
			formants := 1/(1+math.Pow((f-600)/150, 2)) + 0.5/(1+math.Pow((f-1700)/250, 2)) + 0.02
			v += formants * math.Sin(float64(h)*phase)
		}
		pcm[i] = int16(5000*envelope*v + 4*rnd.NormFloat64())
	}
	return pcm
}

// fit returns how strong the part of got that follows want is (in dB, 0 is unchanged)
// and the ratio of that part to the rest (in dB).
func fit(want, got []int16) (gain, snr float64) {
	var wg, ww, gg float64
	for i := range want {
		w, g := float64(want[i]), float64(got[i])
		wg, ww, gg = wg+w*g, ww+w*w, gg+g*g
	}
	a := wg / ww
	rest := max(gg-a*wg, 1e-9)
	return 20 * math.Log10(math.Abs(a)), 10 * math.Log10(a*wg/rest)
}

// tonePart returns the amplitude of hz in pcm, 1 being full scale, and all the rest as
// a ratio in dB.
func tonePart(pcm []int16, rate int, hz float64) (amplitude, snr float64) {
	var re, im, all float64
	for i, x := range pcm {
		w := 2 * math.Pi * hz * float64(i) / float64(rate)
		v := float64(x) / 32768
		re, im, all = re+v*math.Cos(w), im+v*math.Sin(w), all+v*v
	}
	n := float64(len(pcm))
	amplitude = 2 * math.Hypot(re, im) / n
	power := amplitude * amplitude / 2
	return amplitude, 10 * math.Log10(power/max(all/n-power, 1e-12))
}

func rms(pcm []int16) float64 {
	var sum float64
	for _, x := range pcm {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum / float64(max(len(pcm), 1)))
}
