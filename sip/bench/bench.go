// Package bench measures what telephones cost: the CPU time of a call's signalling, of
// one of two phones that speak with each other alone, whose G.711 goes from one to the
// other without another codec, of one with a browser and of one in a conference, and how much delay a room adds between two phones.
//
// The gateway's parts and the telephones are processes of their own, so that each
// figure is the CPU time of the server alone. Figures only mean something beside the
// yardstick measured in the same run: one frame encoded to Opus at 8 kHz.
package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Options say how to measure. Exe is the program to start the children from: it must
// hand "bench sip-media NAME" to ServeMedia, "bench sip-calls" to ServeCalls and "bench
// sip-load NAME" to Load.
type Options struct {
	Exe     string
	Rounds  int
	Measure time.Duration // of each run, after everybody has joined
	Calls   int           // for the signalling
	Rate    int           // calls a second
	Log     io.Writer     // progress, for people
}

// DefaultOptions are those of the published figures.
func DefaultOptions() Options {
	return Options{Rounds: 3, Measure: 6 * time.Second, Calls: 6000, Rate: 200}
}

// A Result is the outcome of Run. Shares of a core are percent for each phone.
type Result struct {
	SignallingMillis  float64 `json:"signalling_ms_per_call"`
	CopyPercent       float64 `json:"copy_core_percent"`
	TwoPartyPercent   float64 `json:"two_party_core_percent"`
	ConferencePercent float64 `json:"conference_core_percent"`
	AddedDelayMillis  float64 `json:"added_delay_ms"`
	EncodeMicros      float64 `json:"gopus_encode_8k_us"`
}

// A scenario is one load of media.
type scenario struct {
	name    string
	phones  int
	perRoom int
	talkers int // of each room, the others are silent
	// browsers are members of each room who speak Opus: without one that listens,
	// nothing would have to be encoded.
	browsers int
	speaking bool // the browsers do
	clicks   bool // to measure the delay
}

var scenarios = []scenario{
	{name: "copy", phones: 50, perRoom: 2, talkers: 2},
	{name: "two-party", phones: 24, perRoom: 1, talkers: 1, browsers: 1, speaking: true},
	{name: "conference", phones: 40, perRoom: 40, talkers: 3, browsers: 1},
	{name: "delay", phones: 8, perRoom: 2, talkers: 1, clicks: true},
}

func scenarioNamed(name string) (scenario, error) {
	for _, s := range scenarios {
		if s.name == name {
			return s, nil
		}
	}
	return scenario{}, fmt.Errorf("no scenario %q", name)
}

// usage is what a server child has used so far.
type usage struct {
	CPU        time.Duration `json:"cpu"`
	Goroutines int           `json:"goroutines"`
	Files      int           `json:"files"`
	Heap       uint64        `json:"heap"`
	Calls      int           `json:"calls"` // that are there now
	Problem    string        `json:"problem,omitempty"`
}

// counts is what a load child has seen.
type counts struct {
	Sent, Received uint64
	Delays         []float64 // ms
}

// lossLimit is what a round may lose: beyond it the machine was too busy to tell.
const lossLimit = 0.01

// Run measures everything. It takes about five minutes with DefaultOptions.
func Run(ctx context.Context, o Options) (Result, error) {
	var yard, copying, two, conference, delay []float64
	for round := 1; round <= o.Rounds; round++ {
		for _, sc := range scenarios {
			share, c, err := attempt(ctx, o, sc, round, &yard)
			if err != nil {
				return Result{}, err
			}
			switch sc.name {
			case "copy":
				copying = append(copying, share...)
			case "two-party":
				two = append(two, share...)
			case "conference":
				conference = append(conference, share...)
			case "delay":
				delay = append(delay, c.Delays...)
			}
		}
	}
	if len(copying) == 0 || len(two) == 0 || len(conference) == 0 || len(delay) < 20 {
		return Result{}, errors.New("too many rounds lost packets; is the machine busy?")
	}
	signalling, err := calls(ctx, o)
	if err != nil {
		return Result{}, fmt.Errorf("signalling: %w", err)
	}
	return Result{
		SignallingMillis: signalling, CopyPercent: middle(copying), TwoPartyPercent: middle(two),
		ConferencePercent: middle(conference), AddedDelayMillis: middle(delay), EncodeMicros: middle(yard),
	}, nil
}

