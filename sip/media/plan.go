package media

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/trunkhall/trunkhall/audio"
)

// content says what packets of a payload type hold.
type content uint8

const (
	nothing content = iota
	voice
	event
	noise
)

// format is what a payload type means to us.
type format struct {
	number  uint8
	content content
	codec   audio.Codec // of voice
	clock   int         // of events
}

// formats are the payload types that were agreed on: a handful.
type formats []format

// of returns what a payload type means.
func (list formats) of(number uint8) format {
	for i := range list {
		if list[i].number == number {
			return list[i]
		}
	}
	return format{}
}

// Payload types in our offers, as most telephones use them.
const (
	opusNumber    = 111
	eventNumber   = 101
	eventNumber48 = 110
)

// numbers are the payload types of what has no fixed one. The other side's first use
// of one decides (RFC 3264 §8.3.2: a number must not change its meaning).
type numbers struct{ opus, event, event48 uint8 }

func (n *numbers) of(c audio.Codec) uint8 {
	switch c {
	case audio.PCMU:
		return 0
	case audio.PCMA:
		return 8
	case audio.G722:
		return 9
	}
	return n.opus
}

// settle gives each a number of its own, keeping those that are set.
func (n *numbers) settle() {
	taken := []uint8{0, 8, 9, 13}
	for _, at := range []struct {
		number *uint8
		wish   uint8
	}{{&n.opus, opusNumber}, {&n.event, eventNumber}, {&n.event48, eventNumber48}} {
		if *at.number == 0 {
			wish := at.wish
			for slices.Contains([]uint8{n.opus, n.event, n.event48}, wish) || slices.Contains(taken, wish) {
				wish--
			}
			*at.number = wish
		}
	}
}

// plan is what an offer and its answer agree on. It does not change once made.
type plan struct {
	line    int    // which media line of the description is the audio
	profile string // RTP/AVP, ...
	codec   audio.Codec
	accept  formats               // what we understand
	send    map[audio.Codec]uint8 // payload types the other side understands
	eventPT uint8                 // telephone events they understand; zero if none
	event   payload
	hasCN   bool
	cn      uint8
	dtx     bool // Opus: they want nothing in silence

	declared netip.AddrPort // their RTP address as described
	trusted  netip.AddrPort // the same if we may send there
	expected netip.Addr     // who may send, besides the sources
	rtcp     netip.AddrPort // where RTCP may be sent, or zero
	mux      bool

	theirs direction // as they described it
	ours   direction // what we do, both together

	keying      string // "", KeyingSDES, KeyingDTLS
	local       cryptoKey
	remote      cryptoKey
	fingerprint []string // "sha-256 AB:CD..."
	active      bool     // we begin the DTLS handshake
}

// secureProfile says whether a profile allows nothing but SRTP.
func secureProfile(proto string) bool {
	return strings.HasSuffix(proto, "/SAVP") || strings.HasSuffix(proto, "/SAVPF")
}

func tlsProfile(proto string) bool { return strings.HasPrefix(proto, "UDP/TLS/") }

var profiles = []string{
	"RTP/AVP", "RTP/AVPF", "RTP/SAVP", "RTP/SAVPF", "UDP/TLS/RTP/SAVP", "UDP/TLS/RTP/SAVPF",
}

// codecNamed returns the codec of a payload, or "".
func codecNamed(p payload) audio.Codec {
	if p.name == "g722" && p.clock == 16000 { // honest, and against RFC 3551 §4.5.2
		return audio.G722
	}
	for _, c := range []audio.Codec{audio.PCMU, audio.PCMA, audio.G722, audio.Opus} {
		if strings.EqualFold(p.name, string(c)) && p.clock == c.Clock() {
			return c
		}
	}
	return ""
}

// chooseCodecs fills in what can be said and understood. ours is in order of
// preference. With all, as offerer, everything common may come, and their order
// decides; else, as answerer, only the best of ours is used.
func (p *plan) chooseCodecs(list []payload, ours []audio.Codec, all bool) error {
	p.send = map[audio.Codec]uint8{}
	for _, f := range list {
		c := codecNamed(f)
		if c == "" || !slices.Contains(ours, c) {
			continue
		}
		if _, again := p.send[c]; again {
			continue
		}
		p.send[c] = f.number
		better := p.codec == "" || !all && slices.Index(ours, c) < slices.Index(ours, p.codec)
		if better {
			p.codec = c
		}
		if c == audio.Opus {
			p.dtx = parameter(f.fmtp, "usedtx") == "1"
		}
	}
	if p.codec == "" {
		return fmt.Errorf("no common codec: %w", ErrNotAcceptable)
	}
	if !all {
		p.send = map[audio.Codec]uint8{p.codec: p.send[p.codec]}
	}
	for c, number := range p.send {
		p.accept = append(p.accept, format{number: number, content: voice, codec: c})
	}
	for _, f := range list {
		switch f.name {
		case "telephone-event":
			if f.clock != 8000 && f.clock != 48000 {
				continue
			}
			p.accept = append(p.accept, format{number: f.number, content: event, clock: f.clock})
			if p.eventPT == 0 || f.clock == p.codec.Clock() && p.event.clock != f.clock {
				p.eventPT, p.event = f.number, f
			}
		case "cn":
			if p.codec.Clock() == 8000 && f.clock == 8000 {
				p.accept = append(p.accept, format{number: f.number, content: noise})
				p.hasCN, p.cn = true, f.number
			}
		}
	}
	if p.codec.Clock() == 8000 && p.accept.of(audio.ComfortNoiseType).content == nothing {
		// Many send comfort noise without having said so.
		p.accept = append(p.accept, format{number: audio.ComfortNoiseType, content: noise})
	}
	return nil
}

