package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/trunkhall/trunkhall/sip/bench"
)

// sipBenchPart returns a child process of the sip bench, if e asks for one.
func sipBenchPart(e env) (func() error, bool) {
	switch part := e.args[0]; {
	case part == "sip-media" && len(e.args) == 2:
		return func() error { return bench.ServeMedia(e.args[1], e.stdin, e.stdout) }, true
	case part == "sip-load" && len(e.args) == 2:
		return func() error { return bench.Load(e.args[1], e.stdin, e.stdout) }, true
	case part == "sip-calls" && len(e.args) == 1:
		return func() error { return bench.ServeCalls(e.stdin, e.stdout) }, true
	}
	return nil, false
}

func benchSIP(ctx context.Context, exe string, rounds int, measured time.Duration, log io.Writer) (bench.Result, error) {
	o := bench.DefaultOptions()
	o.Exe, o.Log = exe, log
	o.Rounds, o.Measure = min(o.Rounds, max(1, rounds)), min(o.Measure, max(time.Second, measured))
	return bench.Run(ctx, o)
}

// Where the targets were set, a frame took this long to encode.
const yardstickMicros = 81

func printSIPBench(w io.Writer, r bench.Result) {
	scale := r.EncodeMicros / yardstickMicros
	fmt.Fprintf(w, "%-44s %10s %10s\n", "", "measured", "target")
	for _, row := range []struct {
		name         string
		value, limit float64
	}{
		{"CPU ms of signalling a call", r.SignallingMillis, 1 * scale},
		{"% of a core a phone, two of them alone", r.CopyPercent, 0.15 * scale},
		{"% of a core a phone, with a browser", r.TwoPartyPercent, 1 * scale},
		{"% of a core a phone, conference of 40", r.ConferencePercent, 0.6 * scale},
		{"ms of delay added between two phones", r.AddedDelayMillis, 60},
	} {
		fmt.Fprintf(w, "%-44s %10.3f %10.3f\n", row.name, row.value, row.limit)
	}
	fmt.Fprintf(w, "%-44s %10.1f\n", "us to encode a frame to Opus at 8 kHz", r.EncodeMicros)
	fmt.Fprintf(w, "Targets of CPU are scaled by %.1f/%d.\n", r.EncodeMicros, yardstickMicros)
}
