package phones

import (
	"testing"
	"time"
)

// The harness itself: two phones that call each other directly. What it says of
// the gateway is worth no more than what it says here.
func TestTwoPhonesWithoutGateway(t *testing.T) {
	for _, c := range []struct{ name, codecs, encrypt, transport string }{
		{"PCMU", "PCMU/8000/1", "", "udp"},
		{"G722", "G722/16000/1", "", "tcp"},
		{"PCMA, SDES", "PCMA/8000/1", "srtp-mand", "udp"},
		{"PCMU, DTLS", "PCMU/8000/1", "dtls_srtp", "udp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := PhoneOptions{Name: "a", Says: Tone(440, 20*time.Second), Codecs: c.codecs, Encrypt: c.encrypt, Transport: c.transport}
			a := StartPhone(t, o)
			o.Name, o.Says, o.IP = "b", Tone(1000, 20*time.Second), "127.0.0.2"
			b := StartPhone(t, o)
			a.Dial(b.Address())
			a.Must("CALL_ESTABLISHED")
			b.Must("CALL_ESTABLISHED")
			time.Sleep(time.Second) // the beginning is not measured
			for p, hz := range map[*Phone]float64{a: 1000, b: 440} {
				heard, err := p.Listen(3 * time.Second)
				if err != nil {
					t.Fatal(err)
				}
				if err := heard.HasTone(hz); err != nil {
					t.Errorf("%s: %v", p.Options.Name, err)
				}
				if heard.HasTone(hz*1.1) == nil {
					t.Errorf("%s hears %.0f Hz, which nobody says", p.Options.Name, hz*1.1)
				}
			}
			a.Press("15#")
			eventually(t, 10*time.Second, "b receives the digits", func() error {
				return logged(b, "received event: '1'", "received event: '5'", "received event: '#'")
			})
			a.Hangup()
			b.Must("CALL_CLOSED")
		})
	}
}

// Nobody there: nothing is established and nothing is heard.
func TestPhoneAlone(t *testing.T) {
	t.Parallel()
	a := StartPhone(t, PhoneOptions{Name: "a", Says: Tone(440, 5*time.Second)})
	a.Dial("sip:nobody@127.0.0.1:9")
	if e, ok := a.Saw(3*time.Second, "CALL_ESTABLISHED"); ok {
		t.Errorf("a call with nobody: %+v", e)
	}
	if heard, err := a.Heard(); err == nil && heard.HasTone(440) == nil {
		t.Error("a hears itself")
	}
}
