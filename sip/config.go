package sip

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/guard"
	"github.com/trunkhall/trunkhall/sip/numbers"
)

// Config is the gateway as the operator wants it: the section "sip".
type Config struct {
	// Enabled opens the gateway even if no trunk is configured, for trunks that
	// come by the API.
	Enabled bool `yaml:"enabled"`
	// Listen are the addresses: udp://, tcp://, tls://, ws:// or wss:// with host
	// and port.
	Listen      []string `yaml:"listen"`
	TLSCertFile string   `yaml:"tls_cert_file"`
	TLSKeyFile  string   `yaml:"tls_key_file"`
	// TLSCAFile holds certificates that trunks are checked against, besides the
	// system's.
	TLSCAFile string `yaml:"tls_ca_file"`
	// DigestAlgorithms are those of our challenges, in their order. Some telephones
	// look at the first alone.
	DigestAlgorithms []string `yaml:"digest_algorithms"`
	// ExternalIP is what trunks are told to send to: "auto" or an address.
	ExternalIP string `yaml:"external_ip"`
	// BindIP is the local address of the RTP sockets; empty: all of them.
	BindIP string `yaml:"bind_ip"`
	// RTPPorts is "first-last": the UDP ports of phone media.
	RTPPorts string `yaml:"rtp_ports"`
	// DefaultCountry is where numbers without a + are understood to be dialled.
	DefaultCountry string `yaml:"default_country"`
	// Extensions are numbers of the house.
	Extensions []numbers.Extension `yaml:"extensions"`
	// Emergency adds to the emergency numbers of each country that are known
	// anyhow; the key "*" is for all countries.
	Emergency map[string][]string `yaml:"emergency_numbers"`
	Trunks    []call.Trunk        `yaml:"trunks"`
	Dispatch  []call.DispatchRule `yaml:"dispatch"`
	// Rooms are media rooms that phones reach without Matrix.
	Rooms     []StaticRoom `yaml:"rooms"`
	Outbound  Outbound     `yaml:"outbound"`
	Block     guard.Block  `yaml:"block"`
	Limits    guard.Limits `yaml:"limits"`
	Prompts   Prompts      `yaml:"prompts"`
	StarCodes StarCodes    `yaml:"star_codes"`
	Records   Records      `yaml:"records"`
}

// A StaticRoom is a media room that phones reach without Matrix.
type StaticRoom struct {
	Room  string `yaml:"room"`
	Title string `yaml:"title"`
	PIN   string `yaml:"pin"` // empty: none
}

// Outbound says which numbers may be called. Nothing may be called unless a list
// here or at the trunk allows it; by whom and for how long is in Limits.
type Outbound struct {
	// Allow is for trunks without a list of their own, Deny is added to each
	// trunk's.
	Allow []string `yaml:"allow_prefixes"`
	Deny  []string `yaml:"deny_prefixes"`
	// AllowTypes are kinds of numbers that cost extra and are refused otherwise:
	// premium_rate, shared_cost, satellite, personal, ...
	AllowTypes     []string `yaml:"allow_types"`
	EmergencyTrunk string   `yaml:"emergency_trunk"` // needs block.emergency: false
	// AllowRefer lets phones in a room call others into it by a transfer (REFER).
	AllowRefer bool `yaml:"allow_refer"`
	// RingTimeout is how long a phone rings before we give up.
	RingTimeout time.Duration `yaml:"ring_timeout"`
}

// Prompts are the announcements.
type Prompts struct {
	Dir      string `yaml:"dir"`      // files here replace those built in: dir/LANGUAGE/NAME.ulaw
	Language string `yaml:"language"` // en, de
}

// StarCodes are what a phone in a room can press. An empty one is switched off.
type StarCodes struct {
	Mute  string `yaml:"mute"`
	Hand  string `yaml:"hand"`
	Help  string `yaml:"help"`
	Leave string `yaml:"leave"`
}

// Records say where call detail records go, and how much is kept.
type Records struct {
	Dir     string `yaml:"dir"`      // empty: "calls" in the data directory
	MaxSize int64  `yaml:"max_size"` // of one file
	Keep    int    `yaml:"keep"`     // earlier files
}

// DefaultConfig returns the settings that apply where the operator is silent.
func DefaultConfig() Config {
	return Config{
		Listen:           []string{"udp://0.0.0.0:5060", "tcp://0.0.0.0:5060"},
		ExternalIP:       "auto",
		DigestAlgorithms: []string{"SHA-256", "MD5"},
		RTPPorts:         "30000-30999",
		Block:            guard.DefaultBlock(),
		Limits:           guard.DefaultLimits(),
		Outbound:         Outbound{RingTimeout: time.Minute},
		Prompts:          Prompts{Language: "en"},
		StarCodes:        StarCodes{Mute: "*6", Hand: "*5", Help: "*1", Leave: "##"},
		Records:          Records{MaxSize: 16 << 20, Keep: 20},
	}
}

