// Package opus is the seam to the Opus codec (RFC 6716): frames of 20 ms in and out,
// one channel, at the rate of the telephone. Browsers' 48 kHz stereo decodes straight
// to 8 or 16 kHz, which costs less than decoding and resampling.
package opus

import (
	"errors"
	"fmt"

	"github.com/thesyncim/gopus"
)

// MaxPayload is as long as a packet of one frame may be (RFC 6716 §3.4 R2).
const MaxPayload = 1275

// ErrPayload means that bytes from outside are no Opus packet.
var ErrPayload = errors.New("opus: malformed packet")

// ErrPanic means that the codec itself failed. Whoever gets it should go on with a new
// Encoder or Decoder.
var ErrPanic = errors.New("opus: the codec panicked")

// Config says how an Encoder encodes.
type Config struct {
	Rate       int // samples per second: 8000, 16000 or 48000
	Bitrate    int // bits per second
	Complexity int // 0 to 10
	// DTX sends almost nothing in silence.
	DTX bool
	// LossPercent above zero adds in-band error correction for that much loss.
	LossPercent int
}

// DefaultConfig returns what suits a telephone of this rate.
func DefaultConfig(rate int) Config {
	c := Config{Rate: rate, Bitrate: 12000, Complexity: 5, DTX: true}
	switch {
	case rate > 16000:
		c.Bitrate = 32000
	case rate > 8000:
		c.Bitrate = 20000
	}
	return c
}

// An Encoder makes Opus packets.
type Encoder struct {
	enc     *gopus.Encoder
	samples int
}

// NewEncoder returns an encoder.
func NewEncoder(c Config) (*Encoder, error) {
	enc, err := gopus.NewEncoder(gopus.EncoderConfig{SampleRate: c.Rate, Channels: 1, Application: gopus.ApplicationVoIP})
	if err != nil {
		return nil, fmt.Errorf("opus encoder at %d Hz: %w", c.Rate, err)
	}
	enc.SetDTX(c.DTX)
	enc.SetFEC(c.LossPercent > 0)
	err = errors.Join(
		enc.SetFrameSize(c.Rate/50),
		enc.SetBitrate(c.Bitrate),
		enc.SetComplexity(c.Complexity),
		enc.SetPacketLoss(c.LossPercent),
		enc.SetSignal(gopus.SignalVoice),
	)
	if err != nil {
		return nil, fmt.Errorf("opus encoder: %w", err)
	}
	return &Encoder{enc: enc, samples: c.Rate / 50}, nil
}

// Encode writes the packet of a frame of 20 ms into out and returns its length. In
// silence, with DTX, that is one or two octets or nothing at all.
func (e *Encoder) Encode(pcm []int16, out []byte) (n int, err error) {
	if len(pcm) != e.samples {
		return 0, fmt.Errorf("opus encoder: a frame has %d samples, not %d", e.samples, len(pcm))
	}
	defer survive(&n, &err)
	if n, err = e.enc.EncodeInt16(pcm, out); err != nil {
		return 0, fmt.Errorf("opus encoder: %w", err)
	}
	return n, nil
}

// A Decoder reads Opus packets of any bandwidth, frame size and number of channels.
type Decoder struct {
	dec     *gopus.Decoder
	rate    int
	scratch []int16
	float   []float32
}

// NewDecoder returns a decoder to one channel at a rate of 8000, 16000 or 48000.
func NewDecoder(rate int) (*Decoder, error) {
	dec, err := gopus.NewDecoder(gopus.DefaultDecoderConfig(rate, 1))
	if err != nil {
		return nil, fmt.Errorf("opus decoder to %d Hz: %w", rate, err)
	}
	return &Decoder{dec: dec, rate: rate, scratch: make([]int16, rate*120/1000)}, nil
}

// Decode writes the sound of a packet into pcm and returns the number of samples.
func (d *Decoder) Decode(payload []byte, pcm []int16) (n int, err error) {
	want := Samples(payload, d.rate)
	if want == 0 {
		return 0, ErrPayload
	}
	if len(pcm) < want {
		return 0, fmt.Errorf("opus decoder: %d samples do not fit %d", want, len(pcm))
	}
	defer survive(&n, &err)
	if n, err = d.dec.DecodeInt16(payload, pcm); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrPayload, err)
	}
	return n, nil
}

// Conceal fills pcm with a guess at what was lost.
func (d *Decoder) Conceal(pcm []int16) (err error) {
	var n int
	defer survive(&n, &err)
	step := d.rate / 400 // the codec guesses in steps of 2.5 ms
	for len(pcm) > 0 {
		want := min((len(pcm)+step-1)/step*step, len(d.scratch))
		if n, err = d.dec.DecodeInt16(nil, d.scratch[:want]); err != nil {
			return fmt.Errorf("opus concealment: %w", err)
		}
		if n == 0 {
			clear(pcm)
			return nil
		}
		pcm = pcm[copy(pcm, d.scratch[:n]):]
	}
	return nil
}

// Recover fills pcm with what was lost before next, from the copy of lower quality that
// next may carry (in-band FEC), or else as Conceal does. Afterwards next is decoded as
// usual.
func (d *Decoder) Recover(next []byte, pcm []int16) (err error) {
	var n int
	defer survive(&n, &err)
	if len(pcm)%(d.rate/400) != 0 || len(pcm) != Samples(next, d.rate) {
		return d.Conceal(pcm)
	}
	if d.float == nil {
		d.float = make([]float32, d.rate*120/1000)
	}
	if n, err = d.dec.DecodeWithFEC(next, d.float[:len(pcm)], true); err != nil || n != len(pcm) {
		return d.Conceal(pcm)
	}
	for i, x := range d.float[:n] {
		pcm[i] = int16(max(-32768, min(32767, x*32768)))
	}
	return nil
}

// survive turns a panic of the codec into an error: one packet from outside must not
// end everybody's calls.
func survive(n *int, err *error) {
	if p := recover(); p != nil {
		*n, *err = 0, fmt.Errorf("%w: %v", ErrPanic, p)
	}
}

// Samples returns the number of samples that payload holds at a rate, by its table of
// contents (RFC 6716 §3.1), or zero if it is no packet of at most 120 ms.
func Samples(payload []byte, rate int) int {
	if len(payload) == 0 {
		return 0
	}
	config := int(payload[0] >> 3)
	var perFrame int // in units of 2.5 ms
	switch {
	case config < 12: // SILK: 10, 20, 40, 60 ms
		perFrame = [4]int{4, 8, 16, 24}[config&3]
	case config < 16: // hybrid: 10, 20 ms
		perFrame = 4 << (config & 1)
	default: // CELT: 2.5, 5, 10, 20 ms
		perFrame = 1 << (config & 3)
	}
	frames := 2
	switch payload[0] & 3 {
	case 0:
		frames = 1
	case 3:
		if len(payload) < 2 {
			return 0
		}
		frames = int(payload[1] & 63)
	}
	if perFrame*frames > 48 {
		return 0
	}
	return perFrame * frames * rate / 400
}
