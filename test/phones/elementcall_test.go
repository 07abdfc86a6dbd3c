package phones

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// A telephone in calls of Element Call's, as published. The call with sticky
// memberships is one without encryption: with it, Element Call 0.26 reads them
// before it has decrypted them, and so sees nobody, not even itself.
func TestElementCall(t *testing.T) {
	g := StartGateway(t, GatewayOptions{})
	t.Run("compatibility, encrypted", func(t *testing.T) { elementCall(t, g, "compatibility", true) })
	t.Run("matrix_2_0", func(t *testing.T) { elementCall(t, g, "matrix_2_0", false) })
}

func elementCall(t *testing.T, g *Gateway, mode string, encrypted bool) {
	wav := filepath.Join(t.TempDir(), "alice.wav")
	if err := alice.WriteWAV(wav); err != nil {
		t.Fatal(err)
	}
	phone := StartPhone(t, PhoneOptions{Name: "phone", User: "+493055512345", Says: Tone(phoneHz, long), Seconds: 300})
	enter := func(value json.RawMessage) int {
		var pin string
		if err := json.Unmarshal(value, &pin); err != nil {
			t.Fatal(err)
		}
		before := len(phone.Events())
		phone.Dial(g.URI(pinNumber))
		if _, ok := phone.SawNext(20*time.Second, "CALL_ESTABLISHED", before); !ok {
			t.Fatalf("the menu does not answer: %+v", phone.Events()[before:])
		}
		time.Sleep(time.Second) // a person listens first
		phone.Press(pin)
		return before
	}
	report := func(err error) any {
		if err != nil {
			return err.Error()
		}
		return nil
	}
	g.Run(t, harness.Script{
		File: "phones/elementcall.mjs", Config: map[string]any{"wav": wav, "mode": mode, "encrypted": encrypted}, Timeout: 150 * time.Second,
		Told: map[string]func(json.RawMessage) any{
			"refused": func(value json.RawMessage) any {
				before := enter(value)
				if e, ok := phone.SawNext(40*time.Second, "CALL_CLOSED", before); !ok {
					t.Errorf("a telephone is kept in a call that does not allow it: %+v", e)
					phone.Hangup()
				}
				return true
			},
			"dial": func(value json.RawMessage) any { enter(value); return true },
			"measure": func(value json.RawMessage) any {
				var path string
				if err := json.Unmarshal(value, &path); err != nil {
					t.Fatal(err)
				}
				heard, err := ReadWAV(path)
				if err != nil {
					return err.Error()
				}
				return report(heard.HasTone(phoneHz))
			},
		},
		Asks: map[string]func() any{
			"heard": func() any {
				heard, err := phone.Listen(4 * time.Second)
				if err != nil {
					return err.Error()
				}
				return report(heard.HasTone(523))
			},
			"hand":   func() any { phone.Press("*5"); return true },
			"hangup": func() any { phone.Hangup(); return true },
		},
	})
}
