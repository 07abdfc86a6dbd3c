package audio

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/pion/rtp"
)

// link is a network with a seed: it says when each packet arrives, or that it does not.
type link struct {
	loss, duplicate float64
	jitter          time.Duration // uniform
	seed            uint64
}

// A call is what a sender sends, by arrival, and what the listener's ticks made of it.
type sent struct {
	at time.Duration
	p  rtp.Packet
}

func (l link) carry(packets []sent) []sent {
	rnd := rand.New(rand.NewPCG(l.seed, 7))
	var out []sent
	for _, s := range packets {
		if rnd.Float64() < l.loss {
			continue
		}
		base := s.at
		s.at += time.Duration(rnd.Float64() * float64(l.jitter))
		out = append(out, s)
		if rnd.Float64() < l.duplicate {
			s.at = base + time.Duration(rnd.Float64()*float64(l.jitter))
			out = append(out, s)
		}
	}
	slices.SortStableFunc(out, func(a, b sent) int { return int(a.at - b.at) })
	return out
}

// packets cuts pcm into PCMU packets of 20 ms that begin just before both counters wrap.
func packets(pcm []int16) []sent {
	var out []sent
	for i := 0; (i+1)*160 <= len(pcm); i++ {
		payload := make([]byte, 160)
		_, _ = ULaw{}.Encode(pcm[i*160:(i+1)*160], payload)
		out = append(out, sent{time.Duration(i) * FrameDuration, rtp.Packet{
			Header:  rtp.Header{Version: 2, SSRC: 1, SequenceNumber: uint16(65500 + i), Timestamp: uint32(4294960000 + i*160)},
			Payload: payload,
		}})
	}
	return out
}

var epoch = time.Unix(1000, 0)

func play(t testing.TB, arrivals []sent, length time.Duration) (pcm []int16, r *Receiver) {
	t.Helper()
	r, err := NewReceiver(DefaultReceiverConfig(PCMU, 0, 101))
	if err != nil {
		t.Fatal(err)
	}
	frame := make([]int16, 160)
	for now := 3 * time.Millisecond; now < length; now += FrameDuration {
		for len(arrivals) > 0 && arrivals[0].at <= now {
			r.Push(&arrivals[0].p, epoch.Add(arrivals[0].at))
			arrivals = arrivals[1:]
		}
		r.Pull(epoch.Add(now), frame)
		pcm = append(pcm, frame...)
	}
	return pcm, r
}

func TestCleanLinkPlaysEverything(t *testing.T) {
	in := speech(8000, 80000, 11)
	out, r := play(t, packets(in), 10*time.Second)
	stats := r.Stats(epoch.Add(10 * time.Second))
	if stats.Lost != 0 || stats.Late != 0 || stats.Concealed != 0 || stats.Duplicate != 0 {
		t.Errorf("on a perfect link: %+v", stats)
	}
	// 40 ms is the least delay; the tick adds up to 20.
	delay := 0
	for delay = 320; delay <= 800; delay += 160 {
		if _, snr := fit(in[8000:60000], out[8000+delay:60000+delay]); snr > 30 {
			break
		}
	}
	t.Logf("delay %d ms", delay/8)
	if delay > 480 {
		t.Errorf("delay on a perfect link is over 60 ms")
	}
}

func TestLossJitterAndDuplicates(t *testing.T) {
	const seconds = 30
	in := speech(8000, 8000*seconds, 12)
	for _, l := range []link{
		{loss: 0.02, jitter: 30 * time.Millisecond, seed: 1},
		{loss: 0.05, jitter: 80 * time.Millisecond, duplicate: 0.05, seed: 2},
		{loss: 0.30, jitter: 120 * time.Millisecond, duplicate: 0.05, seed: 3},
	} {
		arrivals := l.carry(packets(in))
		out, r := play(t, arrivals, (seconds+1)*time.Second) // until the last has arrived
		s := r.Stats(epoch.Add(seconds * time.Second))
		ratio := envelopeMatch(in, out)
		t.Logf("seed %d, loss %.0f %%, jitter %v: %+v, envelope %.3f", l.seed, 100*l.loss, l.jitter, s, ratio)
		sentCount := int64(len(in) / 160)
		lost := float64(s.Lost) / float64(sentCount)
		if lost < l.loss*0.7 || lost > l.loss*1.3+0.01 {
			t.Errorf("seed %d: loss measured %.3f, was %.3f", l.seed, lost, l.loss)
		}
		if late := float64(s.Late) / float64(sentCount); late > 0.04 {
			t.Errorf("seed %d: %.1f %% too late", l.seed, 100*late)
		}
		if s.Target > l.jitter+30*time.Millisecond {
			t.Errorf("seed %d: target %v for a jitter of %v", l.seed, s.Target, l.jitter)
		}
		if want := 0.9 - l.loss; ratio < want {
			t.Errorf("seed %d: envelope correlation %.3f, want %.2f", l.seed, ratio, want)
		}
		if uint64(len(arrivals)) != s.Received+s.Duplicate {
			t.Errorf("seed %d: %d packets arrived, %d+%d counted", l.seed, len(arrivals), s.Received, s.Duplicate)
		}
	}
}

