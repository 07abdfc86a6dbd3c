package sfu

import (
	"fmt"
	"strings"

	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/nack"
	"github.com/pion/interceptor/pkg/report"
	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/webrtc/v4"
)

// RTP header extensions by URI.
const (
	extMID            = "urn:ietf:params:rtp-hdrext:sdes:mid"
	extRID            = "urn:ietf:params:rtp-hdrext:sdes:rtp-stream-id"
	extRepairedRID    = "urn:ietf:params:rtp-hdrext:sdes:repaired-rtp-stream-id"
	extAudioLevel     = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
	extTransportCC    = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
	extAbsSendTime    = "http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
	extDependency     = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension"
	extAbsCaptureTime = "http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time"
)

// publishMimeTypes lists what members may publish. Some clients want video first.
func publishMimeTypes() []string {
	return []string{
		webrtc.MimeTypeVP8, webrtc.MimeTypeH264, webrtc.MimeTypeVP9, webrtc.MimeTypeAV1,
		webrtc.MimeTypeOpus,
	}
}

// enabledMimeType returns mime as this server spells it, or the codec that is
// used instead when it does not know mime.
func enabledMimeType(kind Kind, mime string) string {
	prefix, fallback := "video/", webrtc.MimeTypeVP8
	if kind == KindAudio {
		prefix, fallback = "audio/", webrtc.MimeTypeOpus
	}
	if !strings.Contains(mime, "/") {
		mime = prefix + mime // old clients give the bare name
	}
	for _, m := range publishMimeTypes() {
		if strings.EqualFold(m, mime) && strings.HasPrefix(m, prefix) {
			return m
		}
	}
	return fallback
}

// kindOf turns webrtc's kind into ours.
func kindOf(k webrtc.RTPCodecType) Kind {
	if k == webrtc.RTPCodecTypeVideo {
		return KindVideo
	}
	return KindAudio
}

// rtpKind turns our kind into webrtc's.
func (k Kind) rtpKind() webrtc.RTPCodecType {
	if k == KindVideo {
		return webrtc.RTPCodecTypeVideo
	}
	return webrtc.RTPCodecTypeAudio
}

// A direction says which way media flows on a connection, from the server.
type direction int

const (
	receives direction = 1 << iota
	sends
)

// newMediaEngine registers the codecs and header extensions of a connection.
// Payload types matter only where the server offers.
func newMediaEngine(dir direction) (*webrtc.MediaEngine, error) {
	m := &webrtc.MediaEngine{}
	opus := webrtc.RTPCodecParameters{
		RTPCodecCapability: webrtc.RTPCodecCapability{
			MimeType: webrtc.MimeTypeOpus, ClockRate: 48000, Channels: 2,
			SDPFmtpLine:  "minptime=10;useinbandfec=1",
			RTCPFeedback: []webrtc.RTCPFeedback{{Type: "transport-cc"}, {Type: "nack"}},
		},
		PayloadType: 111,
	}
	if err := m.RegisterCodec(opus, webrtc.RTPCodecTypeAudio); err != nil {
		return nil, err
	}
	feedback := []webrtc.RTCPFeedback{
		{Type: "goog-remb"}, {Type: "transport-cc"}, {Type: "ccm", Parameter: "fir"},
		{Type: "nack"}, {Type: "nack", Parameter: "pli"},
	}
	for _, c := range []struct {
		mime, fmtp string
		pt         webrtc.PayloadType
	}{
		{webrtc.MimeTypeVP8, "", 96},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f", 106},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f", 102},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f", 108},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=64001f", 112},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f", 118},
		{webrtc.MimeTypeH264, "level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42001f", 120},
		{webrtc.MimeTypeVP9, "profile-id=0", 98},
		{webrtc.MimeTypeVP9, "profile-id=2", 100},
		{webrtc.MimeTypeAV1, "", 45},
	} {
		codec := webrtc.RTPCodecParameters{
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: c.mime, ClockRate: 90000, SDPFmtpLine: c.fmtp, RTCPFeedback: feedback,
			},
			PayloadType: c.pt,
		}
		rtx := webrtc.RTPCodecParameters{
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: webrtc.MimeTypeRTX, ClockRate: 90000, SDPFmtpLine: fmt.Sprintf("apt=%d", c.pt),
			},
			PayloadType: c.pt + 1,
		}
		for _, p := range []webrtc.RTPCodecParameters{codec, rtx} {
			if err := m.RegisterCodec(p, webrtc.RTPCodecTypeVideo); err != nil {
				return nil, err
			}
		}
	}
	return m, registerExtensions(m, dir)
}

