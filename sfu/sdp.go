package sfu

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pion/ice/v4"
	"github.com/pion/sdp/v3"

	"github.com/trunkhall/trunkhall/call"
)

const (
	maxSDPBytes    = 512 << 10
	maxSections    = 600 // media sections of one description
	maxAttributes  = 600 // attributes of one media section
	maxSectionRIDs = maxLayers
)

// A section is what matters of one media section that a client describes.
// Directions are the client's.
type section struct {
	mid      string
	kind     Kind
	data     bool // the data channels' section
	sends    bool
	receives bool
	cid      string   // the track in msid: the client's track ID
	rids     []string // simulcast, in the order given
	ssrcs    []uint32
}

// parseDescription checks a client's description before anything acts on it.
// Errors wrap call.ErrInvalid.
func parseDescription(text string) ([]section, error) {
	if len(text) > maxSDPBytes {
		return nil, fmt.Errorf("description of %d bytes: %w", len(text), call.ErrInvalid)
	}
	var d sdp.SessionDescription
	if err := d.UnmarshalString(text); err != nil {
		return nil, fmt.Errorf("parse description: %w", errors.Join(call.ErrInvalid, err))
	}
	if len(d.MediaDescriptions) == 0 || len(d.MediaDescriptions) > maxSections {
		return nil, fmt.Errorf("description with %d media sections: %w", len(d.MediaDescriptions), call.ErrInvalid)
	}
	if err := checkSecurity(&d); err != nil {
		return nil, err
	}
	seen := make(map[string]bool)
	types := make(map[string]string)
	var out []section
	for _, m := range d.MediaDescriptions {
		s, err := parseSection(&d, m)
		if err != nil {
			return nil, err
		}
		if err := checkCodecs(m, s, types); err != nil {
			return nil, err
		}
		if seen[s.mid] {
			return nil, fmt.Errorf("media section %q twice: %w", s.mid, call.ErrInvalid)
		}
		seen[s.mid] = true
		out = append(out, s)
	}
	return out, nil
}

// checkSecurity wants what ICE and DTLS cannot do without (RFC 8829 section
// 5.8), in the session or in the section that leads the bundle.
func checkSecurity(d *sdp.SessionDescription) error {
	lead := d.MediaDescriptions[0]
	if group, ok := d.Attribute("group"); ok {
		if f := strings.Fields(group); len(f) > 1 && f[0] == "BUNDLE" {
			for _, m := range d.MediaDescriptions {
				if mid, _ := m.Attribute("mid"); mid == f[1] {
					lead = m
					break
				}
			}
		}
	}
	for key, size := range map[string][2]int{"ice-ufrag": {4, 256}, "ice-pwd": {22, 256}, "fingerprint": {8, 256}} {
		v, ok := d.Attribute(key)
		if !ok {
			v, ok = lead.Attribute(key)
		}
		if !ok || len(v) < size[0] || len(v) > size[1] {
			return fmt.Errorf("description without usable %s: %w", key, call.ErrInvalid)
		}
		if key == "fingerprint" && len(strings.Fields(v)) != 2 {
			return fmt.Errorf("malformed fingerprint: %w", call.ErrInvalid)
		}
	}
	candidates := 0
	for _, a := range lead.Attributes {
		if a.Key != "candidate" {
			continue
		}
		if candidates++; candidates > maxRemoteCands {
			return fmt.Errorf("more than %d candidates: %w", maxRemoteCands, call.ErrInvalid)
		}
		if _, err := ice.UnmarshalCandidate(a.Value); err != nil &&
			!errors.Is(err, ice.ErrUnknownCandidateTyp) && !errors.Is(err, ice.ErrDetermineNetworkType) {
			return fmt.Errorf("candidate: %w", errors.Join(call.ErrInvalid, err))
		}
	}
	return nil
}

// checkCodecs wants every payload type of a section to be described, and types,
// which is filled in here, to mean the same in all sections (RFC 8843 section
// 9.1): what the media engine would stumble over halfway.
func checkCodecs(m *sdp.MediaDescription, s section, types map[string]string) error {
	if s.data {
		return nil
	}
	maps := make(map[string]string)
	for _, a := range m.Attributes {
		switch a.Key {
		case "rtpmap":
			pt, codec, _ := strings.Cut(a.Value, " ")
			maps[pt] = strings.ToLower(codec)
		case "fmtp":
			if apt := fmtpValue(afterSpace(a.Value), "apt"); apt != "" {
				if _, err := strconv.ParseUint(apt, 10, 7); err != nil {
					return fmt.Errorf("retransmission of payload type %q: %w", apt, call.ErrInvalid)
				}
			}
		case "extmap":
			var e sdp.ExtMap
			if err := e.Unmarshal(a.String()); err != nil {
				return fmt.Errorf("header extension: %w", errors.Join(call.ErrInvalid, err))
			}
		}
	}
	for _, pt := range m.MediaName.Formats {
		if _, err := strconv.ParseUint(pt, 10, 7); err != nil {
			return fmt.Errorf("payload type %q: %w", pt, call.ErrInvalid)
		}
		codec, ok := maps[pt]
		if !ok {
			if pt == "0" {
				continue // of a rejected section
			}
			return fmt.Errorf("payload type %s without rtpmap: %w", pt, call.ErrInvalid)
		}
		if was, ok := types[pt]; ok && was != codec {
			return fmt.Errorf("payload type %s is %s and %s: %w", pt, was, codec, call.ErrInvalid)
		}
		types[pt] = codec
	}
	return nil
}

