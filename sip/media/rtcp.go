package media

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/pion/rtcp"
)

const (
	reportEvery = 5 * time.Second
	noMedia     = 30 * time.Second
	mediaGone   = time.Minute
	heldLongest = 30 * time.Minute
	// Reports come every five seconds; some send more in the beginning, and DTLS before
	// them is a dozen packets.
	controlRate, controlSize = 10, 30
)

// remoteReports is what the other side's RTCP said.
type remoteReports struct {
	ssrc     uint32 // of its sender reports
	middle   uint32 // middle bits of the NTP time of the last one
	at       time.Time
	rtt      time.Duration
	fraction uint8 // of what we sent, lost lately
}

// receiveControl reads the RTCP socket until it is closed.
func (s *Session) receiveControl() {
	buf := make([]byte, readRoom)
	bucket := flow{rate: controlRate, size: controlSize}
	for {
		n, from, err := s.rtcp.ReadFromUDPAddrPort(buf)
		now := time.Now()
		switch {
		case err == nil && bucket.take(now):
			from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
			switch {
			case n == 0:
			case buf[0] >= 20 && buf[0] <= 63:
				s.handshake(buf[:n], from, true)
			case buf[0]>>6 == 2:
				s.takeControl(buf[:n], from, false, now)
			}
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(floodPause)
		}
	}
}

// takeControl handles a compound RTCP packet.
func (s *Session) takeControl(b []byte, from netip.AddrPort, mux bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := &s.in
	if in.codec == "" || mux && !in.mux {
		return
	}
	// Only the host whose media we take may tell us about it.
	switch peer := in.latch.destination(); {
	case peer.IsValid() && from.Addr() == peer.Addr():
	case !peer.IsValid() && in.latch.allowed(from.Addr()):
	default:
		in.latch.strangers++
		return
	}
	if in.secure {
		if in.openRTCP == nil {
			return
		}
		plain, err := in.openRTCP.DecryptRTCP(in.plain[:0], b, nil)
		if err != nil {
			in.broken++ // some send one before the keys are agreed on
			return
		}
		b = plain
	}
	packets, err := rtcp.Unmarshal(b)
	if err != nil {
		in.broken++
		return
	}
	in.heard = now
	if !mux && from != in.controlAt {
		in.controlAt = from
		s.out.aim(in.latch.destination(), s.controlTo())
	}
	for _, p := range packets {
		switch p := p.(type) {
		case *rtcp.SenderReport:
			in.control.ssrc, in.control.middle, in.control.at = p.SSRC, uint32(p.NTPTime>>16), now
			s.hear(p.Reports, now)
		case *rtcp.ReceiverReport:
			s.hear(p.Reports, now)
		}
	}
}

// hear reads report blocks about our stream.
func (s *Session) hear(blocks []rtcp.ReceptionReport, now time.Time) {
	for _, r := range blocks {
		if r.SSRC != s.out.ssrc {
			continue
		}
		s.in.control.fraction = r.FractionLost
		if r.LastSenderReport == 0 {
			continue
		}
		// RFC 3550 §6.4.1: A - LSR - DLSR in units of 1/65536 s.
		units := uint32(ntp(now)>>16) - r.LastSenderReport - r.Delay
		if rtt := time.Duration(units) * time.Second / 65536; rtt < 10*time.Second {
			s.in.control.rtt = rtt
		}
	}
}

// controlTo is where our RTCP goes: to the described address as long as their RTP
// comes from the described one, else only where theirs comes from. The caller holds
// s.mu.
func (s *Session) controlTo() netip.AddrPort {
	in := &s.in
	to := in.latch.destination()
	switch {
	case s.plan == nil || !to.IsValid():
		return netip.AddrPort{}
	case s.plan.mux:
		return to
	case in.controlAt.IsValid() && in.controlAt.Addr() == to.Addr():
		return in.controlAt
	case to == in.latch.trusted:
		return s.plan.rtcp
	}
	return netip.AddrPort{}
}

// ntp returns a time as RTCP has it: seconds since 1900 and their fraction.
func ntp(t time.Time) uint64 {
	const era = 2208988800
	return uint64(t.Unix()+era)<<32 | uint64(t.Nanosecond())<<32/1e9
}

