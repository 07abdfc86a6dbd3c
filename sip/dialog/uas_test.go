package dialog

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestInviteRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		lines   []string
		options CallOptions
		code    int
		header  string // that the answer must have
	}{
		{"an extension that nobody knows", []string{"Require: foo, 100rel"}, CallOptions{}, 420, "Unsupported"},
		{"100rel is off", []string{"Require: 100rel"}, CallOptions{PRACK: "off"}, 420, "Unsupported"},
		{"100rel is a must and the caller lacks it", nil, CallOptions{PRACK: "require"}, 421, "Require"},
		{"a session interval below ours", []string{"Session-Expires: 60", "Supported: timer"}, CallOptions{}, 422, "Min-SE"},
		{"Replaces a call that is not", []string{"Replaces: nope;to-tag=a;from-tag=b"}, CallOptions{}, 481, ""},
		{"Replaces without tags", []string{"Replaces: nope"}, CallOptions{}, 400, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, _ *side, p *phone) {
				pc := p.invite(phoneSDP, c.lines...)
				m := p.status(c.code)
				if c.header != "" && m.get(c.header) == "" {
					t.Errorf("no %s in the %d", c.header, c.code)
				}
				if m.to.tag() == "" {
					t.Error("no To tag in a final answer")
				}
				p.write(p.text(&phoneCall{id: pc.id, tag: pc.tag, to: m.get("To"), seq: 1}, "ACK", pc.branch, ""))
				if m := p.within(time.Minute); m != nil {
					t.Errorf("%d again after the ACK", m.code)
				}
			}, func(_ *Config, d *desk) {
				d.verdict = func(*Request) Verdict { return Verdict{Action: Accept, Options: c.options} }
			})
		})
	}
}

func TestRefusalRepeatedUntilACK(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite(phoneSDP)
		c := <-s.calls
		if err := c.Reject(486, "", Header{"Reason", "Q.850;cause=17"}); err != nil {
			t.Fatal(err)
		}
		m := p.status(486)
		if m.get("Reason") != "Q.850;cause=17" {
			t.Errorf("Reason %q", m.get("Reason"))
		}
		p.status(486)
		p.status(486)
		p.write(p.text(&phoneCall{id: pc.id, tag: pc.tag, to: m.get("To"), seq: 1}, "ACK", pc.branch, ""))
		if m := p.within(time.Minute); m != nil {
			t.Errorf("%d again after the ACK", m.code)
		}
		if e := finish(t, c); e.Cause != EndRefused || e.Code != 486 {
			t.Errorf("ended with %+v", e)
		}
	})
}

// RFC 3261 §13.3.1.4: the 200 is repeated until the ACK, and without one the
// session is ended with BYE after 64*T1.
func TestLostACK(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite(phoneSDP)
		c := <-s.calls
		result := make(chan error, 1)
		go func() { result <- c.Answer(context.Background(), []byte("v=0\r\n")) }()
		began := time.Now()
		n := 0
		for {
			m := p.within(time.Minute)
			if m == nil {
				t.Fatal("no BYE came")
			}
			if m.code == 200 {
				n++
				pc.answered(m)
				continue
			}
			if m.method == "BYE" {
				p.answer(m, 200, "")
				break
			}
		}
		if d := time.Since(began); d < 31*time.Second || d > 33*time.Second || n < 10 || n > 12 {
			t.Errorf("%d times 200 and BYE after %v, want 11 or so and 32 s", n, d)
		}
		if err := <-result; err == nil {
			t.Error("Answer says that all is well")
		}
		if e := finish(t, c); e.Cause != EndNoAck || !e.Timeout {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestRepeatedINVITEIsOneCall(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := &phoneCall{id: "storm", tag: "x", to: "<sip:+4930123@192.0.2.1>", seq: 1}
		for range 20 {
			p.write(p.text(pc, "INVITE", "z9hG4bKstorm", phoneSDP))
		}
		c := <-s.calls
		for range 20 {
			p.write(p.text(pc, "INVITE", "z9hG4bKstorm", phoneSDP))
		}
		time.Sleep(time.Second)
		select {
		case <-s.calls:
			t.Error("a second call came of it")
		default:
		}
		// The same request by another way is merged: 482 (RFC 3261 §8.2.2.2).
		p.write(p.text(pc, "INVITE", "z9hG4bKother", phoneSDP))
		p.status(482)
		c.Bye(0, "")
		p.status(480)
		finish(t, c)
	})
}

