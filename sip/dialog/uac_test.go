package dialog

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestDialed(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s, func(o *Outgoing) {
			o.FromName = "Al \"x\"\r\nEvil: 1"
			o.Asserted, o.Privacy = "+4940999", "id"
			o.Options.Headers = []Header{{"X-Room", "42"}}
		})
		for name, want := range map[string]string{
			"From":                "\"Al \\\"x\\\"Evil: 1\" <sip:+4940555@192.0.2.2>",
			"To":                  "<sip:+4930123@192.0.2.2:5060>",
			"P-Asserted-Identity": "<sip:+4940999@192.0.2.2>",
			"Privacy":             "id",
			"X-Room":              "42",
			"Contact":             "<sip:+4940555@192.0.2.1:5060>",
			"Max-Forwards":        "70",
		} {
			if got := inv.get(name); got != want && !strings.HasPrefix(got, want+";tag=") {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		p.answer(inv, 100, "")
		p.answer(inv, 180, "", "tag=one")
		if ev := next[Progress](t, c); ev.Code != 180 || ev.Tag != "one" {
			t.Errorf("%+v", ev)
		}
		p.answer(inv, 183, "v=0 early\n", "tag=two")
		if ev := next[Progress](t, c); ev.Code != 183 || ev.Tag != "two" || len(ev.SDP) == 0 {
			t.Errorf("%+v", ev)
		}
		p.answer(inv, 200, phoneSDP, "tag=one", "Record-Route: <sip:192.0.2.2:5060;lr>")
		ack := p.request("ACK")
		if ack.to.tag() != "one" || ack.get("Route") != "<sip:192.0.2.2:5060;lr>" || ack.seq != inv.seq || ack.via[0].branch() == inv.via[0].branch() {
			t.Errorf("the ACK: %v", ack.headers)
		}
		next[Answered](t, c)
		// Their 200 again: our ACK was lost.
		p.answer(inv, 200, phoneSDP, "tag=one", "Record-Route: <sip:192.0.2.2:5060;lr>")
		p.request("ACK")
		// A second fork answers too: ACK and BYE, and the call goes on.
		p.answer(inv, 200, phoneSDP, "tag=two")
		if m := p.request("ACK"); m.to.tag() != "two" {
			t.Errorf("ACK for %q", m.to.tag())
		}
		bye := p.request("BYE")
		if bye.to.tag() != "two" {
			t.Errorf("BYE for %q", bye.to.tag())
		}
		p.answer(bye, 200, "")
		if c.State() != Talking {
			t.Errorf("state %s", c.State())
		}
		c.Bye(16, "")
		bye = p.request("BYE")
		if bye.to.tag() != "one" || bye.seq <= inv.seq {
			t.Errorf("BYE for %q with CSeq %d", bye.to.tag(), bye.seq)
		}
		// Lost: it is repeated.
		p.request("BYE")
		p.answer(bye, 200, "")
		if m := p.within(time.Minute); m != nil {
			t.Errorf("%s after the end", m.method)
		}
		if e := finish(t, c); !e.ByUs || e.Cause != EndBye {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestDialAnonymous(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s, func(o *Outgoing) { o.From = ""; o.Privacy = "id"; o.Asserted = "sip:+49@x" })
		if !strings.HasPrefix(inv.get("From"), `"Anonymous" <sip:anonymous@anonymous.invalid>;tag=`) || strings.Contains(inv.get("Contact"), "+49") {
			t.Errorf("From %q, Contact %q", inv.get("From"), inv.get("Contact"))
		}
		p.answer(inv, 603, "", `Reason: Q.850;cause=21;text="no, \"never\""`)
		if m := p.request("ACK"); m.via[0].branch() != inv.via[0].branch() {
			t.Error("the ACK to a refusal has another branch")
		}
		if e := finish(t, c); e.Code != 603 || e.Q850 != 21 || e.Reason != `no, "never"` || e.Cause != EndRefused {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestDialNobodyThere(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		began := time.Now()
		c, _ := p.called(s)
		n := 1
		for p.within(40*time.Second) != nil {
			n++
		}
		e := finish(t, c)
		if e.Code != 408 || !e.Timeout || e.Cause != EndTimeout || n != 7 {
			t.Errorf("%d INVITEs, ended with %+v after %v", n, e, time.Since(began))
		}
	})
}

func TestRingsTooLong(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s, func(o *Outgoing) { o.Ringing = 20 * time.Second })
		p.answer(inv, 180, "")
		next[Progress](t, c)
		began := time.Now()
		m := p.request("CANCEL")
		if d := time.Since(began); d != 20*time.Second {
			t.Errorf("cancelled after %v", d)
		}
		if m.via[0].branch() != inv.via[0].branch() || m.seq != inv.seq || m.to.tag() != "" {
			t.Errorf("the CANCEL: %v", m.headers)
		}
		p.answer(m, 200, "")
		p.answer(inv, 487, "")
		p.request("ACK")
		if e := finish(t, c); !e.Timeout || e.Cause != EndTimeout || !e.ByUs {
			t.Errorf("ended with %+v", e)
		}
	})
}

