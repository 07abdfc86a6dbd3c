package dialog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/emiago/sipgo/sip"
)

func seeds(f *testing.F) {
	files, err := filepath.Glob("testdata/torture/*.dat")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(optionsText("x") + optionsText("y")))
	f.Add([]byte(strings.Replace(optionsText("x"), "From", "Contact: \"a,<\\\"b\" <sip:c@d>;q=0.1,<sip:e@f>\r\nFrom", 1)))
}

// FuzzMessage reads anything as a datagram and as a stream, in one piece and in
// two. The reader must not fail, must agree with itself, and what it takes must
// come out of its writer as it went in.
func FuzzMessage(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, n, err := scan(data, true, 65535)
		if n > len(data) && !errors.Is(err, errIncomplete) || n < 0 || n > 65535 {
			t.Fatalf("%d of %d bytes taken", n, len(data))
		}
		if cut := len(data) / 2; cut > 0 && err == nil {
			// A stream that has brought half of a message asks for more, or has
			// found one that ends before.
			_, m, perr := scan(data[:cut], true, 65535)
			if perr == nil && m != n {
				t.Fatalf("half of the data frames %d bytes, all of it %d", m, n)
			}
		}
		m, _, derr := scan(data, false, 65535)
		if err == nil && (derr != nil || !reflect.DeepEqual(m.headers, whole.headers) || !bytes.Equal(m.body, whole.body)) {
			t.Fatalf("stream and datagram disagree: %v", derr)
		}
		if m == nil {
			return
		}
		var problem *fault
		if derr != nil && !errors.As(derr, &problem) {
			problem = bad("incomplete")
		}
		if m.code == 0 {
			problem = m.check(problem)
		} else {
			problem = m.understand(problem)
		}
		v := view(m)
		for _, s := range []string{v.From.Name, v.From.User, v.To.User, v.User, v.UserAgent, v.Verstat} {
			if s != plain(s) {
				t.Fatalf("%q is not fit to be shown", s)
			}
		}
		if problem != nil {
			return
		}
		again, _, err := scan(m.bytes(), true, 1<<20)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%q", err, m.bytes())
		}
		if again.method != m.method || again.code != m.code || !reflect.DeepEqual(again.headers, m.headers) || !bytes.Equal(again.body, m.body) {
			t.Fatalf("%q became %q", m.bytes(), again.bytes())
		}
	})
}