func TestCancel(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite(phoneSDP)
		c := <-s.calls
		if err := c.Ring(); err != nil {
			t.Fatal(err)
		}
		p.status(180)
		p.send(pc, "CANCEL", "", `Reason: Q.850;cause=26;text="answered elsewhere"`)
		ok := p.status(200)
		if ok.seqMethod != "CANCEL" {
			t.Errorf("200 for %s", ok.seqMethod)
		}
		m := p.status(487)
		if m.to.tag() != ok.to.tag() {
			t.Error("RFC 3261 §9.2: the To tags of 200 and 487 differ")
		}
		p.write(p.text(&phoneCall{id: pc.id, tag: pc.tag, to: m.get("To"), seq: 1}, "ACK", pc.branch, ""))
		if e := finish(t, c); e.Cause != EndCancelled || e.Q850 != 26 || e.Reason != "answered elsewhere" {
			t.Errorf("ended with %+v", e)
		}
		// A CANCEL for nothing.
		p.send(&phoneCall{id: "none", tag: "x", to: "<sip:x@192.0.2.1>", seq: 1, branch: "z9hG4bKnone"}, "CANCEL", "")
		p.status(481)
	})
}

// CANCEL after 200: the 200 wins, the call stands.
func TestCancelAfterAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite(phoneSDP)
		c := <-s.calls
		go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
		m := p.status(200)
		p.send(pc, "CANCEL", "")
		p.status(200)
		pc.answered(m)
		p.ack(pc, "")
		next[Confirmed](t, c)
		if c.State() != Talking {
			t.Errorf("state %s after a CANCEL that came too late", c.State())
		}
		pc.seq++
		p.send(pc, "BYE", "", "Reason: Q.850;cause=16")
		p.status(200)
		if e := finish(t, c); e.Cause != EndBye || e.Q850 != 16 {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestReliableProvisional(t *testing.T) {
	for _, require := range []bool{true, false} {
		t.Run(fmt.Sprint("required ", require), func(t *testing.T) {
			bubble(t, func(t *testing.T, s *side, p *phone) {
				line := "Supported: 100rel"
				if require {
					line = "Require: 100rel"
				}
				pc := p.invite(phoneSDP, line)
				c := <-s.calls
				if err := c.Progress(183, []byte("v=0 early\r\n")); err != nil {
					t.Fatal(err)
				}
				answered := make(chan error, 1)
				go func() { answered <- c.Answer(context.Background(), []byte("v=0 early\r\n")) }()
				m := p.status(183)
				if m.get("RSeq") == "" || !m.has("Require", "100rel") {
					t.Fatalf("the 183 is not reliable: %v", m.headers)
				}
				if again := p.status(183); again.get("RSeq") != m.get("RSeq") {
					t.Error("a repeat has another RSeq")
				}
				pc.answered(m)
				// A PRACK for something else.
				pc.seq++
				p.send(pc, "PRACK", "", "RAck: 1 1 INVITE")
				p.status(481)
				pc.seq++
				p.send(pc, "PRACK", "", "RAck: "+m.get("RSeq")+" 1 INVITE")
				if ok := p.status(200); ok.seqMethod != "PRACK" {
					t.Fatalf("200 for %s before the PRACK was answered", ok.seqMethod)
				}
				ok := p.status(200)
				if ok.seqMethod != "INVITE" || len(ok.body) > 0 {
					t.Errorf("200 for %s with %d bytes: RFC 3262 §5 wants no SDP again", ok.seqMethod, len(ok.body))
				}
				seq := pc.seq
				pc.seq = 1
				p.ack(pc, "")
				pc.seq = seq
				if err := <-answered; err != nil {
					t.Error(err)
				}
				c.Bye(16, "")
				p.answer(p.request("BYE"), 200, "")
				for range c.Events() {
				}
			})
		})
	}
}

// RFC 3262 §3: without PRACK the INVITE is refused after 64*T1.
func TestNoPRACK(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		p.invite(phoneSDP, "Require: 100rel")
		c := <-s.calls
		if err := c.Ring(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		p.status(504)
		if d := time.Since(began); d < 31*time.Second || d > 33*time.Second {
			t.Errorf("504 after %v", d)
		}
		if e := finish(t, c); !e.Timeout {
			t.Errorf("ended with %+v", e)
		}
	})
}

