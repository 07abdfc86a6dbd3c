package sfu

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/rtcp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

const (
	iceKeepalive = 2 * time.Second
	replayWindow = 1024
	reportEvery  = 3 * time.Second
	maxChannels  = 16 // data channels a client may open
	receiveMTU   = 1500
)

// A peer is one webrtc.PeerConnection. Its methods belong to the transport's
// goroutine unless they say otherwise.
type peer struct {
	t      *transport
	target Target
	lite   bool // ICE lite: answers connectivity checks, never makes any
	api    *webrtc.API
	engine *webrtc.MediaEngine
	pc     *webrtc.PeerConnection

	slots map[string]*downTrack // what is sent on which mid
	kinds map[string]Kind       // of the client's media sections, by mid
	free  [2]int                // receiving sections of the client without a track, by kind

	remoteSet  bool
	queued     []webrtc.ICECandidateInit // came before the remote description
	candidates int                       // taken since the last description
	shown      bool                      // the client has a description: it may get candidates
	held       []EventCandidate          // local candidates before that

	offerID   uint32
	offeredAt time.Time // of the offer in flight; zero without
	restart   bool      // offer an ICE restart once the answer is there

	broken atomic.Bool // failed and not connected again

	upMu sync.Mutex
	up   map[string]*upTrack // what the client sends on which mid
	from []*webrtc.TrackRemote

	channels [3]atomic.Pointer[webrtc.DataChannel] // downstream, by kind
	opened   atomic.Int32
}

// newPeer makes a connection that receives, sends, or both.
func newPeer(t *transport, target Target, dir direction) (*peer, error) {
	p := &peer{
		t: t, target: target,
		slots: make(map[string]*downTrack), kinds: make(map[string]Kind), up: make(map[string]*upTrack),
	}
	se := webrtc.SettingEngine{LoggerFactory: pionLogger{t.log, "webrtc"}}
	if err := t.room.srv.net.apply(&se); err != nil {
		return nil, err
	}
	cfg, times := t.room.srv.cfg, t.room.srv.times
	p.lite = cfg.ICELite && !strings.EqualFold(t.m.params.Client.Browser, "firefox")
	se.SetLite(p.lite)
	if !p.lite {
		se.SetRemoteIPFilter(t.room.srv.net.mayCheck)
	}
	se.SetICETimeouts(times.disconnected, times.failed, min(iceKeepalive, times.disconnected/3))
	if err := se.SetAnsweringDTLSRole(webrtc.DTLSRoleClient); err != nil {
		return nil, err
	}
	se.SetSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	se.SetSRTPReplayProtectionWindow(replayWindow)
	se.SetSRTCPReplayProtectionWindow(replayWindow)
	se.SetReceiveMTU(receiveMTU)
	se.SetSCTPMaxMessageSize(maxMessageBytes)
	// Senders are made with the API itself (see send), so that both must see
	// the same negotiated codecs.
	se.DisableMediaEngineCopy(true)

	var err error
	if p.engine, err = newMediaEngine(dir); err != nil {
		return nil, err
	}
	interceptors, err := newInterceptors(dir)
	if err != nil {
		return nil, err
	}
	p.api = webrtc.NewAPI(webrtc.WithMediaEngine(p.engine), webrtc.WithSettingEngine(se),
		webrtc.WithInterceptorRegistry(interceptors))
	p.pc, err = p.api.NewPeerConnection(webrtc.Configuration{
		BundlePolicy:              webrtc.BundlePolicyMaxBundle,
		RTPHeaderEncryptionPolicy: webrtc.RTPHeaderEncryptionPolicyDisable,
	})
	if err != nil {
		return nil, err
	}
	p.pc.OnICECandidate(func(c *webrtc.ICECandidate) { t.enqueue(func() { p.localCandidate(c) }) })
	p.pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) { t.stateChanged(p, s) })
	p.pc.OnTrack(func(r *webrtc.TrackRemote, rec *webrtc.RTPReceiver) { p.onTrack(r, rec) })
	p.pc.OnDataChannel(p.onDataChannel)
	return p, nil
}

// openChannels makes the server's own data channels.
func (p *peer) openChannels() error {
	yes, no, zero := true, false, uint16(0)
	for k, init := range map[DataKind]*webrtc.DataChannelInit{
		DataReliable: {Ordered: &yes},
		DataLossy:    {Ordered: &no, MaxRetransmits: &zero},
		DataTrack:    {Ordered: &no, MaxRetransmits: &zero},
	} {
		dc, err := p.pc.CreateDataChannel(k.label(), init)
		if err != nil {
			return fmt.Errorf("open data channel %s: %w", k.label(), err)
		}
		p.useChannel(k, dc)
	}
	return nil
}

