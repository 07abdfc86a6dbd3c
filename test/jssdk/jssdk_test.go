// Package jssdk drives the homeserver with matrix-js-sdk in Node.
package jssdk

import (
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

func script() harness.Script {
	return harness.Script{File: "jssdk/two-clients.mjs", Timeout: 2 * time.Minute}
}

func TestTwoClientsInAnEncryptedRoom(t *testing.T) {
	harness.Start(t).Run(t, script())
}

func TestTwoClientsNeedAServer(t *testing.T) {
	s := harness.Start(t)
	s.Kill()
	if _, err := s.Try(t, script()); err == nil || !strings.Contains(err.Error(), "alice registers") {
		t.Fatalf("without a server: got %v", err)
	}
}
