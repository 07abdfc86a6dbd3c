package bridge

import (
	"context"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"

	"github.com/trunkhall/trunkhall/audio"
	"github.com/trunkhall/trunkhall/audio/opus"
	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sfu"
)

// A desk is a bridge whose frames the test makes itself, in its own time, with
// people at other taps of the room instead of browsers.
type desk struct {
	t      testing.TB
	all    *Bridges
	room   *sfu.Room
	bridge *bridge
	time   time.Time
	people []*colleague
}

// A colleague is a member of the room that says a tone and hears the phones.
type colleague struct {
	desk   *desk
	track  *sfu.LocalTrack
	enc    *opus.Encoder
	tone   tone
	level  uint8
	drop   func(frame int) bool
	frame  int
	rate   int
	double bool // two frames in a packet
	first  []byte
	pcm    []int16
	out    []byte

	mu    sync.Mutex
	heard []rtp.Packet
	loud  []uint8
	log   []sfu.Event
}

func newDesk(t testing.TB) *desk {
	srv, all := start(t)
	room := srv.OpenRoom("desk", sfu.RoomOptions{})
	d := &desk{t: t, all: all, room: room, time: time.Now(), bridge: newBridge(all, room)}
	d.bridge.now = func() time.Time { return d.time }
	return d
}

func (d *desk) phone(rate int, hz float64) *phoneTest {
	d.t.Helper()
	seat := testSeat("desk", call.Identity("phone"+string(rune('A'+len(d.bridge.phones)))))
	p := &phoneTest{handset: &handset{rate: rate, tone: tone{hz: hz, amplitude: 9000}}}
	d.bridge.seats++
	p.Phone = newPhone(d.bridge, seat, PhoneOptions{Sound: p.handset})
	var err error
	p.Phone.member, _, err = d.room.JoinLocal(context.Background(), sfu.LocalParams{Grant: seat.Grant, Session: p.Phone, Tap: d.bridge})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := p.publish(); err != nil {
		d.t.Fatal(err)
	}
	d.bridge.add(p.Phone)
	return p
}

// colleague joins somebody who says a tone, if hz is not 0, at a level of dBov.
func (d *desk) colleague(hz float64, config opus.Config) *colleague {
	d.t.Helper()
	c := &colleague{desk: d, tone: tone{hz: hz, amplitude: 9000}, level: 20, rate: config.Rate, pcm: make([]int16, config.Rate/50), out: make([]byte, opus.MaxPayload)}
	id := call.Identity("colleague" + string(rune('A'+len(d.people))))
	m, _, err := d.room.JoinLocal(context.Background(), sfu.LocalParams{
		Grant: testSeat("desk", id).Grant, Session: c, Tap: c,
	})
	if err != nil {
		d.t.Fatal(err)
	}
	if hz > 0 {
		if c.track, err = m.PublishLocal(sfu.AddTrack{Kind: sfu.KindAudio, Source: call.SourceMicrophone}); err != nil {
			d.t.Fatal(err)
		}
		if c.enc, err = opus.NewEncoder(config); err != nil {
			d.t.Fatal(err)
		}
	}
	d.people = append(d.people, c)
	return c
}

var browserOpus = opus.Config{Rate: 48000, Bitrate: 24000}

func (c *colleague) Event(e sfu.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.log = append(c.log, e)
}

func (c *colleague) saw(f func(sfu.Event) bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.log, f)
}

func (c *colleague) Open(t sfu.TapTrack) sfu.Sink { return c }
func (c *colleague) Close()                       {}

func (c *colleague) WriteRTP(p *rtp.Packet, level uint8, _ bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.heard) < 1000 {
		c.heard, c.loud = append(c.heard, *p.Clone()), append(c.loud, level)
	}
}