func TestLateOfferIn(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite("")
		c := <-s.calls
		if c.Request().Offer != nil {
			t.Error("there was no offer")
		}
		go func() { _ = c.Answer(context.Background(), []byte("v=0 our offer\r\n")) }()
		m := p.status(200)
		if string(m.body) != "v=0 our offer\r\n" {
			t.Errorf("the 200 has %q", m.body)
		}
		pc.answered(m)
		p.ack(pc, phoneSDP)
		if ev := next[Confirmed](t, c); !strings.Contains(string(ev.SDP), "192.0.2.2") {
			t.Errorf("their answer is %q", ev.SDP)
		}
		c.Bye(0, "")
		p.answer(p.request("BYE"), 200, "")
		finish(t, c)
	})
}

func TestReinvite(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc, c := p.talk(s)
		// Hold.
		pc.seq++
		p.send(pc, "INVITE", phoneSDP+"a=sendonly\n")
		o := next[Offered](t, c)
		if !strings.Contains(string(o.SDP), "sendonly") {
			t.Errorf("offered %q", o.SDP)
		}
		// Another before that is answered: 500 with Retry-After (RFC 3261 §14.2).
		pc.seq++
		p.send(pc, "UPDATE", phoneSDP)
		if m := p.status(500); m.get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		if err := c.Accept(o.ID, []byte("v=0 recvonly\r\n")); err != nil {
			t.Fatal(err)
		}
		m := p.status(200)
		if string(m.body) != "v=0 recvonly\r\n" {
			t.Errorf("answered with %q", m.body)
		}
		p.status(200) // repeated until the ACK
		pc.seq--
		p.ack(pc, "")
		pc.seq++
		if m := p.within(10 * time.Second); m != nil {
			t.Errorf("%d %s after the ACK", m.code, m.method)
		}
		// A refresh without change is answered without asking.
		pc.seq++
		p.send(pc, "INVITE", phoneSDP+"a=sendonly\n")
		if m := p.status(200); string(m.body) != "v=0 recvonly\r\n" {
			t.Errorf("refreshed with %q", m.body)
		}
		p.ack(pc, "")
		// Refused: the session stays.
		pc.seq++
		p.send(pc, "INVITE", phoneSDP+"a=inactive\n")
		o = next[Offered](t, c)
		if err := c.Refuse(o.ID, 488); err != nil {
			t.Fatal(err)
		}
		p.status(488)
		p.write(p.text(pc, "ACK", pc.branch, ""))
		if c.State() != Talking {
			t.Errorf("state %s after a refused re-INVITE", c.State())
		}
		// Without SDP: we are to offer, their answer comes with the ACK.
		pc.seq++
		p.send(pc, "INVITE", "")
		o = next[Offered](t, c)
		if o.SDP != nil {
			t.Errorf("offered %q", o.SDP)
		}
		if err := c.Accept(o.ID, []byte("v=0 mine\r\n")); err != nil {
			t.Fatal(err)
		}
		p.status(200)
		p.ack(pc, phoneSDP)
		if ev := next[Confirmed](t, c); ev.SDP == nil {
			t.Error("no answer in the ACK")
		}
		// UPDATE with SDP, and cancelled by nobody.
		pc.seq++
		p.send(pc, "UPDATE", phoneSDP+"a=x\n")
		o = next[Offered](t, c)
		if err := c.Accept(o.ID, []byte("v=0 upd\r\n")); err != nil {
			t.Fatal(err)
		}
		if m := p.status(200); string(m.body) != "v=0 upd\r\n" || m.seqMethod != "UPDATE" {
			t.Errorf("UPDATE answered with %q", m.body)
		}
		// An old CSeq.
		old := *pc
		old.seq = 2
		p.send(&old, "INFO", "")
		p.status(500)
		c.Bye(16, "")
		bye := p.request("BYE")
		if bye.get("Reason") != "Q.850;cause=16" {
			t.Errorf("Reason %q", bye.get("Reason"))
		}
		p.answer(bye, 200, "")
		finish(t, c)
	})
}

