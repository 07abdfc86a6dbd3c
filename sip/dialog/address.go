package dialog

import (
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/emiago/sipgo/sip"
)

// A param is one ;name=value. A value keeps its quotes.
type param struct{ name, value string }

type params []param

func (ps params) get(name string) (string, bool) {
	for _, p := range ps {
		if strings.EqualFold(p.name, name) {
			return unquote(p.value), true
		}
	}
	return "", false
}

func (ps params) String() string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(";" + p.name)
		if p.value != "" {
			b.WriteString("=" + p.value)
		}
	}
	return b.String()
}

// splitOutside cuts s at each sep that is neither in a quoted string nor between
// angle brackets.
func splitOutside(s string, sep byte) []string {
	var parts []string
	start, quoted, angle := 0, false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted:
			if c == '\\' {
				i++
			} else if c == '"' {
				quoted = false
			}
		case c == '"':
			quoted = true
		case c == '<':
			angle = true
		case c == '>':
			angle = false
		case c == sep && !angle:
			parts = append(parts, strings.TrimSpace(s[start:i]))
			start = i + 1
		}
	}
	return append(parts, strings.TrimSpace(s[start:]))
}

// splitList cuts a comma-separated list and leaves empty elements out.
func splitList(s string) []string {
	parts := splitOutside(s, ',')
	kept := parts[:0]
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return kept
}

// parseParams reads ";a=b;c". With strict an empty parameter is an error, but for
// one at the end, which some phones leave there.
func parseParams(s string, strict bool) (params, bool) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, true
	}
	if s[0] != ';' {
		return nil, false
	}
	var ps params
	parts := splitOutside(s[1:], ';')
	for i, part := range parts {
		if part == "" {
			if strict && i < len(parts)-1 {
				return nil, false
			}
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !isToken(name) || !isParamValue(value) {
			return nil, false
		}
		ps = append(ps, param{name, value})
	}
	return ps, true
}

// isParamValue allows a quoted string, or a token or host with a few more
// characters that peers use without quotes.
func isParamValue(s string) bool {
	if s == "" {
		return true
	}
	if s[0] == '"' {
		return quotedEnd(s) == len(s)
	}
	return !strings.ContainsAny(s, " \t\",;<>")
}