// RFC 3261 §9.1: no CANCEL before a provisional answer.
func TestCancelWaits(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		c.Cancel(16, "changed my mind")
		finish(t, c)
		if m := p.within(400 * time.Millisecond); m != nil {
			t.Errorf("%s before anything was answered", m.method)
		}
		p.answer(inv, 180, "")
		m := p.request("CANCEL")
		if !strings.Contains(m.get("Reason"), "cause=16") {
			t.Errorf("Reason %q", m.get("Reason"))
		}
		p.answer(m, 200, "")
		// The 200 crosses the CANCEL: ACK and BYE.
		p.answer(inv, 200, phoneSDP)
		p.request("ACK")
		p.answer(p.request("BYE"), 200, "")
	})
}

func TestCancelSilentPeer(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		p.answer(inv, 100, "")
		time.Sleep(time.Second)
		c.Cancel(0, "")
		finish(t, c)
		p.answer(p.request("CANCEL"), 200, "")
		time.Sleep(2 * time.Minute) // no 487 ever
		if st := s.Stats(); st.Calls != 0 || st.Transactions != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestDialPRACK(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		if !inv.has("Supported", "100rel") {
			t.Error("100rel is not offered")
		}
		p.answer(inv, 183, "v=0 early\n", "tag=a", "Require: 100rel", "RSeq: 7")
		prack := p.request("PRACK")
		if prack.get("RAck") != "7 "+strconv.Itoa(int(inv.seq))+" INVITE" || prack.to.tag() != "a" {
			t.Errorf("the PRACK: %v", prack.headers)
		}
		p.answer(prack, 200, "")
		next[Progress](t, c)
		p.answer(inv, 183, "v=0 early\n", "tag=a", "Require: 100rel", "RSeq: 7") // a repeat
		p.answer(inv, 180, "", "tag=a", "Require: 100rel", "RSeq: 8")
		prack = p.request("PRACK")
		if !strings.HasPrefix(prack.get("RAck"), "8 ") {
			t.Errorf("RAck %q", prack.get("RAck"))
		}
		p.answer(prack, 200, "")
		if ev := next[Progress](t, c); ev.Code != 180 {
			t.Errorf("a repeat was told: %+v", ev)
		}
		p.answer(inv, 200, "", "tag=a")
		p.request("ACK")
		if ev := next[Answered](t, c); string(ev.SDP) != "v=0 early\r\n" {
			t.Errorf("answered with %q: the SDP of the reliable 183 counts", ev.SDP)
		}
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

func TestLateOfferOut(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s, func(o *Outgoing) { o.SDP = nil })
		if len(inv.body) > 0 || inv.has("Supported", "100rel") {
			t.Error("a late offer with SDP or 100rel")
		}
		p.answer(inv, 200, phoneSDP)
		if ev := next[Answered](t, c); len(ev.SDP) == 0 {
			t.Error("no offer in the 200")
		}
		if err := c.LateAnswer([]byte("v=0 late\r\n")); err != nil {
			t.Fatal(err)
		}
		if m := p.request("ACK"); string(m.body) != "v=0 late\r\n" {
			t.Errorf("the ACK has %q", m.body)
		}
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

// dialed is an answered call to the phone.
func (p *phone) dialed(s *side, lines []string, change ...func(*Outgoing)) (*Call, *message) {
	p.t.Helper()
	c, inv := p.called(s, change...)
	p.answer(inv, 200, phoneSDP, lines...)
	p.request("ACK")
	next[Answered](p.t, c)
	return c, inv
}

func TestOfferOut(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, _ := p.dialed(s, nil)
		type result struct {
			sdp []byte
			err error
		}
		offer := func() chan result {
			r := make(chan result, 1)
			go func() {
				sdp, err := c.Offer(context.Background(), []byte("v=0 hold\r\n"))
				r <- result{sdp, err}
			}()
			return r
		}
		// Glare: 491, and again after 2.1 to 4 seconds, for the Call-ID is ours.
		r := offer()
		inv := p.request("INVITE")
		p.answer(inv, 491, "")
		p.request("ACK")
		began := time.Now()
		inv = p.request("INVITE")
		if d := time.Since(began); d < 2100*time.Millisecond || d > 4*time.Second {
			t.Errorf("again after %v", d)
		}
		if string(inv.body) != "v=0 hold\r\n" {
			t.Errorf("offered %q", inv.body)
		}
		p.answer(inv, 200, "v=0 held\n")
		p.request("ACK")
		if got := <-r; got.err != nil || string(got.sdp) != "v=0 held\r\n" {
			t.Errorf("%q, %v", got.sdp, got.err)
		}
		p.answer(inv, 200, "v=0 held\n") // the ACK was lost
		if m := p.request("ACK"); m.seq != inv.seq {
			t.Errorf("ACK with CSeq %d", m.seq)
		}
		// Refused: the call goes on.
		r = offer()
		p.answer(p.request("INVITE"), 488, "")
		p.request("ACK")
		var refused *Refused
		if got := <-r; !errors.As(got.err, &refused) || refused.Code != 488 {
			t.Errorf("%v", got.err)
		}
		// Theirs meanwhile: 491 from us.
		r = offer()
		inv = p.request("INVITE")
		theirs := &phoneCall{id: inv.callID, tag: inv.to.tag(), to: inv.get("From"), seq: 500}
		p.send(theirs, "INVITE", phoneSDP)
		p.status(491)
		p.write(p.text(theirs, "ACK", theirs.branch, ""))
		p.answer(inv, 200, "v=0 held\n")
		p.request("ACK")
		if got := <-r; got.err != nil {
			t.Error(got.err)
		}
		// 481: the call is gone (RFC 3261 §12.2.1.2).
		r = offer()
		p.answer(p.request("INVITE"), 481, "")
		p.request("ACK")
		if got := <-r; got.err == nil {
			t.Error("no error for 481")
		}
		finish(t, c)
	})
}

