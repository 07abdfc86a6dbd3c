package media

import (
	"log/slog"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/trunkhall/trunkhall/audio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	home   = netip.MustParseAddr("127.0.0.1")
	nearby = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
)

// ports hands each pool of a test its own range, so that to one another they are
// strangers on the same machine.
var ports atomic.Uint32

func newPool(t testing.TB) *Pool {
	t.Helper()
	from := uint16(21000 + 40*(ports.Add(1)%280))
	p, err := NewPool(Config{BindIP: home, PortMin: from, PortMax: from + 39, Drain: 30 * time.Second}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// heard collects events.
type heard struct {
	mu      sync.Mutex
	digits  string
	how     string
	timeout string
	media   int
}

func (h *heard) events() Events {
	return Events{
		Digit:   func(d byte, how string) { h.mu.Lock(); h.digits += string(d); h.how = how; h.mu.Unlock() },
		Timeout: func(why string) { h.mu.Lock(); h.timeout += why; h.mu.Unlock() },
		Media:   func() { h.mu.Lock(); h.media++; h.mu.Unlock() },
	}
}

func (h *heard) get() (digits, how, timeout string, media int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.digits, h.how, h.timeout, h.media
}

func open(t testing.TB, p *Pool, o Options) *Session {
	t.Helper()
	if o.Sources == nil {
		o.Sources = nearby
	}
	s, err := p.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// connect lets a call b, each in a pool of its own.
func connect(t testing.TB, a, b *Session) {
	t.Helper()
	offer, err := a.Offer()
	if err != nil {
		t.Fatal(err)
	}
	answer, err := b.Answer(offer)
	if err != nil {
		t.Fatalf("%v\n%s", err, offer)
	}
	if err := a.Accept(answer, true); err != nil {
		t.Fatalf("%v\n%s", err, answer)
	}
	b.Start()
}

// until waits for something that happens on its own.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("waited in vain: %s", what)
}

// talk exchanges frames for a while and returns which share of what each hears is the
// other's tone.
func talk(t *testing.T, a, b *Session, frames int) (atA, atB float64) {
	t.Helper()
	toneA := audio.NewPlayer(audio.Tone{Hz: [2]float64{1000}, Level: -16, On: time.Second}, a.Rate())
	toneB := audio.NewPlayer(audio.Tone{Hz: [2]float64{440}, Level: -16, On: time.Second}, b.Rate())
	in, out := make([]int16, 320), make([]int16, 320)
	var fromA, fromB []int16
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range frames {
		now := <-tick.C
		for _, x := range []struct {
			s    *Session
			tone *audio.Player
			to   *[]int16
		}{{a, toneA, &fromB}, {b, toneB, &fromA}} {
			n := audio.FrameSamples(x.s.Rate())
			x.tone.Fill(out[:n])
			if err := x.s.Write(out[:n]); err != nil {
				t.Fatal(err)
			}
			x.s.Read(now, in[:n])
			*x.to = append(*x.to, in[:n]...)
		}
	}
	return share(fromB, 440, a.Rate()), share(fromA, 1000, b.Rate())
}

// share is the part of the energy that is at hz, in the best tenth of a second: a busy
// machine misses ticks.
func share(pcm []int16, hz float64, rate int) (best float64) {
	for n := rate / 10; len(pcm) >= n; pcm = pcm[n:] {
		var re, im, all float64
		for i, x := range pcm[:n] {
			v, w := float64(x), 2*math.Pi*hz*float64(i)/float64(rate)
			re, im, all = re+v*math.Cos(w), im+v*math.Sin(w), all+v*v
		}
		if all > 1e4*float64(n) { // louder than -50 dBov
			best = max(best, 2*(re*re+im*im)/float64(n)/all)
		}
	}
	return best
}

// keyed says whether a session can decrypt.
func keyed(s *Session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.in.open != nil && s.in.openRTCP != nil
}

func TestTwoSessionsTalk(t *testing.T) {
	for _, tt := range []struct {
		name   string
		a, b   Options
		codec  audio.Codec
		keying string
	}{
		{"PCMU", Options{Codecs: []audio.Codec{audio.PCMU, audio.PCMA}}, Options{}, audio.PCMU, ""},
		{"PCMA", Options{Codecs: []audio.Codec{audio.PCMA}}, Options{}, audio.PCMA, ""},
		{"G.722", Options{Codecs: []audio.Codec{audio.G722, audio.PCMU}}, Options{Codecs: []audio.Codec{audio.G722}}, audio.G722, ""},
		{"Opus", Options{Codecs: []audio.Codec{audio.Opus, audio.PCMU}}, Options{Codecs: []audio.Codec{audio.Opus}}, audio.Opus, ""},
		{"SDES demanded", Options{SRTP: SRTPRequire}, Options{SRTP: SRTPOptional}, audio.PCMU, KeyingSDES},
		{"SDES by chance", Options{SRTP: SRTPOptional}, Options{SRTP: SRTPOptional}, audio.PCMU, KeyingSDES},
		{"SDES offered to one who has none", Options{SRTP: SRTPOptional}, Options{}, audio.PCMU, ""},
		{"DTLS demanded", Options{SRTP: SRTPRequire, Keying: KeyingDTLS}, Options{SRTP: SRTPRequire}, audio.PCMU, KeyingDTLS},
		{"DTLS by chance", Options{SRTP: SRTPOptional, Keying: KeyingDTLS}, Options{SRTP: SRTPOptional}, audio.PCMU, KeyingDTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := open(t, newPool(t), tt.a), open(t, newPool(t), tt.b)
			connect(t, a, b)
			if tt.keying == KeyingDTLS {
				until(t, "DTLS keys", func() bool { return keyed(a) && keyed(b) })
			}
			atA, atB := talk(t, a, b, 30)
			if a.Codec() != tt.codec || b.Codec() != tt.codec || a.SRTP() != tt.keying || b.SRTP() != tt.keying {
				t.Errorf("codecs %s and %s, encryption %q and %q", a.Codec(), b.Codec(), a.SRTP(), b.SRTP())
			}
			if atA < 0.8 || atB < 0.8 {
				t.Errorf("of what is heard %.2f and %.2f are the other's tone", atA, atB)
			}
			if st := a.Stats(); st.Packets < 25 || st.Strangers != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}
