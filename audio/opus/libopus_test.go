//go:build libopus && cgo

package opus

import (
	"math"
	"testing"
)

// TestDecodesAsLibopusDoes compares with the reference implementation on the same
// packets. Without DTX: what is played in its gaps is noise, each decoder's own.
func TestDecodesAsLibopusDoes(t *testing.T) {
	for _, rate := range []int{8000, 16000, 48000} {
		config := DefaultConfig(rate)
		config.DTX = false
		enc, err := NewEncoder(config)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := NewDecoder(rate)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := newLibopus(rate)
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.close()
		packet, a, b := make([]byte, MaxPayload), make([]int16, rate*120/1000), make([]int16, rate*120/1000)
		var signal, noise float64
		for i := range 200 {
			n, err := enc.Encode(tone(rate, i), packet)
			if err != nil {
				t.Fatal(err)
			}
			na, err := ours.Decode(packet[:n], a)
			if err != nil {
				t.Fatal(err)
			}
			nb, err := theirs.decode(packet[:n], b)
			if err != nil || na != nb {
				t.Fatalf("%d and %d samples, %v", na, nb, err)
			}
			for k := range na {
				d := float64(a[k]) - float64(b[k])
				signal += float64(b[k]) * float64(b[k])
				noise += d * d
			}
		}
		if snr := 10 * math.Log10(signal/math.Max(noise, 1e-9)); snr < 80 {
			t.Errorf("at %d Hz the decoders differ: SNR %.1f dB", rate, snr)
		}
	}
}
