package dialog

import (
	"mime"
	"strconv"
	"strings"
)

// allowed are the methods we serve; known are those that exist, so that the
// others get 501 instead of 405.
const allowed = "INVITE, ACK, CANCEL, BYE, OPTIONS, PRACK, UPDATE, INFO, REFER, NOTIFY"

var knownMethods = map[string]bool{
	"INVITE": true, "ACK": true, "CANCEL": true, "BYE": true, "OPTIONS": true, "PRACK": true,
	"UPDATE": true, "INFO": true, "REFER": true, "NOTIFY": true, "REGISTER": true,
	"SUBSCRIBE": true, "MESSAGE": true, "PUBLISH": true,
}

// extensions are the option tags that a peer may Require of us.
const supported = "100rel, timer, replaces, norefersub"

var extensions = map[string]bool{"100rel": true, "timer": true, "replaces": true, "norefersub": true}

// understand reads the fields that every message needs (RFC 3261 §8.1.1). The
// fault of scan, if any, goes through it and wins over what it finds itself.
func (m *message) understand(problem *fault) *fault {
	note := func(f *fault) {
		if problem == nil {
			problem = f
		}
	}
	for _, v := range m.list("Via") {
		parsed, ok := parseVia(v)
		if !ok {
			note(bad("Malformed Via"))
		}
		m.via = append(m.via, parsed)
	}
	if len(m.via) == 0 {
		note(bad("Via Missing"))
	}
	one := func(name string) string {
		values := m.all(name)
		switch {
		case len(values) == 0:
			note(bad(name + " Missing"))
			return ""
		case len(values) > 1:
			note(bad("More Than One " + name))
		}
		return values[0]
	}
	m.callID = one("Call-ID")
	if len(m.callID) > maxCallID || strings.ContainsAny(m.callID, " \t") {
		note(bad("Malformed Call-ID"))
	}
	number, method, _ := strings.Cut(strings.Join(strings.Fields(one("CSeq")), " "), " ")
	seq, err := strconv.ParseUint(number, 10, 31)
	if err != nil || !isDigits(number) || !isToken(method) {
		note(bad("Malformed CSeq"))
	}
	m.seq, m.seqMethod = uint32(seq), method
	var ok bool
	if m.from, ok = parseNameAddr(one("From")); !ok {
		note(bad("Malformed From"))
	}
	if m.to, ok = parseNameAddr(one("To")); !ok {
		note(bad("Malformed To"))
	}
	return problem
}

// check looks at a request as RFC 3261 §8.2 and §16.3 and RFC 4475 §3 ask, and
// returns what to refuse it with, or nil.
func (m *message) check(problem *fault) *fault {
	if problem = m.understand(problem); problem != nil && problem.code != 400 {
		return problem
	}
	if problem == nil && !knownMethods[m.method] {
		return &fault{501, "Not Implemented"}
	}
	if problem != nil {
		return problem
	}
	if m.seqMethod != m.method {
		return bad("CSeq Method Does Not Match")
	}
	if b := m.via[0].branch(); strings.EqualFold(b, magic) {
		return bad("Transaction Identifier Missing") // RFC 4475 §3.2.1
	}
	if f := checkURI(m.uri); f != nil {
		return f
	}
	for _, name := range []string{"Max-Forwards", "Content-Type", "Date", "Expires", "Session-Expires", "Min-SE", "RSeq", "RAck", "Replaces"} {
		if len(m.all(name)) > 1 {
			return bad("More Than One " + name)
		}
	}
	if v := m.get("Max-Forwards"); v != "" {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil || !isDigits(v) {
			return bad("Malformed Max-Forwards")
		}
		if n == 0 && m.method != "ACK" && m.method != "CANCEL" && m.method != "BYE" {
			return &fault{483, "Too Many Hops"}
		}
	}
	for _, c := range m.list("Contact") {
		if a, ok := parseNameAddr(c); !ok && c != "*" || ok && m.method == "INVITE" && strings.Contains(a.uri, "?") {
			return bad("Malformed Contact")
		}
	}
	for _, name := range []string{"Route", "Record-Route"} {
		for _, v := range m.list(name) {
			if a, ok := parseNameAddr(v); !ok || !strings.HasPrefix(v, "<") && a.name == "" {
				return bad("Malformed " + name)
			}
		}
	}
	if d := m.get("Date"); d != "" && !strings.HasSuffix(d, "GMT") {
		return bad("Date Not In GMT") // RFC 3261 §20.17
	}
	if m.method == "ACK" || m.method == "CANCEL" { // RFC 3261 §8.2.2.3
		return nil
	}
	return m.checkContent()
}

// checkURI looks at a Request-URI: 416 for what is neither sip nor tel, 400 for
// what breaks the grammar or carries headers (RFC 4475 §3.1.2.11).
func checkURI(uri string) *fault {
	scheme, rest, ok := strings.Cut(uri, ":")
	if !ok || !isToken(scheme) || rest == "" {
		return bad("Malformed Request-URI")
	}
	switch strings.ToLower(scheme) {
	case "sip", "sips":
		u, ok := parseURI(uri)
		if !ok {
			return bad("Malformed Request-URI")
		}
		if len(u.Headers) > 0 || strings.Contains(afterAt(uri), "?") {
			return bad("Headers In Request-URI")
		}
		return nil
	case "tel":
		if strings.ContainsAny(rest, "<>\" ") || hasControl(rest) {
			return bad("Malformed Request-URI")
		}
		return nil
	}
	return &fault{416, "Unsupported URI Scheme"}
}

func afterAt(uri string) string {
	if at := strings.LastIndexByte(uri, '@'); at >= 0 {
		return uri[at+1:]
	}
	return uri
}

// unsupported lists the required extensions that we lack (RFC 3261 §8.2.2.3).
func (m *message) unsupported() (tags []string) {
	for _, tag := range m.list("Require") {
		if !extensions[strings.ToLower(tag)] {
			tags = append(tags, plain(tag))
		}
	}
	return tags
}

// checkContent refuses bodies that we cannot read (RFC 3261 §8.2.3) and callers
// who could not read our answer.
func (m *message) checkContent() *fault {
	if len(m.unsupported()) > 0 {
		return &fault{420, "Bad Extension"}
	}
	if len(m.body) > 0 {
		for _, e := range m.list("Content-Encoding") {
			if !strings.EqualFold(e, "identity") {
				return &fault{415, "Unsupported Media Type"}
			}
		}
	}
	if m.method != "INVITE" && m.method != "UPDATE" {
		return nil
	}
	if len(m.body) > 0 && !strings.Contains(m.get("Content-Disposition"), "handling=optional") {
		switch t := mediaType(m.get("Content-Type")); {
		case t == "application/sdp", strings.HasPrefix(t, "multipart/"):
		default:
			return &fault{415, "Unsupported Media Type"}
		}
	}
	if accepts := m.list("Accept"); m.method == "INVITE" && len(accepts) > 0 {
		for _, a := range accepts {
			switch mediaType(a) {
			case "application/sdp", "application/*", "*/*":
				return nil
			}
		}
		return &fault{406, "Not Acceptable"}
	}
	return nil
}

func mediaType(s string) string {
	t, _, err := mime.ParseMediaType(s)
	if err != nil {
		t, _, _ = strings.Cut(s, ";")
		t = strings.ToLower(strings.TrimSpace(t))
	}
	return t
}
