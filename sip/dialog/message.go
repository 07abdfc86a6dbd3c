package dialog

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// The bounds of one message. RFC 3261 sets none; these are far above what any
// peer sends and keep one message from costing more than its bytes.
const (
	maxStartLine  = 8 << 10
	maxHeaderLine = 16 << 10
	maxFields     = 300
	maxCallID     = 512
)

// errIncomplete says that a stream has not yet brought a whole message.
var errIncomplete = errors.New("message incomplete")

// A fault is what is wrong with a message, as the answer to it would say.
type fault struct {
	code   int
	reason string
}

func (f *fault) Error() string { return strconv.Itoa(f.code) + " " + f.reason }

func bad(reason string) *fault { return &fault{400, reason} }

// A message is a SIP message on its way in or out. Field names are in their long
// form and usual spelling, values are unfolded and trimmed.
type message struct {
	method, uri string // of a request
	code        int    // of a response; 0: a request
	reason      string
	headers     []Header
	body        []byte

	flow   *flow  // where it came from
	branch string // of our Via, if it is to be known before it is sent

	// Read by parts from headers of a message that came in.
	via       []via
	callID    string
	seq       uint32
	seqMethod string
	from, to  nameAddr
}

func (m *message) get(name string) string {
	for i := range m.headers {
		if m.headers[i].Name == name {
			return m.headers[i].Value
		}
	}
	return ""
}

func (m *message) all(name string) (values []string) {
	for i := range m.headers {
		if m.headers[i].Name == name {
			values = append(values, m.headers[i].Value)
		}
	}
	return values
}

// list returns the elements of a field that is a comma-separated list (RFC 3261
// §7.3.1), over all its lines.
func (m *message) list(name string) (values []string) {
	for _, v := range m.all(name) {
		values = append(values, splitList(v)...)
	}
	return values
}

// has says whether a field of tokens has this one.
func (m *message) has(name, token string) bool {
	for _, v := range m.list(name) {
		if strings.EqualFold(v, token) {
			return true
		}
	}
	return false
}

func (m *message) add(name, value string) { m.headers = append(m.headers, Header{name, value}) }

// bytes writes the message. A line break in a value would begin another header
// field: such values have been refused before (cleanHeader), and what is left
// becomes a space.
func (m *message) bytes() []byte {
	var b bytes.Buffer
	b.Grow(512 + len(m.body))
	if m.code > 0 {
		fmt.Fprintf(&b, "SIP/2.0 %d %s\r\n", m.code, oneLine(m.reason))
	} else {
		b.WriteString(m.method + " " + oneLine(m.uri) + " SIP/2.0\r\n")
	}
	for _, h := range m.headers {
		b.WriteString(h.Name)
		b.WriteString(": ")
		b.WriteString(oneLine(h.Value))
		b.WriteString("\r\n")
	}
	b.WriteString("Content-Length: ")
	b.WriteString(strconv.Itoa(len(m.body)))
	b.WriteString("\r\n\r\n")
	b.Write(m.body)
	return b.Bytes()
}

func oneLine(s string) string {
	if !strings.ContainsAny(s, "\r\n\x00") {
		return s
	}
	return strings.Map(func(r rune) rune {
		if r == '\r' || r == '\n' || r == 0 {
			return ' '
		}
		return r
	}, s)
}

// cleanHeader says whether a header field may be sent as it is.
func cleanHeader(h Header) error {
	if !isToken(h.Name) || strings.ContainsAny(h.Value, "\r\n\x00") {
		return fmt.Errorf("header field %q cannot be sent", h.Name)
	}
	return nil
}

// scan reads one message from data, which is a datagram or the beginning of a
// stream, and returns how many bytes it took. It is the only reader of messages:
// what frames a stream is what understands it, so the two cannot disagree about
// where a message ends.
//
// A message that breaks the rules comes back with a *fault, with as much read as
// possible so that it can be answered; on a stream nothing after it can be
// trusted. errIncomplete asks for more of a stream; n is then what may be dropped
// or, if it is more than there is, how much there must be.
func scan(data []byte, stream bool, max int) (m *message, n int, err error) {
	m = &message{}
	pos := 0
	for pos < len(data) && (data[pos] == '\r' || data[pos] == '\n') {
		pos++ // RFC 3261 §7.5: empty lines before the start line
	}
	if pos == len(data) {
		return nil, pos, errIncomplete
	}
	var problem *fault
	note := func(f *fault) {
		if problem == nil {
			problem = f
		}
	}

	limit := min(len(data), max)
	ended, first := false, true
	for pos < limit {
		at := bytes.IndexByte(data[pos:limit], '\n')
		if at < 0 {
			break
		}
		line := data[pos : pos+at]
		pos += at + 1
		if len(line) > 0 && line[len(line)-1] == '\r' {
			line = line[:len(line)-1]
		} else {
			note(bad("Line Feed Without Carriage Return"))
		}
		if bytes.IndexByte(line, '\r') >= 0 {
			note(bad("Carriage Return Without Line Feed"))
			line = bytes.ReplaceAll(line, []byte{'\r'}, []byte{' '})
		}
		if first {
			first = false
			if f := m.startLine(string(line)); f != nil {
				note(f)
			}
			continue
		}
		if len(line) == 0 {
			ended = true
			break
		}
		if line[0] == ' ' || line[0] == '\t' { // RFC 3261 §7.3.1: folding
			if len(m.headers) == 0 {
				note(bad("Folded Start Line"))
				continue
			}
			h := &m.headers[len(m.headers)-1]
			if len(h.Value)+len(line) > maxHeaderLine {
				note(bad("Header Field Too Long"))
				continue
			}
			h.Value = strings.TrimSpace(h.Value + " " + string(bytes.TrimSpace(line)))
			continue
		}
		if len(line) > maxHeaderLine {
			note(bad("Header Field Too Long"))
			line = line[:maxHeaderLine]
		}
		if len(m.headers) >= maxFields {
			note(bad("Too Many Header Fields"))
			continue
		}
		name, value, ok := strings.Cut(string(line), ":")
		name = strings.TrimRight(name, " \t")
		if !ok || !isToken(name) {
			note(bad("Malformed Header Field"))
			continue
		}
		m.headers = append(m.headers, Header{longName(name), strings.TrimSpace(value)})
	}
	if !ended {
		if stream && len(data) < max {
			if first && len(data)-pos > maxStartLine {
				return m, len(data), bad("Start Line Too Long")
			}
			return nil, 0, errIncomplete
		}
		note(bad("Header Without End"))
		return m, len(data), problem
	}
	for _, h := range m.headers {
		if !printable(h.Value) {
			note(bad("Control Character In " + h.Name))
		}
	}

	lengths := m.all("Content-Length")
	m.headers = without(m.headers, "Content-Length")
	size := len(data) - pos
	switch {
	case len(lengths) > 1:
		note(bad("More Than One Content-Length"))
	case len(lengths) == 1:
		v, perr := strconv.ParseUint(lengths[0], 10, 31)
		if perr != nil || !isDigits(lengths[0]) || int(v) > max-pos {
			note(bad("Bad Content-Length"))
			break
		}
		if int(v) > size {
			if stream && problem == nil {
				return nil, pos + int(v), errIncomplete
			}
			note(bad("Body Shorter Than Content-Length"))
			break
		}
		size = int(v) // RFC 3261 §18.3: the rest of a datagram is ignored
	case stream:
		note(bad("Content-Length Missing"))
	}
	if problem != nil {
		return m, len(data), problem
	}
	m.body = bytes.Clone(data[pos : pos+size])
	return m, pos + size, nil
}

