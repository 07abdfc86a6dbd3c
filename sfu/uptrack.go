package sfu

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

const (
	videoRing   = 512 // packets kept for retransmission
	audioRing   = 64
	layerStale  = 2500 * time.Millisecond // a simulcast layer without packets is off
	pliThrottle = 500 * time.Millisecond
)

// An upTrack is the packet side of a published track. Each of its layers has
// one goroutine that reads packets and hands them to all sinks, under mu: one
// lock for each packet that comes in, none for those that go out.
type upTrack struct {
	sid       call.TrackSID
	kind      Kind
	announced TrackInfo // as in AddTrack; never changes
	log       *slog.Logger

	// Set before the first packet; called on a reader's goroutine.
	onMedia func(codec webrtc.RTPCodecParameters)
	onLayer func(index int, rid string, ssrc uint32)

	level  audioMeter
	in     counters
	asked  atomic.Uint64 // keyframe requests sent
	drops  drops
	silent atomic.Bool // muted by the server
	closed atomic.Bool
	sinks  atomic.Pointer[[]*downTrack]
	taps   atomic.Pointer[[]Sink] // of members of this process
	codec  atomic.Pointer[webrtc.RTPCodecParameters]
	rids   atomic.Pointer[[]string] // order of the layers in the description

	mu     sync.Mutex // guards the layers and the sinks' forwarding state
	peer   *peer
	layers [maxLayers]*upLayer
	tapped rtp.Packet // what the taps see
}

// An upLayer is one encoding: one SSRC of the publisher.
type upLayer struct {
	index int
	ssrc  uint32
	pt    uint8
	ring  *packetRing
	exts  extensionIDs

	last    atomic.Int64 // when the last packet came, in Unix nanoseconds
	pliAt   atomic.Int64
	wanted  atomic.Bool // a key frame, but it was asked for just before
	reports atomic.Pointer[clockMap]
	loss    lossMeter // guarded by upTrack.mu
}

// extensionIDs are the negotiated IDs of the header extensions that are read
// or written; 0 for those that are not negotiated.
type extensionIDs struct {
	level, dependency, capture, absSend uint8
}

func readExtensionIDs(have []webrtc.RTPHeaderExtensionParameter) (x extensionIDs) {
	for _, e := range have {
		id := uint8(e.ID)
		switch e.URI {
		case extAudioLevel:
			x.level = id
		case extDependency:
			x.dependency = id
		case extAbsCaptureTime:
			x.capture = id
		case extAbsSendTime:
			x.absSend = id
		}
	}
	return x
}

func newUpTrack(sid call.TrackSID, info TrackInfo, log *slog.Logger) *upTrack {
	u := &upTrack{sid: sid, kind: info.Kind, announced: info, log: log.With("track", sid)}
	u.sinks.Store(&[]*downTrack{})
	u.taps.Store(&[]Sink{})
	return u
}

// setSilenced makes the track send nothing, whatever its publisher sends.
func (u *upTrack) setSilenced(on bool) { u.silent.Store(on) }

// attachPeer says which connection brings the packets.
func (u *upTrack) attachPeer(p *peer) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.peer = p
}

func (u *upTrack) close() {
	u.closed.Store(true)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sinks.Store(&[]*downTrack{})
}

// addSink starts forwarding to d.
func (u *upTrack) addSink(d *downTrack) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed.Load() {
		return
	}
	old := *u.sinks.Load()
	next := make([]*downTrack, 0, len(old)+1)
	next = append(append(next, old...), d)
	u.sinks.Store(&next)
}

// removeSink stops forwarding to d; not one more packet follows.
func (u *upTrack) removeSink(d *downTrack) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := *u.sinks.Load()
	next := make([]*downTrack, 0, len(old))
	for _, o := range old {
		if o != d {
			next = append(next, o)
		}
	}
	u.sinks.Store(&next)
}

// layerIndex places a stream among the layers, low to high.
func (u *upTrack) layerIndex(rid string) int {
	if rid == "" {
		return 0
	}
	if i := ridRank(rid); i >= 0 {
		return i
	}
	if rids := u.rids.Load(); rids != nil {
		for i, r := range *rids {
			if r == rid && i < maxLayers {
				return i
			}
		}
	}
	return 0
}