// On reports whether the gateway is to be opened at all: without a trunk nothing
// listens.
func (c Config) On() bool { return c.Enabled || len(c.Trunks) > 0 }

// Ports returns the first and the last of the RTP ports, or zeros if they cannot
// be read.
func (c Config) Ports() (first, last int) {
	a, b, ok := strings.Cut(c.RTPPorts, "-")
	first, err1 := strconv.Atoi(strings.TrimSpace(a))
	last, err2 := strconv.Atoi(strings.TrimSpace(b))
	if !ok || err1 != nil || err2 != nil {
		return 0, 0
	}
	return first, last
}

// Validate returns everything that is wrong, each with its YAML path.
func (c Config) Validate() error {
	v := &validator{}
	if c.On() {
		v.listeners(c)
	}
	v.media(c)
	seen := make(map[string]bool)
	for i, t := range c.Trunks {
		at := fmt.Sprintf("sip.trunks[%d]", i)
		if t.ID != "" {
			at = fmt.Sprintf("sip.trunks[%d] (%s)", i, t.ID)
			if seen[t.ID] {
				v.say("%s.id: is given twice", at)
			}
			seen[t.ID] = true
		}
		v.trunk(at, t, c.Outbound.Allow)
	}
	for i, r := range c.Dispatch {
		v.rule(fmt.Sprintf("sip.dispatch[%d]", i), r)
	}
	v.rooms(c.Rooms)
	v.outbound(c)
	v.limits(c)
	return errors.Join(v.errs...)
}

// CheckTrunk is Validate for one trunk.
func (c Config) CheckTrunk(t call.Trunk) error {
	v := &validator{}
	v.trunk("trunk "+t.ID, t, c.Outbound.Allow)
	if err := errors.Join(v.errs...); err != nil {
		return fmt.Errorf("%w: %w", call.ErrInvalid, err)
	}
	return nil
}

// CheckRule is Validate for one dispatch rule that comes by the API.
func (c Config) CheckRule(r call.DispatchRule) error {
	v := &validator{}
	v.rule("rule "+r.ID, r)
	if err := errors.Join(v.errs...); err != nil {
		return fmt.Errorf("%w: %w", call.ErrInvalid, err)
	}
	return nil
}

type validator struct{ errs []error }

func (v *validator) say(format string, args ...any) {
	v.errs = append(v.errs, fmt.Errorf(format, args...))
}

// oneOf complains unless value is empty or one of the list.
func (v *validator) oneOf(at, value string, list ...string) {
	if value != "" && !slices.Contains(list, value) {
		v.say("%s: %q is none of %s", at, value, strings.Join(list, ", "))
	}
}

func (v *validator) listeners(c Config) {
	if len(c.Listen) == 0 {
		v.say("sip.listen: needed, as [udp://0.0.0.0:5060]")
	}
	if len(c.DigestAlgorithms) == 0 {
		v.say("sip.digest_algorithms: needed, as [SHA-256, MD5]")
	}
	for i, name := range c.DigestAlgorithms {
		v.oneOf(fmt.Sprintf("sip.digest_algorithms[%d]", i), name, "SHA-256", "MD5")
	}
	secure := false
	for i, l := range c.Listen {
		u, err := url.Parse(l)
		if err != nil || u.Host == "" || u.Port() == "" || u.Path != "" {
			v.say("sip.listen[%d]: %q is not like udp://0.0.0.0:5060", i, l)
			continue
		}
		if _, err := netip.ParseAddrPort(u.Host); err != nil {
			v.say("sip.listen[%d]: %q needs an IP address and a port", i, l)
		}
		v.oneOf(fmt.Sprintf("sip.listen[%d]", i), u.Scheme, "udp", "tcp", "tls", "ws", "wss")
		secure = secure || u.Scheme == "tls" || u.Scheme == "wss"
	}
	switch {
	case secure && (c.TLSCertFile == "" || c.TLSKeyFile == ""):
		v.say("sip.tls_cert_file, sip.tls_key_file: needed for a tls or wss listener")
	case (c.TLSCertFile == "") != (c.TLSKeyFile == ""):
		v.say("sip.tls_cert_file, sip.tls_key_file: give both or none")
	}
}