// Right Call-ID, wrong tags or source.
func TestDialogIsGuarded(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc, c := p.talk(s)
		for _, method := range []string{"BYE", "INVITE", "UPDATE", "INFO", "REFER", "NOTIFY", "PRACK"} {
			wrong := *pc
			wrong.seq++
			wrong.tag = "wrong"
			p.send(&wrong, method, "")
			p.status(481)
			wrong.tag = pc.tag
			wrong.to = "<sip:+4930123@192.0.2.1>;tag=wrong"
			p.send(&wrong, method, "")
			p.status(481)
			thief := &phone{t: t, sock: p.net.listen("198.51.100.7:5060"), net: p.net, peer: p.peer}
			stolen := *pc
			stolen.seq++
			thief.send(&stolen, method, "", "Refer-To: <sip:+1900@example.com>")
			thief.status(481)
		}
		if c.State() != Talking {
			t.Fatalf("the call is %s", c.State())
		}
		thief := &phone{t: t, sock: p.net.listen("198.51.100.8:5060"), net: p.net, peer: p.peer}
		pc2 := p.invite(phoneSDP)
		c2 := <-s.calls
		thief.send(&phoneCall{id: pc2.id, tag: pc2.tag, to: pc2.to, seq: 1, branch: pc2.branch}, "CANCEL", "")
		thief.status(481)
		if c2.State() != Trying {
			t.Errorf("a stranger's CANCEL worked: %s", c2.State())
		}
		c2.Bye(17, "")
		p.status(486)
		c.Bye(0, "")
		finish(t, c)
		finish(t, c2)
	})
}

// Outside of a dialog nothing but INVITE, OPTIONS and REGISTER means
// anything; REFER never dials.
func TestOutsideDialog(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		for method, code := range map[string]int{
			"MESSAGE": 405, "SUBSCRIBE": 405, "PUBLISH": 405, "REFER": 405,
			"NOTIFY": 481, "INFO": 481, "BYE": 481, "UPDATE": 481, "PRACK": 481,
			"OPTIONS": 200, "REGISTER": 405, "FOO": 501,
		} {
			pc := &phoneCall{id: "x" + method, tag: "1", to: "<sip:+4930123@192.0.2.1>", seq: 1}
			p.send(pc, method, "", "Refer-To: <sip:+1900@example.com>")
			if m := p.status(code); code == 405 && m.get("Allow") == "" {
				t.Errorf("%s: no Allow", method)
			}
		}
		select {
		case <-s.calls:
			t.Error("a call came of it")
		default:
		}
		if n := s.badCount("method"); n < 8 {
			t.Errorf("only %d of them count toward a ban", n)
		}
	})
}

// RFC 3261 §15: no BYE of the callee before the ACK.
func TestHangUpBeforeACK(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := p.invite(phoneSDP)
		c := <-s.calls
		go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
		pc.answered(p.status(200))
		c.Bye(16, "")
		finish(t, c)
		p.status(200) // still repeated
		p.ack(pc, "")
		p.answer(p.request("BYE"), 200, "")
		// And one that is never acknowledged.
		p.invite(phoneSDP)
		c = <-s.calls
		go func() { _ = c.Answer(context.Background(), []byte("v=0\r\n")) }()
		p.status(200)
		began := time.Now()
		c.Bye(16, "")
		finish(t, c)
		p.answer(p.request("BYE"), 200, "")
		if d := time.Since(began); d < 31*time.Second || d > 33*time.Second {
			t.Errorf("BYE after %v", d)
		}
	})
}

