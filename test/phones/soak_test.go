//go:build soak

package phones

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The long runs are `make soak`: minutes of load on a machine with nothing else
// to do.

// holdings is what a process holds of what can leak.
type holdings struct {
	files, sockets, threads int
	memory                  int // kB
}

func (g *Gateway) holdings(t *testing.T) holdings {
	t.Helper()
	var h holdings
	dir := filepath.Join("/proc", strconv.Itoa(g.PID()))
	files, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	h.files = len(files)
	for _, f := range files {
		if to, err := os.Readlink(filepath.Join(dir, "fd", f.Name())); err == nil && strings.HasPrefix(to, "socket:") {
			h.sockets++
		}
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		switch f[0] {
		case "VmRSS:":
			h.memory, _ = strconv.Atoi(f[1])
		case "Threads:":
			h.threads, _ = strconv.Atoi(f[1])
		}
	}
	return h
}

// 200 calls a second for half a minute, each into a room of its own, none of which
// fails.
func TestManyCalls(t *testing.T) {
	const number = "+4930400001"
	g := StartGateway(t, GatewayOptions{Many: true, Limits: "max_calls: 5000", Rules: `
    - {match: {to: "` + number + `"}, action: {type: individual, room: load}}`})
	Play(t, Scenario{File: "short", IP: plainIP, Target: g.SIP, Number: number, Calls: 6000, Rate: 200, Timeout: 90 * time.Second}).Must()
}

// 2,000 short calls leave nothing behind.
func TestCallsLeaveNothing(t *testing.T) {
	g := StartGateway(t, GatewayOptions{Many: true, Limits: "max_calls: 5000"})
	number, room := g.Room()
	calls := func(n int) {
		t.Helper()
		Play(t, Scenario{File: "short", IP: plainIP, Target: g.SIP, Number: number, Calls: n, Rate: 50, Timeout: 90 * time.Second}).Must()
		g.Phones(t, room, 0)
	}
	// What is made once is made now; what is kept of calls for some minutes, so
	// that they can be asked for, is there before and after.
	calls(2000)
	time.Sleep(40 * time.Second)
	before := g.holdings(t)
	calls(2000)
	// Closed RTP ports are kept for half a minute, transactions as long.
	var after holdings
	eventually(t, 90*time.Second, "sockets and files are back where they were", func() error {
		after = g.holdings(t)
		if after.files > before.files+before.files/50+1 || after.sockets > before.sockets+before.sockets/50+1 {
			return fmt.Errorf("%+v before, %+v after", before, after)
		}
		return nil
	})
	t.Logf("%+v before, %+v after", before, after)
	if after.memory > before.memory*5/4+20_000 {
		t.Errorf("memory grew from %d to %d kB", before.memory, after.memory)
	}
	if after.threads > before.threads+8 {
		t.Errorf("threads grew from %d to %d", before.threads, after.threads)
	}
}
