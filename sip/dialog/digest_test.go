package dialog

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The examples of RFC 7616 §3.9.1, which have both algorithms.
func TestDigestVectors(t *testing.T) {
	const nonce, cnonce = "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
	for algorithm, want := range map[string]string{
		"MD5":     "8ca523f5e9506fed4657c9700eebdbec",
		"SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
	} {
		got := digestResponse(hasher(algorithm), "Mufasa", "http-auth@example.org", "Circle of Life", "GET", "/dir/index.html", nonce, "00000001", cnonce, "auth")
		if got != want {
			t.Errorf("%s: %s", algorithm, got)
		}
	}
}

// asking is a side that asks alice for "secret".
func asking(_ *Config, d *desk) {
	d.verdict = func(*Request) Verdict {
		return Verdict{Action: Challenge,
			Lookup: func(user, realm string) (string, string, bool) {
				return "secret", "line1", user == "alice" && realm == "trunkhall"
			},
			CallOptions: func(trunk string) CallOptions { return CallOptions{Contact: trunk} },
		}
	}
}

func TestRequestDigest(t *testing.T) {
	a, b := newSide(t), newSide(t, asking)
	send := func(method, password string) Response {
		t.Helper()
		r, err := a.Endpoint.Request(testCtx(t), Message{
			Method: method, Contact: "alice", ContactParams: "expires=600",
			Target: Target{URI: b.uri, Username: "alice", Password: password},
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := send("OPTIONS", "secret")
	if r.Code != 200 || !strings.HasSuffix(a.Addrs()[0], r.Seen.String()) || r.Elapsed <= 0 {
		t.Errorf("%+v", r)
	}
	if r := send("REGISTER", "secret"); r.Code != 405 {
		t.Errorf("REGISTER with the right password: %d", r.Code)
	}
	if r := send("REGISTER", "wrong"); r.Code != 401 || len(r.Headers("WWW-Authenticate")) != 2 || !strings.Contains(r.Header("WWW-Authenticate"), "SHA-256") {
		t.Errorf("%+v", r)
	}
	if b.badCount("digest") != 1 {
		t.Errorf("%d digests counted as bad", b.badCount("digest"))
	}
	out, in := join(t, a, b, func(o *Outgoing) { o.Target.Username, o.Target.Password = "alice", "secret" })
	if in.Trunk() != "line1" || in.Request().Digest != "alice" {
		t.Errorf("trunk %q, user %q", in.Trunk(), in.Request().Digest)
	}
	out.Bye(0, "")
	finish(t, out)
}

// What a cheat or a replay answers to a challenge is refused.
func TestDigestRefused(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		n := 0
		ask := func(auth string) *message {
			t.Helper()
			n++
			pc := &phoneCall{id: fmt.Sprintf("d%d", n), tag: "1", to: "<sip:+4930123@192.0.2.1>", seq: 1}
			if auth == "" {
				p.send(pc, "OPTIONS", "")
			} else {
				p.send(pc, "OPTIONS", "", "Proxy-Authorization: "+auth)
			}
			return p.within(time.Second)
		}
		challenge := func() (sha, md5 string) {
			t.Helper()
			m := ask("")
			if m.code != 407 {
				t.Fatalf("%d without credentials", m.code)
			}
			cs := m.all("Proxy-Authenticate")
			a, ok1 := parseDigest(cs[0])
			b, ok2 := parseDigest(cs[1])
			if !ok1 || !ok2 || a["algorithm"] != "SHA-256" || b["algorithm"] != "MD5" || a["qop"] != "auth" || a["stale"] != "" {
				t.Fatalf("challenged with %q", cs)
			}
			return a["nonce"], b["nonce"]
		}
		const uri = "sip:+4930123@192.0.2.1"
		auth := func(user, password, realm, algorithm, nonce, nc string) string {
			r := digestResponse(hasher(algorithm), user, realm, password, "OPTIONS", uri, nonce, nc, "cn", "auth")
			return fmt.Sprintf(`Digest username="%s", realm="%s", nonce="%s", uri="%s", response="%s", algorithm=%s, cnonce="cn", qop=auth, nc=%s`, user, realm, nonce, uri, r, algorithm, nc)
		}
		want := func(what string, m *message, code int, stale bool) {
			t.Helper()
			if m == nil || m.code != code {
				t.Errorf("%s: %+v, want %d", what, m, code)
				return
			}
			if got := strings.Contains(m.get("Proxy-Authenticate"), "stale=true"); got != stale {
				t.Errorf("%s: stale %v", what, got)
			}
		}
		sha, md5 := challenge()
		want("right", ask(auth("alice", "secret", "trunkhall", "SHA-256", sha, "00000001")), 200, false)
		want("the same again", ask(auth("alice", "secret", "trunkhall", "SHA-256", sha, "00000001")), 407, true)
		want("next nc", ask(auth("alice", "secret", "trunkhall", "SHA-256", sha, "00000002")), 200, false)
		want("an earlier nc", ask(auth("alice", "secret", "trunkhall", "SHA-256", sha, "00000001")), 407, true)
		want("MD5", ask(auth("alice", "secret", "trunkhall", "MD5", md5, "00000001")), 200, false)
		sha, md5 = challenge()
		want("MD5 with the nonce of SHA-256", ask(auth("alice", "secret", "trunkhall", "MD5", sha, "00000001")), 407, false)
		want("wrong realm", ask(auth("alice", "secret", "other", "SHA-256", sha, "00000001")), 407, false)
		want("wrong password", ask(auth("alice", "guess", "trunkhall", "SHA-256", sha, "00000001")), 407, false)
		want("wrong user", ask(auth("bob", "secret", "trunkhall", "SHA-256", sha, "00000001")), 407, false)
		want("made-up nonce", ask(auth("alice", "secret", "trunkhall", "SHA-256", "bm9uY2U", "00000001")), 407, false)
		want("no qop", ask(strings.Replace(auth("alice", "secret", "trunkhall", "MD5", md5, "00000001"), ", qop=auth", "", 1)), 407, false)
		want("for another URI", ask(strings.Replace(auth("alice", "secret", "trunkhall", "MD5", md5, "00000001"), uri, "sip:x@192.0.2.1", 1)), 407, false)
		want("for the host alone, as SIPp does", ask(func() string {
			const host = "sip:192.0.2.1:5060"
			r := digestResponse(hasher("MD5"), "alice", "trunkhall", "secret", "OPTIONS", host, md5, "00000001", "cn", "auth")
			return fmt.Sprintf(`Digest username="alice", realm="trunkhall", nonce="%s", uri="%s", response="%s", cnonce="cn", qop=auth, nc=00000001`, md5, host, r)
		}()), 200, false)
		want("garbage", ask(`Digest username="alice`), 407, false)
		want("basic", ask("Basic YWxpY2U6c2VjcmV0"), 407, false)
		time.Sleep(2 * nonceLife)
		want("too late", ask(auth("alice", "secret", "trunkhall", "SHA-256", sha, "00000001")), 407, true)
		// The same answer, whoever is asked for: nothing tells users apart.
		a := ask(auth("alice", "guess", "trunkhall", "SHA-256", sha, "00000001"))
		b := ask(auth("nobody", "guess", "trunkhall", "SHA-256", sha, "00000001"))
		if a.code != b.code || len(a.headers) != len(b.headers) || a.reason != b.reason {
			t.Error("a wrong user and a wrong password look different")
		}
	}, asking)
}

// A line that is asked for SHA-256 alone does not get in with MD5.
func TestDigestAlgorithms(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := &phoneCall{id: "alg", tag: "1", to: "<sip:+4930123@192.0.2.1>", seq: 1}
		p.send(pc, "OPTIONS", "")
		m := p.status(407)
		cs := m.all("Proxy-Authenticate")
		if len(cs) != 1 || !strings.Contains(cs[0], "SHA-256") {
			t.Fatalf("challenged with %q", cs)
		}
		nonce := s.nonces.make(netip.MustParseAddr("192.0.2.2"), "MD5")
		const uri = "sip:+4930123@192.0.2.1"
		r := digestResponse(hasher("MD5"), "alice", "trunkhall", "secret", "OPTIONS", uri, nonce, "00000001", "cn", "auth")
		pc.seq++
		p.send(pc, "OPTIONS", "", fmt.Sprintf(`Proxy-Authorization: Digest username="alice", realm="trunkhall", nonce="%s", uri="%s", response="%s", cnonce="cn", qop=auth, nc=00000001`, nonce, uri, r))
		p.status(407)
	}, asking, func(_ *Config, d *desk) {
		ask := d.verdict
		d.verdict = func(r *Request) Verdict {
			v := ask(r)
			v.Algorithms = []string{"SHA-256"}
			return v
		}
	})
}

func TestNonceBoundToAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNonces([]byte("k"))
		a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		x := n.make(a, "MD5")
		if ours, _ := n.check(x, b, "MD5", 1); ours {
			t.Error("another address may use a nonce")
		}
		if ours, stale := n.check(x, a, "md5", 1); !ours || stale {
			t.Error("its own address may not")
		}
		if ours, _ := newNonces([]byte("other")).check(x, a, "MD5", 1); ours {
			t.Error("a nonce of another secret counts")
		}
		for range 2 * maxNonces / 100 {
			for range 100 {
				n.check(n.make(a, "MD5"), a, "MD5", 1)
			}
			time.Sleep(time.Second)
		}
		if len(n.used) > maxNonces {
			t.Errorf("%d nonces are kept", len(n.used))
		}
	})
}

func FuzzDigest(f *testing.F) {
	f.Add(`Digest realm="a", nonce="b", qop="auth,auth-int", algorithm=SHA-256, stale=true`)
	f.Add(`Digest username="a\"b", realm="", nonce="x", uri="sip:a@b", response="0", nc=00000001, cnonce="c", qop=auth`)
	f.Add(`digest a=b,,c="d`)
	e := &Endpoint{strong: map[string]time.Time{}}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parseDigest(s)
		if !ok {
			return
		}
		res := &message{code: 401, headers: []Header{{"WWW-Authenticate", s}}}
		h, _, _, err := e.authorize(res, "REGISTER", "sip:a@b", credentials{"user", "password", ""})
		if err != nil {
			return
		}
		if cleanHeader(Header{h.Name, oneLine(h.Value)}) != nil || strings.Contains(h.Value, "password\"") {
			t.Errorf("answered with %q", h.Value)
		}
		again, ok := parseDigest(h.Value)
		if printable(p["realm"]) && (!ok || again["username"] != "user") {
			t.Errorf("our own credentials cannot be read: %q", h.Value)
		}
	})
}