// envelopeMatch returns the best correlation of the 20 ms energies within 400 ms.
func envelopeMatch(in, out []int16) float64 {
	envelope := func(pcm []int16) (e []float64) {
		for i := 0; i+160 <= len(pcm); i += 160 {
			e = append(e, rms(pcm[i:i+160]))
		}
		return e
	}
	a, b := envelope(in), envelope(out)
	best := 0.0
	for shift := range 20 {
		var sab, saa, sbb, sa, sb, n float64
		for i := 50; i+shift < len(b) && i < len(a); i++ {
			x, y := a[i], b[i+shift]
			sab, saa, sbb, sa, sb, n = sab+x*y, saa+x*x, sbb+y*y, sa+x, sb+y, n+1
		}
		v := (n*sab - sa*sb) * (n*sab - sa*sb) / ((n*saa - sa*sa) * (n*sbb - sb*sb))
		best = max(best, v)
	}
	return best
}

func TestStreamsChange(t *testing.T) {
	in := sine(8000, 440, 0.3, 80000)
	for _, c := range []struct {
		name     string
		change   func(i int, s *sent)
		restarts uint64
	}{
		{"a new SSRC", func(i int, s *sent) { s.p.SSRC = 9 }, 1},
		{"a timestamp that jumps ahead", func(i int, s *sent) { s.p.Timestamp += 1 << 30 }, 1},
		{"a timestamp that jumps back", func(i int, s *sent) { s.p.Timestamp -= 100000 }, 1},
		{"a sequence number that jumps", func(i int, s *sent) { s.p.SequenceNumber += 1 << 15 }, 1},
		{"a blackout of three seconds", func(i int, s *sent) { s.at += 3 * time.Second; s.p.Timestamp += 24000 }, 0},
		{"three seconds held up and delivered at once", func(i int, s *sent) { s.at = max(s.at, 8*time.Second) }, 1},
		{"silence without comfort noise", func(i int, s *sent) {
			s.at += 900 * time.Millisecond
			s.p.Timestamp += 7200
			s.p.Marker = true
		}, 0},
	} {
		all := packets(in)
		for i := 250; i < len(all); i++ {
			c.change(i, &all[i])
		}
		out, r := play(t, all, 13*time.Second)
		s := r.Stats(epoch.Add(13 * time.Second))
		end := out[8000*9 : 8000*95/10]
		amplitude, _ := tonePart(end, 8000, 440)
		t.Logf("%s: %+v", c.name, s)
		if amplitude < 0.27 || s.Restarts != c.restarts {
			t.Errorf("%s: after it the tone is heard with %.2f of 0.3; %d restarts", c.name, amplitude, s.Restarts)
		}
	}
}

func TestDelayFollowsTheLinkBothWays(t *testing.T) {
	in := speech(8000, 8000*60, 13)
	all := packets(in)
	bad := link{jitter: 150 * time.Millisecond, seed: 4}.carry(all[:1000])
	out := append(bad, all[1008:]...)
	_, r := play(t, slices.Clone(out), 20*time.Second)
	during := r.Stats(epoch.Add(20 * time.Second)).Target
	_, r = play(t, out, 59*time.Second)
	after := r.Stats(epoch.Add(59 * time.Second))
	t.Logf("target %v with jitter, %+v without", during, after)
	if during < 120*time.Millisecond || after.Target > 60*time.Millisecond || after.Delay > 100*time.Millisecond {
		t.Errorf("target %v with 150 ms of jitter; later %v, delay %v", during, after.Target, after.Delay)
	}
}

