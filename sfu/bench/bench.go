// Package bench measures what forwarding one packet costs the SFU, beside a
// baseline that does the least a pion program can do: a TrackLocalStaticRTP
// fan-out over PeerConnections. Server and load generator are processes of
// their own, so that the server's CPU time can be read from /proc, and the two
// servers take turns, so that a busy machine disturbs both alike. Only ratios
// of one run mean anything.
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
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Scenario is one load: how many publishers send what to how many subscribers.
type Scenario struct {
	Name        string
	Video       bool
	Publishers  int
	Subscribers int
}

// Scenarios returns the two standard loads: video is 30 frames/s of 8 packets of
// 1150 bytes, audio 50 packets/s of 60 to 140 bytes with random phases.
func Scenarios() []Scenario {
	return []Scenario{
		{Name: "video", Video: true, Publishers: 2, Subscribers: 40},
		{Name: "audio", Publishers: 5, Subscribers: 100},
	}
}

// Options say how long to measure. Exe is the program to start the children
// from; it must hand "bench sfu-server" and "bench sfu-load" to Serve and Load.
type Options struct {
	Exe     string
	Rounds  int
	Measure time.Duration // of each run, after everybody has joined
	Log     io.Writer     // progress, for people
}

// A Cost is what one forwarded packet costs. Ratio is our CPU time divided by
// the baseline's, the median over the rounds.
type Cost struct {
	MicrosPerPacket   float64 `json:"us_per_packet"`
	Ratio             float64 `json:"ratio"`
	SyscallsPerPacket float64 `json:"syscalls_per_packet"`
	AllocsPerPacket   float64 `json:"allocs_per_packet"`
	BaselineMicros    float64 `json:"baseline_us_per_packet"`
	BaselineAllocs    float64 `json:"baseline_allocs_per_packet"`
	LossPercent       float64 `json:"loss_percent"`
}

// A Result is the outcome of Run: medians over the rounds.
type Result struct {
	Video               Cost    `json:"video"`
	Audio               Cost    `json:"audio"`
	MemoryPerSubscriber float64 `json:"memory_per_subscriber_mb"`
	CPUPerJoin          float64 `json:"cpu_per_join_ms"`
	BaselineMemory      float64 `json:"baseline_memory_per_subscriber_mb"`
	BaselineCPUPerJoin  float64 `json:"baseline_cpu_per_join_ms"`
}

// sample is one run of one server under one scenario.
type sample struct {
	microsPerPacket float64
	sendsPerPacket  float64
	allocsPerPacket float64
	loss            float64 // share of packets that did not arrive
	memory          float64 // MB for each subscriber
	join            float64 // CPU ms for each subscriber
}

// Run measures every scenario in interleaved rounds. A round in which more than
// half a percent of the packets is lost does not count: the machine was too busy
// to say anything. The error is not nil when no round counted.
func Run(ctx context.Context, o Options) (Result, error) {
	var res Result
	for _, sc := range Scenarios() {
		var ours, base []sample
		for round := 1; round <= o.Rounds; round++ {
			pair := make(map[string]sample, 2)
			for _, kind := range []string{kindProduct, kindBaseline} {
				s, err := measure(ctx, o, kind, sc)
				if err != nil {
					return res, fmt.Errorf("%s, %s, round %d: %w", sc.Name, kind, round, err)
				}
				pair[kind] = s
				fmt.Fprintf(o.Log, "%s round %d %-8s %6.2f us/packet, %.2f sends, %.2f allocs, loss %.2f %%, %.2f MB and %.1f ms a join\n",
					sc.Name, round, kind, s.microsPerPacket, s.sendsPerPacket, s.allocsPerPacket, 100*s.loss, s.memory, s.join)
			}
			if pair[kindProduct].loss > 0.005 || pair[kindBaseline].loss > 0.005 {
				fmt.Fprintf(o.Log, "%s round %d does not count: more than 0.5 %% lost\n", sc.Name, round)
				continue
			}
			ours, base = append(ours, pair[kindProduct]), append(base, pair[kindBaseline])
		}
		if len(ours) == 0 {
			return res, fmt.Errorf("%s: every round lost more than 0.5 %% of its packets; is the machine busy?", sc.Name)
		}
		cost := summarise(ours, base)
		if sc.Video {
			res.Video = cost
			res.MemoryPerSubscriber = median(ours, func(s sample) float64 { return s.memory })
			res.CPUPerJoin = median(ours, func(s sample) float64 { return s.join })
			res.BaselineMemory = median(base, func(s sample) float64 { return s.memory })
			res.BaselineCPUPerJoin = median(base, func(s sample) float64 { return s.join })
		} else {
			res.Audio = cost
		}
	}
	return res, nil
}

