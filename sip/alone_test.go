package sip

import (
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip/bridge"
)

// TestAbandoned: only a phone that we called, and only one that has been alone for
// long without a break, is hung up on.
func TestAbandoned(t *testing.T) {
	for _, dir := range []call.Direction{call.Outbound, call.Inbound} {
		l := &leg{sound: &sound{}, now: call.Leg{Direction: dir}}
		start := time.Now()
		if l.abandoned(start.Add(time.Hour)) {
			t.Errorf("%s: in company, and abandoned", dir)
		}
		l.onRoom(bridge.Alone{Alone: true})
		l.aloneSince = start
		l.onRoom(bridge.Alone{Alone: true}) // said again: it is no new beginning
		if l.abandoned(start.Add(aloneLimit - time.Second)) {
			t.Errorf("%s: abandoned too early", dir)
		}
		if got := l.abandoned(start.Add(aloneLimit)); got != (dir == call.Outbound) {
			t.Errorf("%s: abandoned after %s: %v", dir, aloneLimit, got)
		}
		l.onRoom(bridge.Alone{})
		if l.abandoned(start.Add(time.Hour)) {
			t.Errorf("%s: somebody came, and yet abandoned", dir)
		}
	}
}
