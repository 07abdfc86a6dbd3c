package dialog

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/url"
	"strconv"
	"strings"
)

// view makes of an INVITE, or of any request, what the gateway reads.
func view(m *message) *Request {
	r := &Request{
		Method: m.method, URI: m.uri, User: uriUser(m.uri), CallID: m.callID,
		From: m.from.address(), To: m.to.address(),
		Asserted:    addresses(m.list("P-Asserted-Identity")),
		Preferred:   addresses(m.list("P-Preferred-Identity")),
		RemoteParty: addresses(m.list("Remote-Party-ID")),
		Diversion:   addresses(m.list("Diversion")),
		History:     addresses(m.list("History-Info")),
		UserAgent:   plain(m.get("User-Agent")),
		ContentType: plain(m.get("Content-Type")),
		Body:        m.body, Offer: sdpOf(m),
		MaxForwards: 70,
		headers:     m.headers,
	}
	if f := m.flow; f != nil {
		r.Source, r.Network, r.Local = f.remote, f.network, f.local
	}
	if c := m.list("Contact"); len(c) > 0 {
		if a, ok := parseNameAddr(c[0]); ok {
			r.Contact = a.address()
		}
	}
	if a, ok := parseNameAddr(m.get("Referred-By")); ok {
		r.ReferredBy = a.address()
	}
	if n, err := strconv.Atoi(m.get("Max-Forwards")); err == nil {
		r.MaxForwards = n
	}
	for _, v := range m.all("Privacy") { // separated by semicolons (RFC 3323 §4.2)
		for p := range strings.FieldsFuncSeq(v, func(c rune) bool { return c == ';' || c == ',' || c == ' ' }) {
			r.Privacy = append(r.Privacy, strings.ToLower(plain(p)))
		}
	}
	r.Replaces, _, _ = strings.Cut(m.get("Replaces"), ";")
	r.Replaces = plain(strings.TrimSpace(r.Replaces))
	r.Verstat = verstat(m)
	return r
}

// verstat finds the verdict of the peer on the calling number (3GPP TS 24.229
// §7.2A.20): a parameter of the tel or sip URI in P-Asserted-Identity or From.
// It is worth what the peer is worth.
func verstat(m *message) string {
	for _, v := range append(m.list("P-Asserted-Identity"), m.get("From")) {
		a, ok := parseNameAddr(v)
		if !ok {
			continue
		}
		if s, ok := a.params.get("verstat"); ok {
			return plain(s)
		}
		for part := range strings.SplitSeq(a.uri, ";") {
			part, _, _ = strings.Cut(part, "@")
			if s, ok := cutPrefixFold(part, "verstat="); ok {
				return plain(s)
			}
		}
	}
	return ""
}

// sdpOf returns the session description of m, also out of a multipart body.
func sdpOf(m *message) []byte {
	if len(m.body) == 0 {
		return nil
	}
	t, ps, err := mime.ParseMediaType(m.get("Content-Type"))
	switch {
	case t == "application/sdp":
		return m.body
	case err != nil || !strings.HasPrefix(t, "multipart/") || ps["boundary"] == "":
		return nil
	}
	r := multipart.NewReader(bytes.NewReader(m.body), ps["boundary"])
	for range 10 {
		p, err := r.NextPart()
		if err != nil {
			return nil
		}
		if mediaType(p.Header.Get("Content-Type")) == "application/sdp" {
			b, err := io.ReadAll(p)
			if err != nil {
				return nil
			}
			return b
		}
	}
	return nil
}

// reason reads the Q.850 cause and the text of Reason fields (RFC 3326).
func reason(m *message) (q850 int, text string) {
	for _, v := range m.list("Reason") {
		protocol, rest, _ := strings.Cut(v, ";")
		ps, ok := parseParams(";"+rest, false)
		if !ok {
			continue
		}
		t, _ := ps.get("text")
		if text == "" {
			text = plain(t)
		}
		if strings.EqualFold(strings.TrimSpace(protocol), "Q.850") {
			c, _ := ps.get("cause")
			if n, err := strconv.Atoi(c); err == nil && n > 0 && n < 128 {
				q850 = n
			}
		}
	}
	return q850, text
}

// reasonHeader makes a Reason field, or none for cause 0 and no text.
func reasonHeader(cause int, text string) []Header {
	switch {
	case cause > 0 && text != "":
		return []Header{{"Reason", "Q.850;cause=" + strconv.Itoa(cause) + ";text=" + quote(text)}}
	case cause > 0:
		return []Header{{"Reason", "Q.850;cause=" + strconv.Itoa(cause)}}
	case text != "":
		return []Header{{"Reason", "SIP;text=" + quote(text)}}
	}
	return nil
}

// A replaces is the value of a Replaces field (RFC 3891 §6.1).
type replaces struct {
	callID, toTag, fromTag string
	earlyOnly              bool
}

func parseReplaces(s string) (r replaces, ok bool) {
	id, rest, _ := strings.Cut(s, ";")
	r.callID = strings.TrimSpace(id)
	ps, ok := parseParams(";"+rest, false)
	r.toTag, _ = ps.get("to-tag")
	r.fromTag, _ = ps.get("from-tag")
	_, r.earlyOnly = ps.get("early-only")
	return r, ok && r.callID != "" && r.toTag != "" && r.fromTag != ""
}

// referTo splits a Refer-To URI into the URI to call and the Replaces that it
// carries as a header (RFC 3891 §3, RFC 5589 §7).
func referTo(uri string) (target, repl, method string) {
	head, query, found := strings.Cut(uri, "?")
	if at := strings.LastIndexByte(uri, '@'); at > len(head) { // a ? in the user part
		head, query, found = strings.Cut(uri[at:], "?")
		head = uri[:at] + head
	}
	if found {
		for kv := range strings.SplitSeq(query, "&") {
			k, v, _ := strings.Cut(kv, "=")
			if strings.EqualFold(k, "Replaces") {
				if d, err := url.PathUnescape(v); err == nil {
					repl = oneLine(d)
				}
			}
		}
	}
	method = "INVITE"
	if at := strings.Index(strings.ToLower(head), ";method="); at >= 0 {
		rest := head[at+len(";method="):]
		method, _, _ = strings.Cut(rest, ";")
		head = head[:at] + strings.TrimPrefix(rest, method)
	}
	return head, repl, strings.ToUpper(method)
}

// Mask hides all of a number but its beginning and its end, for logs:
// +4930123456 becomes +4930***456.
func Mask(number string) string {
	number = plain(number)
	switch n := len(number); {
	case n <= 4:
		return strings.Repeat("*", n)
	case n <= 8:
		return number[:1] + "***" + number[n-2:]
	default:
		return number[:5] + "***" + number[n-3:]
	}
}