// speak sends the next frame of c's tone.
func (c *colleague) speak() {
	if c.track == nil {
		return
	}
	c.tone.fill(c.pcm, c.rate)
	n, err := c.enc.Encode(c.pcm, c.out)
	if err != nil {
		c.desk.t.Fatal(err)
	}
	if c.double {
		// RFC 6716 §3.2.4: two frames of their own lengths in a packet of code 2.
		if c.frame++; c.frame%2 == 1 {
			c.first = append(c.first[:0], c.out[:n]...)
			return
		}
		if c.first[0] != c.out[0] {
			c.desk.t.Fatal("the encoder changed its mode between two frames")
		}
		size := len(c.first) - 1
		packet := []byte{c.first[0] | 2, byte(size)}
		if size >= 252 {
			packet = []byte{c.first[0] | 2, byte(252 + size%4), byte((size - 252 - size%4) / 4)}
		}
		packet = append(append(packet, c.first[1:]...), c.out[1:n]...)
		c.track.Write(packet, uint32((c.frame-2)*960), c.frame == 2, c.level, true)
		return
	}
	if c.drop != nil && c.drop(c.frame) {
		c.track.Skip(1)
	} else {
		c.track.Write(c.out[:n], uint32(c.frame*960), c.frame == 0, c.level, true)
	}
	c.frame++
}

// run makes frames for that long.
func (d *desk) run(length time.Duration) {
	for range int(length / audio.FrameDuration) {
		d.step()
	}
}

func (d *desk) step() {
	d.time = d.time.Add(audio.FrameDuration)
	for _, c := range d.people {
		c.speak()
	}
	d.bridge.frame++
	d.bridge.tick(d.time.Add(2 * time.Millisecond))
}

func TestTickAllocatesNothing(t *testing.T) {
	d := newDesk(t)
	d.colleague(1000, browserOpus)
	d.colleague(1300, browserOpus)
	phones := []*phoneTest{d.phone(8000, 440), d.phone(16000, 520), d.phone(8000, 620)}
	d.run(time.Second)
	for _, p := range phones {
		p.heard = make([]int16, 0, 1<<20)
	}
	for _, c := range d.people {
		c.heard, c.loud = make([]rtp.Packet, 1000), nil
	}
	encoded := phones[0].Stats().Encoded
	// The encoder of the colleagues is measured with it; it allocates now and then.
	if n := testing.AllocsPerRun(300, d.step); n > 2 {
		t.Errorf("%v allocations for a frame", n)
	}
	if phones[0].Stats().Encoded < encoded+250 || phones[1].loud(1000) < 3000 {
		t.Error("nobody spoke or heard")
	}
}

func TestSilenceIsSentAsSuch(t *testing.T) {
	d := newDesk(t)
	ear := d.colleague(0, browserOpus)
	phone := d.phone(8000, 440)
	d.run(400 * time.Millisecond)
	phone.say(440, 0)
	d.run(2 * time.Second)
	phone.say(440, 9000)
	d.run(200 * time.Millisecond)

	var spurts, silent, sound int
	for i, p := range ear.heard {
		if p.Marker {
			spurts++
		}
		if len(p.Payload) <= 2 {
			silent++
			if ear.loud[i]&0x80 != 0 {
				t.Errorf("packet %d is silence with a voice", i)
			}
			if audio.Opus.Ticks(p.Payload) != 960 {
				t.Errorf("silence of %d ticks", audio.Opus.Ticks(p.Payload))
			}
		} else {
			sound++
		}
		if i > 0 {
			if p.SequenceNumber != ear.heard[i-1].SequenceNumber+1 {
				t.Errorf("packet %d: a gap in the sequence", i)
			}
			if step := p.Timestamp - ear.heard[i-1].Timestamp; step%960 != 0 || step > 21*960 {
				t.Errorf("packet %d: %d ticks after the last", i, step)
			}
		}
	}
	if spurts != 2 || silent < 3 || silent > 6 || sound > 60 || sound < 40 {
		t.Errorf("%d talk spurts, %d packets of silence, %d of sound", spurts, silent, sound)
	}
	if got := ear.loud[10]; got != 0x80|audio.Level(toneFrame(8000, 440, 9000)) {
		t.Errorf("the level is %d", got&0x7f)
	}
}

func toneFrame(rate int, hz, amplitude float64) []int16 {
	pcm := make([]int16, rate/50)
	(&tone{hz: hz, amplitude: amplitude}).fill(pcm, rate)
	return pcm
}