// chooseAddress reads where the other side is.
func (p *plan) chooseAddress(m *mediaLine, sources []netip.Prefix, own func(netip.AddrPort) bool) error {
	p.declared = netip.AddrPortFrom(m.address.ip, uint16(m.port))
	var err error
	if p.trusted, p.expected, err = target(p.declared, sources, own); err != nil {
		return err
	}
	_, p.mux = find(m.attrs, "rtcp-mux")
	rtcp, err := m.rtcpAddress()
	if err != nil {
		return err
	}
	switch {
	case p.mux || !p.trusted.IsValid() || !rtcp.IsValid():
	case rtcp.Addr() != p.trusted.Addr() && !within(rtcp.Addr(), sources):
	default: // nobody else's address, and none of ours
		if p.rtcp, _, err = target(rtcp, sources, own); err != nil {
			return err
		}
	}
	return nil
}

func find(attrs []attribute, key string) (string, bool) {
	for _, a := range attrs {
		if a.key == key {
			return a.value, true
		}
	}
	return "", false
}

// fingerprints returns the hashes of their DTLS certificate that are strong enough.
func (d *description) fingerprints(m *mediaLine) (list []string) {
	for _, attrs := range [][]attribute{m.attrs, d.attrs} {
		for _, a := range attrs {
			if a.key != "fingerprint" {
				continue
			}
			hash, value, _ := strings.Cut(a.value, " ")
			if hash = strings.ToLower(hash); hash == "sha-256" || hash == "sha-384" || hash == "sha-512" {
				list = append(list, hash+" "+strings.ToUpper(strings.TrimSpace(value)))
			}
		}
		if len(list) > 0 {
			break
		}
	}
	return list
}

// secureAnswer decides how the answer to an offer is encrypted. own returns our key
// for a suite.
func (p *plan) secureAnswer(d *description, m *mediaLine, policy, keying string, own func(suite) cryptoKey) error {
	must := secureProfile(m.proto)
	switch {
	case policy == SRTPRequire && !must:
		return fmt.Errorf("the offer has no SRTP, which is required: %w", ErrNotAcceptable)
	case (policy == SRTPOff || policy == "") && must:
		return fmt.Errorf("the offer wants SRTP, which is off: %w", ErrNotAcceptable)
	case policy == SRTPOff || policy == "":
		return nil
	}
	keys, err := m.parseCrypto()
	if err != nil {
		return err
	}
	prints := d.fingerprints(m)
	byKeys, byDTLS := len(keys) > 0 && !tlsProfile(m.proto), len(prints) > 0
	switch {
	case byDTLS && (!byKeys || keying == KeyingDTLS):
		setup, _ := d.attribute(m, "setup")
		switch setup {
		case "actpass", "passive":
			// Behind NAT they must speak first, if they can.
			p.active = setup == "passive" || p.trusted.IsValid()
		case "active", "":
		default:
			return fmt.Errorf("a=setup:%.10q: %w", setup, ErrNotAcceptable)
		}
		p.keying, p.fingerprint = KeyingDTLS, prints
	case byKeys:
		p.keying, p.remote = KeyingSDES, keys[0]
		p.local = own(keys[0].kind)
		p.local.tag, p.local.as = keys[0].tag, keys[0].as
	case must:
		return fmt.Errorf("the offer wants SRTP but has no key that can be used: %w", ErrNotAcceptable)
	}
	return nil
}

// secureAccept reads how an answer to our offer is encrypted. offered is what we said.
func (p *plan) secureAccept(d *description, m *mediaLine, offered localMedia) error {
	must := secureProfile(offered.profile)
	if must != secureProfile(m.proto) {
		return fmt.Errorf("the answer has profile %.20q, not %s: %w", m.proto, offered.profile, ErrNotAcceptable)
	}
	if len(offered.keys) > 0 {
		keys, err := m.parseCrypto()
		if err != nil {
			return err
		}
		for _, theirs := range keys {
			at := slices.IndexFunc(offered.keys, func(k cryptoKey) bool { return k.tag == theirs.tag && k.kind == theirs.kind })
			if at < 0 {
				return fmt.Errorf("a=crypto tag %d was not offered so: %w", theirs.tag, ErrNotAcceptable)
			}
			p.keying, p.local, p.remote = KeyingSDES, offered.keys[at], theirs
			return nil
		}
	}
	if offered.dtls {
		if prints := d.fingerprints(m); len(prints) > 0 {
			setup, _ := d.attribute(m, "setup")
			if setup == "actpass" || setup == "holdconn" {
				return fmt.Errorf("a=setup:%s in an answer: %w", setup, ErrNotAcceptable)
			}
			p.keying, p.fingerprint, p.active = KeyingDTLS, prints, setup == "passive"
			return nil
		}
	}
	if must {
		return fmt.Errorf("the answer has no key: %w", ErrNotAcceptable)
	}
	return nil
}