// quotedEnd returns the index after the quoted string that s begins with, or -1.
func quotedEnd(s string) int {
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

func unquote(s string) string {
	if len(s) < 2 || s[0] != '"' || quotedEnd(s) != len(s) {
		return s
	}
	var b strings.Builder
	for i := 1; i < len(s)-1; i++ {
		if s[i] == '\\' && i+1 < len(s)-1 {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quote makes a quoted string that is safe in any header field.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range strings.ToValidUTF8(s, "") {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r >= ' ' && r != 0x7f:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// A nameAddr is the value of From, To, Contact and their like (RFC 3261 §20.10).
type nameAddr struct {
	name   string // unquoted
	uri    string
	params params
}

func (a nameAddr) tag() string {
	t, _ := a.params.get("tag")
	return t
}

// parseNameAddr is strict where RFC 4475 §3.1.2 asks for it: display names are
// tokens or quoted, nothing blank stands in the brackets, and a URI with a
// question mark or comma needs brackets.
func parseNameAddr(s string) (a nameAddr, ok bool) {
	s = strings.TrimSpace(s)
	rest := s
	if strings.HasPrefix(s, `"`) {
		end := quotedEnd(s)
		if end < 0 {
			return a, false
		}
		a.name = unquote(s[:end])
		rest = strings.TrimSpace(s[end:])
		if !strings.HasPrefix(rest, "<") {
			return a, false
		}
	} else if at := strings.IndexByte(s, '<'); at >= 0 {
		a.name = strings.TrimSpace(s[:at])
		for i := range len(a.name) {
			if c := a.name[i]; !tokenByte(c) && c != ' ' && c != '\t' && c < 0x80 {
				return a, false
			}
		}
		rest = s[at:]
	}
	if strings.HasPrefix(rest, "<") {
		end := strings.IndexByte(rest, '>')
		if end < 0 {
			return a, false
		}
		a.uri, rest = rest[1:end], rest[end+1:]
	} else {
		end := strings.IndexByte(rest, ';')
		if end < 0 {
			end = len(rest)
		}
		a.uri, rest = strings.TrimSpace(rest[:end]), rest[end:]
		if strings.ContainsAny(a.uri, "?,") {
			return a, false
		}
	}
	if !validURI(a.uri) {
		return a, false
	}
	a.params, ok = parseParams(rest, true)
	return a, ok
}

// validURI checks a URI of any scheme, sip and sips more closely.
func validURI(s string) bool {
	scheme, rest, ok := strings.Cut(s, ":")
	if !ok || rest == "" || !isToken(scheme) || strings.ContainsAny(s, " <>\"") || hasControl(s) {
		return false
	}
	switch strings.ToLower(scheme) {
	case "sip", "sips":
		_, ok = parseURI(s)
		return ok
	}
	return true
}

// parseURI reads a sip or sips URI (RFC 3261 §19.1.1).
func parseURI(s string) (u sip.Uri, ok bool) {
	if strings.ContainsAny(s, " <>\"") || hasControl(s) {
		return u, false
	}
	// The user part may have ; ? and : in it; only what follows its @ is host,
	// parameters and headers. sipgo reads these; we hand it the user apart.
	scheme, rest, found := strings.Cut(s, ":")
	if !found {
		return u, false
	}
	scheme = strings.ToLower(scheme)
	if scheme != "sip" && scheme != "sips" {
		return u, false
	}
	user := ""
	if at := strings.LastIndexByte(rest, '@'); at >= 0 {
		// An @ after the host's end belongs to a parameter or header, where it
		// must be escaped: so the last one counts.
		user, rest = rest[:at], rest[at+1:]
		if user == "" {
			return u, false
		}
	}
	if rest == "" || rest[0] == ':' || rest[0] == ';' || rest[0] == '?' || strings.HasPrefix(rest, "//") {
		return u, false
	}
	if err := sip.ParseUri(scheme+":"+rest, &u); err != nil || u.Host == "" || u.Wildcard {
		return u, false
	}
	if u.Port < 0 || u.Port > 65535 || !validHost(u.Host) {
		return u, false
	}
	u.User, u.Password, _ = strings.Cut(user, ":")
	return u, true
}

func validHost(h string) bool {
	if strings.HasPrefix(h, "[") {
		a, err := netip.ParseAddr(strings.Trim(h, "[]"))
		return err == nil && a.Is6()
	}
	for i := range len(h) {
		c := h[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return h != "" && len(h) <= 255
}

// uriUser returns the user part as a person means it: %-decoded, without
// parameters (;phone-context and the like), for tel: the number.
func uriUser(s string) string {
	scheme, rest, _ := strings.Cut(s, ":")
	user := ""
	switch strings.ToLower(scheme) {
	case "tel":
		user = rest
	case "sip", "sips":
		u, ok := parseURI(s)
		if !ok {
			return ""
		}
		user = u.User
	default:
		return ""
	}
	user, _, _ = strings.Cut(user, ";")
	if decoded, err := url.PathUnescape(user); err == nil {
		user = decoded
	}
	return plain(user)
}

func uriHost(s string) string {
	u, ok := parseURI(s)
	if !ok {
		return ""
	}
	if u.Port > 0 {
		return u.Host + ":" + strconv.Itoa(u.Port)
	}
	return u.Host
}

// plain makes text from outside fit to be shown and logged: valid UTF-8 without
// control characters, at most 256 bytes.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > 256 {
		s = strings.ToValidUTF8(s[:256], "")
	}
	return s
}

func (a nameAddr) address() Address {
	return Address{Name: plain(a.name), URI: a.uri, User: uriUser(a.uri), Host: uriHost(a.uri), Tag: a.tag()}
}

// addresses reads a list of name-addrs and leaves out what is none.
func addresses(values []string) (out []Address) {
	for _, v := range values {
		if a, ok := parseNameAddr(v); ok {
			out = append(out, a.address())
		}
		if len(out) == 20 {
			break
		}
	}
	return out
}

// A via is one Via value (RFC 3261 §20.42).
type via struct {
	raw       string
	good      bool // it could be read
	transport string
	host      string // IPv6 without brackets
	port      int    // 0: none
	params    params
}

func (v via) branch() string {
	b, _ := v.params.get("branch")
	return b
}

func parseVia(s string) (v via, ok bool) {
	v.raw = s
	head, tail := s, ""
	if at := strings.IndexByte(s, ';'); at >= 0 {
		head, tail = s[:at], s[at:]
	}
	name, rest, ok1 := strings.Cut(head, "/")
	version, rest, ok2 := strings.Cut(rest, "/")
	rest = strings.TrimSpace(rest)
	at := strings.IndexAny(rest, " \t")
	if !ok1 || !ok2 || at < 0 || !strings.EqualFold(strings.TrimSpace(name), "SIP") || strings.TrimSpace(version) == "" {
		return v, false
	}
	v.transport = strings.ToUpper(rest[:at])
	sentBy := strings.TrimSpace(rest[at:])
	if !isToken(v.transport) {
		return v, false
	}
	host, port := sentBy, ""
	if strings.HasPrefix(sentBy, "[") {
		end := strings.IndexByte(sentBy, ']')
		if end < 0 {
			return v, false
		}
		host, port = sentBy[:end+1], strings.TrimSpace(sentBy[end+1:])
		if port != "" && port[0] != ':' {
			return v, false
		}
		port = strings.TrimPrefix(port, ":")
	} else if h, p, found := strings.Cut(sentBy, ":"); found {
		host, port = strings.TrimSpace(h), strings.TrimSpace(p)
		if port == "" {
			return v, false
		}
	}
	if !validHost(host) {
		return v, false
	}
	v.host = strings.Trim(host, "[]")
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return v, false
		}
		v.port = int(n)
	}
	v.params, ok = parseParams(tail, true)
	v.good = ok
	return v, ok
}