func TestComfortNoiseFillsPauses(t *testing.T) {
	all := packets(sine(8000, 440, 0.3, 16000))
	var arrivals []sent
	for i, s := range all {
		switch {
		case i == 40:
			s.p.PayloadType, s.p.Payload = ComfortNoiseType, []byte{50}
		case i > 40 && i < 70:
			continue // silence suppression: sequence numbers do not go on
		}
		if i >= 70 {
			s.p.SequenceNumber -= 29
		}
		arrivals = append(arrivals, s)
	}
	out, r := play(t, arrivals, 2*time.Second)
	s := r.Stats(epoch.Add(2 * time.Second))
	if s.Lost != 0 || s.Concealed > 20*time.Millisecond {
		t.Errorf("a pause counts as loss: %+v", s)
	}
	if level := Level(out[8000:10000]); level < 48 || level > 52 {
		t.Errorf("noise of -50 dBov was asked for, -%d is heard", level)
	}
	if amplitude, _ := tonePart(out[12800:14400], 8000, 440); amplitude < 0.27 {
		t.Errorf("after the pause the tone has %.2f of 0.3", amplitude)
	}
}

func TestClocksThatDrift(t *testing.T) {
	for _, ppm := range []float64{-500, 500} {
		all := packets(speech(8000, 8000*120, 14))
		for i := range all {
			all[i].at = time.Duration(float64(all[i].at) * (1 + ppm/1e6))
		}
		_, r := play(t, all, 119*time.Second)
		s := r.Stats(epoch.Add(119 * time.Second))
		t.Logf("%+.0f ppm: %+v", ppm, s)
		if s.Delay > 90*time.Millisecond || s.Concealed > 200*time.Millisecond || s.Late > 5 {
			t.Errorf("with a clock %+.0f ppm off: %+v", ppm, s)
		}
	}
}

func TestConcealmentHasNoGapAndNoClick(t *testing.T) {
	in := sine(8000, 200, 0.3, 16000)
	c := NewConcealment(8000)
	var out []int16
	for i := 0; i < len(in); i += 160 {
		frame := slices.Clone(in[i : i+160])
		if i/160%10 == 9 {
			c.Lost(frame)
		} else {
			c.Received(frame)
		}
		out = append(out, frame...)
	}
	for i := 161; i < len(out); i++ {
		if d := int(out[i]) - int(out[i-1]); d > 3000 || d < -3000 { // the tone's own is 1544
			t.Fatalf("a click of %d at sample %d", d, i)
		}
	}
	if _, snr := fit(in, out); snr < 12 {
		t.Errorf("with 10 %% loss a tone keeps %.1f dB", snr)
	}
	frame := make([]int16, 800)
	c.Lost(frame)
	if level := Level(frame[560:]); level < 50 {
		t.Errorf("70 ms after the last sound it is -%d dBov loud", level)
	}
}

func TestJitterDoesNotAllocate(t *testing.T) {
	r, _ := NewReceiver(DefaultReceiverConfig(PCMU, 0, 101))
	p := &rtp.Packet{Payload: make([]byte, 160)}
	frame, now := make([]int16, 160), epoch
	if n := testing.AllocsPerRun(200, func() {
		p.SequenceNumber++
		p.Timestamp += 160
		now = now.Add(FrameDuration)
		r.Push(p, now)
		r.Pull(now, frame)
	}); n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func FuzzReceiver(f *testing.F) {
	f.Add([]byte{0x80, 0, 0, 1, 0, 0, 0, 160, 0, 0, 0, 1, 0xff, 0xff})
	f.Add([]byte{0x80, 13, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 40})
	f.Add([]byte{0x80, 101, 0x80, 0, 0x80, 0, 0, 0, 0, 0, 0, 2, 1, 0x80, 0, 160})
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, codec := range []Codec{PCMU, Opus} {
			r, err := NewReceiver(DefaultReceiverConfig(codec, 0, 101))
			if err != nil {
				t.Fatal(err)
			}
			frame, now, rest := make([]int16, FrameSamples(codec.Rate())), epoch, raw
			for len(rest) > 0 {
				n := min(len(rest), 20)
				var p rtp.Packet
				if p.Unmarshal(rest[:n]) == nil {
					p.PayloadType &= 0x6d // mostly what the receiver knows
					r.Push(&p, now)
				}
				now = now.Add(time.Duration(rest[0]) * time.Millisecond / 4)
				r.Pull(now, frame)
				rest = rest[n:]
			}
			if s := r.Stats(now); s.Delay > 5*time.Second || s.Target > 200*time.Millisecond || s.Lost < 0 {
				t.Fatalf("%s: %+v", codec, s)
			}
		}
	})
}

func BenchmarkReceiver(b *testing.B) {
	r, _ := NewReceiver(DefaultReceiverConfig(PCMU, 0, 101))
	p := &rtp.Packet{Payload: make([]byte, 160)}
	frame, now := make([]int16, 160), epoch
	b.ReportAllocs()
	for b.Loop() {
		p.SequenceNumber++
		p.Timestamp += 160
		now = now.Add(FrameDuration)
		r.Push(p, now)
		r.Pull(now, frame)
	}
}
