package sfu

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

const (
	videoSent    = 512 // forwarded packets that can be sent again
	audioSent    = 64
	maxResend    = 3                     // times the same packet
	resendPause  = 15 * time.Millisecond // between two of them
	maxClockSkew = 5 * time.Second       // a layer switch never jumps further
)

// A downTrack is one subscriber's copy of a track: it renumbers packets and
// picks the layer. It is the webrtc.TrackLocal of one media section.
//
// The room says what is wanted (want, stop), the transport negotiates (Bind,
// Unbind), and the publisher's readers forward under upTrack.mu.
type downTrack struct {
	to        *transport
	up        *upTrack
	publisher call.ParticipantSID
	sid       call.TrackSID
	kind      Kind

	// Called on the transport's goroutine.
	onBound       func()
	onUnsupported func()

	sender *webrtc.RTPSender // transport's goroutine

	stopped  atomic.Bool
	disabled atomic.Bool  // the client wants nothing now
	paused   atomic.Bool  // its connection can carry nothing now
	wish     atomic.Int32 // layer the client wants
	temporal atomic.Int32 // highest temporal layer it wants
	limit    atomic.Int32 // highest layer its connection can carry
	rtt      atomic.Int64 // nanoseconds
	loss     atomic.Uint32
	out      counters
	again    counters

	// The rest is guarded by up.mu.
	stream  webrtc.TrackLocalWriter
	pt      uint8
	rtxPT   uint8
	ssrc    uint32
	rtxSSRC uint32
	rtxSeq  uint16
	clock   uint32
	exts    extensionIDs
	ready   bool

	target  int  // layer to forward; -1 while none is live
	current int  // layer being forwarded; -1 before the first packet
	held    bool // paused: goes on with the next key frame

	renum    renumberer
	tsShift  uint32
	lastTS   uint32
	lastAt   time.Time
	lastPID  uint16
	lastTL0  uint8
	lastKey  uint8
	maxTID   uint8
	sent     []sentPacket
	header   rtp.Header
	sendTime [3]byte
	level    [1]byte

	reportAt time.Time
	reportID uint32 // middle of the last report's NTP time
}

// A sentPacket remembers where a forwarded packet came from.
type sentPacket struct {
	used     bool
	out, in  uint16
	layer    int8
	times    uint8
	ts       uint32
	shift    vp8Shift
	resentAt int64
}

func newDownTrack(to *transport, up *upTrack, publisher call.ParticipantSID, sid call.TrackSID, kind Kind) *downTrack {
	d := &downTrack{to: to, up: up, publisher: publisher, sid: sid, kind: kind, target: -1, current: -1, maxTID: 2}
	n := audioSent
	if kind == KindVideo {
		n = videoSent
	}
	d.sent = make([]sentPacket, n)
	d.wish.Store(maxLayers - 1)
	d.limit.Store(maxLayers - 1)
	d.temporal.Store(2)
	return d
}

// ID names the track towards the connection.
func (d *downTrack) ID() string { return string(d.sid) }

// RID is empty: subscribers get one stream.
func (d *downTrack) RID() string { return "" }

// StreamID tells LiveKit clients whose track it is.
func (d *downTrack) StreamID() string { return string(d.publisher) + "|" + string(d.sid) }

// Kind is the kind of media.
func (d *downTrack) Kind() webrtc.RTPCodecType { return d.kind.rtpKind() }

// Bind is called by the connection when the track has been negotiated. It never
// fails: an error would spoil the negotiation of all other tracks.
func (d *downTrack) Bind(c webrtc.TrackLocalContext) (webrtc.RTPCodecParameters, error) {
	codecs := c.CodecParameters()
	want := d.up.codec.Load()
	var codec webrtc.RTPCodecParameters
	var rtx webrtc.PayloadType
	ok := false
	if want != nil {
		codec, rtx, ok = matchCodec(want.RTPCodecCapability, codecs)
	} else {
		codec, rtx, ok = matchCodec(webrtc.RTPCodecCapability{MimeType: d.up.announced.MimeType}, codecs)
	}
	if !ok {
		if len(codecs) > 0 {
			codec = codecs[0]
		}
		if d.onUnsupported != nil {
			d.onUnsupported()
		}
		return codec, nil
	}
	d.up.mu.Lock()
	d.stream, d.pt, d.rtxPT = c.WriteStream(), uint8(codec.PayloadType), uint8(rtx)
	d.ssrc, d.rtxSSRC = uint32(c.SSRC()), uint32(c.SSRCRetransmission())
	d.clock = codec.ClockRate
	d.exts = readExtensionIDs(c.HeaderExtensions())
	d.ready = true
	d.up.mu.Unlock()
	d.to.spawn(func() { d.readRTCP(c.RTCPReader()) })
	if !d.stopped.Load() {
		d.up.addSink(d)
		d.up.retarget(time.Now())
	}
	if d.onBound != nil {
		d.onBound()
	}
	return codec, nil
}

