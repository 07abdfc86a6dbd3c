package sfu

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// patience is how long tests wait for what must happen; machines may be busy.
const patience = 30 * time.Second

// startServer runs an SFU on loopback until the test ends.
func startServer(t *testing.T, change func(*Config)) *Server {
	t.Helper()
	cfg := DefaultConfig()
	cfg.UDPPort, cfg.TCPPort, cfg.Loopback = 0, 0, true
	cfg.BindAddresses = []string{"127.0.0.1"}
	if change != nil {
		change(&cfg)
	}
	var log *slog.Logger
	if os.Getenv("SFU_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := New(cfg, Deps{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return: goroutines are left")
		}
	})
	return s
}

// A client is a WebRTC client in the test: pion on the other end, with the
// signalling done in process.
type client struct {
	t       *testing.T
	tcpOnly bool // takes only the server's TCP candidates
	id      call.Identity
	mode    Mode
	member  *Member
	snap    Snapshot
	pub     *webrtc.PeerConnection
	sub     *webrtc.PeerConnection // same as pub in ModeSingle
	events  chan Event
	stop    chan struct{}
	ended   chan struct{}

	mu      sync.Mutex
	offerID uint32
	offered bool // an offer is unanswered
	again   bool // offer once more after the answer
	log     []Event
	tracks  map[string]*received // by stream ID
	data    [][]byte
	chans   map[string]*webrtc.DataChannel
}

// received collects the packets of one remote track.
type received struct {
	mu      sync.Mutex
	stream  string
	remote  *webrtc.TrackRemote
	packets []*rtp.Packet
}

func (r *received) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.packets)
}

func (r *received) all() []*rtp.Packet {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*rtp.Packet(nil), r.packets...)
}

// Event queues, as sessions must.
func (c *client) Event(e Event) {
	select {
	case c.events <- e:
	default:
		c.t.Error("client's event queue is full")
	}
}

func discardLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newClientPC(t *testing.T, tcpOnly bool) *webrtc.PeerConnection {
	t.Helper()
	m := &webrtc.MediaEngine{}
	if err := m.RegisterDefaultCodecs(); err != nil {
		t.Fatal(err)
	}
	for _, uri := range []string{extMID, extRID, extRepairedRID, extDependency} {
		if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, webrtc.RTPCodecTypeVideo); err != nil {
			t.Fatal(err)
		}
	}
	for _, uri := range []string{extMID, extAudioLevel} {
		if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, webrtc.RTPCodecTypeAudio); err != nil {
			t.Fatal(err)
		}
	}
	se := webrtc.SettingEngine{}
	se.SetIncludeLoopbackCandidate(true)
	if tcpOnly {
		se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4})
	}
	se.SetICETimeouts(10*time.Second, 20*time.Second, time.Second)
	se.LoggerFactory = pionLogger{discardLogger(), "client"}
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(m), webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

func testGrant(id call.Identity) call.Grant {
	return call.Grant{Identity: id, Name: string(id), CanPublish: true, CanSubscribe: true, CanPublishData: true}
}

