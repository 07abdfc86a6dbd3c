package media

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

const (
	readRoom = 2048
	// A telephone sends 50 packets a second, 100 if it makes them of 10 ms.
	flowRate, flowSize = 400, 600
	floodPause         = 20 * time.Millisecond
	floodSeconds       = 5
	// Nobody types faster than that; a stall of the network may deliver some at once.
	digitRate, digitSize = 10, 12
	foreignPackets       = 3 // of another codec agreed on, until we follow
	replayWindow         = 128
)

// receiver is what a Session knows of the packets that come. Session.mu guards it.
type receiver struct {
	latch  latch
	codec  audio.Codec
	accept formats
	mux    bool
	wanted bool            // we take sound: no hold of ours
	sound  *audio.Receiver // nil until something comes

	events   audio.EventReceiver
	typing   flow
	detector *audio.Detector // only if no telephone events were agreed on
	found    func(digit byte)
	digits   []byte // found in the sound and not reported yet

	foreign audio.Codec // another codec that came lately
	strange int         // packets of it in a row

	secure   bool
	open     *srtp.Context
	openRTCP *srtp.Context
	openKey  cryptoKey
	plain    []byte
	head     rtp.Header
	packet   rtp.Packet

	track     track
	heard     time.Time // any packet accepted, RTCP too
	media     bool      // the first sound has come
	broken    uint64    // malformed, or not decrypted
	unknown   uint64    // of payload types that were not agreed on
	flooded   int       // pauses in this second
	inFlood   int       // seconds of flood
	control   remoteReports
	controlAt netip.AddrPort // where their RTCP comes from
}

// prepared is what a new plan needs.
type prepared struct {
	detector *audio.Detector
	open     *srtp.Context
}

func newSound(c audio.Codec) (*audio.Receiver, error) {
	// Payload types are translated before, see Session.sort.
	cfg := audio.DefaultReceiverConfig(c, voiceType, eventType)
	cfg.Min = shortestDelay
	return audio.NewReceiver(cfg)
}

const voiceType, eventType = 0, 101

// shortestDelay is what the jitter buffer adds where packets come evenly. It grows by
// itself as soon as they do not.
const shortestDelay = 20 * time.Millisecond

// prepare does everything about a new plan that can fail.
func (in *receiver) prepare(p, before *plan) (out prepared, err error) {
	if p.eventPT == 0 {
		if out.detector = in.detector; out.detector == nil || in.codec.Rate() != p.codec.Rate() {
			out.detector = audio.NewDetector(p.codec.Rate())
		}
	}
	if p.keying == KeyingSDES {
		out.open = in.open
		if before == nil || before.keying != KeyingSDES || !in.openKey.same(p.remote) {
			out.open, err = p.remote.context(srtp.SRTPReplayProtection(replayWindow), srtp.SRTCPReplayProtection(replayWindow))
		}
	}
	return out, err
}

// adopt puts a plan into effect.
func (in *receiver) adopt(next prepared, p *plan) {
	in.detector = next.detector
	if in.codec != p.codec {
		in.sound = nil
	}
	in.codec, in.accept, in.mux, in.wanted = p.codec, p.accept, p.mux, p.ours.receive
	in.track.clock = p.codec.Clock()
	if in.events.Clock != p.event.clock {
		in.events = audio.EventReceiver{Clock: p.event.clock}
	}
	in.foreign, in.strange = "", 0
	if p.declared != in.latch.declared {
		in.controlAt = netip.AddrPort{}
	}
	in.latch.declare(p.declared, p.trusted, p.expected)
	switch p.keying {
	case KeyingSDES:
		in.secure, in.open, in.openRTCP, in.openKey = true, next.open, next.open, p.remote
	case KeyingDTLS:
		if !in.secure {
			in.secure, in.open, in.openRTCP = true, nil, nil
		}
	default:
		in.secure, in.open, in.openRTCP = false, nil, nil
	}
	if in.secure && in.plain == nil {
		in.plain = make([]byte, readRoom)
	}
}

// receive reads the RTP socket until it is closed.
func (s *Session) receive() {
	buf := make([]byte, readRoom)
	bucket := flow{rate: flowRate, size: flowSize}
	for {
		n, from, err := s.rtp.ReadFromUDPAddrPort(buf)
		now := time.Now()
		switch {
		case err == nil && bucket.take(now):
			s.sort(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), now)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Too many packets: the kernel throws away what comes while we sleep, which
			// costs least. An error of a UDP socket passes; it must not spin.
			if err == nil {
				s.mu.Lock()
				s.in.flooded++
				s.mu.Unlock()
			}
			time.Sleep(floodPause)
		}
	}
}

// sort tells protocols on the RTP port apart (RFC 7983).
func (s *Session) sort(b []byte, from netip.AddrPort, now time.Time) {
	switch {
	case len(b) == 0:
	case b[0] >= 20 && b[0] <= 63:
		s.handshake(b, from, false)
	case b[0]>>6 != 2:
	case len(b) > 1 && b[1] >= 192 && b[1] <= 223: // RFC 5761 §4
		s.takeControl(b, from, true, now)
	default:
		s.take(b, from, now)
	}
}

