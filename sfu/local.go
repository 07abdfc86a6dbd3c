package sfu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// LocalParams are what Room.JoinLocal needs to know of a member that lives in
// this process: a telephone, and one day a recorder.
type LocalParams struct {
	Grant call.Grant
	// Session hears the member's events. They may begin before JoinLocal returns.
	Session Session
	// Tap hears the audio that the member is subscribed to; nil hears nothing.
	// Members of a room that name the same Tap share it: each track is opened
	// once, however many of them hear it. It must be comparable.
	Tap Tap
}

// A Tap takes the audio of a room for its local members.
type Tap interface {
	// Open begins a track that the first of the members now hears and returns
	// what takes its packets, or nil to take none. It is called from the room's
	// goroutine: it must not block and must not call the room back.
	Open(t TapTrack) Sink
}

// A TapTrack describes a track to a Tap.
type TapTrack struct {
	Track     TrackInfo
	Publisher call.ParticipantSID
	Identity  call.Identity
	Own       bool // its publisher is a member of this Tap as well
}

// A Sink hears the packets of one audio track, on the packet path: WriteRTP
// must neither block nor keep the packet or change it. SequenceNumber and
// Timestamp are the publisher's own. level is the packet's loudness in -dBov
// with the voice bit on top (RFC 6464), as its sender says, if hasLevel.
type Sink interface {
	WriteRTP(p *rtp.Packet, level uint8, hasLevel bool)
	// Close tells that the track has ended or nobody hears it any more. No
	// call of WriteRTP begins after it. It is called from the room's goroutine.
	Close()
}

// EventHears tells a local member whether it hears a track. What it hears comes
// to its Tap; all members of a Tap are told for themselves.
type EventHears struct {
	Track TrackInfo
	SID   call.ParticipantSID // the publisher
	From  call.Identity
	On    bool
}

func (EventHears) event() {}

// errNoConnection refuses what only members with a client of their own can do.
var errNoConnection = fmt.Errorf("the member has no connection: %w", call.ErrInvalid)

// JoinLocal adds a member without a connection of its own: it is active at once,
// publishes by PublishLocal and hears by its Tap. Everything else is as with
// Join; messages for it (SendData) come as EventData, and its first event tells of
// the participants who are there already. It cannot be resumed.
func (r *Room) JoinLocal(ctx context.Context, p LocalParams) (*Member, Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return nil, Snapshot{}, err
	}
	if p.Grant.Identity == "" {
		return nil, Snapshot{}, fmt.Errorf("join room %s without identity: %w", r.name, call.ErrInvalid)
	}
	if p.Session == nil {
		return nil, Snapshot{}, errors.New("join without a session")
	}
	m := r.newMember(JoinParams{Grant: p.Grant, Session: p.Session, AutoSubscribe: true})
	m.tap = p.Tap
	var snap Snapshot
	var err error
	if e := r.do(func() { snap, err = r.add(m) }); e != nil {
		err = e
	}
	if err != nil {
		return nil, Snapshot{}, err
	}
	return m, snap, nil
}

// localData hands a message to a member of this process.
func (m *Member) localData(k DataKind, payload []byte) error {
	if k < DataReliable || k > DataTrack {
		return fmt.Errorf("data kind %d: %w", k, call.ErrInvalid)
	}
	m.emit(EventData{Kind: k, Payload: slices.Clone(payload)})
	return nil
}

// A tapping is how the members of one Tap hear a track.
type tapping struct {
	members int
	sink    Sink // nil if the Tap takes no packets
}

// reconcileLocal is reconcile for a member of this process, which hears sound only.
func (r *Room) reconcileLocal(m *Member, t *track, want bool) {
	want = want && t.info.Kind == KindAudio && m.tap != nil
	s := m.subs[t.sid]
	switch {
	case want && s == nil:
		s = &subscription{to: m, track: t}
		m.subs[t.sid] = s
		t.subs[m] = s
		r.tap(s)
		m.emit(EventHears{Track: t.snapshot(), SID: t.owner.sid, From: t.owner.identity, On: true})
		r.bound(s)
	case !want && s != nil:
		r.dropSub(s)
	}
}

func (r *Room) tap(s *subscription) {
	t := s.track
	w := t.taps[s.to.tap]
	if w == nil {
		w = &tapping{sink: s.to.tap.Open(TapTrack{
			Track: t.snapshot(), Publisher: t.owner.sid, Identity: t.owner.identity, Own: t.owner.tap == s.to.tap,
		})}
		if t.taps == nil {
			t.taps = make(map[Tap]*tapping)
		}
		t.taps[s.to.tap] = w
		if w.sink != nil {
			t.up.addTap(w.sink)
		}
	}
	w.members++
}

