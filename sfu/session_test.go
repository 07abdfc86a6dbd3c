package sfu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

func isPLI(p rtcp.Packet) bool {
	_, ok := p.(*rtcp.PictureLossIndication)
	return ok
}

func (c *client) active() {
	c.t.Helper()
	waitFor(c, "to be active", func(EventJoined) bool { return true })
}

func TestRemovedMemberNeitherSendsNorReceives(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
	mic2, info2 := bob.publish(micTrack("b"), webrtc.MimeTypeOpus)
	bob.pump(mic2, 20*time.Millisecond, 960, opusPayload)
	fromAlice := bob.hears(info, alice.member, 5)
	fromBob := alice.hears(info2, bob.member, 5)

	if err := room.Remove("alice", ReasonParticipantRemoved); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond) // what was on the wire already
	a, b := fromAlice.count(), fromBob.count()
	time.Sleep(500 * time.Millisecond)
	if fromAlice.count() != a || fromBob.count() != b {
		t.Errorf("%d packets from and %d to the removed member still flowed", fromAlice.count()-a, fromBob.count()-b)
	}
	waitFor(alice, "the leave", func(e EventLeave) bool {
		return e.Reason == ReasonParticipantRemoved && e.Action == ActionDisconnect
	})
	waitFor(bob, "alice to be gone", func(e EventParticipants) bool {
		return e.Participants[0].SID == alice.member.SID() && e.Participants[0].State == StateDisconnected &&
			e.Participants[0].Reason == ReasonParticipantRemoved
	})
	if err := room.Remove("alice", ReasonParticipantRemoved); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("removing her again: %v", err)
	}
	if err := alice.member.SendData(DataReliable, []byte("x")); err == nil {
		t.Error("data can be sent to a removed member")
	}
}

func TestSecondSessionEvictsFirst(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	bob := join(t, room, "bob", ModeSingle)
	first := join(t, room, "alice", ModeSingle)
	second := join(t, room, "alice", ModeSingle)
	waitFor(first, "eviction", func(e EventLeave) bool { return e.Reason == ReasonDuplicateIdentity })
	waitFor(bob, "the new session", func(e EventParticipants) bool {
		return e.Participants[0].SID == second.member.SID()
	})
	if saw(bob, func(e EventParticipants) bool { return e.Participants[0].State == StateDisconnected }) {
		t.Error("a client of protocol 17 was told that the identity is gone")
	}
	if n := len(room.Participants()); n != 2 {
		t.Errorf("%d participants, wanted 2", n)
	}
}

func TestResumeKeepsMediaAndSID(t *testing.T) {
	for name, mode := range map[string]Mode{"single connection": ModeSingle, "subscriber primary": ModeSubscriberPrimary} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			room := s.OpenRoom("room", RoomOptions{})
			alice := join(t, room, "alice", mode)
			bob := join(t, room, "bob", mode)
			mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
			alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
			heard := bob.hears(info, alice.member, 5)
			bob.active()

			bob.member.SignalLost()
			if _, _, err := room.Resume("bob", "PA_wrong", bob); !errors.Is(err, call.ErrNotFound) {
				t.Errorf("resume with a wrong SID: %v", err)
			}
			m, snap, err := room.Resume("bob", bob.member.SID(), bob)
			if err != nil {
				t.Fatal(err)
			}
			if m != bob.member || snap.Self.SID != bob.member.SID() || len(snap.Others) != 1 {
				t.Errorf("resume: %+v", snap)
			}
			if err := m.SyncState(SyncState{Published: []call.TrackSID{"TR_unknown"}}); !errors.Is(err, call.ErrConflict) {
				t.Errorf("a client that publishes an unknown track: %v", err)
			}
			if err := m.SyncState(SyncState{}); err != nil {
				t.Errorf("sync: %v", err)
			}
			if mode == ModeSingle {
				bob.offer(true)
			}
			eventually(t, "the restart to be negotiated", func() bool {
				return strings.Count(fmt.Sprint(bob.sub.RemoteDescription().SDP), "ice-ufrag") > 0 &&
					bob.sub.SignalingState() == webrtc.SignalingStateStable
			})
			n := heard.count()
			eventually(t, "media after the restart", func() bool { return heard.count() > n+50 })
			if got := saw(alice, func(e EventTrackUnpublished) bool { return true }); got {
				t.Error("the other side saw tracks end")
			}
		})
	}
}