func TestDialDigest(t *testing.T) {
	withAuth := func(o *Outgoing) { o.Target.Username, o.Target.Password = "alice", "secret" }
	const md5 = `Proxy-Authenticate: Digest realm="r", nonce="n1", algorithm=MD5, qop="auth,auth-int", opaque="o"`
	const sha = `Proxy-Authenticate: Digest realm="r", nonce="n2", algorithm=SHA-256, qop="auth"`
	check := func(t *testing.T, m *message, nonce, algorithm string) {
		t.Helper()
		c, ok := parseDigest(m.get("Proxy-Authorization"))
		if !ok {
			t.Fatalf("no credentials: %v", m.headers)
		}
		want := digestResponse(hasher(algorithm), "alice", "r", "secret", m.method, m.uri, nonce, c["nc"], c["cnonce"], "auth")
		if c["response"] != want || c["algorithm"] != algorithm || c["nonce"] != nonce || c["uri"] != m.uri {
			t.Errorf("credentials %v, want %s with %s", c, algorithm, nonce)
		}
	}
	t.Run("the better algorithm", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			c, inv := p.called(s, withAuth)
			p.answer(inv, 407, "", md5, sha)
			p.request("ACK")
			again := p.request("INVITE")
			check(t, again, "n2", "SHA-256")
			if again.seq != inv.seq+1 || again.callID != inv.callID || again.from.tag() != inv.from.tag() {
				t.Error("RFC 3261 §22.2: same Call-ID and From, next CSeq")
			}
			p.answer(again, 407, "", strings.Replace(sha, "n2", "n3", 1)+", stale=true")
			p.request("ACK")
			third := p.request("INVITE")
			check(t, third, "n3", "SHA-256")
			p.answer(third, 200, phoneSDP)
			p.request("ACK")
			next[Answered](t, c)
			// In the dialog the trunk's own challenge is answered, anybody else's not.
			c.Bye(0, "")
			bye := p.request("BYE")
			p.answer(bye, 407, "", sha)
			check(t, p.request("BYE"), "n2", "SHA-256")
			finish(t, c)
			// Later only MD5: somebody wants a weaker digest.
			c, inv = p.called(s, withAuth)
			p.answer(inv, 407, "", md5)
			p.request("ACK")
			if e := finish(t, c); e.Code != 407 {
				t.Errorf("ended with %+v", e)
			}
		})
	})
	t.Run("MD5 alone, and a wrong password", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			c, inv := p.called(s, withAuth)
			p.answer(inv, 407, "", md5)
			p.request("ACK")
			again := p.request("INVITE")
			check(t, again, "n1", "MD5")
			if !strings.Contains(again.get("Proxy-Authorization"), `opaque="o"`) {
				t.Error("opaque is lost")
			}
			p.answer(again, 407, "", md5)
			p.request("ACK")
			if e := finish(t, c); e.Code != 407 {
				t.Errorf("ended with %+v", e)
			}
		})
	})
	t.Run("another realm", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			c, inv := p.called(s, withAuth, func(o *Outgoing) { o.Target.Realm = "ours" })
			p.answer(inv, 407, "", sha)
			p.request("ACK")
			if e := finish(t, c); e.Code != 407 {
				t.Errorf("ended with %+v", e)
			}
			if m := p.within(time.Minute); m != nil {
				t.Errorf("%s went out", m.method)
			}
		})
	})
	// The far end asks inside the dialog for what the trunk never asked.
	t.Run("fishing", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			c, _ := p.dialed(s, nil, withAuth)
			go func() { _, _ = c.Offer(context.Background(), []byte("v=0\r\n")) }()
			p.answer(p.request("INVITE"), 401, "", strings.Replace(sha, "Proxy", "WWW", 1))
			p.request("ACK")
			if m := p.within(time.Minute); m != nil {
				t.Errorf("%s after a challenge that is not the trunk's: %v", m.method, m.headers)
			}
			c.Bye(0, "")
			p.answer(p.request("BYE"), 407, "", sha)
			finish(t, c)
			pc, in := p.talk(s)
			go func() { _, _ = in.Offer(context.Background(), []byte("v=0\r\n")) }()
			p.answer(p.request("INVITE"), 407, "", sha)
			p.request("ACK")
			if m := p.within(time.Minute); m != nil {
				t.Errorf("%s: a call that came in has no credentials", m.method)
			}
			pc.seq++
			p.send(pc, "BYE", "")
			p.status(200)
			finish(t, in)
		})
	})
}

