package phones

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// A Sound is mono PCM, from -1 to 1.
type Sound struct {
	Rate    int
	Samples []float64
}

// Length is how long the sound lasts.
func (s Sound) Length() time.Duration { return s.span(len(s.Samples)) }

func (s Sound) span(samples int) time.Duration {
	if s.Rate == 0 {
		return 0
	}
	return time.Duration(samples) * time.Second / time.Duration(s.Rate)
}

// Cut returns the part that begins at from and lasts for d, or what there is of it.
func (s Sound) Cut(from, d time.Duration) Sound {
	at := func(t time.Duration) int {
		n := int(t * time.Duration(s.Rate) / time.Second)
		return min(max(n, 0), len(s.Samples))
	}
	return Sound{s.Rate, s.Samples[at(from):at(from+d)]}
}

// Last returns the last d of the sound.
func (s Sound) Last(d time.Duration) Sound { return s.Cut(s.Length()-d, d) }

// Tone is a sine at half of full scale.
func Tone(hz float64, d time.Duration) Sound {
	const rate = 48_000
	s := Sound{rate, make([]float64, int(d*rate/time.Second))}
	for i := range s.Samples {
		s.Samples[i] = 0.5 * math.Sin(2*math.Pi*hz*float64(i)/rate)
	}
	return s
}

// Speech sounds like somebody talking as far as codecs and voice detectors are
// concerned: syllables of a buzzing voice with vowels that change, and pauses.
// Another seed says something else.
func Speech(seed uint64, d time.Duration) Sound {
	const rate = 48_000
	vowels := [][3]float64{{730, 1090, 2440}, {270, 2290, 3010}, {570, 840, 2410}, {300, 870, 2240}, {530, 1840, 2480}}
	random := rand.New(rand.NewPCG(seed, 1))
	between := func(lo, hi float64) float64 { return lo + (hi-lo)*random.Float64() }
	s := Sound{rate, make([]float64, int(d*rate/time.Second))}
	phase := 0.0
	for at := rate / 5; at < len(s.Samples); {
		length := int(between(0.08, 0.30) * rate)
		vowel, loud, pitch := vowels[random.IntN(len(vowels))], between(0.3, 1), between(110, 180)
		var harmonics []float64
		for h := 1; float64(h)*pitch < 3400; h++ {
			gain := 0.0
			for n, formant := range vowel {
				gain += math.Exp(-math.Pow((float64(h)*pitch-formant)/120, 2)) / float64(n+1)
			}
			harmonics = append(harmonics, gain)
		}
		for i := range min(length, len(s.Samples)-at) {
			edge := min(float64(i), float64(length-i)) / (0.03 * rate)
			phase += pitch / rate
			sum := 0.0
			for h, gain := range harmonics {
				if gain > 0.001 {
					sum += gain * math.Sin(2*math.Pi*float64(h+1)*phase)
				}
			}
			s.Samples[at+i] = 0.2 * loud * min(1, edge) * sum
		}
		at += length + int(between(0.02, 0.08)*rate)
		if random.IntN(5) == 0 {
			at += int(between(0.2, 0.6) * rate)
		}
	}
	return s
}

// Clicks is a train of short bursts, one each interval, for measuring delay.
func Clicks(every, d time.Duration) Sound {
	s := Tone(1000, d)
	period := int(every * time.Duration(s.Rate) / time.Second)
	for i := range s.Samples {
		if i%period >= s.Rate/50 { // 20 ms
			s.Samples[i] = 0
		}
	}
	return s
}

// Power is the sound's root mean square.
func (s Sound) Power() float64 {
	sum := 0.0
	for _, v := range s.Samples {
		sum += v * v
	}
	return math.Sqrt(sum / float64(max(1, len(s.Samples))))
}