func (v *validator) media(c Config) {
	if c.ExternalIP != "auto" && c.ExternalIP != "" {
		if _, err := netip.ParseAddr(c.ExternalIP); err != nil {
			v.say("sip.external_ip: %q is neither auto nor an address", c.ExternalIP)
		}
	}
	if c.BindIP != "" {
		if _, err := netip.ParseAddr(c.BindIP); err != nil {
			v.say("sip.bind_ip: %q is no address", c.BindIP)
		}
	}
	first, last := c.Ports()
	if first < 1024 || last > 65535 || first+1 > last {
		v.say("sip.rtp_ports: %q is not like 30000-30999", c.RTPPorts)
	}
	if cc := c.DefaultCountry; cc != "" && (len(cc) != 2 || strings.ToUpper(cc) != cc) {
		v.say("sip.default_country: %q is not two capital letters like DE", cc)
	}
	for i, x := range c.Extensions {
		match := strings.TrimSuffix(x.Match, "*")
		if match == "" || strings.Trim(match, "0123456789") != "" || (x.Number == "") == (x.Trunk == "") {
			v.say("sip.extensions[%d]: needs match (digits) and one of number and trunk", i)
		}
	}
}

func (v *validator) trunk(at string, t call.Trunk, allow []string) {
	if t.ID == "" || strings.ContainsAny(t.ID, " \t/?#\"{}") {
		v.say("%s.id: needed, without spaces or any of /?#\"{}", at)
	}
	in := t.Direction == "inbound" || t.Direction == "both"
	out := t.Direction == "outbound" || t.Direction == "both"
	if !in && !out {
		v.say("%s.direction: %q is none of inbound, outbound, both", at, t.Direction)
	}
	if out && len(t.Targets) == 0 {
		v.say("%s.targets: needed for calls out, as [sip:sip.example.net]", at)
	}
	if out && len(t.Allow) == 0 && len(allow) == 0 {
		v.say("%s.allow_prefixes: needed for calls out, here or at sip.outbound: nothing may be called without", at)
	}
	if in && len(t.In.CIDRs) == 0 && !t.In.Digest && t.Register.AOR == "" {
		v.say("%s.inbound: needs cidrs, digest: true or register.aor: who may call?", at)
	}
	if t.In.Digest && (t.Auth.Username == "" || t.Auth.Password == "") {
		v.say("%s.auth: user name and password needed for inbound.digest", at)
	}
	for i, cidr := range t.In.CIDRs {
		if _, err := parsePrefix(cidr); err != nil {
			v.say("%s.inbound.cidrs[%d]: %q is not like 203.0.113.0/24", at, i, cidr)
		}
	}
	for i, target := range append(slices.Clone(t.Targets), t.Register.AOR, t.Outbound) {
		if target != "" && !strings.HasPrefix(target, "sip:") && !strings.HasPrefix(target, "sips:") {
			where := "register.aor"
			switch {
			case i < len(t.Targets):
				where = fmt.Sprintf("targets[%d]", i)
			case i == len(t.Targets)+1:
				where = "outbound_proxy"
			}
			v.say("%s.%s: %q is not like sip:sip.example.net", at, where, target)
		}
	}
	for i, codec := range t.Codecs {
		if _, ok := codecByName(codec); !ok {
			v.say("%s.codecs[%d]: %q is none of PCMU, PCMA, G722, opus", at, i, codec)
		}
	}
	for i, name := range t.Auth.Algorithms {
		v.oneOf(fmt.Sprintf("%s.auth.algorithms[%d]", at, i), name, "SHA-256", "MD5")
	}
	v.oneOf(at+".srtp", t.SRTP, "off", "optional", "require")
	v.oneOf(at+".srtp_keying", t.SRTPKeying, "sdes", "dtls")
	v.oneOf(at+".dtmf", t.DTMF, "rfc4733", "info", "inband")
	v.oneOf(at+".prack", t.PRACK, "off", "supported", "require")
	v.oneOf(at+".caller_id.mode", t.CallerID.Mode, "map", "fixed", "passthrough")
	v.oneOf(at+".caller_id.privacy", t.CallerID.Privacy, "honour", "ignore")
	if t.Expires != 0 && t.Expires < 90 {
		v.say("%s.session_expires: %d is below 90 seconds (RFC 4028 §4)", at, t.Expires)
	}
	if t.MaxCalls < 0 || t.MaxCPS < 0 || t.MaxDuration < 0 || t.OptionsPing < 0 {
		v.say("%s: max_calls, max_cps, max_duration and options_ping must not be negative", at)
	}
	if t.ExternalIP != "" {
		if _, err := netip.ParseAddr(t.ExternalIP); err != nil {
			v.say("%s.external_ip: %q is no address", at, t.ExternalIP)
		}
	}
	v.prefixes(at+".allow_prefixes", t.Allow)
	v.prefixes(at+".deny_prefixes", t.Deny)
	for name := range t.Headers {
		if !goodHeader(name) {
			v.say("%s.headers: %q must begin with X- and be a header name", at, name)
		}
	}
}