// take handles an RTP packet.
func (s *Session) take(b []byte, from netip.AddrPort, now time.Time) {
	s.mu.Lock()
	digit, first := s.accept(b, from, now)
	s.mu.Unlock()
	if first && s.opts.Events.Media != nil && !s.ended.Load() {
		s.opts.Events.Media()
	}
	if digit != 0 {
		s.digit(digit, DTMFEvents)
	}
}

func (s *Session) digit(digit byte, how string) {
	if s.opts.Events.Digit != nil && !s.ended.Load() {
		s.opts.Events.Digit(digit, how)
	}
}

// accept reads a packet, decides whether it belongs to the call and gives it to the
// jitter buffer.
func (s *Session) accept(b []byte, from netip.AddrPort, now time.Time) (digit byte, first bool) {
	in := &s.in
	if in.codec == "" {
		return
	}
	p := &in.packet
	if p.Unmarshal(b) != nil {
		in.broken++
		return
	}
	f := in.accept.of(p.PayloadType)
	if from != in.latch.source && !in.latch.allowed(from.Addr()) {
		in.latch.strangers++
		return
	}
	if f.content == nothing {
		in.unknown++
		return
	}
	if in.secure && !in.decrypt(b) {
		return
	}
	ok, moved := in.latch.admit(from, p.SSRC, now)
	if !ok {
		return
	}
	if moved {
		s.out.aim(in.latch.destination(), s.controlTo())
	}
	in.heard = now
	in.track.push(p.SSRC, p.SequenceNumber, p.Timestamp, f.content == voice && f.codec == in.codec, now)
	if f.content == voice && f.codec != in.codec {
		if f = s.follow(f); f.content == nothing {
			return
		}
	} else if f.content == voice {
		in.strange = 0
	}
	if f.content == voice && !in.media {
		in.media, first = true, true
	}
	if f.content == event && in.wanted && f.clock == max(in.events.Clock, 8000) {
		if digit = in.events.Push(p.Payload, p.Timestamp, now); digit != 0 && !in.typing.take(now) {
			digit = 0
		}
	}
	if !in.wanted {
		return
	}
	if in.sound == nil {
		var err error
		if in.sound, err = newSound(in.codec); err != nil {
			s.log.Warn("sip media: decoder", "codec", string(in.codec), "err", err)
			return
		}
	}
	switch f.content {
	case voice:
		p.PayloadType = voiceType
	case event:
		p.PayloadType = eventType
	case noise:
		p.PayloadType = audio.ComfortNoiseType
	}
	in.sound.Push(p, now)
	return digit, first
}

// decrypt opens a packet and puts it into in.packet.
func (in *receiver) decrypt(b []byte) bool {
	if in.open == nil {
		return false
	}
	plain, err := in.open.DecryptRTP(in.plain[:0], b, &in.head)
	if err != nil || in.packet.Unmarshal(plain) != nil {
		in.broken++
		return false
	}
	return true
}

// follow changes to another codec that was agreed on, once the other side has clearly
// done so. It returns an empty format until then.
func (s *Session) follow(f format) format {
	in := &s.in
	if f.codec != in.foreign {
		in.foreign, in.strange = f.codec, 0
	}
	if in.strange++; in.strange < foreignPackets {
		return format{}
	}
	if err := s.out.change(f.codec); err != nil {
		s.log.Warn("sip media: codec", "codec", string(f.codec), "err", err)
		return format{}
	}
	if in.detector != nil && f.codec.Rate() != in.codec.Rate() {
		in.detector = audio.NewDetector(f.codec.Rate())
	}
	in.codec, in.sound, in.foreign, in.strange = f.codec, nil, "", 0
	in.track.clock = f.codec.Clock()
	next := *s.plan
	next.codec = f.codec
	s.plan = &next
	return f
}

// Read fills pcm with the next 20 ms from the telephone. Before there is any sound and
// on hold that is silence.
func (s *Session) Read(now time.Time, pcm []int16) {
	s.mu.Lock()
	in := &s.in
	if in.sound == nil || !in.wanted || len(pcm) != audio.FrameSamples(in.codec.Rate()) {
		s.mu.Unlock()
		clear(pcm)
		return
	}
	in.sound.Pull(now, pcm)
	if in.detector == nil {
		s.mu.Unlock()
		return
	}
	in.digits = in.digits[:0]
	in.detector.Push(pcm, in.found)
	var digit byte
	if len(in.digits) > 0 && in.typing.take(now) { // 20 ms hold no second one
		digit = in.digits[0]
	}
	s.mu.Unlock()
	if digit != 0 {
		s.digit(digit, DTMFInband)
	}
}

// stats returns what came so far.
func (in *receiver) stats(now time.Time) call.LegStats {
	received, lost := in.track.totals()
	st := call.LegStats{
		Packets: received, Lost: lost, Jitter: in.track.jitterTime(),
		RTT: in.control.rtt, Strangers: in.latch.strangers,
	}
	if received < 50 || in.sound == nil {
		return st
	}
	j := in.sound.Stats(now)
	gone := float64(lost)
	if late := float64(j.Late); late > 0 {
		gone += late
	}
	delay := st.RTT/2 + max(j.Delay, j.Target) + 2*audio.FrameDuration
	st.MOS = mos(in.codec, gone/float64(received+lost), delay)
	return st
}
