package sfu

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/trunkhall/trunkhall/call"
)

// FuzzDescription feeds clients' descriptions to the intake: whatever comes,
// it must be refused with call.ErrInvalid or understood, never panic.
func FuzzDescription(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.sdp")
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n" +
		"a=fingerprint:sha-256 AA:BB\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:0\r\na=rtpmap:111 opus/48000/2\r\na=recvonly\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		sections, err := parseDescription(text)
		if err != nil {
			if !errors.Is(err, call.ErrInvalid) {
				t.Errorf("error of another kind: %v", err)
			}
			return
		}
		if len(sections) == 0 {
			t.Error("a description without media sections was accepted")
		}
		_, _ = styleAnswer(text, map[string]answerStyle{sections[0].mid: {idle: true, dtx: true, stereo: true}})
	})
}
