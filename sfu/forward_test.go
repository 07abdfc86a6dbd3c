package sfu

import (
	"cmp"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

func opusPayload(n int) []byte {
	return binary.BigEndian.AppendUint32([]byte{0x78}, uint32(n))
}

// vp8Payload is a one-packet frame with a 15-bit picture ID; every tenth is a
// key frame.
func vp8Payload(n int) []byte {
	head := byte(0x01)
	if n%10 == 0 {
		head = 0x00
	}
	return binary.BigEndian.AppendUint32([]byte{0x90, 0x80, 0x80 | byte(n>>8)&0x7f, byte(n), head}, uint32(n))
}

func micTrack(cid string) AddTrack {
	return AddTrack{CID: cid, Kind: KindAudio, Source: call.SourceMicrophone, Name: "mic"}
}

func camTrack(cid string) AddTrack {
	return AddTrack{CID: cid, Kind: KindVideo, Source: call.SourceCamera, Width: 640, Height: 360,
		Codecs: []Codec{{MimeType: "video/VP8", CID: cid}}}
}

// inOrder sorts packets by sequence number and drops doubled ones: on a busy
// machine some are lost on loopback and sent again.
func inOrder(pkts []*rtp.Packet) []*rtp.Packet {
	first := pkts[0].SequenceNumber - 1000
	slices.SortStableFunc(pkts, func(a, b *rtp.Packet) int {
		return cmp.Compare(a.SequenceNumber-first, b.SequenceNumber-first)
	})
	return slices.CompactFunc(pkts, func(a, b *rtp.Packet) bool { return a.SequenceNumber == b.SequenceNumber })
}

// checkContinuous fails unless sequence numbers and timestamps follow the
// counted payloads.
func checkContinuous(t *testing.T, r *received, step uint32) {
	t.Helper()
	pkts := inOrder(r.all())
	count := func(p *rtp.Packet) uint32 { return binary.BigEndian.Uint32(p.Payload[len(p.Payload)-4:]) }
	for i, p := range pkts {
		n := count(p) - count(pkts[0])
		if seq := p.SequenceNumber - pkts[0].SequenceNumber; seq != uint16(n) {
			t.Errorf("packet %d: payload %d has sequence number %d: a receiver would count loss", i, n, seq)
		}
		if ts := p.Timestamp - pkts[0].Timestamp; ts != n*step {
			t.Errorf("packet %d: payload %d has timestamp %d, want %d", i, n, ts, n*step)
		}
	}
}

func TestTwoMembersHearAndSeeEachOther(t *testing.T) {
	for name, mode := range map[string]Mode{"single connection": ModeSingle, "subscriber primary": ModeSubscriberPrimary} {
		t.Run(name, func(t *testing.T) {
			s := startServer(t, nil)
			room := s.OpenRoom("standup", RoomOptions{})
			alice := join(t, room, "alice", mode)
			bob := join(t, room, "bob", mode)
			waitFor(alice, "to be active", func(EventJoined) bool { return true })
			waitFor(bob, "to be active", func(EventJoined) bool { return true })

			mic, micInfo := alice.publish(micTrack("mic-alice"), webrtc.MimeTypeOpus)
			alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
			cam, camInfo := bob.publish(camTrack("cam-bob"), webrtc.MimeTypeVP8)
			bob.pump(cam, 33*time.Millisecond, 3000, vp8Payload)

			heard := bob.hears(micInfo, alice.member, 50)
			seen := alice.hears(camInfo, bob.member, 50)
			checkContinuous(t, heard, 960)
			checkContinuous(t, seen, 3000)
			waitFor(alice, "to hear of the first subscriber", func(e EventTrackSubscribed) bool { return e.SID == micInfo.SID })

			late := join(t, room, "late", mode)
			late.hears(micInfo, alice.member, 10)
			late.hears(camInfo, bob.member, 10)
		})
	}
}
