//go:build !race

package media

import (
	"testing"
	"time"

	"github.com/pion/srtp/v3"

	"github.com/trunkhall/trunkhall/audio"
)

// The race detector empties pools at random, so this is measured without it: 'make
// test' runs it in a step of its own.

func TestNothingIsAllocatedPerPacket(t *testing.T) {
	for _, tt := range []struct {
		name string
		o    Options
		line []string
	}{
		{"PCMU", Options{}, []string{ulaw}},
		{"G.722", Options{}, []string{"m=audio 40000 RTP/AVP 9"}},
		{"SRTP", Options{SRTP: SRTPRequire}, []string{"m=audio 40000 RTP/SAVP 0", goodK}},
		{"SRTP by GCM", Options{SRTP: SRTPRequire}, []string{"m=audio 40000 RTP/SAVP 0", "a=crypto:1 AEAD_AES_128_GCM inline:WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubA=="}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := answered(t, tt.o, append([]string{here}, tt.line...)...)
			var seal *srtp.Context
			if tt.o.SRTP != "" {
				var err error
				if seal, err = s.plan.remote.context(); err != nil {
					t.Fatal(err)
				}
			}
			const packets = 400
			list := make([][]byte, packets)
			for i := range list {
				b := packet(1, uint16(i), s.plan.send[s.plan.codec])
				if seal != nil {
					var err error
					if b, err = seal.EncryptRTP(nil, b, nil); err != nil {
						t.Fatal(err)
					}
				}
				list[i] = b
			}
			pcm := make([]int16, audio.FrameSamples(s.Rate()))
			now, from, i := time.Now(), at("127.0.0.1:40000"), 0
			frame := func() {
				now = now.Add(20 * time.Millisecond)
				s.sort(list[i], from, now)
				s.Read(now, pcm)
				if err := s.Write(pcm); err != nil {
					t.Fatal(err)
				}
				i++
			}
			for range 100 {
				frame()
			}
			if n := testing.AllocsPerRun(200, frame); n > 0 {
				t.Errorf("%.0f allocations a frame", n)
			}
			if s.in.broken > 0 || s.in.track.received < 300 {
				t.Errorf("%d broken, %d received", s.in.broken, s.in.track.received)
			}
		})
	}
}
