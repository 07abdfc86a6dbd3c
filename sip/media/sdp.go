package media

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/trunkhall/trunkhall/call"
)

// Limits on descriptions from outside. Telephones send one to three media lines.
const (
	longestDescription = 32 << 10
	mostMediaLines     = 32
	mostAttributes     = 512
)

// description is a session description (RFC 8866) as far as telephones need it. The
// parser is our own because general ones refuse what PBXes send: fax lines
// (m=image, udptl), lines in an unusual order.
type description struct {
	version string // of o=
	address connection
	attrs   []attribute
	media   []mediaLine
}

type mediaLine struct {
	kind    string // audio, video, image, ...
	port    int
	proto   string
	formats []string
	address connection // its own, or the session's
	attrs   []attribute
}

type attribute struct{ key, value string }

// connection is a c= line.
type connection struct {
	ip   netip.Addr // zero if it is a host name, which nobody resolves
	said bool
}

func malformed(format string, args ...any) error {
	return fmt.Errorf("session description: "+format+": %w", append(args, call.ErrInvalid)...)
}

// parseDescription reads a description. Its errors never repeat more of it than a few
// characters, and no keys.
func parseDescription(b []byte) (*description, error) {
	if len(b) > longestDescription {
		return nil, malformed("%d octets are too many", len(b))
	}
	d := &description{}
	attrs, n := &d.attrs, 0
	for line := range strings.SplitSeq(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		if n++; len(line) < 2 || line[1] != '=' {
			return nil, malformed("line %d is none", n)
		}
		value := line[2:]
		if (line[0] == 'v') != (n == 1) {
			return nil, malformed("v= must be the first line and only that")
		}
		switch line[0] {
		case 'v':
			if strings.TrimSpace(value) != "0" {
				return nil, malformed("unknown version")
			}
		case 'o':
			f := strings.Fields(value)
			if len(f) != 6 || f[3] != "IN" {
				return nil, malformed("bad o= line")
			}
			d.version = f[1] + " " + f[2]
		case 'c':
			c, err := parseConnection(value)
			if err != nil {
				return nil, err
			}
			if len(d.media) == 0 {
				d.address = c
			} else if m := &d.media[len(d.media)-1]; !m.address.said {
				m.address = c
			}
		case 'a':
			if len(*attrs) == mostAttributes {
				return nil, malformed("too many attributes")
			}
			key, value, _ := strings.Cut(value, ":")
			*attrs = append(*attrs, attribute{strings.TrimSpace(key), strings.TrimSpace(value)})
		case 'm':
			if len(d.media) == mostMediaLines {
				return nil, malformed("more than %d media lines", mostMediaLines)
			}
			m, err := parseMedia(value)
			if err != nil {
				return nil, err
			}
			d.media = append(d.media, m)
			attrs = &d.media[len(d.media)-1].attrs
		}
	}
	if d.version == "" || len(d.media) == 0 {
		return nil, malformed("no o= or no m= line")
	}
	for i := range d.media {
		if m := &d.media[i]; !m.address.said {
			m.address = d.address
		}
	}
	return d, nil
}

// parseConnection reads "IN IP4 192.0.2.1". A TTL of multicast is cut off.
func parseConnection(value string) (connection, error) {
	f := strings.Fields(value)
	if len(f) != 3 || f[0] != "IN" || f[1] != "IP4" && f[1] != "IP6" {
		return connection{}, malformed("bad c= line")
	}
	host, _, _ := strings.Cut(f[2], "/")
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return connection{said: true}, nil
	}
	if ip.Is4() != (f[1] == "IP4") || ip.Zone() != "" {
		return connection{}, malformed("c= line with an address of another kind")
	}
	return connection{ip.Unmap(), true}, nil
}

// parseMedia reads "audio 49170 RTP/AVP 0 8".
func parseMedia(value string) (mediaLine, error) {
	f := strings.Fields(value)
	if len(f) < 4 {
		return mediaLine{}, malformed("bad m= line")
	}
	if len(f) > 3+128 {
		return mediaLine{}, malformed("m= line with %d formats", len(f)-3)
	}
	port, _, _ := strings.Cut(f[1], "/")
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return mediaLine{}, malformed("m= line with no port")
	}
	return mediaLine{kind: f[0], port: int(n), proto: f[2], formats: f[3:]}, nil
}

// attribute returns the first value of an attribute of the line, else the session's.
func (d *description) attribute(m *mediaLine, key string) (string, bool) {
	for _, attrs := range [][]attribute{m.attrs, d.attrs} {
		for _, a := range attrs {
			if a.key == key {
				return a.value, true
			}
		}
	}
	return "", false
}

// direction is who sends, seen from one side (RFC 3264 §5.1).
type direction struct{ send, receive bool }

var directions = map[string]direction{
	"sendrecv": {true, true}, "sendonly": {true, false}, "recvonly": {false, true}, "inactive": {},
}

func (d direction) String() string {
	switch {
	case d.send && d.receive:
		return "sendrecv"
	case d.send:
		return "sendonly"
	case d.receive:
		return "recvonly"
	}
	return "inactive"
}