// setRemoteOffer applies the client's offer.
func (p *peer) setRemoteOffer(sdp string, sections []section) error {
	for _, s := range sections {
		if k, known := p.kinds[s.mid]; known && k != s.kind && !s.data {
			return fmt.Errorf("media section %q changed its kind: %w", s.mid, call.ErrInvalid)
		}
	}
	err := p.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: sdp})
	if err != nil {
		return fmt.Errorf("offer: %w", errors.Join(call.ErrInvalid, err))
	}
	for _, s := range sections {
		if !s.data {
			p.kinds[s.mid] = s.kind
		}
	}
	p.haveRemote()
	return nil
}

func (p *peer) setRemoteAnswer(sdp string) error {
	err := p.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: sdp})
	if err != nil {
		return fmt.Errorf("answer: %w", errors.Join(call.ErrInvalid, err))
	}
	p.haveRemote()
	return nil
}

func (p *peer) haveRemote() {
	p.remoteSet = true
	p.candidates = 0
	queued := p.queued
	p.queued = nil
	for _, c := range queued {
		p.addCandidate(c)
	}
}

// stuck reports whether an offer was taken only halfway: the connection can
// not take it back.
func (p *peer) stuck() bool { return p.pc.SignalingState() == webrtc.SignalingStateHaveRemoteOffer }

// answerOffer makes the answer and returns it as the client must see it.
func (p *peer) answerOffer(styles map[string]answerStyle) (string, error) {
	answer, err := p.pc.CreateAnswer(nil)
	if err == nil {
		err = p.pc.SetLocalDescription(answer)
	}
	if err != nil {
		return "", err
	}
	return styleAnswer(answer.SDP, styles)
}

func (p *peer) makeOffer(restart bool) (string, error) {
	offer, err := p.pc.CreateOffer(&webrtc.OfferOptions{ICERestart: restart})
	if err != nil {
		return "", err
	}
	if err := p.pc.SetLocalDescription(offer); err != nil {
		return "", err
	}
	return styleAnswer(offer.SDP, nil)
}

// addCandidate takes a client's candidate, or keeps it for later.
func (p *peer) addCandidate(c webrtc.ICECandidateInit) {
	limit := maxRemoteCands
	if !p.lite {
		limit = maxCheckedCands
	}
	if p.candidates++; p.candidates > limit {
		return
	}
	if !p.remoteSet {
		p.queued = append(p.queued, c)
		return
	}
	if err := p.pc.AddICECandidate(c); err != nil {
		p.t.log.Debug("useless candidate", "error", err)
	}
}

// localCandidate trickles one of our candidates; nil is the end of them.
func (p *peer) localCandidate(c *webrtc.ICECandidate) {
	e := EventCandidate{Target: p.target, Final: c == nil}
	if c != nil {
		init := c.ToJSON()
		b, err := json.Marshal(init)
		if err != nil {
			return
		}
		e.Candidate = string(b)
	}
	if !p.shown {
		p.held = append(p.held, e)
		return
	}
	p.t.m.emit(e)
}

// described is called when the client has been sent a description.
func (p *peer) described() {
	p.shown = true
	for _, e := range p.held {
		p.t.m.emit(e)
	}
	p.held = nil
}

// configureReceiving prepares the sections on which the client sends. claims
// names the track of each section, nil where nothing was announced.
func (p *peer) configureReceiving(sections []section, claims []*track) map[string]answerStyle {
	styles := make(map[string]answerStyle)
	byMID := make(map[string]*webrtc.RTPTransceiver)
	for _, tr := range p.pc.GetTransceivers() {
		byMID[tr.Mid()] = tr
	}
	p.upMu.Lock()
	defer p.upMu.Unlock()
	for i, s := range sections {
		t := claims[i]
		if t == nil {
			continue
		}
		p.up[s.mid] = t.up
		t.up.attachPeer(p)
		info := t.up.announced
		styles[s.mid] = answerStyle{dtx: !info.DisableDTX, stereo: info.Stereo}
		tr := byMID[s.mid]
		if tr == nil || tr.Receiver() == nil {
			continue
		}
		var mimes []string
		for _, c := range info.Codecs {
			mimes = append(mimes, c.MimeType)
		}
		if err := tr.SetCodecPreferences(prefer(tr.Receiver().GetParameters().Codecs, mimes...)); err != nil {
			p.t.log.Debug("cannot order codecs", "error", err)
		}
	}
	return styles
}

