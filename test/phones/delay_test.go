//go:build soak

package phones

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// onsets are the positions at which clicks begin.
func (s Sound) onsets() (at []time.Duration) {
	quiet := s.Rate / 10
	since := quiet
	for i, v := range s.Samples {
		if math.Abs(v) < 0.1 {
			since++
			continue
		}
		if since >= quiet {
			at = append(at, s.span(i))
		}
		since = 0
	}
	return at
}

// mouthToEar is how long clicks take from one phone's microphone to the other's
// ear, the median of a call. Both phones write down what they say and hear; how
// far the two records are at the same moment says how they belong together.
func mouthToEar(t *testing.T, from, to *Phone) time.Duration {
	t.Helper()
	size := func(p *Phone, which string) float64 {
		files, _ := filepath.Glob(filepath.Join(p.dir, "dump-*-"+which+".wav"))
		if len(files) == 0 {
			return 0
		}
		info, err := os.Stat(slices.Max(files))
		if err != nil {
			return 0
		}
		return float64(info.Size()-44) / 2
	}
	time.Sleep(2 * time.Second)
	var apart []float64 // samples at 8 kHz
	for range 500 {
		apart = append(apart, size(from, "enc")-size(to, "dec"))
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(apart)
	said, err := from.Said()
	if err != nil {
		t.Fatal(err)
	}
	heard, err := to.Heard()
	if err != nil {
		t.Fatal(err)
	}
	shift := time.Duration(apart[len(apart)/2] / float64(said.Rate) * float64(time.Second))
	var took []time.Duration
	spoken := said.onsets()
	for _, at := range heard.onsets() {
		best := time.Hour
		for _, from := range spoken {
			if d := at - from + shift; d > -100*time.Millisecond && d < best {
				best = d
			}
		}
		took = append(took, best)
	}
	if len(took) < 15 {
		t.Fatalf("only %d clicks were heard of %d", len(took), len(spoken))
	}
	slices.Sort(took)
	t.Logf("%d clicks, %s to %s", len(took), took[0], took[len(took)-1])
	return took[len(took)/2]
}

// TestAddedDelay prints what the gateway adds to the way from one telephone to
// another: with it, less without it.
func TestAddedDelay(t *testing.T) {
	clicks := Clicks(500*time.Millisecond, long)
	a := StartPhone(t, PhoneOptions{Name: "a", Says: clicks})
	b := StartPhone(t, PhoneOptions{Name: "b"})
	a.Dial(b.Address())
	a.Must("CALL_ESTABLISHED")
	direct := mouthToEar(t, a, b)
	a.Hangup()

	g := StartGateway(t, GatewayOptions{})
	number, room := g.Room()
	c := StartPhone(t, PhoneOptions{Name: "c", User: "+493055500020", Says: clicks})
	d := StartPhone(t, PhoneOptions{Name: "d", User: "+493055500021"})
	d.Dial(g.URI(number))
	c.Dial(g.URI(number))
	g.Phones(t, room, 2)
	through := mouthToEar(t, c, d)
	t.Logf("from mouth to ear %s directly, %s through the gateway: %s added", direct, through, through-direct)
}
