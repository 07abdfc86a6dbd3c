package browser

import (
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

func TestRemovedFromTheRoom(t *testing.T) {
	for _, how := range []string{"leave", "kick", "ban"} {
		t.Run(how, func(t *testing.T) {
			harness.Start(t).Run(t, harness.Script{File: "browser/removed.mjs", Config: map[string]any{"how": how}, Timeout: 2 * time.Minute})
		})
	}
}
