package bridge

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

const (
	waitingPackets = 32
	opusClock      = 48000
	opusFrame      = opusClock / 50

	// The delay that packets of browsers wait in the jitter buffer, beyond the
	// wait for the next frame.
	minDelay = 10 * time.Millisecond
	maxDelay = 200 * time.Millisecond

	scoreFall   = 8 * 2     // 2 dB a frame: half a second from speech to silence
	scoreLead   = 8 * 6     // dB by which a challenger must be louder
	scoreSilent = 8 * 57    // below -70 dBov nobody speaks
	silentPCM   = uint8(45) // quieter sound may be shortened unheard
)

// A speaker is a browser's track: its packets come from the forwarder, its sound
// goes into the mixers.
type speaker struct {
	input
	bridge *bridge
	from   call.Identity

	mu      sync.Mutex // guards waiting; WriteRTP is on the packet path
	waiting *batch

	// The rest belongs to the bridge's goroutine.
	taken    *batch // to be exchanged for waiting
	jitter   *audio.Jitter
	voices   [2]*voice
	buffered int  // sound in each voice, in ticks of 48 kHz
	levelled bool // its packets tell their level
	score    int  // loudness with memory: 127-level, slowly falling, times 8
	trust    trust
	useless  bool // no phone may hear it
	chosen   bool
	silent   bool
	packet   rtp.Packet
	plain    []byte
}

// A batch is what came between two frames.
type batch struct {
	packets [waitingPackets]waitingPacket
	count   int
}

type waitingPacket struct {
	at       time.Time
	header   rtp.Header
	payload  []byte
	level    uint8
	hasLevel bool
}

// A voice is a speaker's sound at one rate.
type voice struct {
	rate    int
	decoder *opus.Decoder
	sound   []int16
	scratch []int16
}

func newSpeaker(b *bridge, t sfu.TapTrack) *speaker {
	return &speaker{
		input:  input{sid: t.Track.SID, secret: t.Track.Encryption != sfu.EncryptionNone},
		bridge: b, from: t.Identity,
		waiting: new(batch), taken: new(batch),
		jitter: audio.NewJitter(audio.JitterConfig{Clock: opusClock, Min: minDelay, Max: maxDelay}),
		silent: true, trust: newTrust(),
	}
}

// WriteRTP keeps the packet for the next frame. It is on the packet path.
func (s *speaker) WriteRTP(p *rtp.Packet, level uint8, hasLevel bool) {
	now := s.bridge.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.waiting.count == waitingPackets {
		return // the bridge stands still
	}
	w := &s.waiting.packets[s.waiting.count]
	s.waiting.count++
	w.at, w.level, w.hasLevel = now, level&0x7f, hasLevel
	w.header = rtp.Header{
		Version: 2, Marker: p.Marker, PayloadType: p.PayloadType, SSRC: p.SSRC,
		SequenceNumber: p.SequenceNumber, Timestamp: p.Timestamp,
	}
	w.payload = append(w.payload[:0], p.Payload...)
}

// Close ends the track.
func (s *speaker) Close() { s.bridge.post(func() { s.bridge.closed(s) }) }

// drain moves what has come into the jitter buffer.
func (s *speaker) drain() {
	s.score = max(s.score-scoreFall, 0)
	s.mu.Lock()
	s.waiting, s.taken = s.taken, s.waiting
	s.mu.Unlock()
	for i := range s.taken.packets[:s.taken.count] {
		w := &s.taken.packets[i]
		payload := w.payload
		if s.secret {
			var ok bool
			if s.plain, ok = s.bridge.keys.open(s.from, payload, s.bridge.sif, s.plain[:0]); !ok {
				continue
			}
			payload = s.plain
		}
		level := w.level
		switch {
		case w.hasLevel:
			s.levelled = true
			s.trust.claim(level)
		case s.levelled:
			level = 127
		default:
			level = 0 // it may be loud
		}
		s.score = max(s.score, 8*(127-int(level)-s.trust.excess))
		content := audio.Voice
		if len(payload) <= 2 { // RFC 7587 §3.1.3: DTX
			content = audio.Pause
		}
		s.packet.Header, s.packet.Payload = w.header, payload
		s.jitter.Push(&s.packet, content, audio.Opus.Ticks(payload), w.at)
	}
	s.taken.count = 0
}

