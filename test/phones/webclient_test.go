package phones

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// Telephones as those see them who use our own web client.
func TestWebClientPhones(t *testing.T) {
	const answering = "+4915112345690"
	callee := FreePort(t, "127.0.0.1")
	g := StartGateway(t, GatewayOptions{Lines: []string{"out-486"}, Trunks: fmt.Sprintf(`
    - {id: callee, direction: outbound, targets: ["sip:127.0.0.1:%d"], allow_prefixes: ["%s"], caller_id: {mode: fixed, default: "+4930123450"}}`, callee, answering)})
	g.Admin(t)
	busy := g.Lines["out-486"]
	Play(t, Scenario{File: "out-486", IP: busy.Addr.Addr().String(), Port: int(busy.Addr.Port())})
	caller := StartPhone(t, PhoneOptions{Name: "caller", User: "+493055512345", Says: Tone(phoneHz, long), Seconds: 300})
	second := StartPhone(t, PhoneOptions{Name: "second", User: "+493055512346", Seconds: 300})
	called := StartPhone(t, PhoneOptions{Name: "called", User: answering, Port: callee, Seconds: 300})

	enter := func(p *Phone) func(json.RawMessage) any {
		return func(value json.RawMessage) any {
			var pin string
			if err := json.Unmarshal(value, &pin); err != nil {
				t.Error(err)
			}
			p.Dial(g.URI(pinNumber))
			p.Must("CALL_ESTABLISHED")
			time.Sleep(time.Second) // a person listens first
			p.Press(pin + "#")
			return true
		}
	}
	g.Run(t, harness.Script{
		File: "phones/webclient.mjs", Timeout: 4 * time.Minute,
		Config: map[string]any{
			"number": pinNumber, "busy": busy.Number, "answering": answering,
			"phone": map[string]any{"hz": phoneHz}, "alice": map[string]any{"rgb": []int{200, 40, 40}, "hz": 523},
		},
		Told: map[string]func(json.RawMessage) any{
			"dial":   enter(caller),
			"second": enter(second),
			"press": func(value json.RawMessage) any {
				var keys string
				if err := json.Unmarshal(value, &keys); err != nil {
					t.Error(err)
				}
				caller.Press(keys)
				return true
			},
		},
		Asks: map[string]func() any{
			"heard": func() any {
				heard, err := caller.Listen(4 * time.Second)
				// How well it is heard is for other tests: here is a page at work too.
				if hz := heard.Frequency(); err == nil && math.Abs(hz-523) > 15 {
					err = fmt.Errorf("the telephone hears %.0f Hz", hz)
				}
				return inWords(err)
			},
			"pressed": func() any {
				var err error
				for range 40 {
					if err = logged(called, "received event: '1'", "received event: '#'"); err == nil {
						return nil
					}
					time.Sleep(250 * time.Millisecond)
				}
				return inWords(errors.Join(errors.New("not within 10 s"), err))
			},
		},
	})
}

// inWords is an error as a script can be told, nil for none.
func inWords(err error) any {
	if err == nil {
		return nil
	}
	return err.Error()
}
