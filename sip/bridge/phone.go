package bridge

import (
	"errors"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// Attributes of a phone's participant. LiveKit clients know those of "sip."; see
// livekit/attrs.go of its protocol.
const (
	attrHold = "sip.hold"
	attrHand = "trunkhall.hand"
)

const (
	dtxEvery = 20             // frames between the packets that keep a silent stream alive
	loud     = 256            // the volume of the conference
	ducked   = 64             // and while an announcement plays
	maxClips = 32             // waiting announcements
	comfort  = 67             // -dBov of the noise that fills silence
	dtxTOC   = byte(1<<3 | 0) // SILK, narrowband, 20 ms, one frame of no octets
)

// A Phone is one telephone in a room, from Join until Removed. Its methods may be
// called from any goroutine, also after the end, when they do nothing.
type Phone struct {
	input    // sid changes with track
	bridge   *bridge
	identity call.Identity
	sound    Sound
	member   *sfu.Member
	options  PhoneOptions

	track   atomic.Pointer[sfu.LocalTrack]
	muted   atomic.Bool // by itself or by a moderator
	held    atomic.Bool
	gone    atomic.Bool // out of the room
	sealer  atomic.Pointer[sealer]
	counts  phoneCounts
	unwatch func()

	control sync.Mutex // one change of track or mute after the other; never needed by an Event

	todoMu sync.Mutex // guards the following
	todo   []func()
	wake   chan struct{}
	last   bool // Removed is in todo, nothing may follow

	// The rest belongs to the bridge's goroutine.
	added, removed   bool
	failed           bool // its sound has a defect
	toldAlone, alone bool
	hears            map[call.TrackSID]bool
	deaf             [2][]*audio.Source // those it may not hear, by rate
	at               int                // index of its rate
	frame            []int16            // what it says
	out              []int16            // what it hears
	level            uint8
	active           bool // it speaks
	dc               audio.DCBlock
	gate             gate
	across           *audio.Resampler // to the other rate
	crossed          []int16
	encoder          *opus.Encoder
	packet           []byte
	sealed           []byte
	clock            uint32 // timestamp of frame 0
	spurt            bool   // in a talk spurt
	quiet            int    // frames since the last packet
	reported         call.LegStats
	noise            audio.Noise // so that a silent room does not sound like a dead line
	clips            []*clip
	clipFrame        []int16
	volume           int32 // of the conference under the clips
}

type phoneCounts struct {
	encoded, skipped, panics, broken atomic.Uint64
}

// PhoneStats count since the phone joined.
type PhoneStats struct {
	Encoded   uint64 // frames of the phone encoded for the room
	Skipped   uint64 // frames that needed no encoding: silence, or nobody listened
	Panics    uint64 // of the encoder
	Broken    uint64 // frames that could not be played to the phone
	Encrypted bool   // the call is end-to-end encrypted up to here
}

func newPhone(b *bridge, seat call.Seat, o PhoneOptions) *Phone {
	p := &Phone{
		input: input{secret: seat.Keys != nil}, bridge: b, identity: seat.Grant.Identity,
		sound: o.Sound, options: o, wake: make(chan struct{}, 1), unwatch: func() {},
		hears: make(map[call.TrackSID]bool), gate: newGate(),
		volume: loud, clock: rand.Uint32(),
	}
	p.muted.Store(o.StartMuted)
	p.noise.SetLevel(comfort)
	return p
}

// Identity is the participant's identity.
func (p *Phone) Identity() call.Identity { return p.identity }

// SID is the participant's session.
func (p *Phone) SID() call.ParticipantSID { return p.member.SID() }

// Muted reports whether the room does not hear the phone: by its own wish, a
// moderator's or because it is on hold.
func (p *Phone) Muted() bool { return p.muted.Load() || p.held.Load() }

// SetMuted mutes or unmutes the phone by its own wish. Everybody sees it.
func (p *Phone) SetMuted(muted bool) {
	p.control.Lock()
	defer p.control.Unlock()
	p.muted.Store(muted)
	p.show()
}

// SetHold tells that the phone put the call on hold: it is shown as muted, and
// by the attribute "sip.hold". Nothing is played to it meanwhile.
func (p *Phone) SetHold(on bool) {
	p.control.Lock()
	defer p.control.Unlock()
	if p.held.Swap(on) == on {
		return
	}
	p.show()
	p.SetAttributes(map[string]string{attrHold: yes(on)})
}

// SetHand raises or lowers the phone's hand: attribute "trunkhall.hand".
func (p *Phone) SetHand(up bool) { p.SetAttributes(map[string]string{attrHand: yes(up)}) }

// yes is the value of an attribute that is deleted when it is not so.
func yes(on bool) string {
	if on {
		return "true"
	}
	return ""
}

// SetAttributes changes attributes of the participant; an empty value deletes one.
func (p *Phone) SetAttributes(attrs map[string]string) {
	if !p.gone.Load() {
		_ = p.member.UpdateSelf("", "", maps.Clone(attrs))
	}
}

// Play lets the phone alone hear a sound over the conference, which is quieter
// meanwhile. Sounds play one after the other. pcm is at rate: 8000, 16000 or 48000.
func (p *Phone) Play(pcm []int16, rate int) {
	p.bridge.post(func() { p.enqueue(recording(pcm, rate)) })
}

// Leave takes the phone out of the room; Removed follows. It does not wait.
func (p *Phone) Leave(why sfu.Reason) { p.member.Leave(why) }

// Stats describes the sound between the phone and its room.
func (p *Phone) Stats() PhoneStats {
	return PhoneStats{
		Encoded: p.counts.encoded.Load(), Skipped: p.counts.skipped.Load(),
		Panics: p.counts.panics.Load(), Broken: p.counts.broken.Load(), Encrypted: p.secret,
	}
}

// publish makes the phone's track, if it may have one and has none.
func (p *Phone) publish() error {
	p.control.Lock()
	defer p.control.Unlock()
	if p.track.Load() != nil || p.gone.Load() {
		return nil
	}
	add := sfu.AddTrack{
		Kind: sfu.KindAudio, Source: call.SourceMicrophone, Name: "phone", Stream: "phone",
		Muted: p.Muted(), DisableRED: true,
	}
	if p.secret {
		add.Encryption = sfu.EncryptionGCM
	}
	t, err := p.member.PublishLocal(add)
	if err != nil {
		return err
	}
	p.track.Store(t)
	p.show() // it may have been muted meanwhile
	p.bridge.post(func() { p.sid, p.bridge.stirred = t.SID(), true })
	return nil
}

// show makes the room's state of the track what ours is. It needs control.
func (p *Phone) show() {
	if t := p.track.Load(); t != nil && !p.gone.Load() {
		_ = p.member.SetMuted(t.SID(), p.Muted())
	}
}

// watchKeys takes the media keys of an encrypted call.
func (p *Phone) watchKeys(keys call.MediaKeys) {
	if keys == nil {
		return
	}
	cancel := sync.OnceFunc(keys.Watch(func(k call.MediaKey) {
		if k.Identity == p.identity {
			s, err := newSealer(p.sealer.Load(), k)
			if err != nil {
				p.bridge.all.log.Warn("unusable media key", "participant", p.identity, "err", err)
				return
			}
			p.sealer.Store(s)
			return
		}
		p.bridge.keys.set(k)
	}))
	p.control.Lock()
	p.unwatch = cancel
	over := p.gone.Load()
	p.control.Unlock()
	if over {
		cancel()
	}
}

// Event takes what the room tells of the phone's member. It must not block.
func (p *Phone) Event(e sfu.Event) {
	switch e := e.(type) {
	case sfu.EventLeave:
		p.gone.Store(true)
		p.bridge.post(func() { p.bridge.remove(p) })
		p.finish(e.Reason)
	case sfu.EventMute:
		p.muted.Store(e.Muted)
		p.do(func() {
			p.control.Lock()
			p.show() // it may be on hold
			p.control.Unlock()
		})
		p.bridge.post(func() { p.enqueue(muteTones[e.Muted]) })
		p.tell(Muted{e.Muted})
	case sfu.EventHears:
		p.bridge.post(func() {
			if e.On {
				p.hears[e.Track.SID] = true
			} else {
				delete(p.hears, e.Track.SID)
			}
			p.bridge.stirred = true
		})
	case sfu.EventTrackUnpublished:
		if t := p.track.Load(); t != nil && t.SID() == e.SID {
			p.track.CompareAndSwap(t, nil)
		}
	case sfu.EventParticipants:
		for _, q := range e.Participants {
			if q.Identity == p.identity && q.Grant.MayPublish(call.SourceMicrophone) && len(q.Tracks) == 0 {
				p.do(func() { _ = p.publish() }) // it was forbidden before
			}
		}
		p.bridge.post(func() { p.bridge.meet(e.Participants) })
	case sfu.EventData:
		p.tell(Data{e.Kind, e.Payload})
	}
}

// tell hands an event to the phone's owner, in order.
func (p *Phone) tell(e Event) {
	if p.options.Events != nil {
		p.do(func() { p.options.Events(e) })
	}
}

// do runs f on the phone's own goroutine.
func (p *Phone) do(f func()) {
	p.todoMu.Lock()
	if !p.last {
		p.todo = append(p.todo, f)
	}
	p.todoMu.Unlock()
	p.nudge()
}

func (p *Phone) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// finish tells Removed after all that was to be done before, and nothing after.
func (p *Phone) finish(why sfu.Reason) {
	p.tell(Removed{why})
	p.todoMu.Lock()
	p.last = true
	p.todoMu.Unlock()
	p.nudge()
}

// work is the phone's own goroutine, until Removed has been told.
func (p *Phone) work() {
	defer p.bridge.all.gone(p)
	for {
		<-p.wake
		p.todoMu.Lock()
		todo, last := p.todo, p.last
		p.todo = nil
		p.todoMu.Unlock()
		for _, f := range todo {
			p.bridge.guard(f)
		}
		if last {
			p.control.Lock()
			cancel := p.unwatch
			p.control.Unlock()
			cancel()
			return
		}
	}
}

// listen takes 20 ms from the telephone.
func (p *Phone) listen(now time.Time) {
	if p.failed {
		return
	}
	defer p.survive()
	p.useRate(p.sound.Rate())
	p.sound.Read(now, p.frame)
	p.level, p.active = 127, false
	if !p.Muted() {
		p.dc.Apply(p.frame)
		p.level = audio.Level(p.frame)
		p.active = p.gate.open(p.level)
	}
}

// survive, deferred, takes a phone out whose sound has a defect.
func (p *Phone) survive() {
	if r := recover(); r != nil {
		p.failed, p.active = true, false
		p.bridge.all.log.Error("a phone's sound panicked", "room", p.bridge.room.Name(),
			"participant", p.identity, "panic", r, "stack", string(debug.Stack()))
		p.do(func() { p.Leave(sfu.ReasonMediaFailure) })
	}
}

// useRate follows the telephone to another sample rate.
func (p *Phone) useRate(rate int) {
	at := 0
	if rate >= rates[1] {
		at = 1
	}
	if at == p.at && p.frame != nil {
		return
	}
	p.at = at
	rate = rates[at]
	n := audio.FrameSamples(rate)
	p.frame, p.out, p.clipFrame = make([]int16, n), make([]int16, n), make([]int16, n)
	p.across, p.encoder = nil, nil
}

// report tells the room how good the telephone's line is, if its sound knows.
func (p *Phone) report() {
	s, ok := p.sound.(interface{ Stats() call.LegStats })
	if !ok || p.failed {
		return
	}
	defer p.survive()
	now := s.Stats()
	came, lost := float64(now.Packets-p.reported.Packets), float64(now.Lost-p.reported.Lost)
	if now.Packets < p.reported.Packets || now.Lost < p.reported.Lost {
		came, lost = 0, 0 // the sound was made anew, or what was lost has come
	}
	p.reported = now
	share := 0.0
	if came+lost > 0 {
		share = lost / (came + lost)
	}
	p.member.ReportLink(share, now.RTT)
}

// speak gives the phone's frame to the other phones.
func (p *Phone) speak() {
	if p.failed || p.Muted() {
		return
	}
	for i, s := range p.sources {
		switch {
		case s == nil:
		case i == p.at:
			s.Write(p.frame)
		case p.active:
			if p.across == nil {
				var err error
				if p.across, err = audio.NewResampler(rates[p.at], rates[i]); err != nil {
					continue
				}
				p.crossed = make([]int16, audio.FrameSamples(rates[i]))
			}
			if n, err := p.across.Convert(p.frame, p.crossed); err == nil {
				s.Write(p.crossed[:n])
			}
		}
	}
}

// hear plays 20 ms to the telephone.
func (p *Phone) hear() {
	if p.failed {
		return
	}
	defer p.survive()
	switch own := p.sources[p.at]; {
	case p.held.Load() || own == nil:
		clear(p.out)
	case len(p.deaf[p.at]) > 0:
		own.ReadWithout(p.out, p.deaf[p.at])
	default:
		own.Read(p.out)
	}
	p.announce()
	if !p.held.Load() && audio.Level(p.out) == 127 {
		p.noise.Fill(p.out)
	}
	if err := p.sound.Write(p.out); err != nil {
		p.counts.broken.Add(1)
	}
}

// send publishes the phone's frame, if it says something and anybody listens.
func (p *Phone) send(frame uint32) {
	t := p.track.Load()
	if t == nil || p.failed || p.Muted() || !t.Wanted() {
		p.spurt, p.quiet = false, 0
		p.counts.skipped.Add(1)
		return
	}
	if !p.active {
		p.counts.skipped.Add(1)
		if p.spurt || p.quiet >= dtxEvery {
			p.spurt, p.quiet = false, 0
			p.packet = append(p.packet[:0], dtxTOC)
			p.write(t, p.packet, frame, false)
		}
		p.quiet++
		return
	}
	if p.encoder == nil && !p.newEncoder() {
		return
	}
	n, err := p.encoder.Encode(p.frame, p.packet[:opus.MaxPayload])
	switch {
	case errors.Is(err, opus.ErrPanic):
		p.counts.panics.Add(1)
		p.bridge.all.counts.panics.Add(1)
		p.bridge.all.log.Error("Opus encoder panicked", "room", p.bridge.room.Name(), "participant", p.identity, "err", err)
		p.encoder = nil // the listeners conceal this frame
		return
	case err != nil || n == 0:
		return
	}
	p.counts.encoded.Add(1)
	p.quiet = 0
	p.write(t, p.packet[:n], frame, !p.spurt)
	p.spurt = true
}

func (p *Phone) newEncoder() bool {
	c := opus.DefaultConfig(rates[p.at])
	c.DTX = false    // the gate decides, for less
	c.Complexity = 3 // a fifth cheaper than 5; no better segmental SNR was measured above
	e, err := opus.NewEncoder(c)
	if err != nil {
		p.bridge.all.log.Error("no Opus encoder", "err", err)
		return false
	}
	p.encoder, p.packet = e, slices.Grow(p.packet[:0], opus.MaxPayload)
	return true
}

// write sends one packet, sealed if the call is encrypted. Without a key of its own
// the phone is not heard.
func (p *Phone) write(t *sfu.LocalTrack, payload []byte, frame uint32, marker bool) {
	if p.secret {
		s := p.sealer.Load()
		if s == nil {
			return
		}
		p.sealed = s.seal(p.sealed[:0], payload, t.SSRC())
		payload = p.sealed
	}
	t.Write(payload, p.clock+frame*opusFrame, marker, p.level, p.active)
}
