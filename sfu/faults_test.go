package sfu

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
	"go.uber.org/goleak"

	"github.com/trunkhall/trunkhall/call"
)

// TestMain looks for leaked goroutines. pion leaves the test clients' readers
// behind when media came before the answer; the server waits for its own ones
// in Run.
func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/pion/srtp/v3.(*ReadStreamSRTP).NextStream"))
}

func TestVanishedClientIsToldToResumeThenRemoved(t *testing.T) {
	s := startServer(t, nil)
	s.times.disconnected, s.times.failed, s.times.rescue = 2*time.Second, time.Second, time.Second
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	alice.active()
	_ = alice.pub.GracefulClose() // says goodbye in DTLS, not in signalling
	waitFor(alice, "to be told to resume", func(e EventLeave) bool {
		return e.Action == ActionResume && e.Reason == ReasonConnectionTimeout
	})
	waitFor(bob, "alice to be gone", func(e EventParticipants) bool {
		p := e.Participants[0]
		return p.SID == alice.member.SID() && p.State == StateDisconnected && p.Reason == ReasonConnectionTimeout
	})
}

// TestMediaStaysFailedAfterResume is a client that is back, but not its media:
// it is told to join anew, which it does by itself, and not to go.
func TestMediaStaysFailedAfterResume(t *testing.T) {
	s := startServer(t, nil)
	s.times.disconnected, s.times.failed, s.times.rescue = 2*time.Second, time.Second, 2*time.Second
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	alice.active()
	_ = alice.pub.GracefulClose()
	waitFor(alice, "to be told to resume", func(e EventLeave) bool { return e.Action == ActionResume })
	if _, _, err := room.Resume("alice", alice.member.SID(), alice); err != nil {
		t.Fatal(err)
	}
	waitFor(alice, "to be told what next", func(e EventLeave) bool { return e.Action == ActionReconnect })
}

func TestSignalLostBeforeMediaEndsTheSession(t *testing.T) {
	s := startServer(t, nil)
	s.times.join = time.Second
	room := s.OpenRoom("room", RoomOptions{})
	for _, id := range []call.Identity{"gone", "mute"} {
		c := newClient(t, id, ModeSingle)
		m, _, err := room.Join(context.Background(), JoinParams{Grant: testGrant(id), Session: c})
		if err != nil {
			t.Fatal(err)
		}
		go c.run()
		t.Cleanup(func() { close(c.stop); <-c.ended })
		want := ReasonJoinFailure
		if id == "gone" {
			m.SignalLost()
			want = ReasonSignalClose
		}
		waitFor(c, "the leave", func(e EventLeave) bool { return e.Reason == want })
	}
}

func TestNodeIPIsWhatClientsAreTold(t *testing.T) {
	s := startServer(t, func(c *Config) { c.NodeIPs = []string{"198.51.100.7"}; c.BindAddresses = nil; c.Loopback = false })
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	waitFor(alice, "the last candidate", func(e EventCandidate) bool { return e.Final })
	alice.mu.Lock()
	defer alice.mu.Unlock()
	told := 0
	for _, e := range alice.log {
		c, ok := e.(EventCandidate)
		if !ok || c.Candidate == "" {
			continue
		}
		var init webrtc.ICECandidateInit
		if err := json.Unmarshal([]byte(c.Candidate), &init); err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(init.Candidate)
		if len(f) < 6 {
			t.Fatalf("candidate %q", init.Candidate)
		}
		if a, err := netip.ParseAddr(f[4]); err != nil || a.Is4() && f[4] != "198.51.100.7" {
			t.Errorf("candidate %q gives away an inner address", init.Candidate)
		}
		told++
	}
	if told == 0 {
		t.Error("no candidates")
	}
	if a := s.MediaAddrs(); len(a) == 0 || a[0].Addr().String() != "198.51.100.7" || a[0].Port() == 0 {
		t.Errorf("media addresses: %v", a)
	}
}