func TestOnlyTheLoudestAreDecoded(t *testing.T) {
	d := newDesk(t)
	for i := range 5 {
		c := d.colleague(float64(600+i*300), browserOpus)
		c.level = uint8(30 + 3*i)
	}
	phone := d.phone(8000, 440)
	d.run(500 * time.Millisecond)
	chosen := func() (n []int) {
		for i, s := range d.bridge.speakers {
			if s.chosen {
				n = append(n, int(slices.IndexFunc(d.people, func(c *colleague) bool { return c.track.SID() == s.sid })))
			}
			_ = i
		}
		slices.Sort(n)
		return n
	}
	if got := chosen(); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("decoded are %v", got)
	}
	if phone.loud(1200) < 2000 || phone.loud(1500) > 200 {
		t.Errorf("the third is heard at %.0f, the fourth at %.0f", phone.loud(1200), phone.loud(1500))
	}
	d.people[3].level = 33 // louder than the third, but not by enough
	d.run(300 * time.Millisecond)
	if got := chosen(); !slices.Equal(got, []int{0, 1, 2}) {
		t.Errorf("a little louder is enough: %v", got)
	}
	d.people[4].level = 20
	d.run(60 * time.Millisecond)
	if got := chosen(); !slices.Equal(got, []int{0, 1, 4}) {
		t.Errorf("much louder is not enough: %v", got)
	}
	for _, c := range d.people {
		c.level = 127
	}
	d.run(time.Second)
	if got := chosen(); len(got) > 0 {
		t.Errorf("silent people are decoded: %v", got)
	}
}

func TestLossIsConcealed(t *testing.T) {
	for name, config := range map[string]opus.Config{
		"by guessing":               browserOpus,
		"by the copy in the packet": {Rate: 16000, Bitrate: 24000, Complexity: 3, LossPercent: 20},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDesk(t)
			c := d.colleague(1000, config)
			c.drop = func(frame int) bool { return frame%10 == 9 }
			phone := d.phone(8000, 440)
			phone.say(440, 0)
			d.run(500 * time.Millisecond)
			phone.handset.heard = nil
			d.run(2 * time.Second)
			for i := 0; i+320 <= len(phone.handset.heard); i += 160 {
				if level := audio.Level(phone.handset.heard[i : i+320]); level > 30 { // the tone has 14
					t.Errorf("at %d ms there is a gap: -%d dBov", i/8, level)
				}
			}
			if d.all.Stats().Concealed < 8 {
				t.Errorf("%d frames were concealed", d.all.Stats().Concealed)
			}
		})
	}
}

// TestDelay measures what the bridge adds to sound, from the packet of a browser to
// the telephone and back.
func TestDelay(t *testing.T) {
	d := newDesk(t)
	c := d.colleague(1000, browserOpus)
	c.tone.amplitude = 0
	c.level = 127
	phone := d.phone(8000, 440)
	phone.say(440, 0)
	d.run(time.Second)
	phone.handset.heard = nil
	c.tone.amplitude, c.level = 9000, 20
	d.run(200 * time.Millisecond)
	for i, x := range phone.handset.heard {
		if math.Abs(float64(x)) > 2000 {
			// The first sample of the frame that is sent in the first step has
			// been recorded 20 ms before.
			delay := time.Duration(i)*time.Second/8000 + 2*time.Millisecond
			t.Logf("from packet to telephone: %v", delay)
			if delay > 45*time.Millisecond {
				t.Errorf("the bridge adds %v", delay)
			}
			return
		}
	}
	t.Error("the phone hears nothing")
}

// TestClaimsAreChecked: who says that it is loud and is not does not silence others.
func TestClaimsAreChecked(t *testing.T) {
	d := newDesk(t)
	for range maxSpeakers {
		liar := d.colleague(500, browserOpus)
		liar.level, liar.tone.amplitude = 0, 0
	}
	honest := d.colleague(1000, browserOpus)
	honest.level = 14
	phone := d.phone(8000, 440)
	phone.say(440, 0)
	d.run(time.Second)
	if phone.loud(1000) > 100 {
		t.Error("the liars are not listened to at all: the test tests nothing")
	}
	d.run(3 * time.Second)
	if phone.loud(1000) < 5000 {
		t.Errorf("the honest one is heard at %.0f", phone.loud(1000))
	}
	d.run(6 * time.Second)
	if phone.loud(1000) < 5000 {
		t.Errorf("later the honest one is heard at %.0f", phone.loud(1000))
	}
}