func TestSessionTimer(t *testing.T) {
	t.Run("they refresh", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			pc := p.invite(phoneSDP, "Supported: timer", "Session-Expires: 120;refresher=uac")
			c := <-s.calls
			go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
			m := p.status(200)
			if m.get("Session-Expires") != "120;refresher=uac" || !m.has("Require", "timer") {
				t.Errorf("the 200: %v", m.headers)
			}
			pc.answered(m)
			p.ack(pc, "")
			next[Confirmed](t, c)
			for range 3 {
				time.Sleep(60 * time.Second)
				pc.seq++
				p.send(pc, "UPDATE", "", "Supported: timer", "Session-Expires: 120;refresher=uac")
				if m := p.status(200); m.get("Session-Expires") != "120;refresher=uac" {
					t.Errorf("refreshed with %q", m.get("Session-Expires"))
				}
			}
			pc.seq++
			p.send(pc, "UPDATE", "", "Supported: timer", "Session-Expires: 20")
			if m := p.status(422); m.get("Min-SE") != "90" {
				t.Errorf("Min-SE %q", m.get("Min-SE"))
			}
			began := time.Now()
			bye := p.request("BYE") // they fall silent
			if d := time.Since(began); d != 88*time.Second {
				t.Errorf("BYE after %v, want 120-32", d)
			}
			p.answer(bye, 200, "")
			if e := finish(t, c); e.Cause != EndSession || !e.Timeout {
				t.Errorf("ended with %+v", e)
			}
		})
	})
	t.Run("we refresh as the one called, for they cannot", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			_, c := p.talk(s, "Allow: INVITE, ACK, BYE")
			began := time.Now()
			inv := p.request("INVITE") // no UPDATE in Allow
			if d := time.Since(began); d != 300*time.Second {
				t.Errorf("refreshed after %v", d)
			}
			if inv.get("Session-Expires") != "600;refresher=uac" || string(inv.body) != "v=0 ours\r\n" {
				t.Errorf("the refresh: %v %q", inv.headers, inv.body)
			}
			p.answer(inv, 200, phoneSDP, "Session-Expires: 600;refresher=uac")
			p.request("ACK")
			inv = p.request("INVITE")
			p.answer(inv, 481, "")
			p.request("ACK")
			finish(t, c)
		}, func(_ *Config, d *desk) {
			d.verdict = func(*Request) Verdict {
				return Verdict{Action: Accept, Options: CallOptions{SessionExpires: 600}}
			}
		})
	})
	t.Run("we refresh as the caller, by UPDATE, after 422", func(t *testing.T) {
		bubble(t, func(t *testing.T, s *side, p *phone) {
			c, inv := p.called(s, func(o *Outgoing) { o.Options.SessionExpires = 300 })
			if inv.get("Session-Expires") != "300" || inv.get("Min-SE") != "90" || !inv.has("Supported", "timer") {
				t.Errorf("the INVITE: %v", inv.headers)
			}
			p.answer(inv, 422, "", "Min-SE: 1000")
			p.request("ACK")
			inv = p.request("INVITE")
			if inv.get("Session-Expires") != "1000" || inv.get("Min-SE") != "1000" {
				t.Errorf("the second INVITE: %v", inv.headers)
			}
			p.answer(inv, 200, phoneSDP, "Session-Expires: 1000;refresher=uac", "Require: timer", "Allow: INVITE, UPDATE, BYE")
			p.request("ACK")
			next[Answered](t, c)
			began := time.Now()
			up := p.request("UPDATE")
			if d := time.Since(began); d != 500*time.Second {
				t.Errorf("refreshed after %v", d)
			}
			if up.get("Session-Expires") != "1000;refresher=uac" || len(up.body) > 0 {
				t.Errorf("the UPDATE: %v", up.headers)
			}
			p.answer(up, 200, "", "Session-Expires: 1000;refresher=uac")
			p.request("UPDATE")
			// Nobody answers any more.
			for {
				m := p.within(time.Minute)
				if m == nil || m.method == "BYE" {
					break
				}
			}
			if e := finish(t, c); !e.Timeout {
				t.Errorf("ended with %+v", e)
			}
		})
	})
}

