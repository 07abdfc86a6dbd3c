package opus

import (
	"errors"
	"math"
	"testing"
)

// tone is a frame of a tone with a harmonic, as a voice would have it.
func tone(rate, frame int) []int16 {
	pcm := make([]int16, rate/50)
	for i := range pcm {
		t := float64(frame*len(pcm)+i) / float64(rate)
		pcm[i] = int16(8000*math.Sin(2*math.Pi*300*t) + 3000*math.Sin(2*math.Pi*600*t))
	}
	return pcm
}

// match returns the signal-to-noise ratio in dB at the best delay up to 30 ms.
func match(want, got []int16, rate int) float64 {
	best := math.Inf(-1)
	for delay := range rate * 30 / 1000 {
		var wg, ww, gg float64
		for i := rate / 10; i+delay < len(got); i++ {
			w, g := float64(want[i]), float64(got[i+delay])
			wg, ww, gg = wg+w*g, ww+w*w, gg+g*g
		}
		if wg > 0 {
			a := wg / ww
			best = max(best, 10*math.Log10(a*wg/math.Max(gg-a*wg, 1e-9)))
		}
	}
	return best
}

func TestEveryRateToEveryRate(t *testing.T) {
	for _, from := range []int{8000, 16000, 48000} {
		for _, to := range []int{8000, 16000, 48000} {
			enc, err := NewEncoder(DefaultConfig(from))
			if err != nil {
				t.Fatal(err)
			}
			dec, err := NewDecoder(to)
			if err != nil {
				t.Fatal(err)
			}
			packet, frame := make([]byte, MaxPayload), make([]int16, to*120/1000)
			var want, got []int16
			for i := range 25 {
				n, err := enc.Encode(tone(from, i), packet)
				if err != nil {
					t.Fatal(err)
				}
				if Samples(packet[:n], to) != to/50 {
					t.Fatalf("the packet is %d samples long at %d Hz", Samples(packet[:n], to), to)
				}
				if n, err = dec.Decode(packet[:n], frame); err != nil || n != to/50 {
					t.Fatalf("%d samples, %v", n, err)
				}
				want, got = append(want, tone(to, i)...), append(got, frame[:n]...)
			}
			if snr := match(want, got, to); snr < 12 {
				t.Errorf("%d -> %d: SNR %.1f dB", from, to, snr)
			}
		}
	}
}

func TestConcealAndSilence(t *testing.T) {
	enc, _ := NewEncoder(DefaultConfig(16000))
	dec, _ := NewDecoder(16000)
	packet, frame := make([]byte, MaxPayload), make([]int16, 16000*120/1000)
	for i := range 20 {
		n, err := enc.Encode(tone(16000, i), packet)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dec.Decode(packet[:n], frame); err != nil {
			t.Fatal(err)
		}
	}
	energy := func(pcm []int16) (sum float64) {
		for _, x := range pcm {
			sum += float64(x) * float64(x)
		}
		return math.Sqrt(sum / float64(len(pcm)))
	}
	lost := make([]int16, 320)
	if err := dec.Conceal(lost); err != nil || energy(lost) < 2000 {
		t.Errorf("a lost frame has an RMS of %.0f, %v", energy(lost), err)
	}
	if err := dec.Conceal(make([]int16, 50)); err != nil { // less than a frame
		t.Error(err)
	}
	small := 0
	for range 100 {
		n, err := enc.Encode(make([]int16, 320), packet)
		if err != nil {
			t.Fatal(err)
		}
		if n <= 2 {
			small++
		}
	}
	if small < 70 {
		t.Errorf("only %d of 100 silent frames cost nothing", small)
	}
	if _, err := enc.Encode(make([]int16, 100), packet); err == nil {
		t.Error("a frame of 100 samples is accepted")
	}
	if _, err := NewDecoder(44100); err == nil {
		t.Error("44100 Hz is accepted")
	}
}

func TestSamples(t *testing.T) {
	for _, c := range []struct {
		name   string
		packet []byte
		want   int
	}{
		{"nothing", nil, 0},
		{"SILK, 60 ms", []byte{3 << 3}, 2880},
		{"hybrid, 10 ms", []byte{12 << 3}, 480},
		{"CELT, two of 2.5 ms", []byte{16<<3 | 1, 0}, 240},
		{"CELT, six of 20 ms", []byte{31<<3 | 3, 6}, 5760},
		{"seven of 20 ms are too long", []byte{31<<3 | 3, 7}, 0},
		{"a count of nothing", []byte{31<<3 | 3, 0}, 0},
		{"a missing count", []byte{31<<3 | 3}, 0},
	} {
		if got := Samples(c.packet, 48000); got != c.want {
			t.Errorf("%s: %d samples, want %d", c.name, got, c.want)
		}
	}
	dec, _ := NewDecoder(8000)
	if _, err := dec.Decode([]byte{31<<3 | 3, 7}, make([]int16, 960)); !errors.Is(err, ErrPayload) {
		t.Errorf("140 ms of sound: %v", err)
	}
}

// TestRecover: the next packet's copy of a lost frame is nearer to it than a guess.
func TestRecover(t *testing.T) {
	c := DefaultConfig(16000)
	c.Bitrate, c.LossPercent = 32000, 30
	enc, err := NewEncoder(c)
	if err != nil {
		t.Fatal(err)
	}
	decoders := make([]*Decoder, 3)
	for i := range decoders {
		if decoders[i], err = NewDecoder(16000); err != nil {
			t.Fatal(err)
		}
	}
	whole, guess, copied := decoders[0], decoders[1], decoders[2]
	packets := make([][]byte, 60)
	for i := range packets {
		// A voice that goes up and down: hard to guess.
		pcm := make([]int16, 320)
		for k := range pcm {
			at := float64(i*320+k) / 16000
			pcm[k] = int16((6000 + 4000*math.Sin(2*math.Pi*9*at)) * math.Sin(2*math.Pi*220*at+25*math.Sin(2*math.Pi*3*at)))
		}
		out := make([]byte, MaxPayload)
		n, err := enc.Encode(pcm, out)
		if err != nil {
			t.Fatal(err)
		}
		packets[i] = out[:n]
	}
	var byGuess, byCopy float64
	a, b := make([]int16, 1920), make([]int16, 1920)
	far := func() (sum float64) {
		for i := range 320 {
			d := float64(a[i]) - float64(b[i])
			sum += d * d
		}
		return sum
	}
	for i, p := range packets {
		if _, err := whole.Decode(p, a); err != nil {
			t.Fatal(err)
		}
		if i%5 != 4 || i+1 == len(packets) {
			for _, d := range decoders[1:] {
				if _, err := d.Decode(p, b); err != nil {
					t.Fatal(err)
				}
			}
			continue
		}
		if err := guess.Conceal(b[:320]); err != nil {
			t.Fatal(err)
		}
		byGuess += far()
		if err := copied.Recover(packets[i+1], b[:320]); err != nil {
			t.Fatal(err)
		}
		byCopy += far()
	}
	if byCopy > byGuess/2 {
		t.Errorf("the copy is off by %.3g, the guess by %.3g", byCopy, byGuess)
	}
	if err := copied.Recover([]byte{0xfc, 1, 2, 3}, b[:320]); err != nil { // no such copy in it
		t.Error(err)
	}
	if err := copied.Recover(nil, b[:320]); err != nil {
		t.Error(err)
	}
}
