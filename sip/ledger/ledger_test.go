package ledger

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

var start = time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)

func testLedger(t testing.TB, cfg Config, now time.Time) *Ledger {
	t.Helper()
	l, err := Open(cfg, now, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// aLeg is a call of ten seconds' ringing and d of talk that ended at end.
func aLeg(id string, end time.Time, d time.Duration) call.Leg {
	return call.Leg{
		ID: call.LegID(id), Direction: call.Outbound, State: call.LegEnded, Trunk: "provider",
		Number: "+493012345678", Local: "+493087654321", By: "@alice:example.org", RoomID: "!r:example.org",
		Created: end.Add(-d - 10*time.Second), Answered: end.Add(-d), Ended: end,
		Cause: call.CauseHangup, Code: 200, Codec: "PCMU",
		Stats: call.LegStats{Packets: 500, Lost: 2, Jitter: 1500 * time.Microsecond, MOS: 4.3},
	}
}

func lines(t *testing.T, name string) []map[string]any {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var list []map[string]any
	for line := range bytes.Lines(data) {
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%s: %q: %v", name, line, err)
		}
		list = append(list, m)
	}
	return list
}

func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "calls")
	l := testLedger(t, Config{Dir: dir}, start)
	leg := aLeg("SCL_1", start, time.Minute)
	if err := l.Finish(leg); err != nil {
		t.Fatal(err)
	}
	in := aLeg("SCL_2", start, 0)
	in.Direction, in.Answered, in.Cause = call.Inbound, time.Time{}, call.CauseNoAnswer
	if err := l.Finish(in); err != nil {
		t.Fatal(err)
	}
	got := lines(t, filepath.Join(dir, recordsFile))
	for key, want := range map[string]any{
		"id": "SCL_1", "dir": "outbound", "trunk": "provider", "from": "+493087654321", "to": "+493012345678",
		"mxid": "@alice:example.org", "start": "2026-03-02T09:58:50Z", "answer": "2026-03-02T09:59:00Z", "end": "2026-03-02T10:00:00Z",
		"seconds": 60.0, "codec": "PCMU", "cause": "hangup", "lost": 2.0, "jitter_ms": 1.5, "mos_est": 4.3, "e2ee": false,
	} {
		if got[0][key] != want {
			t.Errorf("%s is %v, want %v", key, got[0][key], want)
		}
	}
	if got[1]["from"] != "+493012345678" || got[1]["to"] != "+493087654321" || got[1]["seconds"] != 0.0 || got[1]["answer"] != nil {
		t.Errorf("an unanswered call in: %v", got[1])
	}
	for _, name := range []string{recordsFile, journalFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v", name, info.Mode())
		}
	}
	if info, _ := os.Stat(dir); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory can be read by others: %v", info.Mode())
	}
}