func TestUnsubscribedSectionIsReused(t *testing.T) {
	for name, mode := range map[string]Mode{"single connection": ModeSingle, "subscriber primary": ModeSubscriberPrimary} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			room := s.OpenRoom("room", RoomOptions{})
			alice := join(t, room, "alice", mode)
			bob := join(t, room, "bob", mode)
			var infos []TrackInfo
			for i := range 5 { // more than the sections a client begins with
				mic, info := alice.publish(micTrack(fmt.Sprint("mic", i)), webrtc.MimeTypeOpus)
				alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
				infos = append(infos, info)
			}
			for _, info := range infos {
				bob.hears(info, alice.member, 5)
			}
			count := func() int { return len(bob.sub.GetTransceivers()) }
			before := count()
			for range 3 {
				bob.member.Subscribe(false, infos[0].SID, infos[1].SID)
				time.Sleep(100 * time.Millisecond)
				bob.mu.Lock()
				delete(bob.tracks, string(alice.member.SID())+"|"+string(infos[0].SID))
				delete(bob.tracks, string(alice.member.SID())+"|"+string(infos[1].SID))
				bob.mu.Unlock()
				bob.member.Subscribe(true, infos[0].SID, infos[1].SID)
				bob.hears(infos[0], alice.member, 5)
				bob.hears(infos[1], alice.member, 5)
			}
			if after := count(); after > before+1 {
				t.Errorf("media sections grew from %d to %d", before, after)
			}
		})
	}
}

func TestPermissionsRevokeAndReturn(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
	r := bob.hears(info, alice.member, 5)
	waitFor(bob, "permission", func(e EventSubscriptionPermission) bool { return e.Allowed && e.Track == info.SID })

	alice.member.SetSubscriptionPermissions(false, []TrackPermission{{Identity: "carol", AllTracks: true}})
	waitFor(bob, "no permission", func(e EventSubscriptionPermission) bool { return !e.Allowed && e.Track == info.SID })
	eventually(t, "silence", func() bool {
		n := r.count()
		time.Sleep(200 * time.Millisecond)
		return r.count() == n
	})
	bob.mu.Lock()
	clear(bob.tracks)
	bob.mu.Unlock()
	alice.member.SetSubscriptionPermissions(false, []TrackPermission{{Identity: "bob", TrackSIDs: []call.TrackSID{info.SID}}})
	bob.hears(info, alice.member, 5)
}

func TestDataBothWays(t *testing.T) {
	for name, mode := range map[string]Mode{"single connection": ModeSingle, "subscriber primary": ModeSubscriberPrimary} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			room := s.OpenRoom("room", RoomOptions{})
			alice := join(t, room, "alice", mode)
			waitFor(alice, "the channels", func(e EventDataReady) bool { return e.Kind == DataReliable })
			waitFor(alice, "the channels", func(e EventDataReady) bool { return e.Kind == DataLossy })
			if err := alice.member.SendData(DataReliable, []byte("down")); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the message", func() bool {
				alice.mu.Lock()
				defer alice.mu.Unlock()
				return len(alice.data) == 1 && bytes.Equal(alice.data[0], []byte("down"))
			})
			eventually(t, "the upstream channel", func() bool {
				return alice.chans["_lossy"].ReadyState() == webrtc.DataChannelStateOpen &&
					alice.chans["_lossy"].Send([]byte("up")) == nil
			})
			waitFor(alice, "the server to hear", func(e EventData) bool {
				return e.Kind == DataLossy && string(e.Payload) == "up" && e.Label == ""
			})
			if err := alice.member.SendData(DataReliable, make([]byte, 70000)); !errors.Is(err, call.ErrInvalid) {
				t.Errorf("a message that no client takes: %v", err)
			}
		})
	}
}