func TestReferIn(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc, c := p.talk(s)
		pc.seq++
		p.send(pc, "REFER", "", "Refer-To: <sip:+4989777@192.0.2.9?Replaces=abc%3Bto-tag%3D1%3Bfrom-tag%3D2>", "Referred-By: <sip:bob@192.0.2.2>")
		p.status(202)
		ev := next[Referred](t, c)
		if ev.To.URI != "sip:+4989777@192.0.2.9" || ev.To.User != "+4989777" || ev.Replaces != "abc;to-tag=1;from-tag=2" || ev.ReferredBy.User != "bob" {
			t.Errorf("%+v", ev)
		}
		want := func(body, state string) {
			t.Helper()
			m := p.request("NOTIFY")
			if !strings.HasPrefix(string(m.body), body) || !strings.HasPrefix(m.get("Subscription-State"), state) || !strings.HasPrefix(m.get("Event"), "refer;id=") {
				t.Errorf("NOTIFY %q %q %q", m.body, m.get("Subscription-State"), m.get("Event"))
			}
			p.answer(m, 200, "")
		}
		want("SIP/2.0 100", "active")
		_ = c.ReferResult(ev.ID, 180, "")
		want("SIP/2.0 180", "active")
		_ = c.ReferResult(ev.ID, 200, "")
		want("SIP/2.0 200", "terminated")
		_ = c.ReferResult(ev.ID, 486, "")
		if m := p.within(10 * time.Second); m != nil {
			t.Errorf("%s after the last NOTIFY", m.method)
		}
		// Attended: the call that Replaces names is ours.
		pc2, other := p.talk(s)
		ours, _ := parseNameAddr(pc2.to)
		pc.seq++
		p.send(pc, "REFER", "", "Refer-To: <sip:x@192.0.2.9?Replaces="+strings.ReplaceAll(pc2.id, "@", "%40")+"%3Bto-tag%3D"+ours.tag()+"%3Bfrom-tag%3D"+pc2.tag+">", "Refer-Sub: false")
		p.status(202)
		if ev := next[Referred](t, c); ev.Call != other {
			t.Errorf("the call is %v", ev.Call)
		}
		other.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, other)
		// norefersub (RFC 4488), and what is no call.
		pc.seq++
		p.send(pc, "REFER", "", "Refer-To: <sip:+4989777@192.0.2.9>", "Refer-Sub: false")
		if m := p.status(202); m.get("Refer-Sub") != "false" {
			t.Error("Refer-Sub is not confirmed")
		}
		next[Referred](t, c)
		for _, to := range []string{"<sip:x@y;method=BYE>", "<mailto:a@b>"} {
			pc.seq++
			p.send(pc, "REFER", "", "Refer-To: "+to)
			p.status(603)
		}
		pc.seq++
		p.send(pc, "REFER", "")
		p.status(400)
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

