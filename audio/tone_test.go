package audio

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

func detect(rate int, pcm []int16) (heard string) {
	d := NewDetector(rate)
	for at := 0; at < len(pcm); at += 160 {
		d.Push(pcm[at:min(at+160, len(pcm))], func(digit byte) { heard += string(digit) })
	}
	return heard
}

func TestDetectorHearsWhatWasDialled(t *testing.T) {
	const number = "0123456789*#ABCD1100"
	for _, rate := range []int{8000, 16000} {
		for _, on := range []time.Duration{50 * time.Millisecond, 100 * time.Millisecond, 700 * time.Millisecond} {
			for _, level := range []float64{-6, -14, -30} {
				rnd := rand.New(rand.NewPCG(3, 3))
				pcm := make([]int16, 37)
				for i := range number {
					tone, _ := DTMF(number[i])
					tone.On, tone.Level = on, level
					part := make([]int16, int((on+60*time.Millisecond).Seconds()*float64(rate)))
					NewPlayer(tone, rate).Fill(part)
					for k := range part { // 25 dB of noise below the tone, and G.711
						part[k] = ulawValues[EncodeULaw(int16(saturate(int32(part[k])+int32(rnd.NormFloat64()*32768*math.Pow(10, (level-25)/20)))))]
					}
					pcm = append(pcm, part...)
				}
				if got := detect(rate, pcm); got != number {
					t.Errorf("%d Hz, %v, %v dB: heard %q, want %q", rate, on, level, got, number)
				}
			}
		}
	}
}

func TestDetectorIsNotTalkedInto(t *testing.T) {
	sounds := map[string][]int16{
		"speech":       speech(8000, 40000, 21),
		"more speech":  speech(8000, 40000, 22),
		"one tone":     sine(8000, 770, 0.5, 16000),
		"silence":      make([]int16, 16000),
		"twist":        nil,
		"square waves": nil,
		"noise":        nil,
	}
	low, high := sine(8000, 770, 0.5, 16000), sine(8000, 1336, 0.05, 16000) // 20 dB
	rnd := rand.New(rand.NewPCG(9, 9))
	for i := range low {
		sounds["twist"] = append(sounds["twist"], low[i]+high[i])
		square := int16(0)
		for _, hz := range []float64{697, 1209} { // a voice has harmonics
			if math.Sin(2*math.Pi*hz*float64(i)/8000)+0.3 > 0 {
				square += 5000
			} else {
				square -= 5000
			}
		}
		sounds["square waves"] = append(sounds["square waves"], square)
		sounds["noise"] = append(sounds["noise"], int16(3000*rnd.NormFloat64()))
	}
	for name, pcm := range sounds {
		if got := detect(8000, pcm); got != "" {
			t.Errorf("%s: heard %q", name, got)
		}
	}
	short := sine(8000, 770, 0.2, 160)
	for i, x := range sine(8000, 1336, 0.2, 160) {
		short[i] += x
	}
	if got := detect(8000, append(short, make([]int16, 800)...)); got != "" {
		t.Errorf("20 ms of tones are %q; under 23 ms they must not count", got)
	}
}

func TestTones(t *testing.T) {
	pcm := make([]int16, 8000*5)
	p := NewPlayer(Ringback, 8000)
	for at := 0; at < len(pcm); at += 160 {
		p.Fill(pcm[at : at+160])
	}
	if level := Level(pcm[800:7200]); level != 19 {
		t.Errorf("ringback is -%d dBov loud", level)
	}
	if _, snr := tonePart(pcm[800:7200], 8000, 425); snr < 50 {
		t.Errorf("ringback is no pure 425 Hz: %.1f dB", snr)
	}
	if rms(pcm[8000:]) != 0 {
		t.Error("ringback does not pause for four seconds")
	}
	if _, ok := DTMF('E'); ok {
		t.Error("E is no digit")
	}
}

func TestComfortNoiseLevel(t *testing.T) {
	for _, level := range []uint8{20, 40, 60, 127} {
		var n Noise
		n.SetSID([]byte{level, 1, 2, 3})
		pcm := make([]int16, 8000)
		if n.Fill(pcm); math.Abs(float64(Level(pcm))-float64(level)) > 1 {
			t.Errorf("noise of -%d dBov is -%d dBov loud", level, Level(pcm))
		}
	}
}

func BenchmarkDetector(b *testing.B) {
	d, pcm := NewDetector(8000), speech(8000, 160, 1)
	b.ReportAllocs()
	for b.Loop() {
		d.Push(pcm, func(byte) {})
	}
}