func TestSpeakersAreTold(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	local, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	var id uint8
	eventually(t, "the level extension", func() bool {
		for _, tr := range alice.pub.GetTransceivers() {
			if tr.Sender() != nil && tr.Sender().Track() == local {
				for _, e := range tr.Sender().GetParameters().HeaderExtensions {
					if e.URI == extAudioLevel {
						id = uint8(e.ID)
					}
				}
			}
		}
		return id != 0 && alice.pub.SignalingState() == webrtc.SignalingStateStable
	})
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			p := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: uint32(n * 960)}, Payload: opusPayload(n)}
			_ = p.Header.SetExtension(id, []byte{0x80 | 10})
			_ = local.WriteRTP(p)
		}
	}()
	bob.hears(info, alice.member, 5)
	speaks := func(e EventSpeakers) bool {
		return e.Speakers[0].SID == alice.member.SID() && e.Speakers[0].Active && e.Speakers[0].Level > 0
	}
	waitFor(bob, "alice to speak", speaks)
	waitFor(alice, "to be told that she speaks", speaks)
	close(stop)
	<-done
	waitFor(bob, "alice to stop", func(e EventSpeakers) bool {
		return e.Speakers[0].SID == alice.member.SID() && !e.Speakers[0].Active && e.Speakers[0].Level == 0
	})
}

func TestUnpublishAndPublishAgain(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
	bob.hears(info, alice.member, 5)
	if _, err := alice.member.AddTrack(micTrack("a")); !errors.Is(err, call.ErrConflict) {
		t.Errorf("the same cid twice: %v", err)
	}
	for _, tr := range alice.pub.GetTransceivers() {
		if tr.Sender() != nil && tr.Sender().Track() == mic {
			if err := alice.pub.RemoveTrack(tr.Sender()); err != nil {
				t.Fatal(err)
			}
		}
	}
	alice.offer(false)
	waitFor(bob, "the track to end", func(e EventParticipants) bool {
		p := e.Participants[0]
		return p.SID == alice.member.SID() && p.State == StateActive && len(p.Tracks) == 0 && p.Version > 3
	})
	again, info2 := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(again, 20*time.Millisecond, 960, opusPayload)
	bob.hears(info2, alice.member, 5)
}

func TestHostileDescriptionsHurtOnlyTheirSender(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	alice.active()
	good := alice.pub.LocalDescription().SDP
	for name, sdp := range map[string]string{
		"nothing":           "",
		"no session":        "hello",
		"no media":          "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n",
		"without mid":       strings.ReplaceAll(good, "a=mid:", "a=nid:"),
		"the same mid":      strings.ReplaceAll(good, "a=mid:1\r", "a=mid:0\r"),
		"unknown media":     strings.ReplaceAll(good, "m=audio", "m=smell"),
		"no credentials":    strings.ReplaceAll(good, "a=ice-ufrag", "a=ice-x"),
		"two codecs in one": strings.Replace(good, "a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP9/90000", 1),
		"codecs of nobody":  strings.ReplaceAll(good, "opus/48000/2", "nopus/1/2"),
		"huge":              good + strings.Repeat("a=x:y\r\n", 100_000),
	} {
		err := alice.member.Offer(99, sdp)
		if err != nil && !errors.Is(err, call.ErrInvalid) {
			t.Errorf("%s: error of another kind: %v", name, err)
		}
		if err == nil && name != "codecs of nobody" {
			t.Errorf("%s: accepted", name)
		}
	}
	// She can go on with a good one.
	bob := join(t, room, "bob", ModeSingle)
	mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
	bob.hears(info, alice.member, 5)
}

func TestRoomsCloseWhenTheirTimeIsOver(t *testing.T) {
	s := startServer(t, nil)
	closed := make(chan RoomInfo, 2)
	s.OpenRoom("never used", RoomOptions{EmptyTimeout: time.Second, OnClosed: func(i RoomInfo) { closed <- i }})
	used := s.OpenRoom("used", RoomOptions{LeaveTimeout: time.Second, OnClosed: func(i RoomInfo) { closed <- i }})
	alice := join(t, used, "alice", ModeSingle)
	alice.active()
	if i := <-closed; i.Name != "never used" {
		t.Fatalf("room %s closed first", i.Name)
	}
	alice.member.Leave(ReasonClientInitiated)
	select {
	case i := <-closed:
		if i.Name != "used" {
			t.Errorf("%s closed", i.Name)
		}
	case <-time.After(patience):
		t.Error("the room outlives its last member")
	}
	if _, _, err := used.Join(context.Background(), JoinParams{Grant: testGrant("bob"), Session: alice}); !errors.Is(err, call.ErrUnavailable) {
		t.Errorf("join a closed room: %v", err)
	}
}
