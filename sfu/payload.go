package sfu

import (
	"strings"

	"github.com/pion/webrtc/v4"
)

// A format is how a codec's payloads are told apart.
type format int

const (
	formatOther format = iota
	formatVP8
	formatVP9
	formatH264
	formatAV1
)

func formatOf(mime string) format {
	switch {
	case strings.EqualFold(mime, webrtc.MimeTypeVP8):
		return formatVP8
	case strings.EqualFold(mime, webrtc.MimeTypeVP9):
		return formatVP9
	case strings.EqualFold(mime, webrtc.MimeTypeH264):
		return formatH264
	case strings.EqualFold(mime, webrtc.MimeTypeAV1):
		return formatAV1
	}
	return formatOther
}

// startsKeyFrame reports whether a packet begins a key frame, from what stays
// readable in end-to-end-encrypted frames: the payload descriptor, NAL unit
// types, or the dependency descriptor (dd, may be empty). VP8 has its own.
func (f format) startsKeyFrame(payload, dd []byte) bool {
	if len(payload) == 0 {
		return false
	}
	switch f {
	case formatVP9, formatAV1:
		if len(dd) > 0 {
			// Only key frames carry the template structure: AV1 RTP
			// specification, appendix A.8.
			return dd[0]&0x80 != 0 && len(dd) > 3 && dd[3]&0x80 != 0
		}
		if f == formatAV1 {
			return payload[0]&0x08 != 0 // N: first packet of a coded video sequence
		}
		return vp9KeyStart(payload)
	case formatH264:
		return h264KeyStart(payload)
	}
	return false
}

// vp9KeyStart reads the VP9 payload descriptor (RFC 9628 section 4.2).
func vp9KeyStart(b []byte) bool {
	const i, p, l, begin = 0x80, 0x40, 0x20, 0x08
	if b[0]&p != 0 || b[0]&begin == 0 {
		return false
	}
	at := 1
	if b[0]&i != 0 {
		if len(b) <= at {
			return false
		}
		if b[at]&0x80 != 0 {
			at++
		}
		at++
	}
	if b[0]&l != 0 {
		return len(b) > at && b[at]>>1&0x07 == 0 // spatial layer 0
	}
	return true
}

// h264KeyStart looks for a sequence parameter set or the start of an IDR slice
// (RFC 6184 section 5).
func h264KeyStart(b []byte) bool {
	const idr, sps, stapA, fuA = 5, 7, 24, 28
	switch b[0] & 0x1f {
	case idr, sps:
		return true
	case stapA:
		for b = b[1:]; len(b) > 2; {
			size := int(b[0])<<8 | int(b[1])
			if t := b[2] & 0x1f; t == sps || t == idr {
				return true
			}
			if len(b) < 2+size {
				return false
			}
			b = b[2+size:]
		}
	case fuA:
		return len(b) > 1 && b[1]&0x80 != 0 && (b[1]&0x1f == idr || b[1]&0x1f == sps)
	}
	return false
}
