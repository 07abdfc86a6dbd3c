package sfu

// A vp8Header is the VP8 payload descriptor (RFC 7741 section 4.2) and the one
// bit of the frame header that tells a key frame. Both stay readable when the
// frame is end-to-end encrypted.
type vp8Header struct {
	size  int  // bytes of the descriptor
	start bool // first packet of a frame
	key   bool // and that frame is a key frame

	hasPID bool
	wide   bool // 15 bits instead of 7
	pid    uint16
	pidAt  int

	hasTL0 bool
	tl0    uint8
	tl0At  int

	hasTID bool
	tid    uint8 // temporal layer
	sync   bool  // depends on the base layer only

	hasKey bool
	keyIdx uint8
	keyAt  int
}

// parseVP8 reads the descriptor at the start of an RTP payload.
func parseVP8(b []byte) (h vp8Header, ok bool) {
	if len(b) == 0 {
		return h, false
	}
	i := 1
	h.start = b[0]&0x10 != 0 && b[0]&0x07 == 0
	if b[0]&0x80 != 0 {
		if len(b) <= i {
			return h, false
		}
		ext := b[i]
		i++
		if ext&0x80 != 0 {
			if len(b) <= i {
				return h, false
			}
			h.hasPID, h.pidAt, h.pid = true, i, uint16(b[i]&0x7f)
			if b[i]&0x80 != 0 {
				if len(b) <= i+1 {
					return h, false
				}
				h.wide = true
				h.pid = h.pid<<8 | uint16(b[i+1])
				i++
			}
			i++
		}
		if ext&0x40 != 0 {
			if len(b) <= i {
				return h, false
			}
			h.hasTL0, h.tl0At, h.tl0 = true, i, b[i]
			i++
		}
		if ext&0x30 != 0 {
			if len(b) <= i {
				return h, false
			}
			if ext&0x20 != 0 {
				h.hasTID, h.tid, h.sync = true, b[i]>>6, b[i]&0x20 != 0
			}
			if ext&0x10 != 0 {
				h.hasKey, h.keyIdx, h.keyAt = true, b[i]&0x1f, i
			}
			i++
		}
	}
	h.size = i
	// The frame header follows: its lowest bit is 0 in key frames.
	h.key = h.start && len(b) > i && b[i]&0x01 == 0
	return h, true
}

// patch writes other numbers into the descriptor at the start of b. A picture
// ID of 7 bits keeps its size.
func (h vp8Header) patch(b []byte, pid uint16, tl0, keyIdx uint8) {
	if h.hasPID {
		if h.wide {
			b[h.pidAt] = 0x80 | byte(pid>>8)&0x7f
			b[h.pidAt+1] = byte(pid)
		} else {
			b[h.pidAt] = byte(pid) & 0x7f
		}
	}
	if h.hasTL0 {
		b[h.tl0At] = tl0
	}
	if h.hasKey {
		b[h.keyAt] = b[h.keyAt]&0xe0 | keyIdx&0x1f
	}
}

// A vp8Shift is what is subtracted from a source's numbers so that they
// continue those of the source before it.
type vp8Shift struct {
	pid    uint16
	tl0    uint8
	keyIdx uint8
}

// apply returns the shifted numbers.
func (s vp8Shift) apply(h vp8Header) (pid uint16, tl0, keyIdx uint8) {
	return (h.pid - s.pid) & 0x7fff, h.tl0 - s.tl0, (h.keyIdx - s.keyIdx) & 0x1f
}

// continueAfter returns the shift with which h follows the given last numbers.
func (h vp8Header) continueAfter(pid uint16, tl0, keyIdx uint8) vp8Shift {
	return vp8Shift{pid: h.pid - (pid + 1), tl0: h.tl0 - (tl0 + 1), keyIdx: h.keyIdx - (keyIdx + 1)}
}
