package sfu

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// A simulcaster sends three VP8 layers, each with numbers of its own, and a key
// frame whenever it is asked for one.
type simulcaster struct {
	c      *client
	layers map[string]*webrtc.TrackLocalStaticRTP
	info   TrackInfo
}

// publishSimulcast announces and sends q, h and f. The first payload byte after
// the VP8 descriptor and frame header is the layer's letter.
func (c *client) publishSimulcast(cid string) *simulcaster {
	c.t.Helper()
	s := &simulcaster{c: c, layers: make(map[string]*webrtc.TrackLocalStaticRTP)}
	info, err := c.member.AddTrack(AddTrack{
		CID: cid, Kind: KindVideo, Source: call.SourceCamera, Width: 1280, Height: 720,
		Codecs: []Codec{{MimeType: "video/VP8", CID: cid}},
		Layers: []Layer{
			{Quality: QualityLow, Width: 320, Height: 180, RID: "q"},
			{Quality: QualityMedium, Width: 640, Height: 360, RID: "h"},
			{Quality: QualityHigh, Width: 1280, Height: 720, RID: "f"},
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	s.info = info
	var sender *webrtc.RTPSender
	var tr *webrtc.RTPTransceiver
	for _, rid := range []string{"q", "h", "f"} {
		local, err := webrtc.NewTrackLocalStaticRTP(
			webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}, cid, "stream", webrtc.WithRTPStreamID(rid))
		if err != nil {
			c.t.Fatal(err)
		}
		s.layers[rid] = local
		if sender == nil {
			tr, err = c.pub.AddTransceiverFromTrack(local, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
			if err == nil {
				sender = tr.Sender()
			}
		} else {
			err = sender.AddEncoding(local)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	var midID, ridID uint8
	c.offer(false)
	eventually(c.t, "the simulcast section to be negotiated", func() bool {
		for _, e := range sender.GetParameters().HeaderExtensions {
			switch e.URI {
			case extMID:
				midID = uint8(e.ID)
			case extRID:
				ridID = uint8(e.ID)
			}
		}
		return tr.Mid() != "" && midID != 0 && ridID != 0 && c.pub.SignalingState() == webrtc.SignalingStateStable
	})
	for i, rid := range []string{"q", "h", "f"} {
		s.send(rid, i, tr.Mid(), midID, ridID, sender)
	}
	return s
}

func (s *simulcaster) send(rid string, index int, mid string, midID, ridID uint8, sender *webrtc.RTPSender) {
	stop, done := make(chan struct{}), make(chan struct{})
	asked := make(chan struct{}, 1)
	go func() {
		for {
			pkts, _, err := sender.ReadSimulcastRTCP(rid)
			if err != nil {
				return
			}
			if len(pkts) > 0 {
				for _, p := range pkts {
					if isPLI(p) {
						select {
						case asked <- struct{}{}:
						default:
						}
					}
				}
			}
		}
	}()
	go func() {
		defer close(done)
		tick := time.NewTicker(33 * time.Millisecond)
		defer tick.Stop()
		seq, ts, pid := uint16(1000*(index+1)), uint32(index)*1_000_000_000, uint16(100*(index+1))
		key := true
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-asked:
				key = true
				continue
			case <-tick.C:
			}
			head := byte(1)
			if key {
				head = 0
			}
			key = false
			p := &rtp.Packet{Header: rtp.Header{Version: 2, Marker: true, SequenceNumber: seq, Timestamp: ts}}
			p.Payload = []byte{0x90, 0xc0, 0x80 | byte(pid>>8)&0x7f, byte(pid), byte(pid), head, rid[0]}
			p.Payload = binary.BigEndian.AppendUint32(p.Payload, uint32(n))
			_ = p.Header.SetExtension(midID, []byte(mid))
			_ = p.Header.SetExtension(ridID, []byte(rid))
			_ = s.layers[rid].WriteRTP(p)
			seq++
			pid++
			ts += 3000
		}
	}()
	s.c.t.Cleanup(func() { close(stop); <-done })
}

// layerOf is the letter of the layer a packet came from.
func layerOf(p *rtp.Packet) string { return string(p.Payload[6]) }

func pictureOf(p *rtp.Packet) uint16 { return binary.BigEndian.Uint16(p.Payload[2:4]) & 0x7fff }

// tail waits for the last packets to be of one layer.
func (c *client) settles(r *received, layer string) {
	c.t.Helper()
	eventually(c.t, "layer "+layer, func() bool {
		p := r.all()
		return len(p) > 10 && layerOf(p[len(p)-1]) == layer && layerOf(p[len(p)-5]) == layer
	})
}

func TestLayerSwitchesAreSeamless(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("stage", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	sim := alice.publishSimulcast("cam")
	r := bob.hears(sim.info, alice.member, 10)

	bob.settles(r, "f")
	bob.member.SetTrackSettings(TrackSettings{Width: 320, Height: 180}, sim.info.SID)
	bob.settles(r, "q")
	bob.member.SetTrackSettings(TrackSettings{Quality: QualityMedium}, sim.info.SID)
	bob.settles(r, "h")
	bob.member.SetTrackSettings(TrackSettings{Disabled: true}, sim.info.SID)
	eventually(t, "the pause", func() bool {
		n := r.count()
		time.Sleep(300 * time.Millisecond)
		return r.count() == n
	})
	bob.member.SetTrackSettings(TrackSettings{Width: 1280, Height: 720}, sim.info.SID)
	bob.settles(r, "f")

	pkts := inOrder(r.all())
	switches, missing := 0, 0
	for i := 1; i < len(pkts); i++ {
		a, b := pkts[i-1], pkts[i]
		if lost := b.SequenceNumber - a.SequenceNumber - 1; lost > 0 {
			missing += int(lost)
			continue // nothing to compare
		}
		if d := int32(b.Timestamp - a.Timestamp); d <= 0 || d > 5*90000 {
			t.Errorf("packet %d: timestamp jumps by %d", i, d)
		}
		if d := (pictureOf(b) - pictureOf(a)) & 0x7fff; d != 1 {
			t.Errorf("packet %d: picture ID jumps by %d", i, d)
		}
		if layerOf(a) != layerOf(b) {
			switches++
			if b.Payload[5]&1 != 0 {
				t.Errorf("packet %d: switch from %s to %s is not at a key frame", i, layerOf(a), layerOf(b))
			}
		}
	}
	if missing > len(pkts)/3 {
		t.Errorf("%d packets are missing beside %d that came: not loss, but gaps in the numbers", missing, len(pkts))
	}
	if switches < 2 {
		t.Errorf("%d switches, wanted at least 2", switches)
	}
}
