package audio

import (
	"time"

	"github.com/pion/rtp"
)

// ComfortNoiseType is the static payload type of RFC 3389 at 8 kHz.
const ComfortNoiseType = 13

// ReceiverConfig says what a telephone sends.
type ReceiverConfig struct {
	Codec       Codec
	PayloadType uint8
	EventType   uint8         // of telephone-event; zero if there are none
	Min, Max    time.Duration // limits of the jitter buffer's delay
}

// DefaultReceiverConfig returns the usual limits for a codec.
func DefaultReceiverConfig(c Codec, payloadType, eventType uint8) ReceiverConfig {
	return ReceiverConfig{c, payloadType, eventType, 40 * time.Millisecond, 200 * time.Millisecond}
}

// Receiver turns the packets of one sender into frames of 20 ms: jitter buffer, decoder,
// concealment and comfort noise together.
type Receiver struct {
	cfg     ReceiverConfig
	jitter  *Jitter
	decoder Decoder
	conceal *Concealment
	sound   []int16 // decoded and not yet played
	scratch []int16
	silent  bool
	broken  uint64
}

// NewReceiver returns a receiver.
func NewReceiver(cfg ReceiverConfig) (*Receiver, error) {
	decoder, err := cfg.Codec.NewDecoder()
	if err != nil {
		return nil, err
	}
	longest := cfg.Codec.Rate() * int(MaxPacket/time.Millisecond) / 1000
	return &Receiver{
		cfg:     cfg,
		jitter:  NewJitter(JitterConfig{Clock: cfg.Codec.Clock(), Min: cfg.Min, Max: cfg.Max}),
		decoder: decoder,
		conceal: NewConcealment(cfg.Codec.Rate()),
		sound:   make([]int16, 0, 2*longest),
		scratch: make([]int16, longest),
		silent:  true,
	}, nil
}

// Push takes a packet that arrived now. Other payload types than those configured are
// ignored; what events mean is for an EventDecoder.
func (r *Receiver) Push(p *rtp.Packet, now time.Time) {
	switch {
	case p.PayloadType == r.cfg.PayloadType:
		content := Voice
		if r.cfg.Codec == Opus && len(p.Payload) <= 2 { // RFC 7587 §3.1.3: DTX
			content = Pause
		}
		r.jitter.Push(p, content, r.cfg.Codec.Ticks(p.Payload), now)
	case p.PayloadType == ComfortNoiseType:
		r.jitter.Push(p, Pause, 0, now)
	case p.PayloadType == r.cfg.EventType && r.cfg.EventType != 0:
		r.jitter.Push(p, Event, 0, now)
	}
}

// Pull fills pcm, one frame of 20 ms at the codec's rate. Call it every 20 ms.
func (r *Receiver) Pull(now time.Time, pcm []int16) {
	// A chunk can be empty (a SID) or thrown away; a bound keeps bad input from
	// holding the tick.
	for rounds := 0; len(r.sound) < len(pcm) && rounds < 32; rounds++ {
		r.take(r.jitter.Pull(now, r.silent))
	}
	n := copy(pcm, r.sound)
	clear(pcm[n:])
	r.sound = r.sound[:copy(r.sound, r.sound[n:])]
	r.silent = Level(pcm) >= 45
}

func (r *Receiver) take(chunk Chunk) {
	samples := r.scratch[:min(chunk.Ticks*r.cfg.Codec.Rate()/r.cfg.Codec.Clock(), len(r.scratch))]
	switch chunk.Kind {
	case Quiet:
		r.conceal.Quiet(samples)
	case Lost:
		r.lost(samples)
	default:
		if chunk.Ticks == 0 { // RFC 3389
			r.conceal.SetSID(chunk.Payload)
			return
		}
		n, err := r.decoder.Decode(chunk.Payload, r.scratch)
		if err != nil {
			r.broken++
			r.lost(samples)
			break
		}
		if chunk.Kind == Discard {
			return
		}
		samples = r.scratch[:n]
		r.conceal.Received(samples)
	}
	if len(r.sound)+len(samples) <= cap(r.sound) {
		r.sound = append(r.sound, samples...)
	}
}

func (r *Receiver) lost(samples []int16) {
	if own, ok := r.decoder.(Concealer); ok && own.Conceal(samples) == nil {
		return
	}
	r.conceal.Lost(samples)
}

// Stats returns what happened so far.
func (r *Receiver) Stats(now time.Time) JitterStats { return r.jitter.Stats(now) }

// Broken returns how many payloads could not be decoded.
func (r *Receiver) Broken() uint64 { return r.broken }