// Unbind is called by the connection when the track is taken off.
func (d *downTrack) Unbind(webrtc.TrackLocalContext) error {
	d.stop()
	return nil
}

// stop ends forwarding at once and for good.
func (d *downTrack) stop() {
	d.stopped.Store(true)
	d.up.removeSink(d)
}

// want says which layer and temporal layer the client wants, or nothing at all.
func (d *downTrack) want(layer int, disabled bool, temporal int) {
	d.wish.Store(int32(layer))
	d.temporal.Store(int32(temporal))
	d.disabled.Store(disabled)
	d.up.retarget(time.Now())
}

// choose sets the target layer. It needs up.mu.
func (d *downTrack) choose(live [maxLayers]bool) {
	if d.kind == KindAudio {
		d.target = 0
		return
	}
	d.target = chooseLayer(int(min(d.wish.Load(), d.limit.Load())), live)
}

// waitsFor returns the layer whose key frame is awaited, or -1. It needs up.mu.
func (d *downTrack) waitsFor() int {
	if d.kind != KindVideo || !d.ready || d.disabled.Load() || d.paused.Load() || d.target < 0 {
		return -1
	}
	if d.current != d.target || d.held {
		return d.target
	}
	return -1
}

// limited reports whether bandwidth keeps the client from what it wants.
func (d *downTrack) limited() bool { return d.limit.Load() < min(d.wish.Load(), maxLayers-1) }

// forward sends one packet on, if it belongs to what the subscriber gets. It
// is the packet path, runs under up.mu, and allocates nothing.
func (d *downTrack) forward(l *upLayer, p *packet, now time.Time) {
	if !d.ready || d.to.dead.Load() || d.stopped.Load() {
		return
	}
	if d.disabled.Load() || d.paused.Load() {
		d.held = true
		return
	}
	if d.current != l.index || d.held {
		if l.index != d.target || d.kind == KindVideo && !p.key {
			return
		}
		d.switchTo(l, p, now)
	}
	if len(p.payload) == 0 {
		d.renum.skip(p.header.SequenceNumber, 0)
		return
	}
	if p.isVP8 && d.leaveOut(p) {
		pictures := uint16(0)
		if p.vp8.start {
			pictures = 1
		}
		d.renum.skip(p.header.SequenceNumber, pictures)
		return
	}
	seq, shift, ok := d.renum.next(p.header.SequenceNumber)
	if !ok {
		d.up.drops.late.Add(1)
		return
	}
	d.send(l, p, seq, shift, now)
}

// leaveOut decides about the temporal layer of a VP8 packet.
func (d *downTrack) leaveOut(p *packet) bool {
	if !p.vp8.hasTID {
		return false
	}
	if p.vp8.start {
		want := uint8(d.temporal.Load())
		switch {
		case want < d.maxTID:
			d.maxTID = want
		case want > d.maxTID && (p.vp8.sync || p.key) && p.vp8.tid <= want:
			d.maxTID = max(d.maxTID, p.vp8.tid)
			if p.key {
				d.maxTID = want
			}
		}
	}
	return p.vp8.tid > d.maxTID
}

// switchTo makes layer l, beginning with p, continue the stream.
func (d *downTrack) switchTo(l *upLayer, p *packet, now time.Time) {
	ts := p.header.Timestamp
	switch {
	case !d.renum.started:
		// Its own numbers will do.
	case d.current == l.index:
		// The same source after a pause: its clock went on.
	default:
		next := d.lastTS + max(rtpUnits(now.Sub(d.lastAt), d.clock), 1)
		if old := d.up.layers[d.current]; old != nil {
			from, to := l.reports.Load(), old.reports.Load()
			if from != nil && to != nil {
				exact := from.translate(ts, to, d.clock) - d.tsShift
				skew := int32(exact - next)
				if limit := int32(rtpUnits(maxClockSkew, d.clock)); skew < limit && skew > -limit {
					next = exact
				}
			}
		}
		if int32(next-d.lastTS) <= 0 {
			next = d.lastTS + 1
		}
		d.tsShift = ts - next
	}
	shift := vp8Shift{}
	if p.isVP8 && d.renum.started {
		shift = p.vp8.continueAfter(d.lastPID, d.lastTL0, d.lastKey)
	}
	d.renum.restart(p.header.SequenceNumber, shift)
	d.current, d.held = l.index, false
	if p.isVP8 {
		d.maxTID = uint8(d.temporal.Load())
	}
}

