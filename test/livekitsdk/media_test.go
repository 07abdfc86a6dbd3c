package livekitsdk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/livekit/protocol/livekit"
	lksdk "github.com/livekit/server-sdk-go/v2"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
	"github.com/pion/webrtc/v4"
)

// patience is how long anything may take to happen on a loaded machine.
const patience = 40 * time.Second

// modes are the two ways that the SDK connects.
var modes = []struct {
	name string
	opts []lksdk.ConnectOption
}{
	{"two connections", nil},
	{"one connection", []lksdk.ConnectOption{lksdk.WithSinglePeerConnection()}},
}

// join connects a participant and disconnects it when the test ends.
func join(t *testing.T, s *server, room, identity string, cb *lksdk.RoomCallback, opts ...lksdk.ConnectOption) *lksdk.Room {
	t.Helper()
	r, err := lksdk.ConnectToRoom(s.LiveKitURL, lksdk.ConnectInfo{
		APIKey: s.APIKey, APISecret: s.APISecret, RoomName: room, ParticipantIdentity: identity,
	}, cb, opts...)
	if err != nil {
		t.Fatalf("%s connects: %v", identity, err)
	}
	t.Cleanup(r.Disconnect)
	return r
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A tap keeps every RTP packet of a subscribed track.
type tap struct {
	mu      sync.Mutex
	packets []*rtp.Packet // in order of arrival
	pub     *lksdk.RemoteTrackPublication
}

// callback makes the tap listen to the first track of a kind.
func (p *tap) callback(kind lksdk.TrackKind) *lksdk.RoomCallback {
	return &lksdk.RoomCallback{ParticipantCallback: lksdk.ParticipantCallback{
		OnTrackSubscribed: func(track *webrtc.TrackRemote, pub *lksdk.RemoteTrackPublication, _ *lksdk.RemoteParticipant) {
			if pub.Kind() != kind {
				return
			}
			p.mu.Lock()
			p.pub = pub
			p.mu.Unlock()
			for {
				pkt, _, err := track.ReadRTP()
				if err != nil {
					return
				}
				if len(pkt.Payload) == 0 {
					continue // padding
				}
				p.mu.Lock()
				p.packets = append(p.packets, pkt)
				p.mu.Unlock()
			}
		},
	}}
}

func (p *tap) publication() *lksdk.RemoteTrackPublication {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pub
}

// sorted returns the packets in the order of their sequence numbers.
func (p *tap) sorted() []*rtp.Packet {
	p.mu.Lock()
	all := slices.Clone(p.packets)
	p.mu.Unlock()
	slices.SortStableFunc(all, func(a, b *rtp.Packet) int { return int(int16(a.SequenceNumber - b.SequenceNumber)) })
	return slices.CompactFunc(all, func(a, b *rtp.Packet) bool { return a.SequenceNumber == b.SequenceNumber })
}

// Audio: what goes in comes out, packet by packet, whatever the sequence
// numbers and timestamps begin with.
func TestAudioPayloads(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			s := start(t)
			var heard tap
			pub := join(t, s, "audio", "publisher", nil, mode.opts...)
			join(t, s, "audio", "subscriber", heard.callback(lksdk.TrackKindAudio), mode.opts...)

			track, err := lksdk.NewLocalTrack(webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pub.LocalParticipant.PublishTrack(track, &lksdk.TrackPublicationOptions{Name: "tone", Source: livekit.TrackSource_MICROPHONE}); err != nil {
				t.Fatal(err)
			}
			const total = 150
			// Both counters wrap while the test runs.
			seq, ts := uint16(65536-60), uint32(1<<32-60*960)
			stop := make(chan struct{})
			var sending sync.WaitGroup
			sending.Go(func() {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for n := uint32(0); ; n++ {
					select {
					case <-tick.C:
					case <-stop:
						return
					}
					level := uint8(30)
					pkt := &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: seq + uint16(n), Timestamp: ts + n*960}, Payload: audioPayload(n)}
					if err := track.WriteRTP(pkt, &lksdk.SampleWriteOptions{AudioLevel: &level}); err != nil {
						t.Errorf("writing: %v", err)
						return
					}
				}
			})
			eventually(t, fmt.Sprintf("the subscriber gets %d packets", total), func() bool { return len(heard.sorted()) >= total })
			close(stop)
			sending.Wait()

			var seqOffset, lost int
			var tsOffset uint32
			last := -1
			for i, pkt := range heard.sorted() {
				n := int(binary.BigEndian.Uint32(pkt.Payload[4:]))
				if want := audioPayload(uint32(n)); !slices.Equal(pkt.Payload, want) {
					t.Fatalf("packet %d came out as %x, went in as %x", n, pkt.Payload, want)
				}
				if i == 0 {
					seqOffset, tsOffset = int(pkt.SequenceNumber)-n, pkt.Timestamp-uint32(n)*960
				} else {
					lost += n - last - 1
				}
				last = n
				if got := uint16(int(pkt.SequenceNumber) - n - seqOffset); got != 0 {
					t.Fatalf("packet %d is %d sequence numbers off", n, int16(got))
				}
				if got := pkt.Timestamp - uint32(n)*960 - tsOffset; got != 0 {
					t.Fatalf("packet %d is %d timestamp ticks off", n, int32(got))
				}
			}
			if lost > total/20 {
				t.Errorf("%d of %d packets were lost on the loopback", lost, last)
			}
		})
	}
}

