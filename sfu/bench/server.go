package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// The two kinds of server.
const (
	kindProduct  = "product"
	kindBaseline = "baseline"
)

// profiles are the same for both servers: AES-GCM with the short key, as
// browsers choose it.
var profiles = []srtpProfile{webrtcGCM128}

// joinRequest is what a generator's client posts to join or to offer again.
type joinRequest struct {
	Member  string      `json:"member"`
	Publish []trackSpec `json:"publish"` // empty: a subscriber
	SDP     string      `json:"sdp"`
}

// trackSpec names a track that a publisher sends.
type trackSpec struct {
	CID   string `json:"cid"`
	Video bool   `json:"video"`
}

// joinReply is the server's answer with all its candidates inside.
type joinReply struct {
	SDP    string `json:"sdp"`
	Tracks int    `json:"tracks"` // how many tracks are on their way to the client
}

// counters are what a server counts in its own process.
type counters struct {
	Sends   uint64 `json:"sends"`   // send system calls
	Mallocs uint64 `json:"mallocs"` // heap allocations
}

// A forwarder is one of the two servers.
type forwarder interface {
	offer(ctx context.Context, r joinRequest) (joinReply, error)
	sends() uint64
	close()
}

// Serve runs one server until in is at its end; it prints its URL on out.
func Serve(kind string, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var f forwarder
	var err error
	switch kind {
	case kindProduct:
		f, err = newProduct(ctx)
	case kindBaseline:
		f, err = newBaseline()
	default:
		err = fmt.Errorf("server %q is none of %s, %s", kind, kindProduct, kindBaseline)
	}
	if err != nil {
		return err
	}
	defer f.close()

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /offer", func(w http.ResponseWriter, r *http.Request) {
		var req joinRequest
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		reply, err := f.offer(r.Context(), req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(reply)
	})
	mux.HandleFunc("GET /counters", func(w http.ResponseWriter, r *http.Request) {
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		json.NewEncoder(w).Encode(counters{Sends: f.sends(), Mallocs: ms.Mallocs})
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	fmt.Fprintf(out, "http://%s\n", l.Addr())
	io.Copy(io.Discard, in)
	srv.Close()
	<-done
	return nil
}

// product is Trunkhall's SFU, joined without the signalling around it.
type product struct {
	srv    *sfu.Server
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex // guards members
	members map[string]*session
}

func newProduct(ctx context.Context) (*product, error) {
	cfg := sfu.DefaultConfig()
	cfg.UDPPort, cfg.TCPPort = 0, -1
	cfg.BindAddresses, cfg.Loopback = []string{"127.0.0.1"}, true
	srv, err := sfu.New(cfg, sfu.Deps{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &product{srv: srv, cancel: cancel, done: make(chan error, 1), members: make(map[string]*session)}
	go func() { p.done <- srv.Run(ctx) }()
	return p, nil
}

func (p *product) close() {
	p.cancel()
	<-p.done
}

func (p *product) sends() uint64 { return p.srv.Stats().SendCalls }

// session collects the answers to one client's offers.
type session struct {
	member     *sfu.Member
	answers    chan sfu.EventAnswer
	mu         sync.Mutex // guards the following fields
	candidates []string
	final      chan struct{} // closed when the last candidate is here
	ended      bool
	offers     uint32
}

// Event implements sfu.Session.
func (s *session) Event(e sfu.Event) {
	switch e := e.(type) {
	case sfu.EventAnswer:
		select {
		case s.answers <- e:
		default: // nobody waits: the client gave up
		}
	case sfu.EventCandidate:
		s.mu.Lock()
		defer s.mu.Unlock()
		var init webrtc.ICECandidateInit
		if json.Unmarshal([]byte(e.Candidate), &init) == nil && init.Candidate != "" {
			s.candidates = append(s.candidates, strings.TrimPrefix(init.Candidate, "candidate:"))
		}
		if e.Final && !s.ended {
			s.ended = true
			close(s.final)
		}
	}
}

func (p *product) offer(ctx context.Context, r joinRequest) (joinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	s, err := p.session(ctx, r)
	if err != nil {
		return joinReply{}, err
	}
	s.offers++
	if err := s.member.Offer(s.offers, r.SDP); err != nil {
		return joinReply{}, err
	}
	var answer sfu.EventAnswer
	for answer.ID != s.offers {
		select {
		case answer = <-s.answers:
		case <-ctx.Done():
			return joinReply{}, errors.New("no answer from the SFU")
		}
	}
	select {
	case <-s.final:
	case <-ctx.Done():
		return joinReply{}, errors.New("no last candidate from the SFU")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return joinReply{SDP: withCandidates(answer.SDP, s.candidates), Tracks: len(answer.MIDToTrack)}, nil
}

// session returns the member's session, joining it first when it is new.
func (p *product) session(ctx context.Context, r joinRequest) (*session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.members[r.Member]; s != nil {
		return s, nil
	}
	s := &session{answers: make(chan sfu.EventAnswer, 4), final: make(chan struct{})}
	room := p.srv.OpenRoom("bench", sfu.RoomOptions{})
	m, _, err := room.Join(ctx, sfu.JoinParams{
		Grant: call.Grant{Room: "bench", Identity: call.Identity(r.Member), CanPublish: true,
			CanSubscribe: true, CanPublishData: true, NotBefore: time.Now(), Expires: time.Now().Add(time.Hour)},
		Mode: sfu.ModeSingle, AutoSubscribe: len(r.Publish) == 0, Session: s,
	})
	if err != nil {
		return nil, err
	}
	s.member = m
	for _, t := range r.Publish {
		add := sfu.AddTrack{CID: t.CID, Kind: sfu.KindAudio, Source: call.SourceMicrophone}
		if t.Video {
			add.Kind, add.Source, add.Width, add.Height = sfu.KindVideo, call.SourceCamera, 1280, 720
			add.Codecs = []sfu.Codec{{MimeType: webrtc.MimeTypeVP8, CID: t.CID}}
		}
		if _, err := m.AddTrack(add); err != nil {
			return nil, fmt.Errorf("add track: %w", err)
		}
	}
	p.members[r.Member] = s
	return s, nil
}

// withCandidates puts the candidates into the first media section; the others
// are bundled with it.
func withCandidates(sdp string, candidates []string) string {
	if strings.Contains(sdp, "a=candidate:") {
		return sdp
	}
	var b strings.Builder
	done := false
	for line := range strings.SplitSeq(strings.TrimRight(sdp, "\r\n"), "\r\n") {
		b.WriteString(line + "\r\n")
		if !done && strings.HasPrefix(line, "a=ice-pwd:") && strings.Contains(b.String(), "m=") {
			for _, c := range candidates {
				b.WriteString("a=candidate:" + c + "\r\n")
			}
			done = true
		}
	}
	return b.String()
}

// baseline forwards with TrackLocalStaticRTP over PeerConnections with pion's
// default interceptors.
type baseline struct {
	api  *webrtc.API
	conn *countingConn
	mux  ice.UDPMux

	mu     sync.Mutex // guards the following fields
	tracks []*webrtc.TrackLocalStaticRTP
	peers  map[string]*webrtc.PeerConnection
}

// countingConn counts the packets written: each is one send system call.
type countingConn struct {
	*net.UDPConn
	writes atomic.Uint64
}

// WriteTo writes one packet.
func (c *countingConn) WriteTo(b []byte, to net.Addr) (int, error) {
	c.writes.Add(1)
	return c.UDPConn.WriteTo(b, to)
}

// WriteToAddrPort writes one packet without allocating.
func (c *countingConn) WriteToAddrPort(b []byte, to netip.AddrPort) (int, error) {
	c.writes.Add(1)
	return c.UDPConn.WriteToUDPAddrPort(b, to)
}

// ReadFromAddrPort reads one packet without allocating.
func (c *countingConn) ReadFromAddrPort(b []byte) (int, netip.AddrPort, error) {
	return c.UDPConn.ReadFromUDPAddrPort(b)
}

func newBaseline() (*baseline, error) {
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	udp.SetReadBuffer(4 << 20)
	udp.SetWriteBuffer(4 << 20)
	b := &baseline{conn: &countingConn{UDPConn: udp}, peers: make(map[string]*webrtc.PeerConnection)}
	b.mux = ice.NewUDPMuxDefault(ice.UDPMuxParams{UDPConn: b.conn})
	var se webrtc.SettingEngine
	se.SetICEUDPMux(b.mux)
	se.SetIncludeLoopbackCandidate(true)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	se.SetSRTPProtectionProfiles(profiles...)
	me := &webrtc.MediaEngine{}
	if err := me.RegisterDefaultCodecs(); err != nil {
		return nil, err
	}
	ir := &interceptor.Registry{}
	if err := webrtc.RegisterDefaultInterceptors(me, ir); err != nil {
		return nil, err
	}
	b.api = webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(me), webrtc.WithInterceptorRegistry(ir))
	return b, nil
}

func (b *baseline) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, pc := range b.peers {
		pc.Close()
	}
	b.mux.Close()
	b.conn.Close()
}

func (b *baseline) sends() uint64 { return b.conn.writes.Load() }

func (b *baseline) offer(_ context.Context, r joinRequest) (joinReply, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pc := b.peers[r.Member]
	if pc == nil {
		var err error
		if pc, err = b.api.NewPeerConnection(webrtc.Configuration{}); err != nil {
			return joinReply{}, err
		}
		b.peers[r.Member] = pc
		if err := b.attach(pc, r); err != nil {
			return joinReply{}, err
		}
	}
	if err := pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: r.SDP}); err != nil {
		return joinReply{}, err
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil {
		return joinReply{}, err
	}
	gathered := webrtc.GatheringCompletePromise(pc)
	if err := pc.SetLocalDescription(answer); err != nil {
		return joinReply{}, err
	}
	<-gathered
	return joinReply{SDP: pc.LocalDescription().SDP, Tracks: len(b.tracks)}, nil
}

// attach lets a publisher's packets go to the shared tracks, or gives a
// subscriber all of them.
func (b *baseline) attach(pc *webrtc.PeerConnection, r joinRequest) error {
	if len(r.Publish) == 0 {
		for _, t := range b.tracks {
			sender, err := pc.AddTrack(t)
			if err != nil {
				return err
			}
			go func() { // RTCP must be read for the interceptors to see it
				buf := make([]byte, 1500)
				for {
					if _, _, err := sender.Read(buf); err != nil {
						return
					}
				}
			}()
		}
		return nil
	}
	local := make(map[string]*webrtc.TrackLocalStaticRTP)
	for _, t := range r.Publish {
		codec := webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2}
		if t.Video {
			codec = webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeVP8, ClockRate: 90000}
		}
		tl, err := webrtc.NewTrackLocalStaticRTP(codec, t.CID, r.Member)
		if err != nil {
			return err
		}
		local[t.CID] = tl
		b.tracks = append(b.tracks, tl)
	}
	pc.OnTrack(func(remote *webrtc.TrackRemote, _ *webrtc.RTPReceiver) {
		tl := local[remote.ID()]
		if tl == nil {
			return
		}
		for {
			pkt, _, err := remote.ReadRTP()
			if err != nil {
				return
			}
			tl.WriteRTP(pkt)
		}
	})
	return nil
}
