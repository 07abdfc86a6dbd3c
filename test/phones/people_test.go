package phones

import (
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
	for _, x := range []struct {
		*Person
		who string
		hz  float64
	}{{a, "", 890}, {b, "alice", 523}, {c, "bob", 890}} {
		eventually(t, 30*time.Second, x.Name+" hears somebody", func() error {
			heard, err := x.Listen(x.who, time.Second)
			if err != nil {
				return err
			}
			return heard.HasTone(x.hz)
		})
		heard, err := x.Listen(x.who, 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := heard.HasTone(x.hz); err != nil {
			t.Errorf("%s: %v", x.Name, err)
		}
		if heard.HasTone(x.hz*1.1) == nil {
			t.Errorf("%s hears a tone that nobody says", x.Name)
		}
	}
	heard, err := c.Listen("", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := heard.HasTones([]float64{523, 890}, []float64{1480, 440}); err != nil {
		t.Errorf("carol: %v", err)
	}
}