// untap is dropSub's end for a member of this process.
func (r *Room) untap(s *subscription) {
	t := s.track
	s.to.emit(EventHears{Track: t.snapshot(), SID: t.owner.sid, From: t.owner.identity})
	w := t.taps[s.to.tap]
	if w.members--; w.members > 0 {
		return
	}
	delete(t.taps, s.to.tap)
	if w.sink != nil {
		t.up.removeTap(w.sink)
		w.sink.Close()
	}
}

// addTap starts handing packets to s.
func (u *upTrack) addTap(s Sink) {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := append(slices.Clone(*u.taps.Load()), s)
	u.taps.Store(&next)
}

// removeTap stops doing so; not one more packet follows.
func (u *upTrack) removeTap(s Sink) {
	u.mu.Lock()
	defer u.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(*u.taps.Load()), func(o Sink) bool { return o == s })
	u.taps.Store(&next)
}

// A LocalTrack is the Opus track of a local member. Write belongs to one
// goroutine; everything else may be called from anywhere.
type LocalTrack struct {
	sid   call.TrackSID
	up    *upTrack
	layer *upLayer

	// The rest belongs to whoever calls Write.
	seq      uint16
	reportAt time.Time
	packet   packet
}

// localOpus is what local members publish.
var localOpus = webrtc.RTPCodecParameters{RTPCodecCapability: webrtc.RTPCodecCapability{
	MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2, SDPFmtpLine: "minptime=10;useinbandfec=1",
}}

// PublishLocal publishes an Opus track of a local member. Others are told at once.
// Errors are those of AddTrack; CID may be empty.
func (m *Member) PublishLocal(a AddTrack) (*LocalTrack, error) {
	if m.conn != nil || a.Kind != KindAudio || a.SID != "" {
		return nil, fmt.Errorf("publish for %s: %w", m.identity, call.ErrInvalid)
	}
	if a.CID == "" {
		a.CID = randomID("local_")
	}
	a.Codecs = []Codec{{MimeType: localOpus.MimeType, CID: a.CID}}
	l := &LocalTrack{layer: &upLayer{ssrc: rand.Uint32()}, seq: uint16(rand.Uint32())}
	var err error
	e := m.room.do(func() {
		var info TrackInfo
		if info, err = m.room.addTrack(m, a); err != nil {
			return
		}
		t := m.tracks[info.SID]
		l.sid, l.up = t.sid, t.up
		t.up.codec.Store(&localOpus)
		t.up.mu.Lock()
		t.up.layers[0] = l.layer
		t.up.mu.Unlock()
		m.room.publish(t)
	})
	if err = cmp.Or(e, err); err != nil {
		return nil, err
	}
	return l, nil
}

// SID names the track.
func (t *LocalTrack) SID() call.TrackSID { return t.sid }

// SSRC is the track's source in WriteRTP of a Sink; subscribers are sent another.
func (t *LocalTrack) SSRC() uint32 { return t.layer.ssrc }

// Wanted reports whether anybody gets the track's packets. There is no need to
// encode what nobody hears.
func (t *LocalTrack) Wanted() bool {
	return !t.up.closed.Load() && !t.up.silent.Load() && len(*t.up.sinks.Load())+len(*t.up.taps.Load()) > 0
}

// Write sends one packet to those who are subscribed. timestamp is of a 48 kHz
// clock that runs while nothing is sent; marker begins a talk spurt (RFC 3551
// section 4.1); level is in -dBov, 127 is silence.
func (t *LocalTrack) Write(payload []byte, timestamp uint32, marker bool, level uint8, voice bool) {
	if t.up.closed.Load() {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			t.up.log.Error("forwarding panicked", "panic", r, "stack", stack())
		}
	}()
	now := time.Now()
	if t.reportAt.IsZero() || now.Sub(t.reportAt) >= reportEvery {
		t.reportAt = now
		t.layer.reports.Store(&clockMap{ntp: ntpTime(now), rtp: timestamp, at: now})
	}
	if t.layer.ring == nil && t.Wanted() { // many phones are never heard by a browser
		t.up.mu.Lock()
		t.layer.ring = newPacketRing(audioRing)
		t.up.mu.Unlock()
	}
	level = min(level, 127)
	t.up.level.observe(level)
	p := &t.packet
	p.header = rtp.Header{Version: 2, Marker: marker, SequenceNumber: t.seq, Timestamp: timestamp, SSRC: t.layer.ssrc}
	t.seq++
	p.payload, p.level, p.hasLevel = payload, level, true
	if voice {
		p.level |= 0x80
	}
	t.up.handle(t.layer, p, formatOther, len(payload), now)
}

// Skip leaves out sequence numbers, for packets that were lost on the way here.
func (t *LocalTrack) Skip(packets uint16) { t.seq += packets }

// ntpTime is a wall-clock time in seconds since 1900 as 32.32 fixed point
// (RFC 3550 section 4).
func ntpTime(t time.Time) uint64 {
	const to1900 = 2_208_988_800
	return uint64(t.Unix()+to1900)<<32 | ntpUnits(time.Duration(t.Nanosecond()))
}
