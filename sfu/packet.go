package sfu

import (
	"github.com/pion/rtp"
)

// A packet is one received RTP packet as the forwarders see it. Its slices
// point into the reader's buffer.
type packet struct {
	header  rtp.Header
	payload []byte // without padding; empty for padding-only packets
	key     bool   // begins a key frame
	vp8     vp8Header
	isVP8   bool
	dd      []byte // dependency descriptor
	capture []byte // absolute capture time

	level    uint8 // loudness as its sender says (RFC 6464)
	hasLevel bool
}

// parse reads an RTP packet and reports whether it is usable.
func (p *packet) parse(raw []byte) bool {
	p.header.CSRC = p.header.CSRC[:0]
	n, err := p.header.Unmarshal(raw)
	if err != nil || p.header.Version != 2 || n > len(raw) {
		return false
	}
	p.payload = raw[n:]
	if p.header.Padding {
		if len(p.payload) == 0 {
			return false
		}
		pad := int(p.payload[len(p.payload)-1])
		if pad == 0 || pad > len(p.payload) {
			return false
		}
		p.payload = p.payload[:len(p.payload)-pad]
	}
	p.key, p.isVP8, p.dd, p.capture, p.hasLevel = false, false, nil, nil, false
	return true
}

// describe fills in what the codec's payload tells. It reports false for a
// payload that breaks its own format.
func (p *packet) describe(f format) bool {
	if len(p.payload) == 0 {
		return true
	}
	if f != formatVP8 {
		p.key = f.startsKeyFrame(p.payload, p.dd)
		return true
	}
	var ok bool
	if p.vp8, ok = parseVP8(p.payload); !ok {
		return false
	}
	p.isVP8, p.key = true, p.vp8.key
	return true
}

// A packetRing keeps the last packets of a stream for retransmission, by the
// publisher's sequence number.
type packetRing struct {
	slots []ringSlot // a power of two of them
}

type ringSlot struct {
	used    bool
	seq     uint16
	marker  bool
	isVP8   bool
	vp8     vp8Header
	payload []byte
	dd      []byte
}

func newPacketRing(size int) *packetRing { return &packetRing{slots: make([]ringSlot, size)} }

// put keeps a packet. A nil ring keeps nothing.
func (r *packetRing) put(p *packet) {
	if r == nil {
		return
	}
	s := &r.slots[int(p.header.SequenceNumber)&(len(r.slots)-1)]
	s.used, s.seq, s.marker = true, p.header.SequenceNumber, p.header.Marker
	s.isVP8, s.vp8 = p.isVP8, p.vp8
	s.payload = append(s.payload[:0], p.payload...)
	s.dd = append(s.dd[:0], p.dd...)
}

func (r *packetRing) get(seq uint16) *ringSlot {
	if r == nil {
		return nil
	}
	s := &r.slots[int(seq)&(len(r.slots)-1)]
	if !s.used || s.seq != seq {
		return nil
	}
	return s
}