func TestFilter(t *testing.T) {
	l := testLedger(t, Config{Dir: t.TempDir(), Recent: 50}, start)
	for i := range 60 {
		leg := aLeg(fmt.Sprint(i), start.Add(time.Duration(i)*time.Minute), time.Second)
		if i%2 == 0 {
			leg.Direction, leg.Number, leg.Trunk = call.Inbound, "+431", "other"
		}
		if err := l.Finish(leg); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name  string
		f     Filter
		n     int
		first string
	}{
		{"all that are kept, the latest first", Filter{}, 50, "59"},
		{"so many", Filter{Limit: 3}, 3, "59"},
		{"calls in", Filter{Direction: call.Inbound}, 25, "58"},
		{"a trunk", Filter{Trunk: "other"}, 25, "58"},
		{"a number of theirs", Filter{Number: "+431"}, 25, "58"},
		{"a number of ours", Filter{Number: "+493087654321"}, 50, "59"},
		{"a user", Filter{MXID: "@bob:example.org"}, 0, ""},
		{"a room", Filter{RoomID: "!r:example.org", Limit: 1}, 1, "59"},
		{"a cause", Filter{Cause: call.CauseBusy}, 0, ""},
		{"from 10:30 to before 10:40", Filter{Since: start.Add(30 * time.Minute), Before: start.Add(40 * time.Minute)}, 10, "39"},
	} {
		got := l.Records(c.f)
		if len(got) != c.n || c.n > 0 && got[0].ID != c.first {
			t.Errorf("%s: %d records, want %d from %s: %v", c.name, len(got), c.n, c.first, got)
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, Config{Dir: dir, MaxSize: 2000, Keep: 3, Recent: 10000}, start)
	for i := range 100 {
		if err := l.Finish(aLeg(fmt.Sprint(i), start, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	old, err := l.earlier()
	if err != nil || len(old) != 3 {
		t.Errorf("%d earlier files are kept, want 3 (%v)", len(old), err)
	}
	var ids []string
	for _, name := range append(old, filepath.Join(dir, recordsFile)) {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 2000 || info.Size() == 0 {
			t.Errorf("%s has %d bytes", name, info.Size())
		}
		for _, r := range lines(t, name) {
			ids = append(ids, r["id"].(string))
		}
	}
	if len(ids) < 10 || ids[len(ids)-1] != "99" || !slices.IsSortedFunc(ids, func(a, b string) int { return len(a)*1000 - len(b)*1000 + strings.Compare(a, b) }) {
		t.Errorf("the files in their order do not hold the latest calls in theirs: %v", ids)
	}
	again := testLedger(t, Config{Dir: dir}, start)
	if got := len(again.Records(Filter{Limit: 1000})); got != len(ids) {
		t.Errorf("after a restart %d records are known, want %d", got, len(ids))
	}
}

func TestSpent(t *testing.T) {
	dir := t.TempDir()
	zone := time.FixedZone("Kathmandu", 5*3600+45*60)
	midnight := time.Date(2026, 3, 2, 0, 0, 0, 0, zone)
	l := testLedger(t, Config{Dir: dir, Recent: 2}, midnight)
	bobs := aLeg("bob", midnight.Add(2*time.Hour), time.Minute)
	bobs.By = "@bob:example.org"
	in := aLeg("in", midnight.Add(2*time.Hour), time.Hour)
	in.Direction = call.Inbound
	for _, leg := range []call.Leg{
		aLeg("yesterday", midnight.Add(-time.Hour), time.Hour),
		aLeg("over midnight", midnight.Add(20*time.Minute), 50*time.Minute),
		aLeg("today", midnight.Add(10*time.Hour), 5*time.Minute),
		aLeg("not answered", midnight.Add(11*time.Hour), 0),
		bobs, in,
	} {
		if leg.ID == "not answered" {
			leg.Answered = time.Time{}
		}
		if err := l.Finish(leg); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]time.Duration{"@alice:example.org": 25 * time.Minute, "@bob:example.org": time.Minute}
	for name, l := range map[string]*Ledger{"now": l, "after a restart": testLedger(t, Config{Dir: dir, Recent: 2}, midnight.Add(12*time.Hour))} {
		got := l.Spent(midnight.Add(12 * time.Hour))
		if len(got) != 2 || got["@alice:example.org"] != want["@alice:example.org"] || got["@bob:example.org"] != want["@bob:example.org"] {
			t.Errorf("%s: spent %v, want %v", name, got, want)
		}
		if got := l.Spent(midnight.AddDate(0, 0, 1)); len(got) != 0 {
			t.Errorf("%s: on the next day %v", name, got)
		}
	}
}

// The program is killed: nothing is closed.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, Config{Dir: dir}, start)
	talking := aLeg("talking", time.Time{}, 0)
	talking.State, talking.Created, talking.Answered, talking.Ended = call.LegTrying, start, time.Time{}, time.Time{}
	ringing, done := talking, talking
	ringing.ID, done.ID = "ringing", "done"
	for _, leg := range []call.Leg{talking, ringing, done} {
		if err := l.Begin(leg, start); err != nil {
			t.Fatal(err)
		}
	}
	talking.Answered = start.Add(10 * time.Second)
	if err := l.Begin(talking, talking.Answered); err != nil {
		t.Fatal(err)
	}
	done.Ended, done.Cause = start.Add(20*time.Second), call.CauseBusy
	if err := l.Finish(done); err != nil {
		t.Fatal(err)
	}
	if err := l.Alive(start.Add(70 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n := l.Open(); n != 2 {
		t.Errorf("%d legs are open, want 2", n)
	}
	// The last lines of both files were cut off.
	for _, name := range []string{recordsFile, journalFile} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(`{"id":"half`); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}

	again := testLedger(t, Config{Dir: dir}, start.Add(time.Hour))
	got := again.Records(Filter{})
	if len(got) != 3 {
		t.Fatalf("%d records, want 3: %+v", len(got), got)
	}
	for _, r := range got {
		switch r.ID {
		case "done":
			if r.Crashed || r.Cause != call.CauseBusy {
				t.Errorf("a call that had ended: %+v", r)
			}
		case "talking":
			if !r.Crashed || r.Seconds != 60 || !r.End.Equal(start.Add(70*time.Second)) || r.Cause != call.CauseFailed {
				t.Errorf("a call of a minute: %+v", r)
			}
		case "ringing":
			if !r.Crashed || r.Seconds != 0 {
				t.Errorf("a call that rang: %+v", r)
			}
		default:
			t.Errorf("unexpected: %+v", r)
		}
	}
	if spent := again.Spent(start.Add(time.Hour)); spent["@alice:example.org"] != time.Minute {
		t.Errorf("the budget forgot the crash: %v", spent)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	third := testLedger(t, Config{Dir: dir}, start.Add(2*time.Hour))
	if n := len(third.Records(Filter{})); n != 3 {
		t.Errorf("the next start makes it %d records", n)
	}
}

func TestJournalStaysShort(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, Config{Dir: dir}, start)
	l.long = 50_000
	open := aLeg("open", start, time.Second)
	if err := l.Begin(open, start); err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		leg := aLeg(fmt.Sprint(i), start, time.Second)
		if err := l.Begin(leg, start); err != nil {
			t.Fatal(err)
		}
		if err := l.Finish(leg); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, journalFile))
	if err != nil || info.Size() > 60_000 {
		t.Errorf("the journal has %d bytes (%v)", info.Size(), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again := testLedger(t, Config{Dir: dir}, start)
	if got := again.Records(Filter{Limit: 1}); len(got) != 1 || got[0].ID != "open" {
		t.Errorf("the open call was lost: %+v", got)
	}
}

func TestClosed(t *testing.T) {
	l := testLedger(t, Config{Dir: t.TempDir()}, start)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if l.Begin(call.Leg{ID: "x"}, start) == nil || l.Finish(call.Leg{ID: "x"}) == nil {
		t.Error("writing after Close is not refused")
	}
}

func TestRubbishIsLeftOut(t *testing.T) {
	dir := t.TempDir()
	good, _ := json.Marshal(FromLeg(aLeg("good", start, time.Minute)))
	content := "rubbish\n" + strings.Repeat("x", 3*maxLine) + "\n{}\n\n" + string(good) + "\n\x00\xff\n"
	if err := os.WriteFile(filepath.Join(dir, recordsFile), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l := testLedger(t, Config{Dir: dir}, start)
	if got := l.Records(Filter{}); len(got) != 1 || got[0].ID != "good" {
		t.Errorf("%+v", got)
	}
}

func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	l := testLedger(t, Config{Dir: dir}, start)
	if _, err := l.records.WriteString(`{"id":"ha`); err != nil { // as a full disk leaves it
		t.Fatal(err)
	}
	l.torn = true
	for _, id := range []string{"one", "two"} {
		if err := l.Finish(aLeg(id, start, time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if got := testLedger(t, Config{Dir: dir}, start).Records(Filter{}); len(got) != 2 {
		t.Errorf("%d of 2 records are left behind a torn line", len(got))
	}
}

func TestUnwritable(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Open(Config{Dir: filepath.Join(dir, "file")}, start, slog.New(slog.DiscardHandler)); err == nil {
		l.Close()
		t.Error("a file was taken for a directory")
	}
}

func TestAllAtOnce(t *testing.T) {
	l := testLedger(t, Config{Dir: t.TempDir(), MaxSize: 20000}, start)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				leg := aLeg(fmt.Sprint(i, "-", j), start, time.Second)
				if l.Begin(leg, start) != nil || l.Finish(leg) != nil {
					t.Error("not written")
				}
				l.Records(Filter{Limit: 5})
				l.Spent(start)
			}
		})
	}
	wg.Wait()
	if n := len(l.Records(Filter{Limit: 1000})); n != 400 || l.Open() != 0 {
		t.Errorf("%d records, %d open", n, l.Open())
	}
}