// Level is the amplitude of the frequency hz in the sound (Goertzel's
// algorithm over a Hann window).
func (s Sound) Level(hz float64) float64 {
	n := len(s.Samples)
	if n == 0 {
		return 0
	}
	w := 2 * math.Pi * hz / float64(s.Rate)
	coefficient := 2 * math.Cos(w)
	var s1, s2, weight float64
	for i, v := range s.Samples {
		hann := 0.5 - 0.5*math.Cos(2*math.Pi*(float64(i)+0.5)/float64(n))
		weight += hann
		s1, s2 = v*hann+coefficient*s1-s2, s1
	}
	power := s1*s1 + s2*s2 - coefficient*s1*s2
	return 2 * math.Sqrt(max(0, power)) / weight
}

// Frequency is the strongest frequency between 100 and 3800 Hz.
func (s Sound) Frequency() float64 {
	s = s.telephone()
	rough, fine := s.Last(100*time.Millisecond), s.Last(time.Second)
	best := strongest(rough, 100, 3800, 5)
	return strongest(fine, best-10, best+10, 0.5)
}

func strongest(s Sound, lo, hi, step float64) float64 {
	best, level := 0.0, 0.0
	for hz := lo; hz <= hi; hz += step {
		if l := s.Level(hz); l > level {
			best, level = hz, l
		}
	}
	return best
}

// telephone is the sound at 8 kHz, for measures that are slow at 48.
func (s Sound) telephone() Sound {
	factor := s.Rate / 8000
	if factor < 2 || s.Rate%8000 != 0 {
		return s
	}
	out := Sound{8000, make([]float64, len(s.Samples)/factor)}
	for i := range out.Samples {
		for _, v := range s.Samples[i*factor : (i+1)*factor] {
			out.Samples[i] += v / float64(factor)
		}
	}
	return out
}

const (
	window = 20 * time.Millisecond
	hop    = 5 * time.Millisecond
)

// levels is the level of hz in each window of the sound.
func (s Sound) levels(hz float64) []float64 {
	s = s.telephone()
	var all []float64
	for at := time.Duration(0); at+window <= s.Length(); at += hop {
		all = append(all, s.Cut(at, window).Level(hz))
	}
	return all
}

// Gap is the longest time for which a tone that should not stop is missing,
// that is 12 dB below what it usually is. A tone that is never there is missing
// all the time.
func (s Sound) Gap(hz float64) time.Duration {
	levels := s.levels(hz)
	if len(levels) == 0 {
		return s.Length()
	}
	usual := slices.Sorted(slices.Values(levels))[len(levels)/2]
	if usual < 0.01 {
		return s.Length()
	}
	longest, run := 0, 0
	for _, l := range levels {
		if run++; l > usual/4 {
			run = 0
		}
		longest = max(longest, run)
	}
	if longest == 0 {
		return 0
	}
	// A window that lies half in a gap is not yet 12 dB down: the gap is longer
	// than the run by what a window sees of the tone at both ends.
	return time.Duration(longest)*hop + window/2
}

// Envelope is the sound's power in steps of 20 ms.
func (s Sound) Envelope() []float64 {
	step := s.Rate / 50
	var all []float64
	for at := 0; at+step <= len(s.Samples); at += step {
		all = append(all, Sound{s.Rate, s.Samples[at : at+step]}.Power())
	}
	return all
}

// Resembles says how alike the envelopes of two sounds are (1: the same course,
// 0: nothing to do with each other), and where in said heard begins. All of
// heard is compared; said must contain it.
func Resembles(said, heard Sound) (correlation float64, at time.Duration) {
	b := heard.Envelope()
	best := -1.0
	for shift := time.Duration(0); shift < 20*time.Millisecond; shift += 5 * time.Millisecond {
		a := said.Cut(shift, said.Length()).Envelope()
		for offset := 0; offset+len(b) <= len(a); offset++ {
			if c := correlate(a[offset:offset+len(b)], b); c > best {
				best, at = c, shift+time.Duration(offset)*20*time.Millisecond
			}
		}
	}
	return best, at
}

func correlate(a, b []float64) float64 {
	n := float64(len(a))
	var sa, sb float64
	for i := range a {
		sa += a[i]
		sb += b[i]
	}
	var ab, aa, bb float64
	for i := range a {
		x, y := a[i]-sa/n, b[i]-sb/n
		ab += x * y
		aa += x * x
		bb += y * y
	}
	if aa == 0 || bb == 0 {
		return 0
	}
	return ab / math.Sqrt(aa*bb)
}

