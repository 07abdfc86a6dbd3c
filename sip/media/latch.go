package media

import (
	"net/netip"
	"time"
)

const (
	latchPackets = 3               // in a row, from one place and of one SSRC
	latchSilence = 5 * time.Second // after this another place may take over
)

// latch decides whose packets are the other side's (symmetric RTP, RFC 4961). Behind
// NAT that is not the address in its description, but it must be one of its networks.
// Once found it stays: somebody else can only take over after five seconds of silence
// or when a new description names another address, and must be allowed to as well.
type latch struct {
	sources  []netip.Prefix
	declared netip.AddrPort // in the description, as it stands there
	trusted  netip.AddrPort // the same if we may send to it, else zero
	expected netip.Addr     // may send, besides the sources

	source    netip.AddrPort // zero until found
	last      time.Time      // when its last packet came
	candidate netip.AddrPort
	ssrc      uint32
	count     int

	strangers uint64
}

// declare takes the address of a new description.
func (l *latch) declare(declared, trusted netip.AddrPort, expected netip.Addr) {
	if declared != l.declared {
		l.source, l.candidate, l.count = netip.AddrPort{}, netip.AddrPort{}, 0
	}
	l.declared, l.trusted, l.expected = declared, trusted, expected
}

// allowed says whether from is in a network that may send.
func (l *latch) allowed(from netip.Addr) bool {
	return from == l.expected || within(from, l.sources)
}

// admit says whether a packet of the right form belongs to the call. changed says that
// the source is new.
func (l *latch) admit(from netip.AddrPort, ssrc uint32, now time.Time) (ok, changed bool) {
	if from == l.source {
		l.last, l.count = now, 0
		return true, false
	}
	if !l.allowed(from.Addr()) || l.source.IsValid() && now.Sub(l.last) < latchSilence {
		l.strangers++
		return false, false
	}
	if from != l.trusted {
		if from != l.candidate || ssrc != l.ssrc {
			l.candidate, l.ssrc, l.count = from, ssrc, 0
		}
		if l.count++; l.count < latchPackets {
			return false, false
		}
	}
	l.source, l.last, l.count, l.candidate = from, now, 0, netip.AddrPort{}
	return true, true
}

// destination is where to send, or zero.
func (l *latch) destination() netip.AddrPort {
	if l.source.IsValid() {
		return l.source
	}
	return l.trusted
}

// flow bounds how many packets are looked at: a bucket that fills with time.
type flow struct {
	rate, size float64
	level      float64
	at         time.Time
}

func (f *flow) take(now time.Time) bool {
	if f.at.IsZero() {
		f.level = f.size
	} else {
		f.level = min(f.size, f.level+now.Sub(f.at).Seconds()*f.rate)
	}
	f.at = now
	if f.level < 1 {
		return false
	}
	f.level--
	return true
}
