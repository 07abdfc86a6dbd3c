package sip

import (
	"context"
	"testing"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/dialog"
)

// BenchmarkCall is a whole call into a room of its own and its end, the caller's
// signalling in the same process included.
func BenchmarkCall(b *testing.B) {
	d := newDesk(b, "127.0.0.1")
	h := newHouse(b, nil, func(c *Config) {
		c.Limits.MaxCalls = 0
		c.Dispatch[1].Action = call.DispatchAction{Type: "individual", Randomize: true}
		c.RTPPorts = "36000-63999"
	})
	s := d.session()
	defer s.Close()
	offer, err := s.Offer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c, err := d.ep.Dial(context.Background(), dialog.Outgoing{To: roomNumber, From: carol, SDP: offer, Target: dialog.Target{URI: "sip:" + h.addr()}})
		if err != nil {
			b.Fatal(err)
		}
		for e := range c.Events() {
			switch e := e.(type) {
			case dialog.Answered:
				c.Bye(16, "")
			case dialog.Ended:
				if e.Code != 200 {
					b.Fatalf("%d %s", e.Code, e.Reason)
				}
			}
		}
	}
}
