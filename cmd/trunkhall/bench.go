package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/trunkhall/trunkhall/sfu/bench"
	sipbench "github.com/trunkhall/trunkhall/sip/bench"
)

// benchmark measures this machine; the figures mean something only beside each
// other. The parts sfu-... and sip-... are its own child processes.
func benchmark(ctx context.Context, e env) error {
	if len(e.args) > 0 {
		switch part := e.args[0]; {
		case part == "sfu-server" && len(e.args) == 2:
			return bench.Serve(e.args[1], e.stdin, e.stdout)
		case part == "sfu-load" && len(e.args) == 3:
			return bench.Load(e.args[1], e.args[2], e.stdin, e.stdout)
		}
		if part, ok := sipBenchPart(e); ok {
			return part()
		}
	}
	fs := e.flags("bench", "bench sfu|homeserver|sip [flags]\n\n"+
		"sfu measures what forwarding a packet costs, beside a plain fan-out of the same\n"+
		"WebRTC library; homeserver measures messages, syncs, start and memory; sip measures\n"+
		"telephones, beside the encoding of one frame to Opus.")
	asJSON := fs.Bool("json", false, "print one line of JSON")
	rounds := fs.Int("rounds", 5, "how many rounds of the sfu bench; the figures are medians. The sip bench has 3 at most")
	measured := fs.Duration("measure", 8*time.Second, "how long each run of the sfu or sip bench counts")
	what := ""
	if len(e.args) > 0 && e.args[0] != "" && e.args[0][0] != '-' {
		what, e.args = e.args[0], e.args[1:]
	}
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	var result any
	switch what {
	case "sfu":
		if *rounds < 1 || *measured < time.Second {
			fmt.Fprintln(e.stderr, "trunkhall bench: at least one round of at least one second")
			return errUsage
		}
		var res bench.Result
		res, err = bench.Run(ctx, bench.Options{Exe: exe, Rounds: *rounds, Measure: *measured, Log: e.stderr})
		result = res
		if err == nil && !*asJSON {
			printSFUBench(e.stdout, res)
		}
	case "homeserver":
		var res homeserverResult
		res, err = benchHomeserver(ctx, exe, e.stderr)
		result = res
		if err == nil && !*asJSON {
			printHomeserverBench(e.stdout, res)
		}
	case "sip":
		var res sipbench.Result
		res, err = benchSIP(ctx, exe, *rounds, *measured, e.stderr)
		result = res
		if err == nil && !*asJSON {
			printSIPBench(e.stdout, res)
		}
	default:
		fs.Usage()
		return errUsage
	}
	if err != nil || !*asJSON {
		return err
	}
	return json.NewEncoder(e.stdout).Encode(result)
}

func printSFUBench(w io.Writer, r bench.Result) {
	fmt.Fprintf(w, "%-24s %12s %12s %8s\n", "", "trunkhall", "baseline", "ratio")
	for _, row := range []struct {
		name string
		cost bench.Cost
	}{{"video", r.Video}, {"audio", r.Audio}} {
		c := row.cost
		fmt.Fprintf(w, "%-24s %12.2f %12.2f %8.2f\n", row.name+", us a packet", c.MicrosPerPacket, c.BaselineMicros, c.Ratio)
		fmt.Fprintf(w, "%-24s %12.2f\n", row.name+", sends a packet", c.SyscallsPerPacket)
		fmt.Fprintf(w, "%-24s %12.2f %12.2f\n", row.name+", allocs a packet", c.AllocsPerPacket, c.BaselineAllocs)
	}
	fmt.Fprintf(w, "%-24s %12.2f %12.2f\n", "MB a subscriber", r.MemoryPerSubscriber, r.BaselineMemory)
	fmt.Fprintf(w, "%-24s %12.1f %12.1f\n", "CPU ms a join", r.CPUPerJoin, r.BaselineCPUPerJoin)
}

func printHomeserverBench(w io.Writer, r homeserverResult) {
	fmt.Fprintf(w, "messages a second        %10.0f  (%d members, each with a long poll; %.1f %% delivered)\n",
		r.MessagesPerSecond, benchMembers, 100*r.DeliveredShare)
	fmt.Fprintf(w, "send, p50 and p99        %10.1f  %.1f ms\n", r.SendP50Millis, r.SendP99Millis)
	fmt.Fprintf(w, "initial sync             %10.1f  ms\n", r.InitialSyncMillis)
	fmt.Fprintf(w, "start to ready           %10.0f  ms (median of %d)\n", r.StartToReadyMillis, benchStarts)
	fmt.Fprintf(w, "memory, idle and busy    %10.0f  %.0f MB\n", r.IdleRSSMegabytes, r.BusyRSSMegabytes)
}