func TestReferOut(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.dialed(s, nil)
		pc, other := p.talk(s)
		theirs := &phoneCall{id: inv.callID, tag: "phone", to: inv.get("From"), seq: 900}
		done := make(chan error, 1)
		go func() { done <- c.Refer(context.Background(), "", other) }()
		m := p.request("REFER")
		to := m.get("Refer-To")
		if !strings.Contains(to, "?Replaces="+strings.ReplaceAll(pc.id, "@", "%40")+"%3Bto-tag%3D"+pc.tag+"%3Bfrom-tag%3D") {
			t.Errorf("Refer-To %q", to)
		}
		p.answer(m, 202, "")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		notify := func(line, state string) {
			theirs.seq++
			p.send(theirs, "NOTIFY", line+"\r\n", "Content-Type: message/sipfrag", "Event: refer", "Subscription-State: "+state)
			p.status(200)
		}
		notify("SIP/2.0 100 Trying", "active;expires=60")
		if ev := next[ReferProgress](t, c); ev.Code != 100 {
			t.Errorf("%+v", ev)
		}
		notify("SIP/2.0 200 OK", "terminated;reason=noresource")
		if ev := next[ReferProgress](t, c); ev.Code != 200 {
			t.Errorf("%+v", ev)
		}
		theirs.seq++
		p.send(theirs, "NOTIFY", "SIP/2.0 200 OK\r\n", "Content-Type: message/sipfrag", "Event: refer", "Subscription-State: active")
		p.status(481)
		go func() { done <- c.Refer(context.Background(), "sip:+4955@192.0.2.2", nil) }()
		p.answer(p.request("REFER"), 603, "")
		if err := <-done; err == nil {
			t.Error("a refused REFER is no error")
		}
		for _, c := range []*Call{c, other} {
			c.Bye(0, "")
			p.answer(p.request("BYE"), 200, "")
			finish(t, c)
		}
	})
}

