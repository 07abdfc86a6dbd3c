package media

import (
	"fmt"
	"sync"
	"time"

	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/call"
)

// joining keeps two Copy calls from joining the same session at once.
var joining sync.Mutex

// Copy joins two sessions that speak the same codec: packets of one are sent on by
// the other without being decoded, and Read and Write of both do nothing meanwhile.
// Digits are still reported. It lasts until stop, or until one of them is closed,
// changes its codec or presses digits: Copying tells.
func Copy(a, b *Session) (stop func(), err error) {
	joining.Lock()
	defer joining.Unlock()
	if a == b || a.Copying() || b.Copying() {
		return nil, fmt.Errorf("copy: already joined: %w", call.ErrConflict)
	}
	if c := a.Codec(); c == "" || c != b.Codec() {
		return nil, fmt.Errorf("copy: the codecs differ: %w", call.ErrConflict)
	}
	a.out.beginCopy()
	b.out.beginCopy()
	a.partner.Store(b)
	b.partner.Store(a)
	if a.ended.Load() || b.ended.Load() {
		a.part()
		return nil, ErrClosed
	}
	return func() {
		if a.partner.CompareAndSwap(b, nil) {
			b.partner.CompareAndSwap(a, nil)
		}
	}, nil
}

// Copying says whether the session is joined with another by Copy.
func (s *Session) Copying() bool { return s.partner.Load() != nil }

// part ends a Copy.
func (s *Session) part() {
	if other := s.partner.Swap(nil); other != nil {
		other.partner.CompareAndSwap(s, nil)
	}
}

// forwarding translates another stream's numbers into those of ours.
type forwarding struct {
	known bool
	ssrc  uint32
	seq   uint16 // added
	stamp uint32 // added
	high  uint16 // newest of ours
	used  uint64 // which of the 64 numbers up to high were sent
}

func (o *sender) beginCopy() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.copied.known = false
}

// forward sends on a packet of another session. Gaps stay gaps, so that the other side
// knows of losses.
func (o *sender) forward(p *rtp.Packet, what content, codec audio.Codec, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if codec != o.codec || !o.active || !o.ready() || len(p.Payload) > sendRoom-headerSize {
		return
	}
	number := o.number
	switch {
	case what == event && o.eventPT != 0:
		number = o.eventPT
	case what == noise && o.hasCN:
		number = o.cn
	case what != voice:
		return
	}
	f := &o.copied
	far := int16(p.SequenceNumber + f.seq - f.high)
	if !f.known || f.ssrc != p.SSRC || far > 1000 || far < -1000 {
		o.catchUp(now)
		*f = forwarding{
			known: true, ssrc: p.SSRC, seq: o.seq - p.SequenceNumber, stamp: o.stamp - p.Timestamp, high: o.seq - 1,
			used: ^uint64(0),
		}
		far = 1
	}
	// No number may be used twice: SRTP would encrypt two packets with one keystream.
	switch {
	case far > 63:
		f.used = 1
	case far > 0:
		f.used = f.used<<far | 1
	case far > -64 && f.used&(1<<-far) == 0:
		f.used |= 1 << -far
	default:
		return
	}
	seq := p.SequenceNumber + f.seq
	stamp := p.Timestamp + f.stamp
	n := copy(o.buf[headerSize:], p.Payload)
	o.sendAs(seq, p.Marker, number, stamp, n, now)
	if far > 0 {
		f.high, o.seq = seq, seq+1
		if what == voice {
			o.stamp, o.at = stamp+uint32(codec.Ticks(p.Payload)), now
		}
	}
}