// read forwards the packets of one stream until it ends.
func (u *upTrack) read(p *peer, remote *webrtc.TrackRemote, rec *webrtc.RTPReceiver) {
	defer func() {
		if r := recover(); r != nil {
			u.log.Error("forwarding panicked", "panic", r, "stack", stack())
			p.t.room.post(func() { p.t.room.remove(p.t.m, ReasonMediaFailure, ActionDisconnect) })
		}
	}()
	size := videoRing
	if u.kind == KindAudio {
		size = audioRing
	}
	l := &upLayer{
		index: u.layerIndex(remote.RID()), ssrc: uint32(remote.SSRC()), ring: newPacketRing(size),
		exts: readExtensionIDs(rec.GetParameters().HeaderExtensions),
	}
	u.mu.Lock()
	u.layers[l.index] = l
	u.mu.Unlock()
	if u.onLayer != nil {
		u.onLayer(l.index, remote.RID(), l.ssrc)
	}
	defer func() {
		u.mu.Lock()
		if u.layers[l.index] == l {
			u.layers[l.index] = nil
		}
		u.mu.Unlock()
	}()

	var pkt packet
	f := formatOther
	buf := make([]byte, receiveMTU)
	for {
		n, _, err := remote.Read(buf)
		if err != nil && n == 0 {
			return
		}
		switch {
		case p.t.dead.Load() || u.closed.Load():
			continue // keep reading: pion must not fill up
		case !p.t.allow(n):
			u.drops.flood.Add(1)
			continue
		case err != nil:
			u.drops.unknown.Add(1)
			continue
		case !pkt.parse(buf[:n]):
			u.drops.malformed.Add(1)
			continue
		}
		if pt := pkt.header.PayloadType; pt != l.pt {
			codec := remote.Codec()
			if uint8(codec.PayloadType) != pt {
				u.drops.unknown.Add(1)
				continue
			}
			f = formatOf(codec.MimeType)
			l.pt = pt
			u.useCodec(codec)
		}
		u.handle(l, &pkt, f, n, time.Now())
	}
}

// useCodec notes what the publisher really sends.
func (u *upTrack) useCodec(codec webrtc.RTPCodecParameters) {
	old := u.codec.Load()
	if old != nil && old.MimeType == codec.MimeType && old.SDPFmtpLine == codec.SDPFmtpLine {
		return
	}
	u.codec.Store(&codec)
	if u.onMedia != nil {
		u.onMedia(codec)
	}
}