func TestTrust(t *testing.T) {
	run := func(tr *trust, seconds int, frame func(n int)) {
		for n := range seconds * 50 {
			frame(n)
			tr.tick()
		}
	}
	honest := newTrust()
	said := make([]uint8, 3) // heard three frames after the claim
	run(&honest, 20, func(n int) {
		level := uint8(60)
		if n%97 > 90 { // short words that fall everywhere among the seconds
			level = 20
		}
		honest.claim(level)
		honest.hear(said[n%3] + 10)
		said[n%3] = level
		if honest.excess > 0 {
			t.Fatalf("frame %d: an honest speaker is held to be %d dB too loud", n, honest.excess)
		}
	})
	liar := newTrust()
	run(&liar, 3, func(int) { liar.claim(10); liar.hear(50) })
	if liar.excess != 40 {
		t.Errorf("the excess is %d", liar.excess)
	}
	run(&liar, 20, func(int) { liar.miss() })
	if liar.excess != 40 {
		t.Error("it is forgotten at once")
	}
	run(&liar, 20, func(int) { liar.miss() })
	if liar.excess != 0 {
		t.Error("it is never forgotten")
	}
}

// TestLongPackets: browsers may send two frames in a packet.
func TestLongPackets(t *testing.T) {
	d := newDesk(t)
	c := d.colleague(1000, browserOpus)
	c.double = true
	eight, sixteen := d.phone(8000, 440), d.phone(16000, 440)
	eight.say(440, 0)
	sixteen.say(440, 0)
	d.run(600 * time.Millisecond)
	eight.handset.heard, sixteen.handset.heard = nil, nil
	d.run(time.Second)
	for _, p := range []*phoneTest{eight, sixteen} {
		n := p.rate / 10
		for i := 0; i+n <= len(p.handset.heard); i += n {
			if s := strength(p.handset.heard[i:i+n], p.rate, 1000); s < 7000 {
				t.Errorf("at %d Hz after %d ms the tone is at %.0f", p.rate, i*1000/p.rate, s)
			}
		}
	}
	if n := d.all.Stats().Concealed; n > 0 {
		t.Errorf("%d frames were concealed", n)
	}
}

func TestGate(t *testing.T) {
	g := newGate()
	run := func(level uint8, frames int) (open int) {
		for range frames {
			if g.open(level) {
				open++
			}
		}
		return open
	}
	if n := run(20, 50); n != 50 {
		t.Errorf("speech passes for %d of 50 frames", n)
	}
	if n := run(127, 100); n != gateHang {
		t.Errorf("it stays open for %d frames", n)
	}
	if n := run(60, 200); n > gateHang+150 {
		t.Errorf("a hiss passes for %d frames", n)
	}
	run(60, 500)
	if n := run(60, 100); n != 0 {
		t.Errorf("a hiss that lasts passes for %d frames", n)
	}
	if n := run(50, 1); n != 1 {
		t.Error("a soft voice above the hiss does not pass")
	}
	run(127, 100)
	if n := run(40, 1000); n != 1000 {
		t.Errorf("music that lasts passes for %d of 1000 frames", n)
	}
}

// BenchmarkFrame is the cost of one frame for one phone in rooms of different kinds.
func BenchmarkFrame(b *testing.B) {
	for _, c := range []struct {
		name             string
		browsers, phones int
		talking          int // phones
		rate             int
	}{
		{"phone and browser", 1, 1, 1, 8000},
		{"wideband phone and browser", 1, 1, 1, 16000},
		{"two phones", 0, 2, 2, 8000},
		{"50 phones of whom 3 talk", 0, 50, 3, 8000},
		{"50 phones and 3 browsers", 3, 50, 0, 8000},
		{"10 phones of whom 3 talk and a browser", 1, 10, 3, 8000},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := newDesk(b)
			for i := range c.browsers {
				d.colleague(float64(700+i*100), browserOpus)
			}
			for i := range c.phones {
				p := d.phone(c.rate, 440)
				if i >= c.talking {
					p.say(440, 0)
				}
				p.handset.heard = nil
			}
			d.run(500 * time.Millisecond)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				d.time = d.time.Add(audio.FrameDuration)
				for _, c := range d.people {
					c.heard = c.heard[:0]
					c.loud = c.loud[:0]
					c.speak()
				}
				for _, p := range d.bridge.phones {
					p.sound.(*handset).heard = p.sound.(*handset).heard[:0]
				}
				d.bridge.frame++
				b.StartTimer()
				d.bridge.tick(d.time)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(c.phones), "us/phone")
		})
	}
}