func TestReplaces(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc, old := p.talk(s)
		oldTag, _ := parseNameAddr(pc.to)
		next2 := p.invite(phoneSDP, "Replaces: "+pc.id+";to-tag="+oldTag.tag()+";from-tag="+pc.tag, "Require: replaces")
		c := <-s.calls
		if c.Replaces() != old {
			t.Fatal("the call to be replaced is not found")
		}
		go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
		next2.answered(p.status(200))
		p.ack(next2, "")
		next[Confirmed](t, c)
		if ev := next[Replaced](t, old); ev.By != c {
			t.Error("replaced by something else")
		}
		bye := p.request("BYE")
		if bye.callID != pc.id {
			t.Error("the BYE is for the new call")
		}
		p.answer(bye, 200, "")
		if e := finish(t, old); e.Cause != EndReplaced {
			t.Errorf("ended with %+v", e)
		}
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

// An INVITE of ours that comes back.
func TestLoop(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		back := &phoneCall{id: inv.callID, tag: inv.from.tag(), to: inv.get("To"), seq: int(inv.seq)}
		p.send(back, "INVITE", phoneSDP)
		p.status(482)
		p.answer(inv, 486, "")
		p.request("ACK")
		finish(t, c)
	})
}

// A peer behind a NAT names an address that leads nowhere from here.
func TestNAT(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		p.sock = p.net.listen("203.0.113.9:4321")
		pc := p.invite(phoneSDP)
		c := <-s.calls
		go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
		m := p.status(200)
		if v := m.get("Via"); !strings.Contains(v, "received=203.0.113.9") || !strings.Contains(v, "rport=4321") {
			t.Errorf("Via %q", v)
		}
		pc.answered(m)
		p.ack(pc, "")
		next[Confirmed](t, c)
		pc.seq++
		text := p.text(pc, "UPDATE", "z9hG4bKnat", "")
		p.write(strings.Replace(text, "Contact: <sip:bob@203.0.113.9:4321>", "Contact: <sip:bob@10.0.0.5:5060>", 1))
		p.status(200)
		c.Bye(0, "")
		bye := p.request("BYE") // to where it was heard, not to 10.0.0.5
		if !strings.Contains(bye.uri, "10.0.0.5") {
			t.Errorf("Request-URI %q, want the remote target all the same", bye.uri)
		}
		p.answer(bye, 200, "")
		finish(t, c)
	})
}

// Two phones answer before anything of ours can have reached them.
func TestTwoAnswersAtOnce(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		p.answer(inv, 180, "", "tag=one")
		p.answer(inv, 180, "", "tag=two")
		p.answer(inv, 200, phoneSDP, "tag=one")
		p.answer(inv, 200, phoneSDP, "tag=two")
		next[Progress](t, c)
		next[Progress](t, c)
		if ev := next[Answered](t, c); ev.Tag != "one" {
			t.Errorf("answered by %q", ev.Tag)
		}
		acks := map[string]int{}
		for range 3 {
			m := p.within(time.Second)
			if m == nil {
				t.Fatal("nothing came")
			}
			if m.method == "BYE" {
				if m.to.tag() != "two" {
					t.Errorf("BYE for %q", m.to.tag())
				}
				p.answer(m, 200, "")
				continue
			}
			acks[m.to.tag()]++
		}
		if acks["one"] != 1 || acks["two"] != 1 {
			t.Errorf("ACKs: %v", acks)
		}
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

// A hop that says nothing at all has failed after Outgoing.Silence.
func TestSilence(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		began := time.Now()
		c, _ := p.called(s, func(o *Outgoing) { o.Silence = 8 * time.Second })
		if e := finish(t, c); time.Since(began) != 8*time.Second || e.Code != 408 || e.Cause != EndTimeout {
			t.Errorf("ended with %+v after %v", e, time.Since(began))
		}
		time.Sleep(time.Minute)
		for p.within(time.Millisecond) != nil {
		}
		c, inv := p.called(s, func(o *Outgoing) { o.Silence = 8 * time.Second })
		p.answer(inv, 100, "")
		time.Sleep(20 * time.Second)
		p.answer(inv, 486, "")
		p.request("ACK")
		if e := finish(t, c); e.Code != 486 {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestHundredForks(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		c, inv := p.called(s)
		for i := range 100 {
			p.answer(inv, 180, "", "tag=f"+strconv.Itoa(i))
		}
		for range maxForks {
			next[Progress](t, c)
		}
		p.answer(inv, 486, "")
		p.request("ACK")
		finish(t, c)
	})
}
