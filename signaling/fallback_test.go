package signaling

import (
	"strings"
	"testing"
)

func TestWithoutUDP(t *testing.T) {
	for candidate, want := range map[string]bool{
		"candidate:1 1 udp 2130706431 127.0.0.1 7882 typ host":                                  true,
		`{"candidate":"candidate:1 1 UDP 2130706431 127.0.0.1 7882 typ host","sdpMid":"0"}`:     true,
		"candidate:2 1 tcp 1671430143 127.0.0.1 7881 typ host tcptype passive":                  false,
		`{"candidate":"candidate:2 1 tcp 15 127.0.0.1 9 typ host tcptype active","sdpMid":"0"}`: false,
		endOfCandidates: false,
		"":              false,
		"candidate:1 1": false,
	} {
		if got := isUDP(candidate); got != want {
			t.Errorf("%s: UDP %v, want %v", candidate, got, want)
		}
	}
	const sdp = "v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=candidate:1 1 udp 2 127.0.0.1 7882 typ host\r\na=candidate:2 1 tcp 1 127.0.0.1 7881 typ host tcptype passive\r\na=end-of-candidates\r\n"
	got := withoutUDP(sdp)
	if strings.Contains(got, " udp ") || len(got) != len(sdp)-len("a=candidate:1 1 udp 2 127.0.0.1 7882 typ host\r\n") {
		t.Errorf("left over: %q", got)
	}
}