// FuzzAgainstSipgo compares with another reader: what both take as a request has
// the same body and the same Call-ID. A difference in where a message ends would
// let somebody smuggle one past a check.
func FuzzAgainstSipgo(f *testing.F) {
	seeds(f)
	other := sip.NewParser()
	f.Fuzz(func(t *testing.T, data []byte) {
		m, _, err := scan(data, false, 65535)
		if err != nil || m.code > 0 || m.check(nil) != nil {
			return
		}
		if bytes.HasPrefix(data, []byte("\r")) || bytes.HasPrefix(data, []byte("\n")) {
			return // sipgo takes no empty lines before a datagram
		}
		theirs, err := other.ParseSIP(bytes.Clone(data))
		if err != nil {
			return // it is stricter here and there
		}
		body := theirs.Body()
		if len(m.body) != len(body) || !bytes.Equal(m.body, body) {
			t.Fatalf("body %q, sipgo has %q", m.body, body)
		}
		if id := theirs.CallID(); id == nil || id.Value() != m.callID {
			t.Fatalf("Call-ID %q, sipgo has %v", m.callID, id)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{
		`"A \"b\"" <sip:a%20b:pw@h.example:5060;transport=tcp;lr?Replaces=x>;tag=1;q="a;b"`,
		`sip:a@b;tag=2`, `<tel:+49-30;phone-context=x>`, `<sip:[2001:db8::1]:5060>`, `*`,
		`<sip:user;par=u%40example.net@example.com>`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, ok := parseNameAddr(s)
		if !ok {
			return
		}
		if !validURI(a.uri) || strings.ContainsAny(a.uri, " <>\r\n\"") {
			t.Errorf("%q has URI %q", s, a.uri)
		}
		if u := uriUser(a.uri); u != plain(u) {
			t.Errorf("user %q", u)
		}
		_ = uriHost(a.uri)
		b, ok := parseNameAddr(quote(a.name) + " <" + a.uri + ">" + a.params.String())
		if !ok || b.uri != a.uri || b.tag() != a.tag() {
			t.Errorf("%q became %+v", s, b)
		}
	})
}

func TestView(t *testing.T) {
	m := &message{method: "INVITE", uri: "sip:%2B4930123;phone-context=+49@gw.example;user=phone"}
	for _, h := range []Header{
		{"Via", "SIP/2.0/UDP h;branch=z9hG4bKx"},
		{"From", "\"Anna \\\"A\\\" \u202eevil\" <sip:+49401;verstat=TN-Validation-Passed-A@p.example>;tag=f"},
		{"To", "<tel:+4930123>"}, {"Call-ID", "c"}, {"CSeq", "7 INVITE"},
		{"P-Asserted-Identity", "\"Real\" <sip:+49402@p.example>, <tel:+49402;verstat=No-TN-Validation>"},
		{"Privacy", "ID; user"},
		{"Diversion", "<sip:+49403@p.example>;reason=unconditional, <sip:+49404@p.example>"},
		{"History-Info", "<sip:+49405@p.example>;index=1, <sip:+49406@p.example>;index=1.1"},
		{"Content-Type", "multipart/mixed; boundary=b"}, {"X-Room", "42"},
	} {
		m.add(h.Name, h.Value)
	}
	m.body = []byte("--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b\r\nContent-Type: application/sdp\r\n\r\nv=0\r\n--b--\r\n")
	if f := m.check(nil); f != nil {
		t.Fatal(f)
	}
	r := view(m)
	if r.User != "+4930123" || r.To.User != "+4930123" || r.From.Name != `Anna "A" evil` || r.From.User != "+49401" {
		t.Errorf("%+v", r)
	}
	if len(r.Asserted) != 2 || r.Asserted[0].User != "+49402" || r.Asserted[0].Name != "Real" || r.Verstat != "No-TN-Validation" {
		t.Errorf("%+v, verstat %q", r.Asserted, r.Verstat)
	}
	if !reflect.DeepEqual(r.Privacy, []string{"id", "user"}) || len(r.Diversion) != 2 || r.Diversion[0].User != "+49403" || len(r.History) != 2 {
		t.Errorf("%v %v %v", r.Privacy, r.Diversion, r.History)
	}
	if string(r.Offer) != "v=0" || r.Header("x-room") != "42" {
		t.Errorf("%q %q", r.Offer, r.Header("x-room"))
	}
}

func TestReferTo(t *testing.T) {
	for in, want := range map[string][3]string{
		"sip:a@b": {"sip:a@b", "", "INVITE"},
		"sip:a@b?Replaces=x%3Bto-tag%3D1%3Bfrom-tag%3D2&Require=replaces": {"sip:a@b", "x;to-tag=1;from-tag=2", "INVITE"},
		"sip:a@b;method=BYE":            {"sip:a@b", "", "BYE"},
		"sip:a@b;method=INVITE;user=x":  {"sip:a@b;user=x", "", "INVITE"},
		"sip:a?b@c?Replaces=y":          {"sip:a?b@c", "y", "INVITE"},
		"sip:a@b?Replaces=x%0D%0AEvil:": {"sip:a@b", "x  Evil:", "INVITE"},
	} {
		target, repl, method := referTo(in)
		if got := [3]string{target, repl, method}; got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	for in, want := range map[string]string{
		"+4930123456": "+4930***456", "110": "***", "12345678": "1***78", "": "", "anonymous": "anony***ous",
	} {
		if got := Mask(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// Nothing that comes from outside can begin a new line in what we write.
func TestNoInjection(t *testing.T) {
	if s := quote("a\r\nEvil: 1\x00\"\\"); strings.ContainsAny(s, "\r\n\x00") {
		t.Errorf("%q", s)
	}
	m := &message{code: 200, reason: "OK\r\nEvil: 1"}
	m.add("X", "a\r\nEvil: 1")
	if bytes.Contains(m.bytes(), []byte("\nEvil")) {
		t.Errorf("%q", m.bytes())
	}
	if cleanHeader(Header{"X", "a\nb"}) == nil || cleanHeader(Header{"X Y", "a"}) == nil || cleanHeader(Header{"", "a"}) == nil {
		t.Error("a bad header field passes")
	}
	if u := escapeUser("a b\r\n@<>\"%"); strings.ContainsAny(u, " \r\n@<>\"") || u != "a%20b%0D%0A%40%3C%3E%22%25" {
		t.Errorf("%q", u)
	}
}