// handle is the packet path: it may not wait, and allocates nothing.
func (u *upTrack) handle(l *upLayer, p *packet, f format, size int, now time.Time) {
	u.in.add(size)
	fresh := now.UnixNano()-l.last.Swap(now.UnixNano()) > int64(layerStale)
	if l.exts.level != 0 && u.kind == KindAudio {
		if b := p.header.GetExtension(l.exts.level); len(b) > 0 {
			u.level.observe(b[0] & 0x7f)
			p.level, p.hasLevel = b[0], true
		}
	}
	// The dependency descriptor's frame numbers are not rewritten at layer
	// switches, so it goes only where nothing else tells key frames.
	if l.exts.dependency != 0 && (f == formatVP9 || f == formatAV1) {
		p.dd = p.header.GetExtension(l.exts.dependency)
	}
	if l.exts.capture != 0 {
		p.capture = p.header.GetExtension(l.exts.capture)
	}
	if !p.describe(f) {
		u.drops.malformed.Add(1)
		return
	}
	if p.key {
		l.wanted.Store(false)
	}
	if u.silent.Load() {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	l.loss.add(p.header.SequenceNumber)
	if fresh {
		u.chooseLayers(now)
	}
	if taps := *u.taps.Load(); len(taps) > 0 && len(p.payload) > 0 {
		u.tapped.Header, u.tapped.Payload = p.header, p.payload
		for _, s := range taps {
			s.WriteRTP(&u.tapped, p.level, p.hasLevel)
		}
	}
	sinks := *u.sinks.Load()
	if len(sinks) == 0 {
		return
	}
	if len(p.payload) > 0 {
		l.ring.put(p)
	}
	for _, d := range sinks {
		d.forward(l, p, now)
	}
}

// live reports which layers have packets. It needs mu.
func (u *upTrack) live(now time.Time) (live [maxLayers]bool) {
	n := 0
	for i, l := range u.layers {
		if l != nil {
			live[i] = now.UnixNano()-l.last.Load() < int64(layerStale)
			n++
		}
	}
	if n == 1 {
		// Without simulcast a quiet track, say a still screen, is not off.
		for i, l := range u.layers {
			live[i] = l != nil
		}
	}
	return live
}

// takeLoss returns the worst layer's loss since the last call.
func (u *upTrack) takeLoss() (share float64, any bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, l := range u.layers {
		if l == nil {
			continue
		}
		if s, ok := l.loss.take(); ok {
			share, any = max(share, s), true
		}
	}
	return share, any
}

// chooseLayers gives each sink its target layer. It needs mu.
func (u *upTrack) chooseLayers(now time.Time) {
	live := u.live(now)
	for _, d := range *u.sinks.Load() {
		d.choose(live)
	}
}

// retarget makes the sinks' new wishes count at once.
func (u *upTrack) retarget(now time.Time) {
	u.mu.Lock()
	u.chooseLayers(now)
	need := u.needKeyframes()
	u.mu.Unlock()
	u.askKeyframes(need, now)
}

// tick runs every 400 ms: layers that came or went, keyframes still missing.
func (u *upTrack) tick(now time.Time) { u.retarget(now) }

// needKeyframes lists the layers that a sink waits for. It needs mu.
func (u *upTrack) needKeyframes() (need [maxLayers]bool) {
	for _, d := range *u.sinks.Load() {
		if i := d.waitsFor(); i >= 0 {
			need[i] = true
		}
	}
	for i, l := range u.layers {
		need[i] = need[i] || l != nil && l.wanted.Load()
	}
	return need
}

func (u *upTrack) askKeyframes(need [maxLayers]bool, now time.Time) {
	for i, yes := range need {
		if yes {
			u.askKeyframe(i, now)
		}
	}
}

// askKeyframe sends a picture loss indication for a layer, unless one was sent
// just before. It must not be called with mu held.
func (u *upTrack) askKeyframe(index int, now time.Time) {
	u.mu.Lock()
	l, p := u.layers[index], u.peer
	u.mu.Unlock()
	if l == nil || p == nil {
		return
	}
	last := l.pliAt.Load()
	if now.UnixNano()-last < int64(pliThrottle) {
		l.wanted.Store(true) // asked for later, unless one comes before
		return
	}
	if !l.pliAt.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	l.wanted.Store(false)
	u.asked.Add(1)
	p.writeRTCP(&rtcp.PictureLossIndication{MediaSSRC: l.ssrc})
}

// readRTCP takes the publisher's sender reports, which tie its RTP clock to
// its wall clock.
func (u *upTrack) readRTCP(remote *webrtc.TrackRemote, rec *webrtc.RTPReceiver) {
	ssrc := uint32(remote.SSRC())
	rid := remote.RID()
	buf := make([]byte, receiveMTU)
	for {
		var n int
		var err error
		if rid == "" {
			n, _, err = rec.Read(buf)
		} else {
			n, _, err = rec.ReadSimulcast(buf, rid)
		}
		if err != nil {
			return
		}
		now := time.Now()
		pkts, err := rtcp.Unmarshal(buf[:n])
		if err != nil {
			u.drops.malformed.Add(1)
			continue
		}
		for _, p := range pkts {
			sr, ok := p.(*rtcp.SenderReport)
			if !ok || sr.SSRC != ssrc {
				continue
			}
			u.mu.Lock()
			l := u.layers[u.layerIndex(rid)]
			u.mu.Unlock()
			if l != nil && l.ssrc == ssrc {
				l.reports.Store(&clockMap{ntp: sr.NTPTime, rtp: sr.RTPTime, at: now})
			}
		}
	}
}

// A clockMap is one sender report: at wall-clock time ntp the RTP clock showed
// rtp; it came at.
type clockMap struct {
	ntp uint64
	rtp uint32
	at  time.Time
}

// ntpUnits turns a duration into NTP's 32.32 fixed point.
func ntpUnits(d time.Duration) uint64 {
	sec := uint64(d / time.Second)
	frac := uint64(d%time.Second) << 32 / uint64(time.Second)
	return sec<<32 | frac
}

// rtpUnits turns a duration into ticks of a clock.
func rtpUnits(d time.Duration, rate uint32) uint32 {
	return uint32(int64(d/time.Microsecond) * int64(rate) / 1e6)
}

// translate returns the RTP time of another stream of the same publisher at
// the moment when this one shows rtp.
func (c *clockMap) translate(rtp uint32, to *clockMap, rate uint32) uint32 {
	// Ticks since this stream's report, plus the wall-clock time between the
	// two reports, in ticks.
	between := int64(c.ntp - to.ntp) // two's complement: may be negative
	ticks := (between >> 16) * int64(rate) >> 16
	return to.rtp + (rtp - c.rtp) + uint32(ticks)
}