func afterSpace(s string) string {
	_, rest, _ := strings.Cut(s, " ")
	return rest
}

func parseSection(d *sdp.SessionDescription, m *sdp.MediaDescription) (section, error) {
	var s section
	if len(m.Attributes) > maxAttributes {
		return s, fmt.Errorf("media section with %d attributes: %w", len(m.Attributes), call.ErrInvalid)
	}
	switch strings.ToLower(m.MediaName.Media) {
	case "audio":
		s.kind = KindAudio
	case "video":
		s.kind = KindVideo
	case "application":
		s.data = true
	default:
		return s, fmt.Errorf("media section of kind %q: %w", m.MediaName.Media, call.ErrInvalid)
	}
	dir := "sendrecv"
	for _, a := range slices.Concat(d.Attributes, m.Attributes) {
		switch a.Key {
		case "sendrecv", "sendonly", "recvonly", "inactive":
			dir = a.Key
		}
	}
	for _, a := range m.Attributes {
		switch a.Key {
		case "mid":
			s.mid = a.Value
		case "msid":
			if f := strings.Fields(a.Value); len(f) > 0 {
				s.cid = f[len(f)-1]
			}
		case "rid":
			id, rest, _ := strings.Cut(a.Value, " ")
			if strings.HasPrefix(rest, "send") && id != "" && len(s.rids) < maxSectionRIDs {
				s.rids = append(s.rids, id)
			}
		case "ssrc":
			s.addSSRC(a.Value)
		}
	}
	if s.mid == "" || len(s.mid) > 32 {
		return s, fmt.Errorf("media section without usable mid: %w", call.ErrInvalid)
	}
	if m.MediaName.Port.Value == 0 && !hasAttribute(m, "bundle-only") {
		dir = "inactive"
	}
	s.sends = dir == "sendrecv" || dir == "sendonly"
	s.receives = dir == "sendrecv" || dir == "recvonly"
	return s, nil
}

// addSSRC reads "1234 msid:stream track" and the like.
func (s *section) addSSRC(value string) {
	id, attr, _ := strings.Cut(value, " ")
	var ssrc uint32
	if _, err := fmt.Sscanf(id, "%d", &ssrc); err != nil {
		return
	}
	if !slices.Contains(s.ssrcs, ssrc) {
		s.ssrcs = append(s.ssrcs, ssrc)
	}
	if msid, ok := strings.CutPrefix(attr, "msid:"); ok && s.cid == "" {
		if f := strings.Fields(msid); len(f) > 0 {
			s.cid = f[len(f)-1]
		}
	}
}

func hasAttribute(m *sdp.MediaDescription, key string) bool {
	_, ok := m.Attribute(key)
	return ok
}

// An answerStyle says how a section of the answer must differ from what the
// connection itself would answer.
type answerStyle struct {
	idle   bool // nothing to send yet, but the client wants to receive
	dtx    bool // published audio may use discontinuous transmission
	stereo bool // published audio is stereo music
}

// styleAnswer turns the connection's answer into the one the client gets:
// candidates only by trickle, idle receiving sections stay open ("sendonly"
// without msid), Opus as the track was announced.
func styleAnswer(text string, styles map[string]answerStyle) (string, error) {
	var d sdp.SessionDescription
	if err := d.UnmarshalString(text); err != nil {
		return "", fmt.Errorf("parse own answer: %w", err)
	}
	for _, m := range d.MediaDescriptions {
		mid, _ := m.Attribute("mid")
		st := styles[mid]
		kept := m.Attributes[:0]
		opus := ""
		for _, a := range m.Attributes {
			if pt, codec, ok := strings.Cut(a.Value, " "); ok && a.Key == "rtpmap" &&
				strings.HasPrefix(strings.ToLower(codec), "opus/") {
				opus = pt
			}
		}
		for _, a := range m.Attributes {
			switch {
			case a.Key == "candidate" || a.Key == "end-of-candidates":
				continue
			case a.Key == "inactive" && st.idle:
				a.Key = "sendonly"
			case a.Key == "max-message-size":
				a.Value = "65535"
			case a.Key == "fmtp" && opus != "" && strings.HasPrefix(a.Value, opus+" "):
				a.Value = opusFmtp(a.Value, st)
			}
			kept = append(kept, a)
		}
		m.Attributes = kept
	}
	b, err := d.Marshal()
	return string(b), err
}

func opusFmtp(value string, st answerStyle) string {
	if st.dtx && !strings.Contains(value, "usedtx=") {
		value += ";usedtx=1"
	}
	if st.stereo && !strings.Contains(value, ";stereo=") {
		value += ";stereo=1;maxaveragebitrate=510000"
	}
	return value
}
