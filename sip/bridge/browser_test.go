package bridge

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// patience is how long tests wait for what must happen; machines may be busy.
const patience = 30 * time.Second

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

func testLog() *slog.Logger {
	if os.Getenv("BRIDGE_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

// start runs an SFU on loopback and its bridges until the test ends.
func start(t testing.TB) (*sfu.Server, *Bridges) {
	t.Helper()
	cfg := sfu.DefaultConfig()
	cfg.UDPPort, cfg.TCPPort, cfg.Loopback = 0, 0, true
	cfg.BindAddresses = []string{"127.0.0.1"}
	srv, err := sfu.New(cfg, sfu.Deps{Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	all := New(srv, testLog())
	for _, run := range []func(context.Context) error{srv.Run, all.Run} { // cleaned up in reverse
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- run(ctx) }()
		t.Cleanup(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("Run did not return: goroutines are left")
			}
		})
	}
	return srv, all
}

// strength is the amplitude of a frequency in pcm (Goertzel).
func strength(pcm []int16, rate int, hz float64) float64 {
	w := 2 * math.Pi * hz / float64(rate)
	c, a, b := 2*math.Cos(w), 0.0, 0.0
	for _, x := range pcm {
		a, b = float64(x)+c*a-b, a
	}
	return math.Sqrt(math.Max(a*a+b*b-c*a*b, 0)) * 2 / float64(max(len(pcm), 1))
}

// A tone is a sine that goes on from frame to frame.
type tone struct {
	hz, amplitude float64
	at            int
}

func (o *tone) fill(pcm []int16, rate int) {
	for i := range pcm {
		pcm[i] = int16(o.amplitude * math.Sin(2*math.Pi*o.hz*float64(o.at)/float64(rate)))
		o.at++
	}
}

// A browser is a WebRTC client: pion on the other end, signalling in process. It
// sends a tone and decodes what it hears.
type browser struct {
	t      *testing.T
	room   *sfu.Room
	member *sfu.Member
	pc     *webrtc.PeerConnection
	local  *webrtc.TrackLocalStaticRTP
	keys   func(payload []byte, ssrc, ts uint32) []byte // seals what is sent
	open   func([]byte) []byte                          // opens what is heard
	tone   tone
	events chan sfu.Event
	stop   chan struct{}
	tasks  sync.WaitGroup

	mu      sync.Mutex
	heard   map[string][]int16 // by stream, at 48 kHz
	packets map[string]int
	log     []sfu.Event
	offers  uint32 // like what follows, run's
	offered bool
	again   bool
}

func (c *browser) Event(e sfu.Event) { c.events <- e }

// joinBrowser brings a browser into the room that sends a tone, if hz is not 0.
func joinBrowser(
	t *testing.T, room *sfu.Room, id call.Identity, hz float64, enc sfu.Encryption, change ...func(*browser),
) *browser {
	t.Helper()
	c := &browser{
		t: t, room: room, tone: tone{hz: hz, amplitude: 9000}, events: make(chan sfu.Event, 4096), stop: make(chan struct{}),
		heard: make(map[string][]int16), packets: make(map[string]int),
	}
	for _, f := range change {
		f(c)
	}
	var err error
	c.member, _, err = room.Join(context.Background(), sfu.JoinParams{
		Grant: call.Grant{Identity: id, Name: string(id), CanPublish: true, CanSubscribe: true, CanPublishData: true},
		Mode:  sfu.ModeSingle, AutoSubscribe: true, Session: c, Client: sfu.ClientInfo{Protocol: 17},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.connect()
	if hz > 0 {
		if _, err = c.member.AddTrack(sfu.AddTrack{
			CID: "mic", Kind: sfu.KindAudio, Source: call.SourceMicrophone, Name: "mic", Encryption: enc,
		}); err != nil {
			t.Fatal(err)
		}
		c.local, err = webrtc.NewTrackLocalStaticRTP(
			webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}, "mic", "s")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.pc.AddTransceiverFromTrack(c.local, webrtc.RTPTransceiverInit{
			Direction: webrtc.RTPTransceiverDirectionSendonly,
		}); err != nil {
			t.Fatal(err)
		}
	}
	c.offer()
	c.tasks.Go(c.run)
	t.Cleanup(c.close)
	return c
}

func (c *browser) close() {
	select {
	case <-c.stop:
		return
	default:
	}
	close(c.stop)
	c.tasks.Wait()
	_ = c.pc.GracefulClose()
}

func (c *browser) connect() {
	m := &webrtc.MediaEngine{}
	if err := m.RegisterDefaultCodecs(); err != nil {
		c.t.Fatal(err)
	}
	for _, uri := range []string{"urn:ietf:params:rtp-hdrext:sdes:mid", "urn:ietf:params:rtp-hdrext:ssrc-audio-level"} {
		if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: uri}, webrtc.RTPCodecTypeAudio); err != nil {
			c.t.Fatal(err)
		}
	}
	se := webrtc.SettingEngine{}
	se.SetIncludeLoopbackCandidate(true)
	var err error
	if c.pc, err = webrtc.NewAPI(webrtc.WithMediaEngine(m), webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{}); err != nil {
		c.t.Fatal(err)
	}
	for range 4 {
		if _, err := c.pc.AddTransceiverFromKind(webrtc.RTPCodecTypeAudio, webrtc.RTPTransceiverInit{
			Direction: webrtc.RTPTransceiverDirectionRecvonly,
		}); err != nil {
			c.t.Fatal(err)
		}
	}
	c.pc.OnICECandidate(func(cand *webrtc.ICECandidate) {
		if cand != nil {
			b, _ := json.Marshal(cand.ToJSON())
			_ = c.member.Candidate(sfu.TargetPublisher, string(b))
		}
	})
	c.pc.OnTrack(func(r *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { c.hear(r) })
}

// hear decodes a phone's track until it ends; those of browsers are none of its
// business.
func (c *browser) hear(r *webrtc.TrackRemote) {
	isPhone := false
	for _, p := range c.room.Participants() {
		isPhone = isPhone || p.Grant.Kind == call.KindSIP && strings.HasPrefix(r.StreamID(), string(p.SID))
	}
	dec, err := opus.NewDecoder(48000)
	if err != nil {
		c.t.Error(err)
		return
	}
	pcm := make([]int16, 5760)
	for {
		p, _, err := r.ReadRTP()
		if err != nil {
			return
		}
		if !isPhone {
			continue
		}
		payload := p.Payload
		if c.open != nil {
			payload = c.open(payload)
		}
		n, err := dec.Decode(payload, pcm)
		c.mu.Lock()
		if err != nil {
			c.t.Errorf("a packet of a phone cannot be decoded: %v", err)
		}
		c.packets[r.StreamID()]++
		c.heard[r.StreamID()] = append(c.heard[r.StreamID()], pcm[:n]...)
		c.mu.Unlock()
	}
}

func (c *browser) offer() {
	if c.offered {
		c.again = true
		return
	}
	o, err := c.pc.CreateOffer(nil)
	if err == nil {
		err = c.pc.SetLocalDescription(o)
	}
	if err != nil {
		c.t.Errorf("offer: %v", err)
		return
	}
	c.offered = true
	c.offers++
	id := c.offers
	c.tasks.Go(func() { _ = c.member.Offer(id, o.SDP) })
}

func (c *browser) run() {
	var talking sync.WaitGroup
	defer talking.Wait()
	for {
		select {
		case <-c.stop:
			return
		case e := <-c.events:
			switch e := e.(type) {
			case sfu.EventAnswer:
				if err := c.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: e.SDP}); err != nil {
					c.t.Errorf("answer: %v", err)
				}
				c.offered = false
				if c.again {
					c.again = false
					c.offer()
				}
			case sfu.EventCandidate:
				var init webrtc.ICECandidateInit
				if json.Unmarshal([]byte(e.Candidate), &init) == nil && e.Candidate != "" {
					_ = c.pc.AddICECandidate(init)
				}
			case sfu.EventSectionsRequired:
				if e.Audio > 0 {
					c.t.Errorf("the server wants %d more sections", e.Audio)
				} else {
					c.offer()
				}
			case sfu.EventJoined:
				if c.local != nil {
					talking.Go(c.talk)
				}
			}
			c.mu.Lock()
			c.log = append(c.log, e)
			c.mu.Unlock()
		}
	}
}

