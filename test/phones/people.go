package phones

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/test/harness"
)

// People are the browsers of this package's tests: a few Chromiums that live as
// long as the tests, in which each test opens pages of its own. Each browser's
// microphone hears one tone, or one sentence.
type People struct {
	dir string
	cmd *exec.Cmd

	mu      sync.Mutex
	in      io.WriteCloser
	next    int
	waiting map[int]chan answer
	ended   error
	browser map[string]Sound
	err     lines
}

type answer struct {
	ID    int             `json:"id"`
	Value json.RawMessage `json:"value"`
	Error string          `json:"error"`
}

// lines keeps what a program printed.
type lines struct {
	mu  sync.Mutex
	all []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, b...)
	return len(b), nil
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all)
}

// startPeople starts the Node program; dir must outlive it.
func startPeople(dir string) (*People, error) {
	test := filepath.Join(harness.Root(), "test")
	if _, err := os.Stat(filepath.Join(test, "node_modules", "playwright-core")); err != nil {
		return nil, fmt.Errorf("the npm packages of the tests are missing: run `npm ci` in test/")
	}
	config, err := json.Marshal(map[string]any{"dir": dir, "output": filepath.Join(test, "output", "phones"), "seconds": 3600})
	if err != nil {
		return nil, err
	}
	p := &People{dir: dir, waiting: map[int]chan answer{}, browser: map[string]Sound{}}
	p.cmd = exec.Command("node", "--import", filepath.Join(test, "polyfill.mjs"), filepath.Join(test, "phones", "people.mjs"), string(config))
	p.cmd.Dir = test
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.err
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting node: %w", err)
	}
	go p.read(out)
	return p, nil
}

func (p *People) read(out io.Reader) {
	in := bufio.NewScanner(out)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var a answer
		if json.Unmarshal(in.Bytes(), &a) != nil || a.ID == 0 {
			fmt.Fprintf(&p.err, "(stdout) %s\n", in.Text())
			continue
		}
		p.mu.Lock()
		c := p.waiting[a.ID]
		delete(p.waiting, a.ID)
		p.mu.Unlock()
		if c != nil {
			c <- a
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = fmt.Errorf("the browsers' program has ended: %s", tail(p.err.String(), 3000))
	for id, c := range p.waiting {
		delete(p.waiting, id)
		c <- answer{Error: p.ended.Error()}
	}
}

// stop ends the browsers.
func (p *People) stop() {
	p.in.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = p.cmd.Wait()
	}()
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-done:
			return
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-p.cmd.Process.Pid, signal)
		}
	}
	<-done
}

// do does one thing and decodes what came of it into result, which may be nil.
func (p *People) do(op string, params map[string]any, result any, timeout time.Duration) error {
	reply := make(chan answer, 1)
	p.mu.Lock()
	if p.ended != nil {
		defer p.mu.Unlock()
		return p.ended
	}
	p.next++
	id := p.next
	p.waiting[id] = reply
	line := map[string]any{"id": id, "op": op}
	for k, v := range params {
		line[k] = v
	}
	b, err := json.Marshal(line)
	if err == nil {
		_, err = p.in.Write(append(b, '\n'))
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case a := <-reply:
		if a.Error != "" {
			return fmt.Errorf("%s: %s", op, a.Error)
		}
		if result == nil {
			return nil
		}
		return json.Unmarshal(a.Value, result)
	case <-time.After(timeout):
		return fmt.Errorf("%s: nothing after %s", op, timeout)
	}
}

// A Person is one page in a room.
type Person struct {
	t      testing.TB
	people *People
	page   string // its name
	Name   string
}

// A Seen is a participant as a page sees it.
type Seen struct {
	Identity   string            `json:"identity"`
	SID        string            `json:"sid"`
	Name       string            `json:"name"`
	Kind       int               `json:"kind"` // livekit ParticipantInfo.Kind; 3 is SIP
	Attributes map[string]string `json:"attributes"`
	Metadata   string            `json:"metadata"`
	Encrypted  bool              `json:"encrypted"`
	Tracks     []struct {
		SID        string `json:"sid"`
		Source     string `json:"source"`
		Kind       string `json:"kind"`
		Muted      bool   `json:"muted"`
		Subscribed bool   `json:"subscribed"`
		Encrypted  bool   `json:"encrypted"`
		MIME       string `json:"mime"`
	} `json:"tracks"`
}

