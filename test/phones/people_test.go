package phones

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

var people struct {
	sync.Once
	*People
	dir string
	err error
}

// everybody starts the browsers of the package, once.
func everybody(t *testing.T) *People {
	t.Helper()
	people.Do(func() {
		if people.dir, people.err = os.MkdirTemp("", "phones-"); people.err == nil {
			people.People, people.err = startPeople(people.dir)
		}
	})
	if people.err != nil {
		t.Fatal(people.err)
	}
	return people.People
}

func TestMain(m *testing.M) {
	// What runs in parallel here mostly waits: for timers, for the other side.
	flag.Parse()
	parallel := flag.Lookup("test.parallel")
	if parallel.Value.String() == parallel.DefValue {
		_ = flag.Set("test.parallel", "12")
	}
	code := m.Run()
	if people.People != nil {
		people.stop()
	}
	if people.dir != "" {
		os.RemoveAll(people.dir)
	}
	os.Exit(code)
}

// What the browsers say: no tone is a harmonic of another.
var (
	alice  = Tone(523, 4*time.Second)
	bob    = Tone(890, 4*time.Second)
	speech = Speech(7, 12*time.Second)
)

// The harness itself: what is recorded in a browser is what another one says.
func TestTwoPeopleWithoutPhone(t *testing.T) {
	s := harness.Start(t)
	p := everybody(t)
	p.Launch(t, "alice", alice)
	p.Launch(t, "bob", bob)
	room := fmt.Sprintf("room-%d", time.Now().UnixNano())
	a := p.Join(t, s, "alice", "alice", room, true)
	b := p.Join(t, s, "bob", "bob", room, true)
	c := p.Join(t, s, "bob", "carol", room, false)
	var wait sync.WaitGroup
	for _, x := range []struct {
		*Person
		who string
		hz  float64
	}{{a, "", 890}, {b, "alice", 523}, {c, "bob", 890}} {
		wait.Go(func() {
			hears(t, x.Name+" hears somebody", x.hz, x.listenTo(x.who))
			misses(t, x.Name+" hears nothing that nobody says", x.hz*1.1, x.listenTo(x.who))
		})
	}
	wait.Wait()
	hearsAll(t, "carol hears both", []float64{523, 890}, []float64{1480, 440}, c.listenTo(""))
}
