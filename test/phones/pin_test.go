package phones

import (
	"strings"
	"testing"
	"time"
)

// The way into a room by PIN, as real telephones send digits (SIPp does it by INFO
// and from captured packets, see TestCallsIn); and what happens to those who guess.
func TestPIN(t *testing.T) {
	t.Parallel()
	g := StartGateway(t, GatewayOptions{})
	in := func(number string) func() error {
		return func() error {
			for _, p := range g.Participants("conference") {
				if strings.Contains(p.Identity, strings.TrimPrefix(number, "+")) {
					return nil
				}
			}
			return errNotYet
		}
	}
	t.Run("ways", func(t *testing.T) {
		t.Run("RFC 4733", func(t *testing.T) {
			t.Parallel()
			const caller = "+493055500021"
			phone := StartPhone(t, PhoneOptions{Name: "phone", User: caller})
			phone.Dial(g.URI(pinNumber))
			phone.Must("CALL_ESTABLISHED")
			time.Sleep(time.Second) // a person listens first
			phone.Press(fixedPIN + "#")
			eventually(t, 20*time.Second, "the phone is in the room", in(caller))
			phone.Hangup()
			eventually(t, 20*time.Second, "the phone is gone", func() error {
				if in(caller)() == nil {
					return errNotYet
				}
				return nil
			})
		})
		t.Run("in the sound", func(t *testing.T) {
			t.Parallel()
			const caller = "+493055500023"
			tones := StartTones(t, plainIP, 0)
			r := StartRaw(t, plainIP, g.SIP)
			q := r.invite(pinNumber, tones.Addr())
			q.caller = caller
			q.body = strings.NewReplacer(" 101\n", "\n", "a=rtpmap:101 telephone-event/8000\n", "").Replace(q.body)
			to, hangUp := r.CallWith(t, q)
			tones.Send(to)
			time.Sleep(time.Second)
			tones.Press(fixedPIN + "#")
			eventually(t, 20*time.Second, "the phone is in the room", in(caller))
			hangUp()
		})
	})

	t.Run("guessing", func(t *testing.T) {
		const caller = "+493055500031"
		guess := StartPhone(t, PhoneOptions{Name: "guesser", User: caller})
		guess.Dial(g.URI(pinNumber))
		guess.Must("CALL_ESTABLISHED")
		for _, pin := range []string{"111111#", "222222#", "333333#"} {
			time.Sleep(2 * time.Second) // while it is told that the PIN is wrong
			guess.Press(pin)
		}
		guess.Must("CALL_CLOSED")
		if in(caller)() == nil {
			t.Error("a wrong PIN lets in")
		}
		// The right one is now as good as a wrong one, for this caller.
		before := len(guess.Events())
		guess.Dial(g.URI(pinNumber))
		if _, ok := guess.SawNext(20*time.Second, "CALL_ESTABLISHED", before); ok {
			time.Sleep(time.Second)
			guess.Press(fixedPIN + "#")
			for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				if in(caller)() == nil {
					t.Fatal("somebody who is locked out gets in")
				}
			}
		}
		// Somebody else is not.
		other := StartPhone(t, PhoneOptions{Name: "other", User: "+493055500032"})
		other.Dial(g.URI(pinNumber))
		other.Must("CALL_ESTABLISHED")
		time.Sleep(time.Second)
		other.Press(fixedPIN + "#")
		eventually(t, 20*time.Second, "another caller is in the room", in("+493055500032"))
	})
	if strings.Contains(g.Log(), fixedPIN) || strings.Contains(g.Log(), "333333") {
		t.Error("the log has a PIN")
	}
}