// send writes one packet with the subscriber's numbers.
func (d *downTrack) send(l *upLayer, p *packet, seq uint16, shift vp8Shift, now time.Time) {
	ts := p.header.Timestamp - d.tsShift
	s := &d.sent[int(seq)%len(d.sent)]
	*s = sentPacket{
		used: true, out: seq, in: p.header.SequenceNumber, layer: int8(l.index), ts: ts, shift: shift,
	}
	if d.lastAt.IsZero() || int32(ts-d.lastTS) >= 0 {
		d.lastTS, d.lastAt = ts, now
	}
	d.fill(&d.header, d.pt, d.ssrc, seq, ts, p.header.Marker)
	// The first extension decides whether all have one-byte headers (RFC 8285
	// section 4.2); only the dependency descriptor may need two.
	if d.exts.dependency != 0 && len(p.dd) > 0 {
		_ = d.header.SetExtension(d.exts.dependency, p.dd)
	}
	if d.exts.absSend != 0 {
		d.stamp(now)
		_ = d.header.SetExtension(d.exts.absSend, d.sendTime[:])
	}
	if d.exts.capture != 0 && len(p.capture) > 0 {
		_ = d.header.SetExtension(d.exts.capture, p.capture)
	}
	if d.exts.level != 0 && p.hasLevel {
		d.level[0] = p.level
		_ = d.header.SetExtension(d.exts.level, d.level[:])
	}
	if p.isVP8 {
		pid, tl0, key := shift.apply(p.vp8)
		d.lastPID, d.lastTL0, d.lastKey = pid, tl0, key
		p.vp8.patch(p.payload, pid, tl0, key)
		defer p.vp8.patch(p.payload, p.vp8.pid, p.vp8.tl0, p.vp8.keyIdx)
	}
	if _, err := d.stream.WriteRTP(&d.header, p.payload); err != nil {
		d.up.drops.failed.Add(1)
		return
	}
	d.out.add(len(p.payload))
}

// stamp fills in the absolute send time: seconds as 6.18 fixed point. With it
// receivers estimate the bandwidth and tell it (REMB).
func (d *downTrack) stamp(now time.Time) {
	t := uint64(now.UnixNano())
	v := (t/1e9)<<18 | (t%1e9)<<18/1e9
	d.sendTime = [3]byte{byte(v >> 16), byte(v >> 8), byte(v)}
}

// fill prepares a header without allocating.
func (d *downTrack) fill(h *rtp.Header, pt uint8, ssrc uint32, seq uint16, ts uint32, marker bool) {
	ext := h.Extensions[:0]
	*h = rtp.Header{
		Version: 2, Marker: marker, PayloadType: pt, SequenceNumber: seq, Timestamp: ts, SSRC: ssrc,
		Extensions: ext,
	}
}

// report makes the sender report that is due, or nil.
func (d *downTrack) report(now time.Time) *rtcp.SenderReport {
	d.up.mu.Lock()
	defer d.up.mu.Unlock()
	if !d.ready || d.stopped.Load() || d.current < 0 || now.Sub(d.reportAt) < reportEvery {
		return nil
	}
	l := d.up.layers[d.current]
	if l == nil {
		return nil
	}
	c := l.reports.Load()
	if c == nil {
		return nil
	}
	d.reportAt = now
	// The publisher's own wall clock, carried forward: all tracks of one
	// publisher stay in step with each other.
	age := now.Sub(c.at)
	ntp := c.ntp + ntpUnits(age)
	d.reportID = uint32(ntp >> 16)
	return &rtcp.SenderReport{
		SSRC: d.ssrc, NTPTime: ntp, RTPTime: c.rtp + rtpUnits(age, d.clock) - d.tsShift,
		PacketCount: uint32(d.out.packets.Load()), OctetCount: uint32(d.out.bytes.Load()),
	}
}