// follows refuses what would weaken a call or what nobody has reason to do: a later
// description that drops the encryption, or an offer with other keys for it. An answer
// may bring a new key: RFC 4568 §7.1.4 lets each offer and answer do so.
func (p *plan) follows(before *plan, answering bool) error {
	if before == nil || before.keying == "" {
		return nil
	}
	switch {
	case p.keying == "":
		return fmt.Errorf("encryption cannot be dropped during a call: %w", ErrNotAcceptable)
	case p.keying != before.keying,
		p.keying == KeyingSDES && answering && !p.remote.same(before.remote),
		p.keying == KeyingDTLS && !slices.Equal(p.fingerprint, before.fingerprint):
		return fmt.Errorf("keys cannot change during a call: %w", ErrNotAcceptable)
	}
	return nil
}

// localMedia is the audio line of a description of ours.
type localMedia struct {
	profile string
	port    uint16
	codecs  []audio.Codec // offered; of an answer the only one
	numbers map[audio.Codec]uint8
	events  []payload
	cn      bool
	cnPT    uint8
	keys    []cryptoKey
	dtls    bool
	print   string
	setup   string
	mux     bool
	dir     direction
}

// line writes the media line and its attributes.
func (l localMedia) line(b *strings.Builder) {
	var formats []string
	for _, c := range l.codecs {
		formats = append(formats, strconv.Itoa(int(l.numbers[c])))
	}
	if l.cn {
		formats = append(formats, strconv.Itoa(int(l.cnPT)))
	}
	for _, e := range l.events {
		formats = append(formats, strconv.Itoa(int(e.number)))
	}
	fmt.Fprintf(b, "m=audio %d %s %s\r\n", l.port, l.profile, strings.Join(formats, " "))
	for _, c := range l.codecs {
		number := l.numbers[c]
		if c == audio.Opus {
			// RFC 7587 §6.1. We hear and speak wideband, one channel.
			fmt.Fprintf(b, "a=rtpmap:%d opus/48000/2\r\na=fmtp:%d maxplaybackrate=16000;sprop-maxcapturerate=16000;stereo=0;useinbandfec=0\r\n", number, number)
			continue
		}
		fmt.Fprintf(b, "a=rtpmap:%d %s/%d\r\n", number, c, c.Clock())
	}
	if l.cn {
		fmt.Fprintf(b, "a=rtpmap:%d CN/8000\r\n", l.cnPT)
	}
	for _, e := range l.events {
		fmt.Fprintf(b, "a=rtpmap:%d telephone-event/%d\r\na=fmtp:%d 0-15\r\n", e.number, e.clock, e.number)
	}
	b.WriteString("a=ptime:20\r\na=maxptime:60\r\n")
	for _, k := range l.keys {
		fmt.Fprintf(b, "a=crypto:%s\r\n", k)
	}
	if l.dtls {
		fmt.Fprintf(b, "a=fingerprint:%s\r\na=setup:%s\r\n", l.print, l.setup)
	}
	if l.mux {
		b.WriteString("a=rtcp-mux\r\n")
	}
	fmt.Fprintf(b, "a=%s\r\n", l.dir)
}

// refusedLine is a media line that we do not take part in.
type refusedLine struct{ kind, proto, format string }

// describe writes a description without its o= line: that has the version, which
// depends on the rest.
func describe(ip netip.Addr, lines []refusedLine, at int, l localMedia) string {
	var b strings.Builder
	fmt.Fprintf(&b, "s=-\r\nc=IN %s %s\r\nt=0 0\r\n", family(ip), ip)
	for i := range max(len(lines), at+1) {
		if i == at {
			l.line(&b)
			continue
		}
		fmt.Fprintf(&b, "m=%s 0 %s %s\r\n", lines[i].kind, lines[i].proto, lines[i].format)
	}
	return b.String()
}

func family(ip netip.Addr) string {
	if ip.Is4() {
		return "IP4"
	}
	return "IP6"
}

// refused makes the lines of a description that are not the audio chosen.
func refused(d *description) []refusedLine {
	lines := make([]refusedLine, len(d.media))
	for i, m := range d.media {
		lines[i] = refusedLine{m.kind, m.proto, cmp.Or(m.formats[0], "0")}
	}
	return lines
}
