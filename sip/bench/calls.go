package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/sip"
	"github.com/trunkhall/trunkhall/sip/guard"
)

// ServeCalls is a gateway that seats each caller in a room of its own, until in is at
// its end. It tells the port it listens on.
func ServeCalls(in io.Reader, out io.Writer) error {
	records, err := os.MkdirTemp("", "trunkhall-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(records)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	srv, err := newSFU()
	if err != nil {
		return err
	}
	running.Go(func() { srv.Run(ctx) })
	port, err := freePort()
	if err != nil {
		return err
	}
	cfg := sip.DefaultConfig()
	cfg.Listen = []string{fmt.Sprintf("udp://%s:%d", home, port)}
	cfg.ExternalIP, cfg.BindIP = home.String(), home.String()
	cfg.RTPPorts = "10000-32767" // each stays closed for half a minute after its call
	cfg.Limits = guard.Limits{}
	cfg.Records.Dir = records
	cfg.Trunks = []call.Trunk{{ID: "bench", Direction: "inbound", In: call.TrunkInbound{CIDRs: []string{home.String() + "/32"}}}}
	cfg.Dispatch = []call.DispatchRule{{Action: call.DispatchAction{Type: "individual", Room: "bench-", Randomize: true}}}
	gateway, err := sip.New(cfg, sip.Deps{SFU: srv, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	running.Go(func() { gateway.Run(ctx) })
	if err := json.NewEncoder(out).Encode(port); err != nil {
		return err
	}
	return report(bufio.NewScanner(in), out, func() (int, string) { return len(gateway.Legs()), "" })
}

func freePort() (uint16, error) {
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(home, 0)))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

const (
	warmCalls  = 200
	shortCalls = 2000 // after which everything must be given back
	// settleTime is longer than transactions and rooms outlive a call.
	settleTime = 75 * time.Second
)

// calls measures the CPU time of the gateway for one complete call, and whether it has
// everything back in the end.
func calls(ctx context.Context, o Options) (float64, error) {
	place := placing(o)
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	server, err := start(ctx, o.Exe, "bench", "sip-calls")
	if err != nil {
		return 0, err
	}
	defer server.stop()
	text, err := server.line()
	if err != nil {
		return 0, err
	}
	var port uint16
	if err := json.Unmarshal([]byte(text), &port); err != nil {
		return 0, err
	}
	idle, err := server.usage()
	if err != nil {
		return 0, err
	}
	if err := place(ctx, order{port, warmCalls, o.Rate}); err != nil {
		return 0, err
	}
	before, err := server.usage()
	if err != nil {
		return 0, err
	}
	if err := place(ctx, order{port, o.Calls, o.Rate}); err != nil {
		return 0, err
	}
	after, err := server.usage()
	if err != nil {
		return 0, err
	}
	perCall := float64((after.CPU - before.CPU).Microseconds()) / 1000 / float64(o.Calls)
	fmt.Fprintf(o.Log, "signalling: %d calls, none failed, %.2f ms of CPU each\n", o.Calls, perCall)

	// By now the gateway keeps as much of calls that have ended as it ever will, and
	// the runtime as many descriptors of goroutines: more calls must add nothing.
	idle.Heap = 1 << 40
	base, err := settled(ctx, server, idle)
	if err != nil {
		return 0, err
	}
	if err := place(ctx, order{port, shortCalls, o.Rate}); err != nil {
		return 0, err
	}
	end, err := settled(ctx, server, base)
	if err != nil {
		return 0, err
	}
	fmt.Fprintf(o.Log, "%d more calls: %d goroutines before and %d after, %d and %d files, %.1f and %.1f MB\n",
		shortCalls, base.Goroutines, end.Goroutines, base.Files, end.Files, float64(base.Heap)/1e6, float64(end.Heap)/1e6)
	if !back(idle, base) || !back(base, end) {
		return 0, errors.New("the gateway does not give everything back")
	}
	return perCall, nil
}

// placing returns what places calls that end as soon as they are answered: SIPp if it
// is there, else a child of our own.
func placing(o Options) func(context.Context, order) error {
	sipp, err := exec.LookPath("sipp")
	if err != nil {
		fmt.Fprintln(o.Log, "signalling: the program sipp is not installed; calls are placed by ourselves")
		return func(ctx context.Context, job order) error { return byChild(ctx, o.Exe, job) }
	}
	return func(ctx context.Context, job order) error { return bySIPp(ctx, sipp, job) }
}

func bySIPp(ctx context.Context, sipp string, job order) error {
	mine, err := freePort()
	if err != nil {
		return err
	}
	number := strconv.Itoa
	cmd := exec.CommandContext(ctx, sipp, netip.AddrPortFrom(home, job.Port).String(), "-sn", "uac", "-i", home.String(),
		"-p", number(int(mine)), "-r", number(job.Rate), "-m", number(job.Calls), "-l", number(10*job.Rate),
		"-s", "+15551234567", "-nostdin", "-timeout", number(job.Calls/job.Rate+60))
	text, err := cmd.CombinedOutput()
	if err != nil { // its exit code tells of failed calls
		return fmt.Errorf("sipp: %w\n%s", err, text[max(0, len(text)-2000):])
	}
	return nil
}

func byChild(ctx context.Context, exe string, job order) error {
	child, err := start(ctx, exe, "bench", "sip-load", "calls")
	if err != nil {
		return err
	}
	defer child.stop()
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	child.tell(string(text))
	line, err := child.line()
	if err != nil {
		return err
	}
	var out outcome
	if err := json.Unmarshal([]byte(line), &out); err != nil {
		return err
	}
	if out.Bad > 0 || out.Good != job.Calls {
		return fmt.Errorf("%d of %d calls failed: %s", job.Calls-out.Good, job.Calls, out.Why)
	}
	return nil
}

// back says whether a server has not more than it had before, give or take 2 %, of
// memory 5 %.
func back(base, now usage) bool {
	return now.Calls == 0 && now.Goroutines <= base.Goroutines*102/100+2 && now.Files <= base.Files*102/100+1 &&
		now.Heap <= base.Heap*105/100+1<<20
}

// settled waits until what calls left behind is gone: until the server is back at base,
// or for settleTime.
func settled(ctx context.Context, server *child, base usage) (usage, error) {
	end := time.Now().Add(settleTime)
	for {
		server.tell("collect")
		text, err := server.line()
		if err != nil {
			return usage{}, err
		}
		var u usage
		if err := json.Unmarshal([]byte(text), &u); err != nil {
			return usage{}, err
		}
		if time.Now().After(end) || back(base, u) {
			return u, nil
		}
		if err := pause(ctx, 2*time.Second); err != nil {
			return usage{}, err
		}
	}
}
