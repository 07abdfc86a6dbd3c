package browser

import (
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

func TestElementCall(t *testing.T) {
	for _, c := range []struct {
		name    string
		mode    string
		restart bool
	}{
		{"compatibility, one page killed", "compatibility", false},
		{"matrix_2_0, one page killed", "matrix_2_0", false},
		{"compatibility, one page and the server killed", "compatibility", true},
		{"matrix_2_0, one page and the server killed", "matrix_2_0", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := harness.Start(t)
			s.Run(t, harness.Script{
				File:    "browser/elementcall.mjs",
				Config:  map[string]any{"mode": c.mode, "restart": c.restart},
				Timeout: 3 * time.Minute,
				Asks:    map[string]func() any{"restart": func() any { s.Restart(); return true }},
			})
		})
	}
}