// join makes a client and brings it into the room, with the first offer sent.
func join(t *testing.T, r *Room, id call.Identity, mode Mode) *client {
	t.Helper()
	c := newClient(t, id, mode)
	m, snap, err := r.Join(context.Background(), JoinParams{
		Grant: testGrant(id), Mode: mode, AutoSubscribe: true, Session: c, Client: ClientInfo{Protocol: 17},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.start(m, snap)
	return c
}

func newClient(t *testing.T, id call.Identity, mode Mode) *client {
	t.Helper()
	return &client{
		t: t, id: id, mode: mode, events: make(chan Event, 4096), stop: make(chan struct{}), ended: make(chan struct{}),
		tracks: make(map[string]*received), chans: make(map[string]*webrtc.DataChannel),
	}
}

func (c *client) start(m *Member, snap Snapshot) {
	c.t.Helper()
	c.member, c.snap = m, snap
	c.pub = c.connection(TargetPublisher)
	c.sub = c.pub
	if c.mode == ModeSubscriberPrimary {
		c.sub = c.connection(TargetSubscriber)
	} else {
		c.sections(3, 3)
	}
	yes, no, zero := true, false, uint16(0)
	for label, init := range map[string]*webrtc.DataChannelInit{
		"_reliable": {Ordered: &yes}, "_lossy": {Ordered: &no, MaxRetransmits: &zero},
	} {
		dc, err := c.pub.CreateDataChannel(label, init)
		if err != nil {
			c.t.Fatal(err)
		}
		c.listen(dc)
		c.chans[label] = dc
	}
	go c.run()
	c.t.Cleanup(c.close)
	c.offer(false)
}

func (c *client) close() {
	select {
	case <-c.stop:
		return
	default:
	}
	close(c.stop)
	<-c.ended
	_ = c.pub.GracefulClose()
	if c.sub != c.pub {
		_ = c.sub.GracefulClose()
	}
}

func (c *client) listen(dc *webrtc.DataChannel) {
	dc.OnMessage(func(m webrtc.DataChannelMessage) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.data = append(c.data, append([]byte(nil), m.Data...))
	})
}

func (c *client) connection(target Target) *webrtc.PeerConnection {
	pc := newClientPC(c.t, c.tcpOnly)
	pc.OnICECandidate(func(cand *webrtc.ICECandidate) {
		if cand == nil {
			return
		}
		b, _ := json.Marshal(cand.ToJSON())
		_ = c.member.Candidate(target, string(b))
	})
	pc.OnDataChannel(c.listen)
	pc.OnTrack(func(remote *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		r := &received{stream: remote.StreamID(), remote: remote}
		c.mu.Lock()
		c.tracks[remote.StreamID()] = r
		c.mu.Unlock()
		for {
			p, _, err := remote.ReadRTP()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.packets = append(r.packets, p)
			r.mu.Unlock()
		}
	})
	return pc
}

func (c *client) sections(audio, video int) {
	for k, n := range map[webrtc.RTPCodecType]int{webrtc.RTPCodecTypeAudio: audio, webrtc.RTPCodecTypeVideo: video} {
		for range n {
			if _, err := c.sub.AddTransceiverFromKind(k, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
				c.t.Error(err)
			}
		}
	}
}

// offer negotiates the publisher connection, once more later if an offer is in
// flight.
func (c *client) offer(restart bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.offered {
		c.again = true
		return
	}
	o, err := c.pub.CreateOffer(&webrtc.OfferOptions{ICERestart: restart})
	if err == nil {
		err = c.pub.SetLocalDescription(o)
	}
	if err != nil {
		c.t.Errorf("%s: offer: %v", c.id, err)
		return
	}
	c.offered = true
	c.offerID++
	id := c.offerID
	go func() {
		if err := c.member.Offer(id, o.SDP); err != nil {
			c.t.Logf("%s: server refused offer: %v", c.id, err)
		}
	}()
}

func (c *client) run() {
	defer close(c.ended)
	for {
		select {
		case <-c.stop:
			return
		case e := <-c.events:
			c.handle(e)
			c.mu.Lock()
			c.log = append(c.log, e)
			c.mu.Unlock()
		}
	}
}

func (c *client) handle(e Event) {
	switch e := e.(type) {
	case EventAnswer:
		c.mu.Lock()
		ours := e.ID == c.offerID
		c.mu.Unlock()
		if !ours {
			return
		}
		if err := c.pub.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: e.SDP}); err != nil {
			c.t.Errorf("%s: answer: %v\n%s", c.id, err, e.SDP)
		}
		c.mu.Lock()
		c.offered = false
		again := c.again
		c.again = false
		c.mu.Unlock()
		if again {
			c.offer(false)
		}
	case EventOffer:
		err := c.sub.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: e.SDP})
		var a webrtc.SessionDescription
		if err == nil {
			a, err = c.sub.CreateAnswer(nil)
		}
		if err == nil {
			err = c.sub.SetLocalDescription(a)
		}
		if err == nil {
			err = c.member.Answer(e.ID, a.SDP)
		}
		if err != nil {
			c.t.Errorf("%s: server's offer: %v", c.id, err)
		}
	case EventCandidate:
		if e.Candidate == "" {
			return
		}
		var init webrtc.ICECandidateInit
		if err := json.Unmarshal([]byte(e.Candidate), &init); err != nil {
			c.t.Errorf("candidate %q: %v", e.Candidate, err)
			return
		}
		if c.tcpOnly && !strings.Contains(init.Candidate, " tcp ") {
			return
		}
		pc := c.pub
		if e.Target == TargetSubscriber {
			pc = c.sub
		}
		if err := pc.AddICECandidate(init); err != nil {
			c.t.Errorf("%s: candidate: %v", c.id, err)
		}
	case EventSectionsRequired:
		c.sections(int(e.Audio), int(e.Video))
		c.offer(false)
	}
}

// publish announces a track and sends it; the returned track takes packets.
func (c *client) publish(a AddTrack, mime string) (*webrtc.TrackLocalStaticRTP, TrackInfo) {
	c.t.Helper()
	rate := uint32(90000)
	if a.Kind == KindAudio {
		rate = 48000
	}
	local, err := webrtc.NewTrackLocalStaticRTP(webrtc.RTPCodecCapability{MimeType: mime, ClockRate: rate}, a.CID, "stream")
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := c.member.AddTrack(a)
	if err != nil {
		c.t.Fatal(err)
	}
	tr, err := c.pub.AddTransceiverFromTrack(local, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
	if err != nil {
		c.t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 1500)
		for {
			if _, _, err := tr.Sender().Read(buf); err != nil {
				return
			}
		}
	}()
	c.offer(false)
	return local, info
}

// audioSource sends Opus packets with counted payloads until the test ends.
func (c *client) pump(local *webrtc.TrackLocalStaticRTP, every time.Duration, step uint32, payload func(n int) []byte) {
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		seq, ts := uint16(65500), uint32(4294967000) // both wrap soon
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			_ = local.WriteRTP(&rtp.Packet{
				Header:  rtp.Header{Version: 2, Marker: true, SequenceNumber: seq, Timestamp: ts},
				Payload: payload(n),
			})
			seq++
			ts += step
		}
	}()
	c.t.Cleanup(func() { close(stop); <-done })
}

// eventually polls until ok, or fails the test with what it waits for.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(patience)
	for time.Now().Before(end) {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("waited %v for %s", patience, what)
}

// hears waits for the track of a publisher and for some packets of it.
func (c *client) hears(info TrackInfo, publisher *Member, packets int) *received {
	c.t.Helper()
	stream := string(publisher.SID()) + "|" + string(info.SID)
	var r *received
	eventually(c.t, string(c.id)+" to receive "+stream, func() bool {
		c.mu.Lock()
		r = c.tracks[stream]
		c.mu.Unlock()
		return r != nil && r.count() >= packets
	})
	return r
}

// saw reports whether an event that satisfies f has come.
func saw[E Event](c *client, f func(E) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.log {
		if e, ok := e.(E); ok && f(e) {
			return true
		}
	}
	return false
}

// waitFor waits for an event that satisfies f.
func waitFor[E Event](c *client, what string, f func(E) bool) {
	c.t.Helper()
	eventually(c.t, string(c.id)+": "+what, func() bool { return saw(c, f) })
}