// HasTone reports why the sound is not a steady tone of hz: too quiet, another
// frequency, or missing for more than 40 ms.
func (s Sound) HasTone(hz float64) error {
	if s.Length() < time.Second {
		return fmt.Errorf("only %s of sound", s.Length())
	}
	var errs []error
	if level := s.Level(hz); level < 0.02 {
		errs = append(errs, fmt.Errorf("%.0f Hz has a level of %.4f", hz, level))
	}
	if got := s.Frequency(); math.Abs(got-hz) > 0.02*hz {
		errs = append(errs, fmt.Errorf("the strongest frequency is %.0f Hz, not %.0f", got, hz))
	}
	if gap := s.Gap(hz); gap > 40*time.Millisecond {
		errs = append(errs, fmt.Errorf("%.0f Hz is missing for %s", hz, gap))
	}
	return errors.Join(errs...)
}

// HasTones reports why not exactly the tones of wanted, and none of others, are
// in the sound.
func (s Sound) HasTones(wanted, others []float64) error {
	if s.Length() < time.Second {
		return fmt.Errorf("only %s of sound", s.Length())
	}
	var errs []error
	quietest := 1.0
	for _, hz := range wanted {
		level := s.Level(hz)
		quietest = min(quietest, level)
		if level < 0.01 {
			errs = append(errs, fmt.Errorf("%.0f Hz has a level of %.4f", hz, level))
		}
		if gap := s.Gap(hz); gap > 40*time.Millisecond {
			errs = append(errs, fmt.Errorf("%.0f Hz is missing for %s", hz, gap))
		}
	}
	for _, hz := range others {
		if level := s.Level(hz); level > quietest/10 {
			errs = append(errs, fmt.Errorf("%.0f Hz is there too, at %.4f", hz, level))
		}
	}
	return errors.Join(errs...)
}

// WriteWAV writes the sound as 16-bit PCM.
func (s Sound) WriteWAV(path string) error {
	size := 2 * len(s.Samples)
	b := make([]byte, 0, 44+size)
	b = append(b, "RIFF"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(36+size))
	b = append(b, "WAVEfmt "...)
	b = binary.LittleEndian.AppendUint32(b, 16)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint16(b, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Rate))
	b = binary.LittleEndian.AppendUint32(b, uint32(2*s.Rate))
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 16)
	b = append(b, "data"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	for _, v := range s.Samples {
		b = binary.LittleEndian.AppendUint16(b, uint16(int16(math.Round(32767*min(1, max(-1, v))))))
	}
	return os.WriteFile(path, b, 0o644)
}

// ReadWAV reads 16-bit PCM, the first channel. The file may still be growing:
// what its header says of its size is not believed.
func ReadWAV(path string) (Sound, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Sound{}, err
	}
	if len(b) < 12 || string(b[:4]) != "RIFF" || string(b[8:12]) != "WAVE" {
		return Sound{}, fmt.Errorf("%s is no WAV file", path)
	}
	var s Sound
	channels := 1
	for at := 12; at+8 <= len(b); {
		id, size := string(b[at:at+4]), int(binary.LittleEndian.Uint32(b[at+4:]))
		body := b[at+8:]
		switch id {
		case "fmt ":
			if len(body) < 16 || binary.LittleEndian.Uint16(body[14:]) != 16 {
				return Sound{}, fmt.Errorf("%s is not of 16 bits", path)
			}
			channels = int(binary.LittleEndian.Uint16(body[2:]))
			s.Rate = int(binary.LittleEndian.Uint32(body[4:]))
		case "data":
			step := 2 * channels
			for ; len(body) >= step; body = body[step:] {
				s.Samples = append(s.Samples, float64(int16(binary.LittleEndian.Uint16(body)))/32768)
			}
			return s, nil
		}
		at += 8 + size + size%2
	}
	return s, nil
}
