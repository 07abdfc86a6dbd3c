package browser

import (
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

func TestWebClientThreePeople(t *testing.T) {
	harness.Start(t).Run(t, harness.Script{File: "browser/webclient.mjs", Timeout: 4 * time.Minute})
}

func TestWebClientMeetsElementCall(t *testing.T) {
	harness.Start(t).Run(t, harness.Script{File: "browser/meeting.mjs", Timeout: 3 * time.Minute})
}