// kindSIP is how LiveKit clients see a telephone.
const kindSIP = 3

var pagesMade struct {
	sync.Mutex
	n int
}

// Join lets somebody enter a room of a server's with a token made by its key;
// the browser is the one that says the sound of that name. Publish is whether
// the microphone is on.
func (p *People) Join(t testing.TB, s *harness.Server, browser, name string, room string, publish bool) *Person {
	t.Helper()
	pagesMade.Lock()
	pagesMade.n++
	page := fmt.Sprintf("%s-%d", name, pagesMade.n)
	pagesMade.Unlock()
	token := s.Token(name, room)
	if err := p.do("join", map[string]any{"browser": browser, "name": page, "url": s.LiveKitURL, "token": token, "publish": publish}, nil, time.Minute); err != nil {
		t.Fatalf("%s joins: %v", name, err)
	}
	x := &Person{t: t, people: p, page: page, Name: name}
	t.Cleanup(func() { _ = p.do("leave", map[string]any{"name": page}, nil, 20*time.Second) })
	return x
}

// Launch starts a browser that says a sound, unless it runs already.
func (p *People) Launch(t testing.TB, browser string, says Sound) {
	t.Helper()
	p.mu.Lock()
	_, running := p.browser[browser]
	p.browser[browser] = says
	p.mu.Unlock()
	if running {
		return
	}
	wav := filepath.Join(p.dir, browser+".wav")
	if err := says.WriteWAV(wav); err != nil {
		t.Fatal(err)
	}
	if err := p.do("launch", map[string]any{"browser": browser, "wav": wav}, nil, time.Minute); err != nil {
		t.Fatalf("starting a browser: %v", err)
	}
}

// Listen records what the page hears of who, or of everybody if who is empty.
func (x *Person) Listen(who string, d time.Duration) (Sound, error) {
	f, err := os.CreateTemp(x.people.dir, "heard-*.wav")
	if err != nil {
		return Sound{}, err
	}
	defer os.Remove(f.Name())
	f.Close()
	if err := x.people.do("record", map[string]any{"name": x.page, "who": who, "ms": d.Milliseconds(), "file": f.Name()}, nil, d+40*time.Second); err != nil {
		return Sound{}, err
	}
	return ReadWAV(f.Name())
}

// Others are the others in the room.
func (x *Person) Others() ([]Seen, error) {
	var all []Seen
	return all, x.people.do("others", map[string]any{"name": x.page}, &all, 20*time.Second)
}

// Run evaluates a JavaScript expression in the page, in which room and me are
// livekit-client's.
func (x *Person) Run(js string, result any) {
	x.t.Helper()
	if err := x.people.do("run", map[string]any{"name": x.page, "js": js}, result, 30*time.Second); err != nil {
		x.t.Fatalf("%s, %s: %v", x.Name, js, err)
	}
}

// Phone waits until there is a telephone in the room that check likes, and
// returns it as the page sees it.
func (x *Person) Phone(what string, check func(Seen) error) Seen {
	x.t.Helper()
	var found Seen
	eventually(x.t, 40*time.Second, x.Name+" sees "+what, func() error {
		all, err := x.Others()
		if err != nil {
			return err
		}
		last := fmt.Errorf("no telephone among %+v", all)
		for _, s := range all {
			if s.Kind != kindSIP {
				continue
			}
			if check != nil {
				if last = check(s); last != nil {
					continue
				}
			}
			found = s
			return nil
		}
		return last
	})
	return found
}

// Alone waits until no telephone is in the room any more.
func (x *Person) Alone() {
	x.t.Helper()
	eventually(x.t, 40*time.Second, x.Name+" sees the telephones go", func() error {
		all, err := x.Others()
		if err != nil {
			return err
		}
		for _, s := range all {
			if s.Kind == kindSIP {
				return fmt.Errorf("%s is still there", s.Identity)
			}
		}
		return nil
	})
}
