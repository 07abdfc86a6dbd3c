package audio

import (
	"fmt"
	"math"
	"testing"
)

func convert(t testing.TB, from, to int, in []int16) []int16 {
	t.Helper()
	r, err := NewResampler(from, to)
	if err != nil {
		t.Fatal(err)
	}
	out, frame := []int16(nil), make([]int16, FrameSamples(to))
	for at := 0; at+from/50 <= len(in); at += from / 50 {
		n, err := r.Convert(in[at:at+from/50], frame)
		if err != nil || n != len(frame) {
			t.Fatalf("%d samples, %v", n, err)
		}
		out = append(out, frame...)
	}
	return out
}

func TestResampler(t *testing.T) {
	for _, from := range []int{8000, 16000, 48000} {
		for _, to := range []int{8000, 16000, 48000} {
			if from == to {
				continue
			}
			low := min(from, to)
			ripple, alias := 0.0, -200.0
			for f := 0.02; f < 0.421; f += 0.02 {
				hz := math.Round(f * float64(low))
				out := convert(t, from, to, sine(from, hz, 0.5, from))
				amplitude, snr := tonePart(out[to/10:to/10*9], to, hz)
				ripple = max(ripple, math.Abs(20*math.Log10(amplitude/0.5)))
				alias = max(alias, -snr)
			}
			stop := -200.0
			if from > to {
				for f := 0.58; f < 0.99; f += 0.05 {
					out := convert(t, from, to, sine(from, f*float64(low), 0.5, from))
					stop = max(stop, 20*math.Log10(rms(out[to/10:])/(0.5*32767/math.Sqrt2)))
				}
			}
			t.Logf("%5d -> %5d: ripple %.3f dB, images and noise %.1f dB, stop band %.1f dB", from, to, ripple, alias, stop)
			if ripple > 0.1 || alias > -55 || stop > -55 {
				t.Errorf("%d -> %d: ripple %.3f dB, images %.1f dB, stop band %.1f dB", from, to, ripple, alias, stop)
			}
			// An impulse says how late sound comes.
			in := make([]int16, from/5)
			in[from/10] = 20000
			peak, out := 0, convert(t, from, to, in)
			for i, x := range out {
				if x > out[peak] {
					peak = i
				}
			}
			if want := to/10 + resampleReach*to/low; peak != want {
				t.Errorf("%d -> %d: an impulse comes out at %d, want %d", from, to, peak, want)
			}
		}
	}
	if _, err := NewResampler(44100, 8000); err == nil {
		t.Error("44100 Hz is accepted")
	}
	same := sine(8000, 440, 0.5, 160)
	if out := convert(t, 8000, 8000, same); out[100] != same[100] {
		t.Error("no conversion changes sound")
	}
}

func BenchmarkResampler(b *testing.B) {
	for _, c := range [][2]int{{8000, 48000}, {48000, 8000}, {16000, 48000}, {8000, 16000}} {
		b.Run(fmt.Sprint(c[0], "-", c[1]), func(b *testing.B) {
			r, _ := NewResampler(c[0], c[1])
			in, out := sine(c[0], 440, 0.5, c[0]/50), make([]int16, c[1]/50)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Convert(in, out); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