// registerExtensions registers what a connection may negotiate. All extensions
// of a connection are for both directions: a section that is idle has no sender
// yet, but clients never offer again what its first answer left out.
func registerExtensions(m *webrtc.MediaEngine, dir direction) error {
	audio, video := webrtc.RTPCodecTypeAudio, webrtc.RTPCodecTypeVideo
	for _, e := range []struct {
		uri   string
		dir   direction
		kinds []webrtc.RTPCodecType
	}{
		{extMID, receives, []webrtc.RTPCodecType{audio, video}},
		{extRID, receives, []webrtc.RTPCodecType{audio, video}}, // pion wants it for both
		{extRepairedRID, receives, []webrtc.RTPCodecType{video}},
		{extAudioLevel, receives | sends, []webrtc.RTPCodecType{audio}},
		{extTransportCC, receives, []webrtc.RTPCodecType{audio, video}},
		{extAbsSendTime, sends, []webrtc.RTPCodecType{audio, video}},
		{extDependency, receives | sends, []webrtc.RTPCodecType{video}},
		{extAbsCaptureTime, receives | sends, []webrtc.RTPCodecType{audio, video}},
	} {
		if e.dir&dir == 0 {
			continue
		}
		for _, k := range e.kinds {
			if err := m.RegisterHeaderExtension(webrtc.RTPHeaderExtensionCapability{URI: e.uri}, k); err != nil {
				return err
			}
		}
	}
	return nil
}

// newInterceptors returns what receiving needs: NACKs, receiver reports and
// transport-wide congestion feedback. Sending does its own.
func newInterceptors(dir direction) (*interceptor.Registry, error) {
	r := &interceptor.Registry{}
	if dir&receives == 0 {
		return r, nil
	}
	nacks, err := nack.NewGeneratorInterceptor()
	if err != nil {
		return nil, err
	}
	reports, err := report.NewReceiverInterceptor()
	if err != nil {
		return nil, err
	}
	cc, err := twcc.NewSenderInterceptor()
	if err != nil {
		return nil, err
	}
	r.Add(nacks)
	r.Add(reports)
	r.Add(cc)
	return r, nil
}

// fmtpValue returns one parameter of an fmtp line, in lower case.
func fmtpValue(line, key string) string {
	for p := range strings.SplitSeq(line, ";") {
		k, v, _ := strings.Cut(strings.TrimSpace(p), "=")
		if strings.EqualFold(k, key) {
			return strings.ToLower(v)
		}
	}
	return ""
}

// matchCodec finds the negotiated codec that can carry what is published as
// want, and its retransmission payload type (0 without).
func matchCodec(want webrtc.RTPCodecCapability, have []webrtc.RTPCodecParameters) (c webrtc.RTPCodecParameters, rtx webrtc.PayloadType, ok bool) {
	best := 0
	for _, h := range have {
		if !strings.EqualFold(h.MimeType, want.MimeType) {
			continue
		}
		score := 1
		switch {
		case strings.EqualFold(h.MimeType, webrtc.MimeTypeH264):
			if mode := fmtpValue(want.SDPFmtpLine, "packetization-mode"); mode == "1" &&
				fmtpValue(h.SDPFmtpLine, "packetization-mode") != "1" {
				continue // its packets may not be split
			}
			a, b := fmtpValue(want.SDPFmtpLine, "profile-level-id"), fmtpValue(h.SDPFmtpLine, "profile-level-id")
			if len(a) == 6 && len(b) == 6 && a[:2] == b[:2] {
				score++
				if a[:4] == b[:4] {
					score++
				}
			}
		case strings.EqualFold(h.MimeType, webrtc.MimeTypeVP9):
			a, b := fmtpValue(want.SDPFmtpLine, "profile-id"), fmtpValue(h.SDPFmtpLine, "profile-id")
			if (a == "" || a == "0") != (b == "" || b == "0") {
				continue
			}
		}
		if score > best {
			best, c, ok = score, h, true
		}
	}
	if !ok {
		return c, 0, false
	}
	apt := fmt.Sprint(c.PayloadType)
	for _, h := range have {
		if strings.EqualFold(h.MimeType, webrtc.MimeTypeRTX) && fmtpValue(h.SDPFmtpLine, "apt") == apt {
			rtx = h.PayloadType
		}
	}
	return c, rtx, true
}

// prefer puts the codecs of the given MIME types first, in that order, each
// followed by the rest in the order they had.
func prefer(codecs []webrtc.RTPCodecParameters, mimes ...string) []webrtc.RTPCodecParameters {
	var out []webrtc.RTPCodecParameters
	taken := make([]bool, len(codecs))
	for _, m := range mimes {
		for i, c := range codecs {
			if !taken[i] && strings.EqualFold(c.MimeType, m) {
				taken[i] = true
				out = append(out, c)
			}
		}
	}
	for i, c := range codecs {
		if !taken[i] {
			out = append(out, c)
		}
	}
	return out
}
