package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/report"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

type srtpProfile = dtls.SRTPProtectionProfile

const webrtcGCM128 = dtls.SRTP_AEAD_AES_128_GCM

// What the publishers send.
const (
	videoFrameRate       = 30
	videoPacketsPerFrame = 8
	videoPacketBytes     = 1150 // the whole RTP packet
	audioPacketRate      = 50
	audioMinBytes        = 60
	audioMaxBytes        = 140
)

// loadCounts is the generator's last word: packets that the subscribers should
// have received and those they received and decrypted.
type loadCounts struct {
	Expected uint64 `json:"expected"`
	Received uint64 `json:"received"`
}

// A generator is all clients of one run.
type generator struct {
	url string
	sc  Scenario
	api *webrtc.API

	counting atomic.Bool
	sent     atomic.Uint64 // packets sent by the publishers while counting
	received atomic.Uint64 // packets received by the subscribers while counting
	flowing  atomic.Int64  // subscribed tracks on which a packet has arrived

	peers []*webrtc.PeerConnection
	wg    sync.WaitGroup // the publishers' senders
}

// Load runs the generator against the server at url. It says "publishing",
// "joined" and "counting" on out and waits for a line on in before each next
// step; its last line is a loadCounts.
func Load(url, scenario string, in io.Reader, out io.Writer) error {
	g := &generator{url: url}
	for _, sc := range Scenarios() {
		if sc.Name == scenario {
			g.sc = sc
		}
	}
	if g.sc.Name == "" {
		return fmt.Errorf("no scenario %q", scenario)
	}
	var err error
	if g.api, err = loadAPI(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		g.wg.Wait()
		for _, pc := range g.peers {
			pc.Close()
		}
	}()
	lines := bufio.NewScanner(in)

	for i := range g.sc.Publishers {
		if err := g.publish(ctx, i); err != nil {
			return fmt.Errorf("publisher %d: %w", i, err)
		}
	}
	fmt.Fprintln(out, "publishing")
	if !lines.Scan() {
		return errors.New("the bench ended")
	}
	for i := range g.sc.Subscribers {
		if err := g.subscribe(ctx, i); err != nil {
			return fmt.Errorf("subscriber %d: %w", i, err)
		}
	}
	want := int64(g.sc.Publishers * g.sc.Subscribers)
	if err := waitFor(30*time.Second, func() bool { return g.flowing.Load() == want }); err != nil {
		return fmt.Errorf("%d of %d tracks carry packets: %w", g.flowing.Load(), want, err)
	}
	fmt.Fprintln(out, "joined")
	if !lines.Scan() {
		return errors.New("the bench ended")
	}
	g.counting.Store(true)
	fmt.Fprintln(out, "counting")
	if !lines.Scan() {
		return errors.New("the bench ended")
	}
	g.counting.Store(false)
	return json.NewEncoder(out).Encode(loadCounts{
		Expected: g.sent.Load() * uint64(g.sc.Subscribers),
		Received: g.received.Load(),
	})
}

// loadAPI makes clients as cheap as they can be: receiver reports, nothing else.
func loadAPI() (*webrtc.API, error) {
	var se webrtc.SettingEngine
	se.SetIncludeLoopbackCandidate(true)
	se.SetInterfaceFilter(func(name string) bool { return name == "lo" })
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	se.SetSRTPProtectionProfiles(profiles...)
	me := &webrtc.MediaEngine{}
	if err := me.RegisterDefaultCodecs(); err != nil {
		return nil, err
	}
	ir := &interceptor.Registry{}
	rr, err := report.NewReceiverInterceptor()
	if err != nil {
		return nil, err
	}
	ir.Add(rr)
	return webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(me), webrtc.WithInterceptorRegistry(ir)), nil
}

func (g *generator) publish(ctx context.Context, n int) error {
	pc, err := g.api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return err
	}
	g.peers = append(g.peers, pc)
	codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}
	if g.sc.Video {
		codec = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
	}
	name := fmt.Sprintf("publisher-%d", n)
	track, err := webrtc.NewTrackLocalStaticRTP(codec, name+"-track", name)
	if err != nil {
		return err
	}
	if _, err := pc.AddTransceiverFromTrack(track, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly}); err != nil {
		return err
	}
	connected := make(chan struct{})
	var once sync.Once
	pc.OnConnectionStateChange(func(st webrtc.PeerConnectionState) {
		if st == webrtc.PeerConnectionStateConnected {
			once.Do(func() { close(connected) })
		}
	})
	if _, err := g.exchange(ctx, pc, joinRequest{Member: name, Publish: []trackSpec{{CID: track.ID(), Video: g.sc.Video}}}); err != nil {
		return err
	}
	select {
	case <-connected:
	case <-time.After(20 * time.Second):
		return errors.New("not connected within 20 s")
	}
	if g.sc.Video {
		g.wg.Go(func() { g.sendVideo(ctx, track) })
	} else {
		g.wg.Go(func() { g.sendAudio(ctx, track) })
	}
	return nil
}