// talk sends the tone.
func (c *browser) talk() {
	enc, err := opus.NewEncoder(opus.Config{Rate: 48000, Bitrate: 32000, Complexity: 3})
	if err != nil {
		c.t.Error(err)
		return
	}
	tick := time.NewTicker(audio.FrameDuration)
	defer tick.Stop()
	pcm, out := make([]int16, 960), make([]byte, opus.MaxPayload)
	for n := 0; ; n++ {
		select {
		case <-c.stop:
			return
		case <-tick.C:
		}
		c.tone.fill(pcm, 48000)
		size, err := enc.Encode(pcm, out)
		if err != nil {
			c.t.Error(err)
			return
		}
		payload := out[:size]
		if c.keys != nil {
			payload = c.keys(payload, 0x11223344, uint32(n*960))
		}
		_ = c.local.WriteRTP(&rtp.Packet{
			Header:  rtp.Header{Version: 2, SequenceNumber: uint16(n), Timestamp: uint32(n * 960)},
			Payload: payload,
		})
	}
}

// recent returns the last part of what was heard of a phone.
func (c *browser) recent(p *Phone, d time.Duration) []int16 {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, pcm := range c.heard {
		if len(stream) > len(p.SID()) && stream[:len(p.SID())] == string(p.SID()) {
			n := min(len(pcm), int(d.Seconds()*48000))
			return append([]int16(nil), pcm[len(pcm)-n:]...)
		}
	}
	return nil
}

// sawEvent reports whether an event that satisfies f has come.
func sawEvent[E sfu.Event](c *browser, f func(E) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.log {
		if e, ok := e.(E); ok && f(e) {
			return true
		}
	}
	return false
}