// lookAfter does what is to be done each second: reports, keep-alives, time-outs.
func (s *Session) lookAfter(now time.Time) {
	s.mu.Lock()
	why := s.overdue(now)
	if why != "" {
		if s.finished {
			why = ""
		}
		s.finished = true
	}
	var report []byte
	if s.plan != nil && now.Sub(s.reported) >= reportEvery {
		s.reported = now.Add(-time.Duration(rand.Int64N(int64(reportEvery / 5)))) // not all at once
		report = s.report(now, false)
	}
	s.mu.Unlock()
	if report != nil {
		s.out.report(report)
	}
	s.out.keepOpen(now)
	if why != "" && s.opts.Events.Timeout != nil && !s.ended.Load() {
		s.opts.Events.Timeout(why)
	}
}

// overdue says whether the call's media is over, and why.
func (s *Session) overdue(now time.Time) string {
	in := &s.in
	if in.flooded > 0 {
		in.inFlood++
	} else {
		in.inFlood = 0
	}
	in.flooded = 0
	if in.inFlood >= floodSeconds {
		return Flooded
	}
	if s.tls.failed() {
		return NoKeys
	}
	if s.started.IsZero() {
		return ""
	}
	since := s.started
	for _, t := range []time.Time{s.turned, in.heard} {
		if t.After(since) {
			since = t
		}
	}
	quiet := now.Sub(since)
	held := s.hold || s.plan != nil && !s.plan.theirs.send || s.plan != nil && !s.plan.theirs.receive
	switch {
	case held && quiet >= heldLongest:
		return HeldTooLong
	case held:
	case in.heard.IsZero() && quiet >= noMedia:
		return NoMedia
	case !in.heard.IsZero() && quiet >= mediaGone:
		return MediaGone
	}
	return ""
}

// report makes a compound packet: what we sent, what we heard, who we are. The caller
// holds s.mu.
func (s *Session) report(now time.Time, bye bool) []byte {
	in := &s.in
	var blocks []rtcp.ReceptionReport
	if in.track.known {
		fraction, lost := in.track.interval()
		r := rtcp.ReceptionReport{
			SSRC: in.track.ssrc, FractionLost: fraction, TotalLost: lost,
			LastSequenceNumber: uint32(in.track.high), Jitter: uint32(in.track.jitter),
		}
		if c := in.control; !c.at.IsZero() && c.ssrc == in.track.ssrc {
			r.LastSenderReport = c.middle
			r.Delay = uint32(now.Sub(c.at) * 65536 / time.Second)
		}
		blocks = []rtcp.ReceptionReport{r}
	}
	o := &s.out
	o.mu.Lock()
	var first rtcp.Packet = &rtcp.ReceiverReport{SSRC: o.ssrc, Reports: blocks}
	if o.count > 0 && now.Sub(o.sent) < 2*reportEvery {
		// The timestamp belongs to now, not to the last frame.
		passed := now.Sub(o.at) * time.Duration(o.codec.Clock()) / time.Second
		first = &rtcp.SenderReport{
			SSRC: o.ssrc, NTPTime: ntp(now), RTPTime: o.stamp + uint32(passed) - uint32(o.codec.Clock()/50),
			PacketCount: o.count, OctetCount: o.octets, Reports: blocks,
		}
	}
	ssrc := o.ssrc
	o.mu.Unlock()
	packets := []rtcp.Packet{first, rtcp.NewCNAMESourceDescription(ssrc, s.name())}
	if bye {
		packets = append(packets, &rtcp.Goodbye{Sources: []uint32{ssrc}})
	}
	b, err := rtcp.Marshal(packets)
	if err != nil {
		s.log.Warn("sip media: RTCP report", "err", err)
		return nil
	}
	return b
}

// name is our CNAME: short-term and random, RFC 7022 §4.2.
func (s *Session) name() string {
	const letters = "abcdefghijklmnopqrstuvwxyz234567"
	var id [8]byte
	binary.BigEndian.PutUint64(id[:], s.id)
	out := make([]byte, 0, 16)
	for _, b := range id {
		out = append(out, letters[b>>3], letters[b&31])
	}
	return string(out)
}

// bye says by RTCP that we leave (RFC 3550 §6.3.7), if anything was sent.
func (s *Session) bye() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.mu.Lock()
	sent := s.out.count > 0
	s.out.mu.Unlock()
	if s.plan == nil || !sent {
		return
	}
	if b := s.report(time.Now(), true); b != nil {
		s.out.report(b)
	}
}