// audioPayload is what looks like an Opus packet and says which one it is.
func audioPayload(n uint32) []byte {
	b := []byte{0x78, 'o', 'p', 's', 0, 0, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(b[4:], n)
	binary.BigEndian.PutUint32(b[8:], n*2654435761)
	return b
}

// A layer is one encoding of the simulcast video, written by hand.
type layer struct {
	name          byte // q, h, f
	track         *lksdk.LocalTrack
	width, height uint32
	seq           uint16
	ts            uint32
	picture       uint16
	frame         uint32
	wantKey       atomic.Bool
}

// write sends the layer's next frame: three packets of a VP8 frame that say
// where they belong.
func (l *layer) write() error {
	key := l.wantKey.Swap(false)
	const parts = 3
	for part := range byte(parts) {
		// RFC 7741 section 4.2: X, then S at the frame's start; I with a 15-bit picture ID.
		descriptor := []byte{0x80, 0x80, 0x80 | byte(l.picture>>8), byte(l.picture)}
		if part == 0 {
			descriptor[0] |= 0x10
		}
		pkt := &rtp.Packet{
			Header:  rtp.Header{Version: 2, Marker: part == parts-1, SequenceNumber: l.seq, Timestamp: l.ts},
			Payload: append(descriptor, framePart(l, key, part)...),
		}
		if err := l.track.WriteRTP(pkt, nil); err != nil {
			return err
		}
		l.seq++
	}
	l.picture = (l.picture + 1) & 0x7fff
	l.ts += 90000 / framesPerSecond
	l.frame++
	return nil
}

const framesPerSecond = 15

// framePart is the VP8 payload of one packet: RFC 6386 section 9.1's frame
// header at the start of a frame, then the layer, frame and part.
func framePart(l *layer, key bool, part byte) []byte {
	var b []byte
	switch {
	case part == 0 && key:
		b = []byte{0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a}
		b = binary.LittleEndian.AppendUint16(b, uint16(l.width))
		b = binary.LittleEndian.AppendUint16(b, uint16(l.height))
	case part == 0:
		b = []byte{0x11, 0x02, 0x00, 0, 0, 0, 0, 0, 0, 0}
	default:
		b = make([]byte, 10)
	}
	b = append(b, 'L', l.name, part)
	b = binary.BigEndian.AppendUint32(b, l.frame)
	return append(b, make([]byte, 200)...)
}

// A received packet, read back.
type packet struct {
	seq       uint16
	ts        uint32
	marker    bool
	start     bool
	key       bool
	picture   uint16
	layer     byte
	part      byte
	frame     uint32
	wholeSize int
}

func parse(pkt *rtp.Packet) (packet, error) {
	var vp8 codecs.VP8Packet
	body, err := vp8.Unmarshal(pkt.Payload)
	if err != nil {
		return packet{}, err
	}
	if len(body) != 217 || body[10] != 'L' {
		return packet{}, fmt.Errorf("the payload has changed: %x", body[:min(len(body), 20)])
	}
	return packet{
		seq: pkt.SequenceNumber, ts: pkt.Timestamp, marker: pkt.Marker, start: vp8.S == 1, key: vp8.S == 1 && body[0]&1 == 0,
		picture: vp8.PictureID, layer: body[11], part: body[12], frame: binary.BigEndian.Uint32(body[13:]), wholeSize: len(body),
	}, nil
}

// Video: the layer follows what the subscriber asks for, switches begin with a
// key frame, and the subscriber sees one stream without a seam.
func TestLayerSwitches(t *testing.T) {
	for _, mode := range modes {
		t.Run(mode.name, func(t *testing.T) {
			s := start(t)
			var seen tap
			pub := join(t, s, "video", "publisher", nil, mode.opts...)

			layers := []*layer{{name: 'q', width: 320, height: 180}, {name: 'h', width: 640, height: 360}, {name: 'f', width: 1280, height: 720}}
			var tracks []*lksdk.LocalTrack
			for i, l := range layers {
				// Nothing about one layer's numbers says anything about another's.
				l.seq, l.ts, l.picture = uint16(rand.Uint32()), rand.Uint32(), uint16(rand.Uint32())&0x7fff
				l.wantKey.Store(true)
				track, err := lksdk.NewLocalTrack(
					webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000},
					lksdk.WithSimulcast("camera", &livekit.VideoLayer{Quality: livekit.VideoQuality(i), Width: l.width, Height: l.height, Bitrate: 200_000, Rid: string(l.name), SpatialLayer: int32(i)}),
					lksdk.WithRTCPHandler(func(p rtcp.Packet) {
						switch p.(type) {
						case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
							l.wantKey.Store(true)
						}
					}))
				if err != nil {
					t.Fatal(err)
				}
				l.track = track
				tracks = append(tracks, track)
			}
			if _, err := pub.LocalParticipant.PublishSimulcastTrack(tracks, &lksdk.TrackPublicationOptions{Name: "camera", Source: livekit.TrackSource_CAMERA, VideoWidth: 1280, VideoHeight: 720}); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var sending sync.WaitGroup
			defer sending.Wait()
			defer close(stop)
			sending.Go(func() {
				tick := time.NewTicker(time.Second / framesPerSecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
					case <-stop:
						return
					}
					for _, l := range layers {
						if err := l.write(); err != nil {
							t.Errorf("writing: %v", err)
							return
						}
					}
				}
			})
			join(t, s, "video", "subscriber", seen.callback(lksdk.TrackKindVideo), mode.opts...)
			eventually(t, "the subscriber gets the video", func() bool { return seen.publication() != nil && len(seen.sorted()) > 30 })

			// now is the layer of the newest packet.
			now := func() byte {
				all := seen.sorted()
				p, err := parse(all[len(all)-1])
				if err != nil {
					t.Fatal(err)
				}
				return p.layer
			}
			began, first := time.Now(), seen.sorted()
			from := first[len(first)-1].Timestamp
			for _, i := range []int{0, 2, 1, 0, 2, 0} {
				want := layers[i]
				seen.publication().SetVideoDimensions(want.width, want.height)
				eventually(t, fmt.Sprintf("the subscriber gets layer %c", want.name), func() bool { return now() == want.name })
				// Stay long enough to see the stream go on.
				at := len(seen.sorted())
				eventually(t, fmt.Sprintf("layer %c goes on", want.name), func() bool { return len(seen.sorted()) > at+30 })
			}
			all := seen.sorted()
			elapsed := time.Since(began)
			check(t, all)
			advanced := time.Duration(float64(all[len(all)-1].Timestamp-from) / 90000 * float64(time.Second))
			if diff := (advanced - elapsed).Abs(); diff > 1500*time.Millisecond {
				t.Errorf("the timestamps advanced by %s in %s", advanced, elapsed)
			}
		})
	}
}

