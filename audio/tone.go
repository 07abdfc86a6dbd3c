package audio

import (
	"math"
	"strings"
	"time"
)

// Rows and columns of the DTMF keypad in Hz (ITU-T Q.23), and what is on it.
var (
	dtmfLow  = [4]float64{697, 770, 852, 941}
	dtmfHigh = [4]float64{1209, 1336, 1477, 1633}
)

const keypad = "123A456B789C*0#D"

// Tone is a sound of up to two frequencies, on and off again.
type Tone struct {
	Hz      [2]float64    // zero if there is no second
	Level   float64       // of each, in dBov of a sine's RMS; about -16
	On, Off time.Duration // Off zero: On is repeated without a pause
}

// The tones of ITU-T E.180 as most of Europe has them.
var (
	Ringback   = Tone{Hz: [2]float64{425}, Level: -19, On: time.Second, Off: 4 * time.Second}
	Busy       = Tone{Hz: [2]float64{425}, Level: -19, On: 480 * time.Millisecond, Off: 480 * time.Millisecond}
	Congestion = Tone{Hz: [2]float64{425}, Level: -19, On: 240 * time.Millisecond, Off: 240 * time.Millisecond}

	// The tones of North America.
	RingbackUS = Tone{Hz: [2]float64{440, 480}, Level: -19, On: 2 * time.Second, Off: 4 * time.Second}
	BusyUS     = Tone{Hz: [2]float64{480, 620}, Level: -21, On: 500 * time.Millisecond, Off: 500 * time.Millisecond}
)

// DTMF returns the sound of a digit, or false if there is none.
func DTMF(digit byte) (Tone, bool) {
	at := strings.IndexByte(keypad, digit)
	if at < 0 {
		return Tone{}, false
	}
	hz := [2]float64{dtmfLow[at/4], dtmfHigh[at%4]}
	return Tone{Hz: hz, Level: -14, On: 100 * time.Millisecond, Off: 60 * time.Millisecond}, true
}

// Player plays a Tone at a sample rate, again and again.
type Player struct {
	step      [2]float64
	amplitude float64
	on, cycle int
	ramp      int // samples over which the tone comes and goes, so that it does not click
	at        int
	phase     [2]float64
}

// NewPlayer returns a player at the beginning of t.
func NewPlayer(t Tone, rate int) *Player {
	p := &Player{amplitude: 32768 * math.Sqrt2 * math.Pow(10, t.Level/20), ramp: rate * 5 / 1000}
	for i, hz := range t.Hz {
		p.step[i] = 2 * math.Pi * hz / float64(rate)
	}
	p.on = int(t.On.Seconds() * float64(rate))
	p.cycle = max(1, p.on+int(t.Off.Seconds()*float64(rate)))
	return p
}

// Fill writes the next part of the tone into pcm.
func (p *Player) Fill(pcm []int16) {
	for i := range pcm {
		pcm[i] = 0
		if p.at < p.on {
			v := 0.0
			for k, step := range p.step {
				if step > 0 {
					v += math.Sin(p.phase[k])
					p.phase[k] = math.Mod(p.phase[k]+step, 2*math.Pi)
				}
			}
			if p.cycle > p.on { // else there is nothing to fade to
				v *= min(1, float64(min(p.at, p.on-p.at))/float64(p.ramp))
			}
			pcm[i] = int16(max(-32768, min(32767, p.amplitude*v)))
		}
		p.at = (p.at + 1) % p.cycle
	}
}

// Detector finds DTMF digits in sound, for telephones that send no events. It looks at
// blocks of 12.75 ms with the Goertzel algorithm. A digit needs two blocks in a row
// (so that 40 ms are always enough, ITU-T Q.24) in which two tones of the keypad hold
// nearly all energy, neither much louder than the other, without the harmonics that
// speech has.
type Detector struct {
	size  int
	coeff [16]float64 // rows, columns and the second harmonics of both
	block []float64
	last  byte // found in the last block
	down  byte // the digit that sounds
	gone  int  // blocks since it was last heard
}

// NewDetector returns a detector for sound at rate.
func NewDetector(rate int) *Detector {
	d := &Detector{size: rate * 102 / 8000}
	d.block = make([]float64, 0, d.size)
	for i := range 4 {
		for k, hz := range [4]float64{dtmfLow[i], dtmfHigh[i], 2 * dtmfLow[i], 2 * dtmfHigh[i]} {
			d.coeff[4*k+i] = 2 * math.Cos(2*math.Pi*hz/float64(rate))
		}
	}
	return d
}

// Push takes sound and calls found for each digit that begins in it.
func (d *Detector) Push(pcm []int16, found func(digit byte)) {
	for _, x := range pcm {
		if d.block = append(d.block, float64(x)/32768); len(d.block) < d.size {
			continue
		}
		digit := d.look()
		d.block = d.block[:0]
		switch {
		case digit != 0 && digit == d.down:
			d.gone = 0
		case d.down != 0:
			if d.gone++; d.gone >= 2 { // a digit ends after 25 ms without it
				d.down = 0
			}
		}
		if digit != 0 && digit == d.last && d.down == 0 {
			d.down, d.gone = digit, 0
			found(digit)
		}
		d.last = digit
	}
}

// look returns the digit in the block, or zero.
func (d *Detector) look() byte {
	total := 0.0
	for _, x := range d.block {
		total += x * x
	}
	n := float64(d.size)
	if total/n < 1e-4/4 { // below -46 dBov
		return 0
	}
	row, col := d.strongest(0), d.strongest(4)
	low, high := d.power(row), d.power(4+col)
	const (
		twist        = 6.3  // 8 dB: the high tone may lose that much on the line
		reverseTwist = 2.51 // 4 dB: the low tone may lose that much
		others       = 6.3  // 8 dB above the rest of the group
		harmonic     = 10   // 10 dB above the second harmonic
	)
	switch {
	case high > low*reverseTwist, low > high*twist:
		return 0
	case (low+high)*2/(n*total) < 0.82: // power(x) of a pure tone is n*total/2
		return 0
	case d.power(12+col)*harmonic > high:
		return 0
	case math.Abs(2*dtmfLow[row]-dtmfHigh[col]) > 100 && d.power(8+row)*harmonic > low:
		return 0 // nearer to the column than that, the block is too short to tell
	}
	for i := range 4 {
		if i != row && d.power(i)*others > low || i != col && d.power(4+i)*others > high {
			return 0
		}
	}
	return keypad[4*row+col]
}

// strongest returns which of four frequencies has most power.
func (d *Detector) strongest(from int) (best int) {
	most := -1.0
	for i := range 4 {
		if p := d.power(from + i); p > most {
			most, best = p, i
		}
	}
	return best
}

// power is the Goertzel algorithm.
func (d *Detector) power(k int) float64 {
	c := d.coeff[k]
	var s1, s2 float64
	for _, x := range d.block {
		s1, s2 = x+c*s1-s2, s1
	}
	return s1*s1 + s2*s2 - c*s1*s2
}