// sendVideo sends key frames, so that a subscriber can begin at any of them.
func (g *generator) sendVideo(ctx context.Context, track *webrtc.TrackLocalStaticRTP) {
	tick := time.NewTicker(time.Second / videoFrameRate)
	defer tick.Stop()
	pkt := rtp.Packet{Header: rtp.Header{Version: 2}, Payload: make([]byte, videoPacketBytes-12)}
	for frame := uint32(0); ; frame++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pkt.Timestamp = frame * (90000 / videoFrameRate)
		for i := range videoPacketsPerFrame {
			// RFC 7741 §4.2: descriptor with a 15-bit picture ID, then in the
			// frame's first packet the header of a key frame.
			p := pkt.Payload
			p[0], p[1], p[2], p[3] = 0x80, 0x80, 0x80|byte(frame>>8)&0x7f, byte(frame)
			if i == 0 {
				p[0] |= 0x10
				copy(p[4:], []byte{0x10, 0x02, 0x00, 0x9d, 0x01, 0x2a, 0x00, 0x05, 0xd0, 0x02})
			}
			pkt.Marker = i == videoPacketsPerFrame-1
			g.write(track, &pkt)
			pkt.SequenceNumber++
		}
	}
}

func (g *generator) sendAudio(ctx context.Context, track *webrtc.TrackLocalStaticRTP) {
	time.Sleep(rand.N(time.Second / audioPacketRate)) // a phase of its own
	tick := time.NewTicker(time.Second / audioPacketRate)
	defer tick.Stop()
	payload := make([]byte, audioMaxBytes)
	pkt := rtp.Packet{Header: rtp.Header{Version: 2}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pkt.Payload = payload[:audioMinBytes+rand.IntN(audioMaxBytes-audioMinBytes+1)-12]
		g.write(track, &pkt)
		pkt.SequenceNumber++
		pkt.Timestamp += 48000 / audioPacketRate
	}
}

func (g *generator) write(track *webrtc.TrackLocalStaticRTP, pkt *rtp.Packet) {
	if track.WriteRTP(pkt) == nil && g.counting.Load() {
		g.sent.Add(1)
	}
}

func (g *generator) subscribe(ctx context.Context, n int) error {
	pc, err := g.api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return err
	}
	g.peers = append(g.peers, pc)
	kind := webrtc.RTPCodecTypeAudio
	if g.sc.Video {
		kind = webrtc.RTPCodecTypeVideo
	}
	for range g.sc.Publishers {
		if _, err := pc.AddTransceiverFromKind(kind, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
			return err
		}
	}
	pc.OnTrack(func(t *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		buf := make([]byte, 1500)
		for first := true; ; first = false {
			if _, _, err := t.Read(buf); err != nil {
				return
			}
			if first {
				g.flowing.Add(1)
			}
			if g.counting.Load() {
				g.received.Add(1)
			}
		}
	})
	req := joinRequest{Member: fmt.Sprintf("subscriber-%d", n)}
	// A server may need more than one round until every track has its section.
	for range 40 {
		tracks, err := g.exchange(ctx, pc, req)
		if err != nil {
			return err
		}
		if tracks == g.sc.Publishers {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return errors.New("the server never offered every track")
}

// exchange offers and applies the answer; it returns how many tracks the answer
// carries to us.
func (g *generator) exchange(ctx context.Context, pc *webrtc.PeerConnection, req joinRequest) (int, error) {
	offer, err := pc.CreateOffer(nil)
	if err != nil {
		return 0, err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(offer); err != nil {
		return 0, err
	}
	<-gathered
	req.SDP = pc.LocalDescription().SDP
	var reply joinReply
	if err := postJSON(ctx, g.url+"/offer", req, &reply); err != nil {
		return 0, err
	}
	return reply.Tracks, pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: reply.SDP})
}

func waitFor(limit time.Duration, ok func() bool) error {
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v", limit)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}

func postJSON(ctx context.Context, url string, body, reply any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(b))
	if err != nil {
		return err
	}
	return roundTrip(req, reply)
}

func getJSON(ctx context.Context, url string, reply any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	return roundTrip(req, reply)
}

func roundTrip(req *http.Request, reply any) error {
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 10<<20))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", req.URL.Path, resp.Status, bytes.TrimSpace(b))
	}
	return json.Unmarshal(b, reply)
}
