package bench

import (
	"bufio"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScenariosCarrySound runs each scenario for a moment, server and telephones in one
// process: whether the bench measures what it says, not how fast it is. A few phones
// will do, and a busy machine or the race detector may lose most of what they send.
func TestScenariosCarrySound(t *testing.T) {
	full := scenarios
	t.Cleanup(func() { scenarios = full })
	scenarios = slices.Clone(full)
	for i := range scenarios {
		scenarios[i].phones = min(scenarios[i].phones, 4)
		scenarios[i].perRoom = min(scenarios[i].perRoom, 4)
	}
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			load := begin(t, func(in io.Reader, out io.Writer) error { return Load(sc.name, in, out) })
			server := begin(t, func(in io.Reader, out io.Writer) error { return ServeMedia(sc.name, in, out) })
			server.say(load.hear(nil))
			load.say(server.hear(nil))
			time.Sleep(500 * time.Millisecond)
			var before, after usage
			server.say("usage")
			server.hear(&before)
			load.say("count")
			time.Sleep(2 * time.Second)
			load.say("stop")
			var c counts
			load.hear(&c)
			server.say("usage")
			server.hear(&after)
			if c.Sent == 0 || c.Received < c.Sent/10 {
				t.Errorf("%d packets received, %d sent", c.Received, c.Sent)
			}
			if after.CPU <= before.CPU || after.Files < sc.phones || after.Problem != "" {
				t.Errorf("before %+v, after %+v", before, after)
			}
			if sc.clicks && !raceEnabled && (len(c.Delays) == 0 || middle(c.Delays) <= 0) {
				t.Errorf("delays %v", c.Delays)
			}
		})
	}
}

// A part is one side of a bench that runs in this process.
type part struct {
	t   *testing.T
	in  *io.PipeWriter
	out *bufio.Reader
}

func begin(t *testing.T, run func(io.Reader, io.Writer) error) part {
	in, toPart := io.Pipe()
	fromPart, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(in, out)
		out.CloseWithError(err)
		done <- err
	}()
	t.Cleanup(func() {
		toPart.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return part{t, toPart, bufio.NewReader(fromPart)}
}

func (p part) say(s string) {
	if _, err := io.WriteString(p.in, s+"\n"); err != nil {
		p.t.Fatal(err)
	}
}

// hear returns the next line, and what is in it if that is wanted.
func (p part) hear(into any) string {
	s, err := p.out.ReadString('\n')
	if err == nil && into != nil {
		err = json.Unmarshal([]byte(s), into)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

func TestCalls(t *testing.T) {
	p := begin(t, ServeCalls)
	var port uint16
	var u usage
	p.hear(&port)
	from := begin(t, PlaceCalls)
	text, err := json.Marshal(order{Port: port, Calls: 40, Rate: 40})
	if err != nil {
		t.Fatal(err)
	}
	from.say(string(text))
	var out outcome
	from.hear(&out)
	if out != (outcome{Good: 40}) {
		t.Errorf("%+v", out)
	}
	p.say("collect")
	p.hear(&u)
	if u.Goroutines == 0 || u.Heap == 0 || u.CPU == 0 {
		t.Errorf("%+v", u)
	}
}

func TestBack(t *testing.T) {
	base := usage{Goroutines: 100, Files: 20, Heap: 40 << 20}
	for _, tt := range []struct {
		name string
		now  usage
		back bool
	}{
		{"the same", usage{Goroutines: 100, Files: 20, Heap: 40 << 20}, true},
		{"less", usage{Goroutines: 10, Files: 5, Heap: 1}, true},
		{"goroutines", usage{Goroutines: 120, Files: 20, Heap: 40 << 20}, false},
		{"files", usage{Goroutines: 100, Files: 30, Heap: 40 << 20}, false},
		{"memory", usage{Goroutines: 100, Files: 20, Heap: 60 << 20}, false},
		{"a call", usage{Goroutines: 100, Files: 20, Heap: 40 << 20, Calls: 1}, false},
	} {
		if back(base, tt.now) != tt.back {
			t.Errorf("%s: %v", tt.name, !tt.back)
		}
	}
}