// readRTCP answers the subscriber's feedback until the track is taken off.
func (d *downTrack) readRTCP(r interceptor.RTCPReader) {
	defer func() {
		if p := recover(); p != nil {
			d.to.log.Error("RTCP panicked", "panic", p, "stack", stack())
			d.to.room.post(func() { d.to.room.remove(d.to.m, ReasonMediaFailure, ActionDisconnect) })
		}
	}()
	buf := make([]byte, receiveMTU)
	for {
		n, _, err := r.Read(buf, nil)
		if err != nil || d.stopped.Load() && n == 0 {
			return
		}
		pkts, err := rtcp.Unmarshal(buf[:n])
		if err != nil {
			d.up.drops.malformed.Add(1)
			continue
		}
		now := time.Now()
		for _, p := range pkts {
			d.feedback(p, now)
		}
	}
}

func (d *downTrack) feedback(p rtcp.Packet, now time.Time) {
	switch p := p.(type) {
	case *rtcp.PictureLossIndication, *rtcp.FullIntraRequest:
		if d.kind != KindVideo || d.disabled.Load() {
			return
		}
		d.up.mu.Lock()
		index := d.current
		if index < 0 {
			index = d.target
		}
		d.up.mu.Unlock()
		if index >= 0 {
			d.up.askKeyframe(index, now)
		}
	case *rtcp.TransportLayerNack:
		if p.MediaSSRC == d.ssrc {
			for _, pair := range p.Nacks {
				pair.Range(func(seq uint16) bool {
					d.resend(seq, now)
					return true
				})
			}
		}
	case *rtcp.ReceiverEstimatedMaximumBitrate:
		if p.Bitrate >= 0 && p.Bitrate < 1e12 {
			d.to.estimate.Store(uint64(p.Bitrate))
		}
	case *rtcp.ReceiverReport:
		for _, r := range p.Reports {
			d.received(r, now)
		}
	case *rtcp.SenderReport:
		for _, r := range p.Reports {
			d.received(r, now)
		}
	}
}

// received takes one reception report (RFC 3550 section 6.4.1).
func (d *downTrack) received(r rtcp.ReceptionReport, now time.Time) {
	if r.SSRC != d.ssrc {
		return
	}
	d.loss.Store(uint32(r.FractionLost))
	d.up.mu.Lock()
	id, at := d.reportID, d.reportAt
	d.up.mu.Unlock()
	if r.LastSenderReport == 0 || r.LastSenderReport != id {
		return
	}
	delay := time.Duration(r.Delay) * time.Second / 65536
	if rtt := now.Sub(at) - delay; rtt > 0 && rtt < 10*time.Second {
		d.rtt.Store(int64(rtt))
	}
}

// resend answers a NACK (RFC 4585), as retransmission (RFC 4588) where that was
// negotiated.
func (d *downTrack) resend(seq uint16, now time.Time) {
	d.up.mu.Lock()
	defer d.up.mu.Unlock()
	if !d.ready || d.stopped.Load() || d.to.dead.Load() {
		return
	}
	s := &d.sent[int(seq)%len(d.sent)]
	if !s.used || s.out != seq || s.times >= maxResend || now.UnixNano()-s.resentAt < int64(resendPause) {
		return
	}
	l := d.up.layers[s.layer]
	if l == nil {
		return
	}
	kept := l.ring.get(s.in)
	if kept == nil {
		return
	}
	s.times++
	s.resentAt = now.UnixNano()

	var h rtp.Header
	payload := make([]byte, 0, 2+len(kept.payload)) // not the packet path: losses are few
	if d.rtxSSRC != 0 && d.rtxPT != 0 {
		d.rtxSeq++
		d.fill(&h, d.rtxPT, d.rtxSSRC, d.rtxSeq, s.ts, kept.marker)
		payload = binary.BigEndian.AppendUint16(payload, seq)
	} else {
		d.fill(&h, d.pt, d.ssrc, seq, s.ts, kept.marker)
	}
	if d.exts.dependency != 0 && len(kept.dd) > 0 {
		_ = h.SetExtension(d.exts.dependency, kept.dd)
	}
	at := len(payload)
	payload = append(payload, kept.payload...)
	if kept.isVP8 {
		pid, tl0, key := s.shift.apply(kept.vp8)
		kept.vp8.patch(payload[at:], pid, tl0, key)
	}
	if _, err := d.stream.WriteRTP(&h, payload); err == nil {
		d.again.add(len(payload))
	}
}
