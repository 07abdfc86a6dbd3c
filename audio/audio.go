// Package audio is the sound of telephones: codecs (PCMU, PCMA, G.722, Opus), the
// jitter buffer with loss concealment and comfort noise, the mixer of a conference,
// DTMF in RTP and in the sound itself, and the tones a caller knows.
//
// It opens no socket, starts no goroutine and reads no clock: time is an argument,
// and whoever owns a call gives it a 20 ms tick. Samples are 16-bit linear PCM, one
// channel. Values are not safe for concurrent use; each belongs to one goroutine.
package audio

import (
	"errors"
	"fmt"
	"time"

	"github.com/trunkhall/trunkhall/audio/opus"
)

// FrameDuration is how much sound one tick of a call handles.
const FrameDuration = 20 * time.Millisecond

// MaxPacket is the longest packet of sound that is accepted. Telephones send 10 to
// 60 ms; RFC 6716 §3.2.5 lets an Opus packet be as long as this.
const MaxPacket = 120 * time.Millisecond

// ErrBuffer means that the caller's buffer cannot hold the result.
var ErrBuffer = errors.New("audio: buffer too small")

// FrameSamples returns the number of samples in a frame at a sample rate.
func FrameSamples(rate int) int { return rate / 50 }

// An Encoder makes payloads. Encode writes the payload of pcm, a frame of 20 ms, into
// out and returns its length. A length of zero means that nothing needs sending.
type Encoder interface {
	Encode(pcm []int16, out []byte) (int, error)
}

// A Decoder reads payloads from outside. Decode writes the sound into pcm and returns
// the number of samples; MaxPacket of sound always fits if it fits pcm.
type Decoder interface {
	Decode(payload []byte, pcm []int16) (int, error)
}

// A Concealer is a Decoder that can invent a frame that was lost, better than the
// repetition of sound heard before. Conceal fills the whole of pcm.
type Concealer interface {
	Conceal(pcm []int16) error
}

// Codec names a codec as SDP's rtpmap spells it (RFC 3551 §6, RFC 7587 §7).
type Codec string

// The codecs of a telephone.
const (
	PCMU Codec = "PCMU"
	PCMA Codec = "PCMA"
	G722 Codec = "G722"
	Opus Codec = "opus"
)

// Clock returns how many RTP timestamp units make a second. For G.722 this is 8000
// though it carries 16000 samples: RFC 3551 §4.5.2 keeps an old mistake alive.
func (c Codec) Clock() int {
	if c == Opus {
		return 48000
	}
	return 8000
}

// Rate returns the sample rate of a telephone that speaks c. Opus can be coded at 8,
// 16 and 48 kHz: this is the rate of a wideband telephone.
func (c Codec) Rate() int {
	if c == PCMU || c == PCMA {
		return 8000
	}
	return 16000
}

// NewEncoder returns an encoder for sound at c.Rate().
func (c Codec) NewEncoder() (Encoder, error) {
	switch c {
	case PCMU:
		return ULaw{}, nil
	case PCMA:
		return ALaw{}, nil
	case G722:
		return NewG722Encoder(), nil
	case Opus:
		return opus.NewEncoder(opus.DefaultConfig(c.Rate()))
	}
	return nil, fmt.Errorf("audio: no codec %q", string(c))
}

// NewDecoder returns a decoder to sound at c.Rate().
func (c Codec) NewDecoder() (Decoder, error) {
	switch c {
	case PCMU:
		return ULaw{}, nil
	case PCMA:
		return ALaw{}, nil
	case G722:
		return NewG722Decoder(), nil
	case Opus:
		return opus.NewDecoder(c.Rate())
	}
	return nil, fmt.Errorf("audio: no codec %q", string(c))
}

// Ticks returns how long a payload sounds, in RTP timestamp units, or zero if it is
// empty, broken or longer than MaxPacket.
func (c Codec) Ticks(payload []byte) int {
	n := len(payload) // G.711 and G.722: one octet for each unit of the 8 kHz clock
	if c == Opus {
		n = opus.Samples(payload, c.Clock())
	}
	if n > c.Clock()*int(MaxPacket/time.Millisecond)/1000 {
		return 0
	}
	return n
}