// send puts d on one of the client's receiving sections.
func (p *peer) send(mid string, d *downTrack) error {
	for _, tr := range p.pc.GetTransceivers() {
		if tr.Mid() != mid {
			continue
		}
		sender, err := p.api.NewRTPSender(d, p.pc.SCTP().Transport())
		if err != nil {
			return err
		}
		if err := tr.SetSender(sender, d); err != nil {
			return err
		}
		d.sender = sender
		p.slots[mid] = d
		return nil
	}
	return fmt.Errorf("no media section %q", mid)
}

// add puts d on a section of the subscriber connection, an idle one if there is.
func (p *peer) add(d *downTrack) error {
	for _, tr := range p.pc.GetTransceivers() {
		if kindOf(tr.Kind()) == d.kind && tr.Mid() != "" && tr.Sender() == nil {
			return p.send(tr.Mid(), d)
		}
	}
	tr, err := p.pc.AddTransceiverFromTrack(d, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
	if err != nil {
		return err
	}
	d.sender = tr.Sender()
	return nil
}

// remove takes d off its section and reports whether the client must be told.
func (p *peer) remove(d *downTrack) bool {
	for mid, s := range p.slots {
		if s == d {
			delete(p.slots, mid)
			p.free[d.kind]++
		}
	}
	if d.sender == nil {
		return false
	}
	if err := p.pc.RemoveTrack(d.sender); err != nil {
		p.t.log.Debug("cannot remove a track", "error", err)
	}
	d.sender = nil
	return true
}

// midToTrack names the track on each section that is in use.
func (p *peer) midToTrack() map[string]call.TrackSID {
	out := make(map[string]call.TrackSID)
	for _, tr := range p.pc.GetTransceivers() {
		if tr.Sender() == nil {
			continue
		}
		if d, ok := tr.Sender().Track().(*downTrack); ok && d != nil && tr.Mid() != "" {
			out[tr.Mid()] = d.sid
			p.slots[tr.Mid()] = d
		}
	}
	return out
}

// forget lets go of a track that ended; its packets are no longer wanted.
func (p *peer) forget(u *upTrack) {
	p.upMu.Lock()
	defer p.upMu.Unlock()
	for mid, o := range p.up {
		if o == u {
			delete(p.up, mid)
		}
	}
}

// onTrack is called by the connection, on a goroutine of its own, when a stream
// has its first packet.
func (p *peer) onTrack(remote *webrtc.TrackRemote, rec *webrtc.RTPReceiver) {
	if p.t.dead.Load() {
		return
	}
	mid := ""
	if tr := rec.RTPTransceiver(); tr != nil {
		mid = tr.Mid()
	}
	p.upMu.Lock()
	u := p.up[mid]
	p.from = append(p.from, remote)
	p.upMu.Unlock()
	if u == nil || u.kind != kindOf(remote.Kind()) {
		p.t.spawn(func() { drain(remote) })
		return
	}
	p.t.spawn(func() { u.read(p, remote, rec) })
	p.t.spawn(func() { u.readRTCP(remote, rec) })
}

// drain reads and forgets what nobody announced.
func drain(remote *webrtc.TrackRemote) {
	buf := make([]byte, receiveMTU)
	for {
		if n, _, err := remote.Read(buf); err != nil && n == 0 {
			return
		}
	}
}

// writeRTCP may be called from anywhere.
func (p *peer) writeRTCP(pkts ...rtcp.Packet) {
	if err := p.pc.WriteRTCP(pkts); err != nil {
		p.t.log.Debug("cannot send RTCP", "error", err)
	}
}

// sendReports sends the sender reports that are due.
func (p *peer) sendReports(now time.Time) {
	for _, d := range p.slots {
		if sr := d.report(now); sr != nil {
			p.writeRTCP(sr)
		}
	}
}

// close ends the connection and waits for pion's goroutines.
func (p *peer) close() {
	// Closing a stream wakes only one of its readers, and a client that sends
	// before it has described its stream makes pion read, too. A deadline wakes
	// all.
	p.upMu.Lock()
	for _, r := range p.from {
		_ = r.SetReadDeadline(time.Unix(1, 0))
	}
	p.upMu.Unlock()
	if err := p.pc.GracefulClose(); err != nil {
		p.t.log.Debug("close connection", "error", err)
	}
}
