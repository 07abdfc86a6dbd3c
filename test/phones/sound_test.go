package phones

import (
	"math"
	"path/filepath"
	"testing"
	"time"
)

// silence makes a hole in a sound.
func silence(s Sound, at, d time.Duration) Sound {
	hole := s.Cut(at, d).Samples
	for i := range hole {
		hole[i] = 0
	}
	return s
}

func TestGap(t *testing.T) {
	for _, hz := range []float64{440, 1000, 2100} {
		for _, hole := range []time.Duration{0, 20, 30, 60, 100, 500} {
			hole *= time.Millisecond
			got := silence(Tone(hz, 3*time.Second), 1234*time.Millisecond, hole).Gap(hz)
			if got < hole-15*time.Millisecond || got > hole+10*time.Millisecond {
				t.Errorf("a hole of %s in %.0f Hz is measured as %s", hole, hz, got)
			}
		}
	}
	if got := Tone(440, time.Second).Gap(1000); got != time.Second {
		t.Errorf("a tone that is not there is missing for %s of 1 s", got)
	}
}

func TestTone(t *testing.T) {
	s := Tone(440, 2*time.Second)
	if err := s.HasTone(440); err != nil {
		t.Errorf("440 Hz: %v", err)
	}
	if got := s.Frequency(); math.Abs(got-440) > 2 {
		t.Errorf("440 Hz is measured as %.1f", got)
	}
	for name, s := range map[string]Sound{
		"silence":         {8000, make([]float64, 16000)},
		"another tone":    Tone(470, 2*time.Second),
		"too short":       Tone(440, time.Second/2),
		"nothing":         {},
		"with a hole":     silence(Tone(440, 2*time.Second), time.Second, 60*time.Millisecond),
		"as good as none": {48000, make([]float64, 96000)},
	} {
		if s.HasTone(440) == nil {
			t.Errorf("%s passes for 440 Hz", name)
		}
	}
	both := Tone(440, 2*time.Second)
	for i, v := range Tone(1000, 2*time.Second).Samples {
		both.Samples[i] = (both.Samples[i] + v) / 2
	}
	if err := both.HasTones([]float64{440, 1000}, []float64{700, 1480}); err != nil {
		t.Errorf("two tones: %v", err)
	}
	if both.HasTones([]float64{440}, []float64{1000}) == nil {
		t.Error("a tone too many is not noticed")
	}
	if both.HasTones([]float64{440, 700}, nil) == nil {
		t.Error("a missing tone is not noticed")
	}
}

func TestResembles(t *testing.T) {
	said := Speech(1, 8*time.Second)
	heard := said.Cut(1500*time.Millisecond, 5*time.Second)
	if got, at := Resembles(said, heard); got < 0.99 || at != 1500*time.Millisecond {
		t.Errorf("the same words have a correlation of %.2f, at %s", got, at)
	}
	if got, _ := Resembles(Speech(2, 8*time.Second), heard); got > 0.7 {
		t.Errorf("other words have a correlation of %.2f", got)
	}
	if got, _ := Resembles(said, Tone(440, 5*time.Second)); got > 0.5 {
		t.Errorf("a tone has a correlation of %.2f with speech", got)
	}
}

func TestWAV(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.wav")
	if err := Tone(880, time.Second).WriteWAV(path); err != nil {
		t.Fatal(err)
	}
	s, err := ReadWAV(path)
	if err != nil || s.Length() != time.Second || math.Abs(s.Frequency()-880) > 2 {
		t.Errorf("a WAV of one second came back with %s, %.0f Hz, %v", s.Length(), s.Frequency(), err)
	}
}
