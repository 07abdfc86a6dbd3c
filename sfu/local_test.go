package sfu

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// An ear is a local member in the test, and a Tap for it and others.
type ear struct {
	t  *testing.T
	mu sync.Mutex
	// guarded by mu
	log     []Event
	opened  []TapTrack
	closed  int
	packets []rtp.Packet
	levels  []int // -1 where the packet has none
}

func (e *ear) Event(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.log = append(e.log, ev)
}

func (e *ear) Open(t TapTrack) Sink {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.opened = append(e.opened, t)
	if t.Own {
		return nil
	}
	return e
}

func (e *ear) WriteRTP(p *rtp.Packet, level uint8, hasLevel bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.packets = append(e.packets, *p.Clone())
	if hasLevel {
		e.levels = append(e.levels, int(level))
	} else {
		e.levels = append(e.levels, -1)
	}
}

func (e *ear) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed++
}

func (e *ear) heard() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.packets)
}

// has reports whether an event that satisfies f has come to e.
func has[E Event](e *ear, f func(E) bool) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.log {
		if ev, ok := ev.(E); ok && f(ev) {
			return true
		}
	}
	return false
}

func joinLocal(t *testing.T, r *Room, id call.Identity, tap Tap) (*Member, *ear) {
	t.Helper()
	e := &ear{t: t}
	if tap == nil {
		tap = e
	}
	g := testGrant(id)
	g.Kind = call.KindSIP
	m, snap, err := r.JoinLocal(context.Background(), LocalParams{Grant: g, Session: e, Tap: tap})
	if err != nil {
		t.Fatal(err)
	}
	if snap.Self.State != StateActive || snap.Self.Grant.Kind != call.KindSIP {
		t.Errorf("a local member joins as %+v", snap.Self)
	}
	return m, e
}

func localMic(t *testing.T, m *Member) *LocalTrack {
	t.Helper()
	l, err := m.PublishLocal(AddTrack{Kind: KindAudio, Source: call.SourceMicrophone, Encryption: EncryptionGCM})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// speak writes a packet every 20 ms until the test ends.
func speak(t *testing.T, l *LocalTrack) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			l.Write(opusPayload(n), uint32(n*960), n == 0, 20, true)
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}

func TestLocalMemberTalksWithBrowsers(t *testing.T) {
	for name, mode := range map[string]Mode{"single connection": ModeSingle, "subscriber primary": ModeSubscriberPrimary} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			room := s.OpenRoom("standup", RoomOptions{})
			alice := join(t, room, "alice", mode)
			waitFor(alice, "to be active", func(EventJoined) bool { return true })
			phone, hears := joinLocal(t, room, "phone", nil)
			other, otherEar := joinLocal(t, room, "other", hears)

			mic := localMic(t, phone)
			speak(t, mic)
			info := phone.Info().Tracks[0]
			if info.MimeType != webrtc.MimeTypeOpus || info.Encryption != EncryptionGCM || info.SID != mic.SID() {
				t.Errorf("the phone's track is %+v", info)
			}
			got := alice.hears(info, phone, 50)
			checkContinuous(t, got, 960)
			if !mic.Wanted() {
				t.Error("somebody hears the phone, but it need not speak")
			}
			levelID := 0
			for _, tr := range alice.sub.GetTransceivers() {
				if r := tr.Receiver(); r != nil && r.Track() == got.remote {
					for _, x := range r.GetParameters().HeaderExtensions {
						if x.URI == extAudioLevel {
							levelID = x.ID
						}
					}
				}
			}
			if b := got.all()[10].GetExtension(uint8(levelID)); levelID == 0 || len(b) != 1 || b[0] != 0x80|20 {
				t.Errorf("the phone's level arrives as %v (extension %d)", b, levelID)
			}
			waitFor(alice, "to see the phone speak", func(e EventSpeakers) bool {
				return len(e.Speakers) > 0 && e.Speakers[0].SID == phone.SID() && e.Speakers[0].Active
			})

			local, aliceInfo := alice.publish(micTrack("mic"), webrtc.MimeTypeOpus)
			alice.pump(local, 20*time.Millisecond, 960, opusPayload)
			eventually(t, "the tap to hear alice", func() bool { return hears.heard() >= 20 })
			for _, e := range []*ear{hears, otherEar} {
				eventually(t, "both phones to be told", func() bool {
					return has(e, func(h EventHears) bool { return h.On && h.Track.SID == aliceInfo.SID && h.From == "alice" })
				})
			}
			hears.mu.Lock()
			opened := 0
			for _, o := range hears.opened {
				if o.Track.SID == aliceInfo.SID {
					opened++
				}
				if o.Own != (o.Identity != "alice") {
					t.Errorf("%s is of the tap: %v", o.Identity, o.Own)
				}
			}
			hears.mu.Unlock()
			if opened != 1 {
				t.Errorf("alice's track was opened %d times for one tap", opened)
			}

			// One of two stops listening: the tap goes on. Both: it closes.
			phone.Subscribe(false, aliceInfo.SID)
			eventually(t, "the phone to hear no more", func() bool {
				return has(hears, func(h EventHears) bool { return !h.On && h.Track.SID == aliceInfo.SID })
			})
			before := hears.heard()
			eventually(t, "the other one to hear on", func() bool { return hears.heard() > before+5 })
			alice.member.SetSubscriptionPermissions(false, nil)
			eventually(t, "the tap to close", func() bool {
				hears.mu.Lock()
				defer hears.mu.Unlock()
				return hears.closed == 1
			})
			after := hears.heard()
			_ = room.do(func() {})
			if hears.heard() != after {
				t.Error("packets come after Close")
			}
			other.Leave(ReasonClientInitiated)
		})
	}
}