func (v *validator) prefixes(at string, list []string) {
	for i, p := range list {
		if p != "*" && (len(p) < 2 || p[0] != '+' || strings.Trim(p[1:], "0123456789") != "") {
			v.say("%s[%d]: %q is not like +49", at, i, p)
		}
	}
}

func (v *validator) rule(at string, r call.DispatchRule) {
	a := r.Action
	v.oneOf(at+".action.prompt_lang", a.Language, languages...)
	switch a.Type {
	case "pin":
	case "room":
		if a.Room == "" {
			v.say("%s.action.room: needed", at)
		}
	case "user":
		if !strings.HasPrefix(a.User, "@") || !strings.Contains(a.User, ":") {
			v.say("%s.action.user: %q is not like @alice:example.org", at, a.User)
		}
	case "individual", "callee":
	default:
		v.say("%s.action.type: %q is none of pin, room, user, individual, callee", at, a.Type)
	}
	for _, how := range a.Ring {
		v.oneOf(at+".action.ring", how, "matrixrtc", "legacy")
	}
	if a.PIN != "" && strings.Trim(a.PIN, "0123456789") != "" {
		v.say("%s.action.pin: must be digits", at)
	}
	if a.Attempts < 0 || a.Lockout < 0 || a.Timeout < 0 {
		v.say("%s.action: attempts, lockout and timeout must not be negative", at)
	}
}

func (v *validator) rooms(rooms []StaticRoom) {
	pins := make(map[string]bool)
	for i, r := range rooms {
		if r.Room == "" {
			v.say("sip.rooms[%d].room: needed", i)
		}
		switch {
		case r.PIN == "":
		case len(r.PIN) < 6 || strings.Trim(r.PIN, "0123456789") != "":
			v.say("sip.rooms[%d].pin: must be six digits or more", i)
		case pins[r.PIN]:
			v.say("sip.rooms[%d].pin: another room has the same", i)
		}
		pins[r.PIN] = true
	}
}

func (v *validator) outbound(c Config) {
	o := c.Outbound
	v.prefixes("sip.outbound.allow_prefixes", o.Allow)
	v.prefixes("sip.outbound.deny_prefixes", o.Deny)
	if o.EmergencyTrunk != "" {
		known := slices.ContainsFunc(c.Trunks, func(t call.Trunk) bool { return t.ID == o.EmergencyTrunk })
		switch {
		case !known:
			v.say("sip.outbound.emergency_trunk: no trunk has the id %q", o.EmergencyTrunk)
		case c.Block.Emergency:
			v.say("sip.outbound.emergency_trunk: needs block.emergency: false")
		}
	}
}

func (v *validator) limits(c Config) {
	if err := c.Block.Validate("sip.block"); err != nil {
		v.errs = append(v.errs, err)
	}
	if err := c.Limits.Validate("sip.limits"); err != nil {
		v.errs = append(v.errs, err)
	}
	v.oneOf("sip.prompts.language", c.Prompts.Language, languages...)
	if c.Records.Keep < 0 || c.Records.MaxSize < 0 {
		v.say("sip.records: keep and max_size must not be negative")
	}
	for name, code := range map[string]string{
		"mute": c.StarCodes.Mute, "hand": c.StarCodes.Hand, "help": c.StarCodes.Help, "leave": c.StarCodes.Leave,
	} {
		if code != "" && (len(code) > 4 || strings.Trim(code, "0123456789*#") != "" || !strings.ContainsAny(code[:1], "*#")) {
			v.say("sip.star_codes.%s: %q is not like *6", name, code)
		}
	}
}

// parsePrefix reads a network, or an address as the network of it alone.
func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// goodHeader reports whether an operator or an API may set a header of this name:
// extension headers only, so that no header of the dialog can be forged.
func goodHeader(name string) bool {
	if len(name) < 3 || len(name) > 64 || !strings.EqualFold(name[:2], "X-") {
		return false
	}
	for _, r := range name {
		if r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return false
		}
	}
	return true
}

// checkAPITrunk is CheckTrunk for one that comes by the API: it needs no list of
// what may be called and then calls nothing.
func (c Config) checkAPITrunk(t call.Trunk) error {
	if len(c.Outbound.Allow) == 0 {
		c.Outbound.Allow = []string{"+"}
	}
	return c.CheckTrunk(t)
}
