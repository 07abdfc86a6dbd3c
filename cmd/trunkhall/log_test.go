package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/config"
	"github.com/trunkhall/trunkhall/matrix"
)

// TestLogMasksPhones logs what the parts of the server log of telephones.
func TestLogMasksPhones(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log := env{stderr: &out}.logger(config.Log{Level: "info", Format: format})
		id := call.Identity("@_phone_493012345679:example.org:PHONEX")
		log.With("participant", id).Info("joined", "sid", call.ParticipantSID("PA_1"), "reason", 4)
		log.Warn("removed", "user", matrix.UserID("@_phone_493012345679:example.org"), "participant", call.Identity("sip_493012345679"))
		log.Error("failed", "err", fmt.Errorf("member %s: %w", id, errors.New("it is gone")))
		log.Info("rate limited", "path", "/_matrix/client/v3/profile/%40%5Fphone%5F493012345679%3Aexample.org")
		log.WithGroup("g").Info("plain", "text", "sip_493012345679", "none", nil)
		got := out.String()
		if strings.Contains(got, "12345679") {
			t.Errorf("%s: a number is in the log:\n%s", format, got)
		}
		for _, want := range []string{"_phone_49301***679:example.org:PHONEX", "sip_49301***679", "PA_1", "it is gone"} {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q is missing:\n%s", format, want, got)
			}
		}
	}
}