// summarise takes the medians; ours[i] and base[i] are of the same round.
func summarise(ours, base []sample) Cost {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i].microsPerPacket / base[i].microsPerPacket
	}
	return Cost{
		MicrosPerPacket:   median(ours, func(s sample) float64 { return s.microsPerPacket }),
		Ratio:             middle(ratios),
		SyscallsPerPacket: median(ours, func(s sample) float64 { return s.sendsPerPacket }),
		AllocsPerPacket:   median(ours, func(s sample) float64 { return s.allocsPerPacket }),
		BaselineMicros:    median(base, func(s sample) float64 { return s.microsPerPacket }),
		BaselineAllocs:    median(base, func(s sample) float64 { return s.allocsPerPacket }),
		LossPercent:       100 * median(ours, func(s sample) float64 { return s.loss }),
	}
}

func median(ss []sample, of func(sample) float64) float64 {
	vs := make([]float64, len(ss))
	for i, s := range ss {
		vs[i] = of(s)
	}
	return middle(vs)
}

// middle returns the median of vs, 0 for none. It reorders vs.
func middle(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	slices.Sort(vs)
	if n := len(vs); n%2 == 0 {
		return (vs[n/2-1] + vs[n/2]) / 2
	}
	return vs[len(vs)/2]
}

// measure starts one server and one generator and reads the server's counters
// around the joins and around the measured time.
func measure(ctx context.Context, o Options, kind string, sc Scenario) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Measure+2*time.Minute)
	defer cancel()
	server, err := start(ctx, o.Exe, "bench", "sfu-server", kind)
	if err != nil {
		return sample{}, err
	}
	defer server.stop()
	url, err := server.line()
	if err != nil {
		return sample{}, err
	}
	load, err := start(ctx, o.Exe, "bench", "sfu-load", url, sc.Name)
	if err != nil {
		return sample{}, err
	}
	defer load.stop()

	// The generator says what it has done and waits for a line before it goes on:
	// publishing, joined, then the count of what it sent and received.
	if err := load.expect("publishing"); err != nil {
		return sample{}, err
	}
	before, err := server.usage(ctx, url)
	if err != nil {
		return sample{}, err
	}
	load.tell("join")
	if err := load.expect("joined"); err != nil {
		return sample{}, err
	}
	joined, err := server.usage(ctx, url)
	if err != nil {
		return sample{}, err
	}

	load.tell("count")
	if err := load.expect("counting"); err != nil {
		return sample{}, err
	}
	from, err := server.usage(ctx, url)
	if err != nil {
		return sample{}, err
	}
	select {
	case <-time.After(o.Measure):
	case <-ctx.Done():
		return sample{}, ctx.Err()
	}
	to, err := server.usage(ctx, url)
	if err != nil {
		return sample{}, err
	}
	load.tell("stop")
	text, err := load.line()
	if err != nil {
		return sample{}, err
	}
	var counts loadCounts
	if err := json.Unmarshal([]byte(text), &counts); err != nil {
		return sample{}, fmt.Errorf("the generator said %q: %w", text, err)
	}
	if counts.Received == 0 {
		return sample{}, errors.New("no packet arrived")
	}
	got := float64(counts.Received)
	return sample{
		microsPerPacket: float64((to.cpu - from.cpu).Microseconds()) / got,
		sendsPerPacket:  float64(to.Sends-from.Sends) / got,
		allocsPerPacket: float64(to.Mallocs-from.Mallocs) / got,
		loss:            max(0, 1-got/float64(counts.Expected)), // packets under way at the ends may tip it below 0
		memory:          float64(to.rss-before.rss) / (1 << 20) / float64(sc.Subscribers),
		join:            float64((joined.cpu - before.cpu).Milliseconds()) / float64(sc.Subscribers),
	}, nil
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
	timer := time.AfterFunc(3*time.Second, func() { c.cmd.Process.Kill() })
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

func (c *child) expect(want string) error {
	got, err := c.line()
	if err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("%s said %q, not %q", strings.Join(c.cmd.Args[1:], " "), got, want)
	}
	return nil
}

func (c *child) tell(s string) { fmt.Fprintln(c.in, s) }

// usage is what the server process has used so far.
type usage struct {
	counters
	cpu time.Duration // user and system time
	rss int64         // bytes
}

func (c *child) usage(ctx context.Context, url string) (usage, error) {
	var u usage
	if err := getJSON(ctx, url+"/counters", &u.counters); err != nil {
		return u, err
	}
	var err error
	u.cpu, u.rss, err = ProcessUsage(c.cmd.Process.Pid)
	return u, err
}

// ProcessUsage returns the CPU time and resident memory (bytes) that proc(5) tells of
// a process.
func ProcessUsage(pid int) (cpu time.Duration, rss int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	// The command name in parentheses may hold anything: count from behind it.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 {
		return 0, 0, fmt.Errorf("/proc/%d/stat is not as proc(5) says", pid)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)   // utime, in clock ticks
	system, err2 := strconv.ParseInt(f[12], 10, 64) // stime
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	const tick = time.Second / 100 // USER_HZ is 100 on every Linux that Go runs on
	return time.Duration(user+system) * tick, pages * int64(os.Getpagesize()), errors.Join(err1, err2, err3)
}
