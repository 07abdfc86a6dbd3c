package trunk

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

func TestExplain(t *testing.T) {
	withPassword := call.Trunk{Auth: call.TrunkAuth{Username: "u", Password: "secret"}}
	for _, c := range []struct {
		code int
		err  error
		t    call.Trunk
		says string
	}{
		{200, nil, call.Trunk{}, ""},
		{302, nil, call.Trunk{}, "elsewhere"},
		{401, nil, call.Trunk{}, "auth.password is not set"},
		{407, nil, withPassword, "user name and password"},
		{403, nil, withPassword, "wrong user name or password"},
		{404, nil, withPassword, "register.aor"},
		{405, nil, withPassword, "remove register"},
		{423, nil, withPassword, "register.expires"},
		{500, nil, withPassword, "fault of its own"},
		{503, nil, withPassword, "overloaded"},
		{600, nil, withPassword, "600"},
		{0, &net.DNSError{Name: "nowhere.example", IsNotFound: true}, call.Trunk{}, "DNS: there is no host nowhere.example"},
		{0, &net.DNSError{Name: "nowhere.example", Err: "server misbehaving"}, call.Trunk{}, "server misbehaving"},
		{0, x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{"sbc.example"}}, Host: "p.example"}, call.Trunk{}, "another name (sbc.example)"},
		{0, x509.UnknownAuthorityError{}, call.Trunk{}, "signed by nobody we trust"},
		{0, x509.CertificateInvalidError{Reason: x509.Expired}, call.Trunk{}, "clock"},
		{0, tls.RecordHeaderError{Msg: "first record does not look like a TLS handshake"}, call.Trunk{}, "does not speak TLS"},
		{0, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, call.Trunk{}, "nothing listens"},
		{0, &net.OpError{Op: "write", Err: syscall.ENETUNREACH}, call.Trunk{}, "no way to"},
		{0, context.DeadlineExceeded, call.Trunk{}, "firewall"},
		{0, errors.New("odd"), call.Trunk{}, "odd"},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("register: %w", err)
		}
		got := Explain("sips:p.example:5061;transport=tcp", c.t, c.code, "Because\r\nof", err)
		if c.says == "" && got != "" || !strings.Contains(got, c.says) {
			t.Errorf("%d, %v: %q does not say %q", c.code, c.err, got, c.says)
		}
		if strings.ContainsAny(got, "\r\n") || strings.Contains(got, "secret") || got != "" && !strings.Contains(got, "p.example") && c.code != 0 {
			t.Errorf("%d, %v: %q", c.code, c.err, got)
		}
	}
}

func TestParseContacts(t *testing.T) {
	for value, want := range map[string]string{
		`<sip:a@1.2.3.4:5060>;expires=60`:                                "[{sip:a@1.2.3.4:5060 60}]",
		`sip:a@h;Expires=60, <sip:b@h;transport=tcp>;q=0.5 ; expires= 7`: "[{sip:a@h 60} {sip:b@h;transport=tcp 7}]",
		`"A, \"B\" <x>;" <sip:a@h>`:                                      "[{sip:a@h 0}]",
		`<sip:a@h>;expires=-1,<sip:b@h>;expires=x`:                       "[{sip:a@h 0} {sip:b@h 0}]",
		`*`: "[]", ``: "[]", `<sip:a@h`: "[]", `"open`: "[]", `,,;`: "[]",
	} {
		if got := fmt.Sprint(parseContacts(value)); got != want {
			t.Errorf("%s: %s, want %s", value, got, want)
		}
	}
	for uri, want := range map[string]string{
		"sip:a@h.example:5060;x=y": "h.example", "sips:[2001:db8::1]:5061": "2001:db8::1", "sip:h?a=b": "h", "": "",
	} {
		if got := hostOf(uri); got != want {
			t.Errorf("host of %q is %q, want %q", uri, got, want)
		}
	}
}

func FuzzParseContacts(f *testing.F) {
	f.Add(`"x, y" <sip:a@h>;expires=60, sip:b@h;q=1`)
	f.Add(`<<>>;;,,"\`)
	f.Fuzz(func(t *testing.T, value string) {
		for _, b := range parseContacts(value) {
			if b.uri == "" || b.expires < 0 || !strings.Contains(value, b.uri) {
				t.Fatalf("%q: %+v", value, b)
			}
			hostOf(b.uri)
			userOf(b.uri)
		}
	})
}

func TestSeconds(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"120": 2 * time.Minute, " 5 ;duration=3600": 5 * time.Second, "18 (in a meeting)": 18 * time.Second,
		"99999999999999999999": time.Hour, "4000000000": time.Hour, "": 0, "-5": 0, "x": 0,
	} {
		if got := seconds([]string{text}, time.Hour); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}