func TestLocalMemberIsGoverned(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("standup", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	waitFor(alice, "to be active", func(EventJoined) bool { return true })
	phone, e := joinLocal(t, room, "phone", nil)
	mic := localMic(t, phone)
	speak(t, mic)
	r := alice.hears(phone.Info().Tracks[0], phone, 10)

	if err := phone.Offer(1, "v=0"); !errors.Is(err, call.ErrInvalid) {
		t.Errorf("an offer: %v", err)
	}
	if err := phone.SendData(DataReliable, []byte("hello")); err != nil {
		t.Errorf("data: %v", err)
	}
	if !has(e, func(d EventData) bool { return string(d.Payload) == "hello" }) {
		t.Error("the message for the phone is lost")
	}
	if _, _, err := room.Resume("phone", phone.SID(), alice); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("somebody could resume the phone: %v", err)
	}

	if err := phone.MuteByServer(mic.SID(), true); err != nil {
		t.Fatal(err)
	}
	if !has(e, func(m EventMute) bool { return m.Muted }) || mic.Wanted() || !phone.Info().Tracks[0].Muted {
		t.Error("the muted phone does not know, or is still wanted")
	}
	waitFor(alice, "to see the mute", func(p EventParticipants) bool {
		q := p.Participants[0]
		return q.Identity == "phone" && len(q.Tracks) > 0 && q.Tracks[0].Muted
	})
	stats := func() TrackStats { return room.Stats().Tracks[0] }
	quiet := stats()
	eventually(t, "the phone to speak on", func() bool { return stats().PacketsIn > quiet.PacketsIn+10 })
	if n := stats().PacketsOut - quiet.PacketsOut; n > 0 {
		t.Errorf("%d packets of a muted phone came through", n)
	}
	muted := r.count()
	if err := phone.SetMuted(mic.SID(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the phone to be heard again", func() bool { return r.count() > muted+5 })

	// A moderator takes the right to speak, then the phone is replaced.
	g := testGrant("phone")
	g.CanPublish = false
	phone.SetGrant(g)
	eventually(t, "the track to end", func() bool {
		return has(e, func(u EventTrackUnpublished) bool { return u.SID == mic.SID() })
	})
	if _, err := phone.PublishLocal(AddTrack{Kind: KindAudio, Source: call.SourceMicrophone}); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("it may still publish: %v", err)
	}
	second, e2 := joinLocal(t, room, "phone", nil)
	if !has(e, func(l EventLeave) bool { return l.Reason == ReasonDuplicateIdentity }) {
		t.Error("the first session was not told to leave")
	}
	if err := room.Remove("phone", ReasonParticipantRemoved); err != nil {
		t.Fatal(err)
	}
	if !has(e2, func(l EventLeave) bool { return l.Reason == ReasonParticipantRemoved }) {
		t.Error("the phone was not told that it was thrown out")
	}
	if _, err := second.PublishLocal(AddTrack{Kind: KindAudio}); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("it publishes after the end: %v", err)
	}
	_, e3 := joinLocal(t, room, "third", nil)
	s.Drain(ReasonServerShutdown)
	eventually(t, "the drain to end its session", func() bool {
		return has(e3, func(l EventLeave) bool { return l.Reason == ReasonServerShutdown })
	})
}

// blindSink counts what comes to it.
type blindSink struct{ n atomic.Int64 }

func (b *blindSink) WriteRTP(*rtp.Packet, uint8, bool) { b.n.Add(1) }
func (b *blindSink) Close()                            {}

func TestLocalPathAllocatesNothing(t *testing.T) {
	u := newUpTrack("TR_local", TrackInfo{Kind: KindAudio}, discardLogger())
	sink := &blindSink{}
	u.addTap(sink)
	l := &LocalTrack{up: u, layer: &upLayer{ssrc: 1, ring: newPacketRing(audioRing)}}
	payload, ts := make([]byte, 60), uint32(0)
	step := func() {
		l.Write(payload, ts, false, 30, true)
		ts += 960
	}
	for range 2 * audioRing {
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n > 0 {
		t.Errorf("%v allocations for a packet of a local member", n)
	}
	if sink.n.Load() < 1000 {
		t.Errorf("only %d packets came to the tap", sink.n.Load())
	}
}