// check requires one continuous stream of whole frames.
func check(t *testing.T, all []*rtp.Packet) {
	t.Helper()
	// The newest may still be on their way again; the oldest may have come before
	// the client knew of the track.
	all = all[:len(all)-6]
	for len(all) > 0 {
		if p, err := parse(all[0]); err == nil && p.start {
			break
		}
		all = all[1:]
	}
	var last packet
	switches := 0
	for i, pkt := range all {
		p, err := parse(pkt)
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if i == 0 {
			last = p
			continue
		}
		context := fmt.Sprintf("packet %d: %+v after %+v", i, p, last)
		if p.seq != last.seq+1 {
			t.Fatalf("a hole or a jump in the sequence numbers: %s", context)
		}
		sameFrame := p.ts == last.ts
		// A switch may cut the old layer's last frame short: the new one's key frame
		// is whole, and a decoder needs nothing else.
		cut := !sameFrame && p.layer != last.layer
		if (sameFrame == last.marker && !cut) || sameFrame == p.start {
			t.Fatalf("a frame without its beginning or its end: %s", context)
		}
		if sameFrame {
			if p.layer != last.layer || p.frame != last.frame || p.part != last.part+1 || p.picture != last.picture {
				t.Fatalf("a frame of mixed packets: %s", context)
			}
			last = p
			continue
		}
		if step := p.ts - last.ts; step == 0 || step > 90000*2 {
			t.Fatalf("the timestamp steps by %d: %s", int32(step), context)
		}
		if p.picture != (last.picture+1)&0x7fff {
			t.Fatalf("the picture ID jumps: %s", context)
		}
		switch {
		case p.layer == last.layer:
			if p.frame != last.frame+1 {
				t.Fatalf("a frame is missing: %s", context)
			}
			if p.ts-last.ts != 90000/framesPerSecond {
				t.Fatalf("the timestamp steps by %d inside a layer: %s", p.ts-last.ts, context)
			}
		case !p.key:
			t.Fatalf("a switch without a key frame: %s", context)
		default:
			switches++
		}
		last = p
	}
	if switches < 5 {
		t.Errorf("only %d switches were seen", switches)
	}
	t.Logf("%d packets, %d switches", len(all), switches)
}