func TestLostPacketIsSentAgain(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	bob := join(t, room, "bob", ModeSingle)
	cam, info := alice.publish(camTrack("cam"), webrtc.MimeTypeVP8)
	alice.pump(cam, 33*time.Millisecond, 3000, vp8Payload)
	r := bob.hears(info, alice.member, 10)
	lost := r.all()[5]
	err := bob.pub.WriteRTCP([]rtcp.Packet{&rtcp.TransportLayerNack{
		MediaSSRC: uint32(r.remote.SSRC()), Nacks: rtcp.NackPairsFromSequenceNumbers([]uint16{lost.SequenceNumber}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the packet again", func() bool {
		n := 0
		for _, p := range r.all() {
			if p.SequenceNumber == lost.SequenceNumber {
				n++
				if string(p.Payload) != string(lost.Payload) || p.Timestamp != lost.Timestamp {
					t.Fatalf("it came back changed: %v, was %v", p, lost)
				}
			}
		}
		return n == 2
	})
	if st := room.Stats(); len(st.Tracks) != 1 || st.Tracks[0].Retransmitted != 1 || st.Tracks[0].PacketsOut == 0 {
		t.Errorf("stats: %+v", st)
	}
}

func TestPublisherWithoutSubscribing(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	bob := join(t, room, "bob", ModeSingle)
	alice := newClient(t, "alice", ModePublisherPrimary)
	g := testGrant("alice")
	g.CanSubscribe = false
	g.CanPublishSources = []call.Source{call.SourceMicrophone}
	m, snap, err := room.Join(context.Background(), JoinParams{Grant: g, Mode: ModePublisherPrimary, AutoSubscribe: true, Session: alice})
	if err != nil {
		t.Fatal(err)
	}
	alice.start(m, snap)
	micB, _ := bob.publish(micTrack("b"), webrtc.MimeTypeOpus)
	bob.pump(micB, 20*time.Millisecond, 960, opusPayload)
	mic, info := alice.publish(micTrack("a"), webrtc.MimeTypeOpus)
	alice.pump(mic, 20*time.Millisecond, 960, opusPayload)
	bob.hears(info, alice.member, 10)
	if _, err := m.AddTrack(camTrack("c")); !errors.Is(err, call.ErrForbidden) {
		t.Errorf("a source that the grant does not list: %v", err)
	}
	alice.mu.Lock()
	n := len(alice.tracks)
	alice.mu.Unlock()
	if n != 0 {
		t.Errorf("%d tracks for a member that may not subscribe", n)
	}
	g.CanPublish = false
	m.SetGrant(g)
	waitFor(alice, "its track to be ended", func(e EventTrackUnpublished) bool { return e.SID == info.SID })
}

func TestHiddenMemberIsNotSeen(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	bob := join(t, room, "bob", ModeSingle)
	ghost := newClient(t, "ghost", ModeSingle)
	g := testGrant("ghost")
	g.Hidden = true
	m, snap, err := room.Join(context.Background(), JoinParams{Grant: g, Session: ghost})
	if err != nil {
		t.Fatal(err)
	}
	ghost.start(m, snap)
	ghost.active()
	if len(snap.Others) != 1 {
		t.Errorf("the hidden member sees %d others, want 1", len(snap.Others))
	}
	carol := join(t, room, "carol", ModeSingle)
	if len(carol.snap.Others) != 1 {
		t.Errorf("carol sees %d others, want bob alone", len(carol.snap.Others))
	}
	m.Leave(ReasonClientInitiated)
	waitFor(ghost, "the leave", func(EventLeave) bool { return true })
	if saw(bob, func(e EventParticipants) bool { return e.Participants[0].Identity == "ghost" }) {
		t.Error("bob was told of the hidden member")
	}
	if i := room.Info(); i.Participants != 2 {
		t.Errorf("the room counts %d participants", i.Participants)
	}
}

func TestAddTrackRefusesNonsense(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := join(t, room, "alice", ModeSingle)
	for name, c := range map[string]struct {
		a    AddTrack
		want error
	}{
		"no cid":               {AddTrack{Kind: KindAudio}, call.ErrInvalid},
		"no kind":              {AddTrack{CID: "x", Kind: 7}, call.ErrInvalid},
		"a novel for a name":   {AddTrack{CID: "x", Name: strings.Repeat("a", 1<<20)}, call.ErrInvalid},
		"many layers":          {AddTrack{CID: "x", Kind: KindVideo, Layers: make([]Layer, 9)}, call.ErrInvalid},
		"a backup for nothing": {AddTrack{CID: "x", Kind: KindVideo, SID: "TR_nothing"}, call.ErrNotFound},
	} {
		if _, err := alice.member.AddTrack(c.a); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	info, err := alice.member.AddTrack(AddTrack{CID: "h", Kind: KindVideo, Codecs: []Codec{{MimeType: "video/H265"}}})
	if err != nil || info.Codecs[0].MimeType != webrtc.MimeTypeVP8 {
		t.Errorf("an unknown codec becomes %+v, %v", info.Codecs, err)
	}
	for i := 0; ; i++ {
		if _, err = alice.member.AddTrack(micTrack(strings.Repeat("m", i+1))); err != nil {
			break
		}
		if i > 100 {
			t.Fatal("tracks without end")
		}
	}
	if !errors.Is(err, call.ErrUnavailable) {
		t.Errorf("too many: %v", err)
	}
}

func TestRoomIsFull(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{MaxParticipants: 1})
	join(t, room, "alice", ModeSingle)
	if _, _, err := room.Join(context.Background(), JoinParams{Grant: testGrant("bob"), Session: newClient(t, "bob", ModeSingle)}); !errors.Is(err, call.ErrUnavailable) {
		t.Errorf("a second participant: %v", err)
	}
	join(t, room, "alice", ModeSingle) // her new session replaces the old one
}

func TestTCPWhereUDPIsBlocked(t *testing.T) {
	s := startServer(t, nil)
	room := s.OpenRoom("room", RoomOptions{})
	alice := newClient(t, "alice", ModeSingle)
	alice.tcpOnly = true
	m, snap, err := room.Join(context.Background(), JoinParams{Grant: testGrant("alice"), Session: alice, AutoSubscribe: true})
	if err != nil {
		t.Fatal(err)
	}
	alice.start(m, snap)
	alice.active()
	bob := join(t, room, "bob", ModeSingle)
	mic, info := bob.publish(micTrack("b"), webrtc.MimeTypeOpus)
	bob.pump(mic, 20*time.Millisecond, 960, opusPayload)
	alice.hears(info, bob.member, 10)
}

func TestFullICEChecksOnlyReasonableAddresses(t *testing.T) {
	n := &network{local: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}
	lan := &network{local: []netip.Addr{netip.MustParseAddr("10.0.0.1")}, loop: true}
	for addr, want := range map[string][2]bool{
		"8.8.8.8": {true, true}, "2600::1": {true, true}, "10.1.2.3": {false, true}, "127.0.0.1": {false, true},
		"169.254.169.254": {false, false}, "100.100.100.200": {false, false}, "0.0.0.0": {false, false},
		"::ffff:127.0.0.1": {false, true}, "64:ff9b::7f00:1": {false, false}, "2002:7f00:1::": {false, false},
		"224.0.0.1": {false, false}, "255.255.255.255": {false, false}, "fe80::1": {false, false},
	} {
		if got := [2]bool{n.mayCheck(net.ParseIP(addr)), lan.mayCheck(net.ParseIP(addr))}; got != want {
			t.Errorf("%s: public node %v, node in a private network %v; want %v", addr, got[0], got[1], want)
		}
	}
}

func TestConfigComplainsAboutEverythingAtOnce(t *testing.T) {
	c := Config{UDPPort: 70000, TCPPort: -2, BindAddresses: []string{"x"}, NodeIPs: []string{"0.0.0.0"}, MaxParticipants: -1}
	err := c.Validate()
	for _, key := range []string{"udp_port", "tcp_port", "bind_addresses", "node_ips", "max_participants", "max_tracks"} {
		if err == nil || !strings.Contains(err.Error(), "sfu."+key) {
			t.Errorf("no complaint about %s in: %v", key, err)
		}
	}
	if err := DefaultConfig().Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

// A discard is a connection that takes packets without sending them.
type discard struct{ n int }

func (d *discard) WriteRTP(_ *rtp.Header, payload []byte) (int, error) {
	d.n++
	return len(payload), nil
}
func (d *discard) Write(b []byte) (int, error) { d.n++; return len(b), nil }

// fanOut returns a track with sinks that discard, and its only layer.
func fanOut(sinks int) (*upTrack, *upLayer, *discard) {
	u := newUpTrack("TR_x", TrackInfo{Kind: KindVideo}, discardLogger())
	l := &upLayer{ring: newPacketRing(videoRing)}
	u.layers[0] = l
	out := &discard{}
	for range sinks {
		d := newDownTrack(&transport{}, u, "PA_x", "TR_x", KindVideo)
		d.stream, d.pt, d.clock, d.ready = out, 96, 90000, true
		d.exts.absSend = 2
		u.addSink(d)
	}
	u.chooseLayers(time.Now())
	return u, l, out
}

// A notebook is a connection that notes the last byte of each payload.
type notebook struct{ got []byte }

func (n *notebook) WriteRTP(_ *rtp.Header, payload []byte) (int, error) {
	n.got = append(n.got, payload[len(payload)-1])
	return len(payload), nil
}
func (n *notebook) Write(b []byte) (int, error) { return len(b), nil }

// A decoder shows garbage or nothing if a stream begins, goes on after a pause
// or changes its layer anywhere but at a key frame.
func TestStreamsBeginAndSwitchAtKeyFrames(t *testing.T) {
	u, low, _ := fanOut(1)
	high := &upLayer{index: 1, ring: newPacketRing(videoRing)}
	u.layers[1] = high
	d, out := (*u.sinks.Load())[0], &notebook{}
	d.stream = out
	seq := map[*upLayer]uint16{low: 100, high: 7000}
	send := func(l *upLayer, key bool, name byte) {
		t.Helper()
		raw := testVP8Packet()
		seq[l]++
		raw[2], raw[3] = byte(seq[l]>>8), byte(seq[l])
		if !key {
			raw[16] |= 1 // RFC 6386 §9.1: an interframe
		}
		raw[len(raw)-1] = name
		var p packet
		if !p.parse(raw) {
			t.Fatal("the test packet is malformed")
		}
		u.handle(l, &p, formatVP8, len(raw), time.Now())
	}

	send(high, false, 'x') // the layer is live
	d.want(0, false, 2)
	send(low, false, 'x') // nothing to decode it with
	send(low, true, 'a')
	send(low, false, 'b')

	d.want(1, false, 2)
	send(high, false, 'x')
	send(low, false, 'c') // goes on meanwhile
	send(high, true, 'd')
	send(low, false, 'x')
	send(low, true, 'x')
	send(high, false, 'e')

	d.want(1, true, 2) // paused
	send(high, false, 'x')
	send(high, true, 'x')
	d.want(1, false, 2)
	send(high, false, 'x')
	send(high, true, 'f')

	if got := string(out.got); got != "abcdef" {
		t.Errorf("forwarded %q, want %q", got, "abcdef")
	}
}

func TestPacketPathDoesNotAllocate(t *testing.T) {
	u, l, out := fanOut(10)
	raw := testVP8Packet()
	var p packet
	seq := uint16(0)
	step := func() {
		raw[2], raw[3] = byte(seq>>8), byte(seq)
		raw[14], raw[15] = 0x80|byte(seq>>8)&0x7f, byte(seq)
		seq++
		if !p.parse(raw) {
			t.Fatal("the test packet is malformed")
		}
		u.handle(l, &p, formatVP8, len(raw), time.Now())
	}
	for range 2 * videoRing { // fill the ring once
		step()
	}
	before := out.n
	if n := testing.AllocsPerRun(1000, step); n > 0 {
		t.Errorf("%v allocations for a packet to ten sinks", n)
	}
	if out.n-before < 10_000 {
		t.Errorf("only %d packets were forwarded", out.n-before)
	}
}

func BenchmarkForward(b *testing.B) {
	u, l, _ := fanOut(40)
	raw := testVP8Packet()
	var p packet
	b.ReportAllocs()
	for seq := uint16(0); b.Loop(); seq++ {
		raw[2], raw[3] = byte(seq>>8), byte(seq)
		p.parse(raw)
		u.handle(l, &p, formatVP8, len(raw), time.Now())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/40, "ns/forwarded")
}

// testVP8Packet is a key frame of one packet with a 15-bit picture ID.
func testVP8Packet() []byte {
	raw := []byte{0x80, 0xe0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x90, 0x80, 0x80, 0x01, 0x00}
	return append(raw, make([]byte, 1133)...)
}

// A feed gives recorded RTCP to a sink as its subscriber would send it.
type feed [][]byte

func (f *feed) read(b []byte, a interceptor.Attributes) (int, interceptor.Attributes, error) {
	if len(*f) == 0 {
		return 0, a, io.EOF
	}
	n := copy(b, (*f)[0])
	*f = (*f)[1:]
	return n, a, nil
}

// FuzzFeedback feeds a subscriber's RTCP to its sink.
func FuzzFeedback(f *testing.F) {
	add := func(pkts ...rtcp.Packet) {
		b, err := rtcp.Marshal(pkts)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&rtcp.TransportLayerNack{MediaSSRC: 0, Nacks: []rtcp.NackPair{{PacketID: 1, LostPackets: 0xffff}}})
	add(&rtcp.ReceiverReport{Reports: []rtcp.ReceptionReport{{FractionLost: 255, LastSenderReport: 1, Delay: 0xffffffff}}})
	add(&rtcp.ReceiverEstimatedMaximumBitrate{Bitrate: 3e38, SSRCs: []uint32{1}})
	add(&rtcp.PictureLossIndication{}, &rtcp.FullIntraRequest{})
	f.Add([]byte{0x80, 202, 0, 0})       // no length
	f.Add([]byte{0x9f, 201, 0, 1, 0, 0}) // 31 reports that are not there
	f.Fuzz(func(_ *testing.T, raw []byte) {
		u, l, _ := fanOut(1)
		d := (*u.sinks.Load())[0]
		d.to.log = discardLogger()
		var p packet
		for seq := range uint16(4) {
			packet := testVP8Packet()
			packet[3] = byte(seq)
			p.parse(packet)
			u.handle(l, &p, formatVP8, len(packet), time.Now())
		}
		in := feed{raw}
		d.readRTCP(interceptor.RTCPReaderFunc(in.read))
	})
}