// A secure URI over an open transport.
func TestSIPSNeedsTLS(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc := &phoneCall{id: "s", tag: "1", to: "<sips:+4930123@192.0.2.1>", seq: 1}
		p.write(strings.Replace(p.text(pc, "INVITE", "z9hG4bKs", phoneSDP), "INVITE sip:", "INVITE sips:", 1))
		m := p.status(403)
		p.write(p.text(&phoneCall{id: "s", tag: "1", to: m.get("To"), seq: 1}, "ACK", "z9hG4bKs", ""))
		// An ACK to nothing has no effect at all.
		p.write(p.text(&phoneCall{id: "t", tag: "1", to: "<sip:x@192.0.2.1>;tag=2", seq: 1}, "ACK", "z9hG4bKt", ""))
		if m := p.within(time.Minute); m != nil {
			t.Errorf("%d to an ACK", m.code)
		}
	})
}

func TestStrangersGetSilence(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		for _, method := range []string{"INVITE", "OPTIONS", "REGISTER", "BYE", "REFER", "MESSAGE", "CANCEL", "FOO"} {
			p.send(&phoneCall{id: "x" + method, tag: "1", to: "<sip:1000@192.0.2.1>;tag=guess", seq: 1, branch: "z9hG4bKq"}, method, "")
			p.send(&phoneCall{id: "y" + method, tag: "1", to: "<sip:1000@192.0.2.1>", seq: 1, branch: "z9hG4bKr"}, method, "")
		}
		if m := p.within(time.Minute); m != nil {
			t.Errorf("a stranger got %d", m.code)
		}
		if st := s.Stats(); st.Transactions != 0 {
			t.Errorf("%d transactions for strangers", st.Transactions)
		}
		s.desk.mu.Lock()
		s.screened = func(a netip.AddrPort) bool { return false }
		s.desk.mu.Unlock()
		p.write("\x00\x01garbage")
		p.send(&phoneCall{id: "z", tag: "1", to: "<sip:1000@192.0.2.1>", seq: 1}, "OPTIONS", "")
		time.Sleep(time.Second)
		if st := s.Stats(); st.Screened != 2 {
			t.Errorf("%d screened, want 2", st.Screened)
		}
	}, func(_ *Config, d *desk) {
		d.verdict = func(*Request) Verdict { return Verdict{} }
	})
}

func TestInfoDigits(t *testing.T) {
	bubble(t, func(t *testing.T, s *side, p *phone) {
		pc, c := p.talk(s)
		for _, in := range []struct {
			typ, body string
			digit     byte
			d         time.Duration
		}{
			{"application/dtmf-relay", "Signal=5\r\nDuration=250\r\n", '5', 250 * time.Millisecond},
			{"application/dtmf-relay", "Signal = *\nDuration = 100", '*', 100 * time.Millisecond},
			{"application/dtmf-relay", "Signal=11", '#', 160 * time.Millisecond},
			{"application/dtmf", "7", '7', 160 * time.Millisecond},
			{"application/dtmf", "d\r\n", 'D', 160 * time.Millisecond},
		} {
			pc.seq++
			p.send(pc, "INFO", in.body, "Content-Type: "+in.typ)
			p.status(200)
			if ev := next[Digits](t, c); ev.Digit != in.digit || ev.Duration != in.d {
				t.Errorf("%q is %c for %v", in.body, ev.Digit, ev.Duration)
			}
		}
		pc.seq++
		p.send(pc, "INFO", "<xml/>", "Content-Type: application/media_control+xml")
		p.status(200)
		next[Info](t, c)
		pc.seq++
		p.send(pc, "INFO", "Signal=nonsense", "Content-Type: application/dtmf-relay")
		p.status(400)
		done := make(chan error, 1)
		go func() { done <- c.Info(context.Background(), '9', 200*time.Millisecond) }()
		m := p.request("INFO")
		if string(m.body) != "Signal=9\r\nDuration=200\r\n" {
			t.Errorf("sent %q", m.body)
		}
		p.answer(m, 200, "")
		if err := <-done; err != nil {
			t.Error(err)
		}
		c.Bye(0, "")
		finish(t, c)
	})
}
