package sfu

import (
	"encoding/binary"
	"testing"
	"time"

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

// checkContinuous fails when sequence numbers or payload counts have gaps.
func checkContinuous(t *testing.T, r *received) {
	t.Helper()
	pkts := r.all()
	for i := 1; i < len(pkts); i++ {
		if d := pkts[i].SequenceNumber - pkts[i-1].SequenceNumber; d != 1 {
			t.Errorf("sequence number jumps by %d: a receiver would count loss", d)
		}
		if int32(pkts[i].Timestamp-pkts[i-1].Timestamp) < 0 {
			t.Errorf("timestamp goes back from %d to %d", pkts[i-1].Timestamp, pkts[i].Timestamp)
		}
		a, b := pkts[i-1].Payload, pkts[i].Payload
		if x, y := binary.BigEndian.Uint32(a[len(a)-4:]), binary.BigEndian.Uint32(b[len(b)-4:]); y != x+1 {
			t.Errorf("payload %d follows %d: packets were lost or doubled", y, x)
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
			checkContinuous(t, heard)
			checkContinuous(t, seen)
			if p := seen.all()[0]; p.Payload[4]&1 != 0 {
				t.Error("video does not begin with a key frame: nothing would be decoded")
			}
			waitFor(alice, "to hear of the first subscriber", func(e EventTrackSubscribed) bool { return e.SID == micInfo.SID })

			late := join(t, room, "late", mode)
			late.hears(micInfo, alice.member, 10)
			late.hears(camInfo, bob.member, 10)
		})
	}
}