// direction returns who sends, seen from the side that made d.
func (d *description) direction(m *mediaLine) direction {
	dir := direction{true, true}
	for _, attrs := range [][]attribute{d.attrs, m.attrs} {
		for _, a := range attrs {
			if v, ok := directions[a.key]; ok {
				dir = v
			}
		}
	}
	if m.address.ip.IsValid() && m.address.ip.IsUnspecified() {
		dir.receive = false // hold as in RFC 2543, still sent: RFC 3264 §8.4
	}
	return dir
}

// payload is one format of an audio line.
type payload struct {
	number uint8
	name   string // as in rtpmap, lower case
	clock  int
	fmtp   string
}

// staticPayloads need no rtpmap (RFC 3551 §6).
var staticPayloads = map[uint8]payload{
	0: {0, "pcmu", 8000, ""}, 8: {8, "pcma", 8000, ""}, 9: {9, "g722", 8000, ""}, 13: {13, "cn", 8000, ""},
}

// payloads returns the formats of an audio line that have a meaning, in order.
func (m *mediaLine) payloads() ([]payload, error) {
	maps := map[uint8]payload{}
	params := map[uint8]string{}
	for _, a := range m.attrs {
		if a.key != "rtpmap" && a.key != "fmtp" {
			continue
		}
		number, rest, _ := strings.Cut(a.value, " ")
		n, err := strconv.ParseUint(number, 10, 8)
		if err != nil || n > 127 {
			return nil, malformed("a=%s of no payload type", a.key)
		}
		if a.key == "fmtp" {
			params[uint8(n)] = strings.TrimSpace(rest)
			continue
		}
		name, clock, ok := strings.Cut(strings.TrimSpace(rest), "/")
		clock, channels, _ := strings.Cut(clock, "/")
		hz, err := strconv.ParseUint(clock, 10, 31)
		if !ok || err != nil || hz == 0 {
			return nil, malformed("a=rtpmap:%d without a clock", n)
		}
		p := payload{number: uint8(n), name: strings.ToLower(name), clock: int(hz)}
		// RFC 7587 §7: Opus is always opus/48000/2. The others have one channel.
		mono := channels == "" || channels == "1"
		if p.name == "opus" && (channels != "2" || hz != 48000) || p.name != "opus" && !mono {
			p.name = "" // something else of that name
		}
		maps[p.number] = p
	}
	var found []payload
	seen := [128]bool{}
	for _, f := range m.formats {
		n, err := strconv.ParseUint(f, 10, 8)
		if err != nil || n > 127 {
			return nil, malformed("m=audio with a format that is no payload type")
		}
		if seen[n] {
			continue
		}
		seen[n] = true
		p, ok := maps[uint8(n)]
		if !ok {
			if p, ok = staticPayloads[uint8(n)]; !ok {
				continue
			}
		}
		// RFC 5761 §4: 64-95 would be mistaken for RTCP.
		if p.name == "" || p.number >= 64 && p.number <= 95 {
			continue
		}
		p.fmtp = params[p.number]
		found = append(found, p)
	}
	return found, nil
}

// parameter returns a value of an fmtp line: "a=1;b=2".
func parameter(fmtp, key string) string {
	for part := range strings.SplitSeq(fmtp, ";") {
		if k, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && strings.EqualFold(k, key) {
			return v
		}
	}
	return ""
}

// checkPtime refuses packet times that are none. Others are only a wish: what comes is
// taken by its own length, and what goes is 20 ms.
func (m *mediaLine) checkPtime() error {
	for _, a := range m.attrs {
		if a.key != "ptime" && a.key != "maxptime" {
			continue
		}
		whole, fraction, _ := strings.Cut(a.value, ".") // some say 20.0
		n, err := strconv.ParseUint(whole, 10, 16)
		if err != nil || n == 0 || strings.Trim(fraction, "0123456789") != "" {
			return malformed("a=%s is no time", a.key)
		}
		if a.key == "maxptime" && n < 20 {
			return fmt.Errorf("a=maxptime below 20: %w", ErrNotAcceptable)
		}
	}
	return nil
}

// rtcpAddress reads a=rtcp (RFC 3605): where RTCP goes, if not to the port after RTP's.
func (m *mediaLine) rtcpAddress() (netip.AddrPort, error) {
	for _, a := range m.attrs {
		if a.key != "rtcp" {
			continue
		}
		port, rest, more := strings.Cut(a.value, " ")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return netip.AddrPort{}, malformed("a=rtcp without a port")
		}
		ip := m.address.ip
		if more {
			c, err := parseConnection(rest)
			if err != nil {
				return netip.AddrPort{}, err
			}
			ip = c.ip
		}
		return netip.AddrPortFrom(ip, uint16(n)), nil
	}
	if m.port == 65535 {
		return netip.AddrPort{}, nil
	}
	return netip.AddrPortFrom(m.address.ip, uint16(m.port+1)), nil
}