// choose marks the speakers to be decoded: the loudest, with hysteresis, and some of
// those that do not tell how loud they are. The mixers choose among these again.
func (b *bridge) choose() {
	b.order = b.order[:0]
	untold := 0
	for _, s := range b.speakers {
		s.drain()
		switch {
		case s.useless || s.score <= scoreSilent:
			s.chosen = false
		case s.levelled:
			b.order = append(b.order, s)
		default:
			s.chosen = untold < maxSpeakers
			untold++
		}
	}
	if len(b.order) > maxSpeakers {
		slices.SortStableFunc(b.order, func(a, b *speaker) int { return b.rank() - a.rank() })
	}
	for i, s := range b.order {
		s.chosen = i < maxSpeakers
	}
}

func (s *speaker) rank() int {
	if s.chosen {
		return s.score + scoreLead
	}
	return s.score
}

// play gives the speaker's frame to the mixers, if it is chosen. The jitter
// buffer goes on in any case, so that its sound is in time when it is.
func (s *speaker) play(now time.Time) {
	for i, m := range s.bridge.mixers {
		if m != nil && s.voices[i] == nil {
			s.voices[i] = newVoice(rates[i], s.buffered)
		}
	}
	// A chunk can be empty or thrown away; a bound keeps bad input from holding
	// the frame.
	for rounds := 0; s.buffered < opusFrame && rounds < 32; rounds++ {
		s.take(s.jitter.Pull(now, s.silent || !s.chosen))
	}
	s.buffered = max(s.buffered-opusFrame, 0)
	s.silent = true
	if !s.chosen {
		s.trust.miss()
	}
	s.trust.tick()
	for i, v := range s.voices {
		if v == nil {
			continue
		}
		n := audio.FrameSamples(v.rate)
		if len(v.sound) < n {
			n = len(v.sound)
		}
		if s.chosen && s.sources[i] != nil {
			s.sources[i].Write(v.sound[:n])
			level := audio.Level(v.sound[:n])
			s.silent = s.silent && level >= silentPCM
			s.trust.hear(level)
		}
		v.sound = v.sound[:copy(v.sound, v.sound[n:])]
	}
}

// take adds one chunk to each voice.
func (s *speaker) take(c audio.Chunk) {
	if c.Kind == audio.Discard && !s.chosen {
		return
	}
	if c.Kind != audio.Discard {
		s.buffered += c.Ticks
	}
	var ahead []byte
	if c.Kind == audio.Lost {
		ahead = s.jitter.Ahead()
	}
	for _, v := range s.voices {
		if v == nil {
			continue
		}
		samples := v.scratch[:min(c.Ticks*v.rate/opusClock, len(v.scratch))]
		switch {
		case !s.chosen || c.Kind == audio.Quiet:
			clear(samples)
		case c.Kind == audio.Lost:
			s.bridge.all.counts.concealed.Add(1)
			s.conceal(v, samples, ahead)
		default:
			n, err := v.decoder.Decode(c.Payload, v.scratch)
			if err != nil {
				s.failed(v, err)
				s.conceal(v, samples, nil)
			} else if n != len(samples) {
				clear(v.scratch[min(n, len(samples)):len(samples)])
			}
			if c.Kind == audio.Discard {
				continue
			}
		}
		if len(v.sound)+len(samples) <= cap(v.sound) {
			v.sound = append(v.sound, samples...)
		}
	}
}

// conceal fills pcm with what could have been, or silence.
func (s *speaker) conceal(v *voice, pcm []int16, ahead []byte) {
	var err error
	if len(ahead) > 2 {
		err = v.decoder.Recover(ahead, pcm)
	} else {
		err = v.decoder.Conceal(pcm)
	}
	if err != nil {
		s.failed(v, err)
		clear(pcm)
	}
}

// failed goes on with a new decoder after the old one has broken.
func (s *speaker) failed(v *voice, err error) {
	if !errors.Is(err, opus.ErrPanic) {
		return
	}
	s.bridge.all.counts.panics.Add(1)
	s.bridge.all.log.Error("Opus decoder panicked", "room", s.bridge.room.Name(), "track", s.sid, "err", err)
	if d, err := opus.NewDecoder(v.rate); err == nil {
		v.decoder = d
	}
}

// newVoice returns a voice with that much silence in it.
func newVoice(rate, buffered int) *voice {
	d, err := opus.NewDecoder(rate)
	if err != nil {
		panic(err) // the rates are ours
	}
	longest := rate * int(audio.MaxPacket/time.Millisecond) / 1000
	v := &voice{rate: rate, decoder: d, sound: make([]int16, 0, 2*longest), scratch: make([]int16, longest)}
	v.sound = v.sound[:min(buffered*rate/opusClock, cap(v.sound))]
	return v
}