// startLine reads the first line (RFC 3261 §7.1, §7.2): single spaces, nothing
// around them.
func (m *message) startLine(line string) (f *fault) {
	if len(line) > maxStartLine {
		return bad("Start Line Too Long")
	}
	if hasControl(line) {
		line = oneLine(line)
		defer func() {
			if f == nil {
				f = bad("Control Character In Start Line")
			}
		}()
	}
	if rest, ok := cutPrefixFold(line, "SIP/2.0 "); ok {
		code, reason, _ := strings.Cut(rest, " ")
		n, err := strconv.Atoi(code)
		m.code = 1 // a response, even if it says nothing
		if err != nil || len(code) != 3 || n < 100 || n > 699 {
			return bad("Bad Status Code")
		}
		m.code, m.reason = n, reason
		return nil
	}
	parts := strings.Split(line, " ")
	if len(parts) < 3 {
		return bad("Malformed Start Line")
	}
	m.method, m.uri = parts[0], parts[1]
	version := parts[len(parts)-1]
	if len(parts) != 3 || !isToken(m.method) || m.uri == "" {
		return bad("Malformed Request Line")
	}
	if !strings.EqualFold(version, "SIP/2.0") {
		if _, ok := cutPrefixFold(version, "SIP/"); ok {
			return &fault{505, "Version Not Supported"}
		}
		return bad("Malformed Request Line")
	}
	return nil
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

func without(hs []Header, name string) []Header {
	kept := hs[:0]
	for _, h := range hs {
		if h.Name != name {
			kept = append(kept, h)
		}
	}
	return kept
}

// printable allows control characters only as quoted pairs (RFC 3261 §25.1).
func printable(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' && c != '\t' || c == 0x7f) && (i == 0 || s[i-1] != '\\') {
			return false
		}
	}
	return true
}

// hasControl finds control characters, which stand in no URI and no token.
func hasControl(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

func isDigits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

// isToken is the token of RFC 3261 §25.1.
func isToken(s string) bool {
	for i := range len(s) {
		if !tokenByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func tokenByte(c byte) bool {
	switch {
	case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		return true
	}
	return strings.IndexByte("-.!%*_+`'~", c) >= 0
}

// fieldNames are the fields we speak of, by lower-case name and compact form.
var fieldNames = func() map[string]string {
	names := map[string]string{
		"a": "Accept-Contact", "b": "Referred-By", "c": "Content-Type", "e": "Content-Encoding",
		"f": "From", "i": "Call-ID", "k": "Supported", "l": "Content-Length", "m": "Contact",
		"o": "Event", "r": "Refer-To", "s": "Subject", "t": "To", "u": "Allow-Events", "v": "Via",
		"x": "Session-Expires", "j": "Reject-Contact", "d": "Request-Disposition", "y": "Identity",
	}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Allow", "Authorization", "Call-ID", "Contact", "Content-Disposition",
		"Content-Encoding", "Content-Length", "Content-Type", "CSeq", "Date", "Diversion", "Event", "Expires",
		"From", "History-Info", "Identity", "Max-Forwards", "Min-Expires", "Min-SE", "P-Asserted-Identity",
		"P-Preferred-Identity", "Privacy", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Require",
		"RAck", "Reason", "Record-Route", "Refer-Sub", "Refer-To", "Referred-By", "Remote-Party-ID",
		"Replaces", "Require", "Retry-After", "Route", "RSeq", "Server", "Session-Expires",
		"Subscription-State", "Supported", "Timestamp", "To", "Unsupported", "User-Agent", "Via",
		"Warning", "WWW-Authenticate",
	} {
		names[strings.ToLower(name)] = name
	}
	return names
}()

func longName(name string) string {
	if long, ok := fieldNames[strings.ToLower(name)]; ok {
		return long
	}
	return name
}
