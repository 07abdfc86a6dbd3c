package sip

import (
	"errors"
	"testing"

	"github.com/trunkhall/trunkhall/call"
)

// TestTransferTargets tries ways around the dial plan: whatever a provider would
// read as a number must be one that may be called.
func TestTransferTargets(t *testing.T) {
	h := newHouse(t, nil, nil)
	line, _ := h.gate.lines.Load().trunk("desk")
	for _, c := range []struct{ to, want string }{
		{"+49 30 12345679", "sip:+493012345679@127.0.0.1:9"},
		{"030 12345679", "sip:+493012345679@127.0.0.1:9"},
		{"tel:+493012345679", "tel:+493012345679"},
		{"sip:+493012345679@pbx.example", "sip:+493012345679@pbx.example"},
		{"sip:03012345679@pbx.example;transport=tcp", "sip:+493012345679@pbx.example;transport=tcp"},
		{"sips:alice@pbx.example", "sips:alice@pbx.example"},
		{"SIP:alice@pbx.example", "sip:alice@pbx.example"},

		{"+19005551234", ""},
		{"tel:+19005551234", ""},
		{"tel:+493012345679;ext=1", ""},
		{"sip:+19005551234@pbx.example", ""},
		{"sip:+1900%35551234@pbx.example", ""},
		{"sip:%2B19005551234@pbx.example", ""},
		{"sip:%252B19005551234@pbx.example", ""},
		{"sip:+19005551234:x@pbx.example", ""},
		{"sip:+19005551234;phone-context=+49@pbx.example", ""},
		{"sip:+1900FLOWERS@pbx.example", ""},
		{"sip:1900flowers@pbx.example;user=phone", ""},
		{"sip:flowers@pbx.example;user=phone", ""},
		{"sip:٠٠١٩٠٠@pbx.example", ""},
		{"sip:alice@+19005551234@pbx.example", ""},
		{"sip:alice@pbx.example?Route=%3csip:+1900@evil%3e", ""},
		{"sip:alice@", ""},
		{"sip:pbx.example", ""},
		{"tel:alice", ""},
		{"alice", ""},
		{"+1\r\nX-Evil: 1", ""},
		{"sip:alice@pbx.example>\r\nX-Evil: 1", ""},
		{"http://pbx.example", ""},
		{"112", ""},
		{"sip:112@pbx.example", ""},
		{"sip:110@pbx.example", ""},
		{"SCL_nobody", ""},
		{"", ""},
	} {
		got, _, err := h.gate.transferTarget(nil, line.Trunk, c.to)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v; want %q", c.to, got, err, c.want)
		}
		if err != nil && !errors.Is(err, call.ErrInvalid) && !errors.Is(err, call.ErrForbidden) && !errors.Is(err, call.ErrNotFound) {
			t.Errorf("%q: %v is of no kind", c.to, err)
		}
	}
}
