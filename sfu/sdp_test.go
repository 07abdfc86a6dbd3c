package sfu

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/pion/webrtc/v4"

	"github.com/trunkhall/trunkhall/call"
)

// FuzzDescription feeds clients' descriptions to the intake: whatever comes,
// it must be refused with call.ErrInvalid or understood, never panic.
func FuzzDescription(f *testing.F) {
	addDescriptions(f)
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

func addDescriptions(f *testing.F) {
	files, err := filepath.Glob("testdata/*.sdp")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
}

// mutate changes a few bytes: overwrites, cuts and copies.
func mutate(rng *rand.Rand, in []byte) string {
	b := slices.Clone(in)
	for range 1 + rng.IntN(3) {
		at := rng.IntN(len(b))
		switch rng.IntN(3) {
		case 0:
			b[at] = byte(rng.IntN(128))
		case 1:
			b = slices.Delete(b, at, min(len(b), at+rng.IntN(20)))
		case 2:
			from := rng.IntN(len(b))
			b = slices.Insert(b, at, slices.Clone(b[from:min(len(b), from+rng.IntN(40))])...)
		}
	}
	return string(b)
}

// TestMutatedDescriptions gives damaged descriptions that pass the intake to a
// connection: it may refuse them, but neither panic nor hang. (Coverage-guided
// fuzzing gets nowhere here: pion's goroutines make every run look new.)
func TestMutatedDescriptions(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var seeds [][]byte
	for _, name := range []string{"testdata/pion-subscribing.sdp", "testdata/chromium-publishing.sdp"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	passed := 0
	for i := range 600 {
		text := mutate(rng, seeds[min(i%4, 1)])
		sections, err := parseDescription(text)
		if err != nil || len(sections) > 40 {
			continue
		}
		passed++
		done := make(chan struct{})
		go func() { defer close(done); negotiate(t, text) }()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatalf("negotiation hangs on:\n%s", text)
		}
	}
	if passed < 50 {
		t.Errorf("only %d damaged descriptions passed the intake: the test tests nothing", passed)
	}
}

func negotiate(t *testing.T, text string) {
	engine, err := newMediaEngine(receives | sends)
	if err != nil {
		t.Error(err)
		return
	}
	se := webrtc.SettingEngine{LoggerFactory: pionLogger{discardLogger(), "test"}}
	se.SetLite(true)
	se.SetIPFilter(func(net.IP) bool { return false })
	se.DisableMediaEngineCopy(true)
	pc, err := webrtc.NewAPI(webrtc.WithMediaEngine(engine), webrtc.WithSettingEngine(se)).NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = pc.GracefulClose() }()
	if pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: text}) != nil {
		return
	}
	answer, err := pc.CreateAnswer(nil)
	if err != nil || pc.SetLocalDescription(answer) != nil {
		return
	}
	if _, err := styleAnswer(answer.SDP, nil); err != nil {
		t.Errorf("our own answer can not be read: %v", err)
	}
}
