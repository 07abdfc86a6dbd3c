package phones

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// The harness itself: two phones register and call each other through Kamailio,
// which forgets them when it is restarted.
func TestTwoPhonesWithProvider(t *testing.T) {
	t.Parallel()
	provider := StartProvider(t, "127.0.0.1")
	o := PhoneOptions{Name: "anna", Domain: providerRealm, Registrar: provider.Addr().String(), Username: "anna", Password: providerPassword, Says: Tone(440, 15*time.Second), Codecs: "G722/16000/1"}
	a := StartPhone(t, o)
	o.Name, o.Username, o.Says = "bert", "bert", Tone(1000, 15*time.Second)
	b := StartPhone(t, o)
	o.Name, o.Password = "mallory", "wrong"
	m := StartPhone(t, o)
	eventually(t, 30*time.Second, "everybody tries to register", func() error {
		return errors.Join(logged(a, "200 OK"), logged(b, "200 OK"), logged(m, "401 Unauthorized"))
	})
	if provider.Registered("anna") != 1 || provider.Registered("mallory") != 0 {
		t.Errorf("registered: anna %d times, mallory %d times", provider.Registered("anna"), provider.Registered("mallory"))
	}
	a.Dial(fmt.Sprintf("sip:bert@%s", providerRealm))
	a.Must("CALL_ESTABLISHED")
	b.Must("CALL_ESTABLISHED")
	for p, hz := range map[*Phone]float64{a: 1000, b: 440} {
		if _, err := p.Listen(500 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		heard, err := p.Listen(2 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := heard.HasTone(hz); err != nil {
			t.Errorf("%s: %v", p.Options.Name, err)
		}
	}
	b.Hangup()
	a.Must("CALL_CLOSED")

	provider.Stop()
	provider.Start()
	before := len(a.Events())
	a.Dial(fmt.Sprintf("sip:bert@%s", providerRealm))
	if e, ok := a.SawNext(20*time.Second, "CALL_CLOSED", before); !ok {
		t.Errorf("a call to somebody whom the provider has forgotten: %+v", e)
	}
}