// attempts is how often a scenario is tried in a round until little enough is lost.
const attempts = 3

// attempt runs a scenario in a round. It returns nothing if too much was lost each time.
func attempt(ctx context.Context, o Options, sc scenario, round int, yard *[]float64) ([]float64, counts, error) {
	for range attempts {
		us, err := yardstick()
		if err != nil {
			return nil, counts{}, err
		}
		*yard = append(*yard, us)
		share, c, err := measure(ctx, o, sc)
		if err != nil {
			return nil, c, fmt.Errorf("%s, round %d: %w", sc.name, round, err)
		}
		lost := max(0, 1-float64(c.Received)/float64(max(1, c.Sent)))
		fmt.Fprintf(o.Log, "round %d: %-10s %d phones, %.3f %% of a core each, %.2f %% lost, a frame to Opus in %.0f us",
			round, sc.name, sc.phones, share, 100*lost, us)
		if sc.clicks {
			fmt.Fprintf(o.Log, ", %d clicks, median %.1f ms", len(c.Delays), middle(slices.Clone(c.Delays)))
		}
		fmt.Fprintln(o.Log)
		if lost <= lossLimit {
			return []float64{share}, c, nil
		}
		fmt.Fprintln(o.Log, "  which does not count: more than 1 % lost")
	}
	return nil, counts{}, nil
}

// middle returns the median of vs, 0 for none. It reorders vs.
func middle(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	n := len(vs)
	return (vs[(n-1)/2] + vs[n/2]) / 2
}

// measure runs one scenario and returns each phone's share of a core in percent.
func measure(ctx context.Context, o Options, sc scenario) (float64, counts, error) {
	var c counts
	ctx, cancel := context.WithTimeout(ctx, o.Measure+time.Minute)
	defer cancel()
	load, err := start(ctx, o.Exe, "bench", "sip-load", sc.name)
	if err != nil {
		return 0, c, err
	}
	defer load.stop()
	server, err := start(ctx, o.Exe, "bench", "sip-media", sc.name)
	if err != nil {
		return 0, c, err
	}
	defer server.stop()
	// Each learns the other's ports.
	theirs, err := load.line()
	if err != nil {
		return 0, c, err
	}
	server.tell(theirs)
	ours, err := server.line()
	if err != nil {
		return 0, c, err
	}
	load.tell(ours)
	if err := pause(ctx, 3*time.Second); err != nil { // buffers find their size
		return 0, c, err
	}
	before, err := server.usage()
	if err != nil {
		return 0, c, err
	}
	begun := time.Now()
	load.tell("count")
	if err := pause(ctx, o.Measure); err != nil {
		return 0, c, err
	}
	load.tell("stop")
	after, err := server.usage()
	if err != nil {
		return 0, c, err
	}
	took := time.Since(begun)
	text, err := load.line()
	if err != nil {
		return 0, c, err
	}
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return 0, c, fmt.Errorf("the telephones said %q: %w", text, err)
	}
	if after.Problem != "" {
		return 0, c, errors.New(after.Problem)
	}
	return 100 * (after.CPU - before.CPU).Seconds() / took.Seconds() / float64(sc.phones), c, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A child is a process of this program that is spoken to in lines.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(ctx context.Context, exe string, args ...string) (*child, error) {
	cmd := exec.CommandContext(ctx, exe, args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", strings.Join(args, " "), err)
	}
	return &child{cmd: cmd, in: in, out: bufio.NewReader(out)}, nil
}

// stop ends the child: a closed standard input is its sign to go.
func (c *child) stop() {
	c.in.Close()
	timer := time.AfterFunc(10*time.Second, func() { c.cmd.Process.Kill() })
	defer timer.Stop()
	c.cmd.Wait()
}

func (c *child) line() (string, error) {
	s, err := c.out.ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("%s ended: %w", strings.Join(c.cmd.Args[1:], " "), err)
	}
	return strings.TrimSpace(s), nil
}

func (c *child) tell(s string) { fmt.Fprintln(c.in, s) }

func (c *child) usage() (usage, error) {
	var u usage
	c.tell("usage")
	text, err := c.line()
	if err == nil {
		err = json.Unmarshal([]byte(text), &u)
	}
	return u, err
}
