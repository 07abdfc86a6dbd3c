package browser

import (
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// runLiveKit starts a server and one scenario of livekit-client against it.
func runLiveKit(t *testing.T, scenario string, config map[string]any) {
	t.Helper()
	harness.Start(t).Run(t, liveKit(scenario, config))
}

func liveKit(scenario string, config map[string]any) harness.Script {
	all := map[string]any{"scenario": scenario}
	for k, v := range config {
		all[k] = v
	}
	return harness.Script{File: "browser/livekit.mjs", Config: all, Timeout: 150 * time.Second}
}

func TestLiveKitCall(t *testing.T) {
	for _, c := range []struct {
		name  string
		dual  bool
		codec string
	}{
		{"one connection, VP8", false, "vp8"},
		{"one connection, H264", false, "h264"},
		{"two connections, VP8", true, "vp8"},
		{"two connections, H264", true, "h264"},
	} {
		t.Run(c.name, func(t *testing.T) {
			runLiveKit(t, "call", map[string]any{"dual": c.dual, "codec": c.codec})
		})
	}
}

// Codecs without simulcast: the picture gets through, in one layer at least.
func TestLiveKitOtherCodecs(t *testing.T) {
	for _, codec := range []string{"vp9", "av1"} {
		t.Run(codec, func(t *testing.T) {
			runLiveKit(t, "call", map[string]any{"dual": false, "codec": codec, "simulcast": false})
		})
	}
}

func TestLiveKitWithoutUDP(t *testing.T) {
	runLiveKit(t, "noudp", nil)
}

func TestLiveKitReconnect(t *testing.T) {
	t.Run("one connection", func(t *testing.T) { runLiveKit(t, "reconnect", map[string]any{"dual": false}) })
	t.Run("two connections", func(t *testing.T) { runLiveKit(t, "reconnect", map[string]any{"dual": true}) })
}

func TestLiveKitOnlyThroughTURN(t *testing.T) {
	t.Run("UDP", func(t *testing.T) { runLiveKit(t, "relay", map[string]any{"transport": "udp"}) })
	t.Run("TCP", func(t *testing.T) { runLiveKit(t, "relay", map[string]any{"transport": "tcp", "dual": true}) })
}

func TestLiveKitEncrypted(t *testing.T) {
	runLiveKit(t, "e2ee", map[string]any{"codec": "vp8"})
}

func TestLiveKitManyPublishers(t *testing.T) {
	runLiveKit(t, "crowd", nil)
}

func TestLiveKitRefused(t *testing.T) {
	runLiveKit(t, "refused", nil)
}

// The scenarios above prove something only if they can fail.
func TestLiveKitScenariosCanFail(t *testing.T) {
	t.Run("a camera that is off", func(t *testing.T) {
		_, err := harness.Start(t).Try(t, liveKit("muted", map[string]any{"patience": 4000}))
		if err == nil || !strings.Contains(err.Error(), "bob decodes the video of alice: did not happen") {
			t.Fatalf("decoding a camera that is off: got %v", err)
		}
	})
	t.Run("no server", func(t *testing.T) {
		s := harness.Start(t)
		s.Kill()
		_, err := s.Try(t, liveKit("call", map[string]any{"dual": false, "codec": "vp8"}))
		if err == nil || !strings.Contains(err.Error(), "alice connects") {
			t.Fatalf("a call without a server: got %v", err)
		}
	})
}
