package storage

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// killEnv makes the test binary the child of TestKill: it names the database.
const killEnv = "TRUNKHALL_TEST_KILL_DB"

func TestMain(m *testing.M) {
	if path := os.Getenv(killEnv); path != "" {
		writeUntilKilled(path)
	}
	os.Exit(m.Run())
}

// writeUntilKilled appends events for ever and prints the ID of each one that
// was acknowledged.
func writeUntilKilled(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	db, err := OpenSQLite(ctx, path, nil)
	fail(err)
	t := &childT{fail: fail}
	if _, err := db.Room(ctx, testRoom); err != nil {
		makeRoom(t, db)
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		info, err := db.Room(ctx, testRoom)
		fail(err)
		var key *string
		typ := "m.room.message"
		if i%3 == 0 { // state too: it touches more tables
			k := strconv.Itoa(i % 10)
			key, typ = &k, "org.example.state"
		}
		e := event(t, info.Depth+1, info.Heads, typ, key, fmt.Sprintf(`{"body":"%d %s"}`, i, strings.Repeat("x", rand.IntN(2000))))
		_, err = db.Append(ctx, testRoom, info.HeadPos, matrix.Append{Event: e, Txn: &matrix.Transaction{User: "@a:b", Scope: "s", ID: string(e.ID)}})
		fail(err)
		fmt.Println("ok", e.ID)
	}
}

// A childT is as much of a testing.TB as makeRoom and event need.
type childT struct {
	testing.TB
	fail func(error)
}

func (t *childT) Helper()                  {}
func (t *childT) Context() context.Context { return context.Background() }
func (t *childT) Fatal(args ...any)        { t.fail(fmt.Errorf("%s", fmt.Sprint(args...))) }

// TestKill ends a writing process 20 times without warning. Every event that it
// had acknowledged must be there, and the room must be whole.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "killed.db")
	acked := make(map[matrix.EventID]bool)
	for round := range 20 {
		before := len(acked)
		killOnce(t, path, acked)
		if t.Failed() {
			t.FailNow()
		}
		db, err := OpenSQLite(t.Context(), path, nil)
		if err != nil {
			t.Fatalf("round %d: the database cannot be opened: %v", round, err)
		}
		var check string
		if err := db.read.QueryRow("PRAGMA integrity_check").Scan(&check); check != "ok" || err != nil {
			t.Fatalf("round %d: integrity_check: %s, %v", round, check, err)
		}
		for id := range acked {
			if _, err := db.Event(t.Context(), testRoom, id); err != nil {
				t.Fatalf("round %d: the acknowledged event %s is lost: %v", round, id, err)
			}
			if _, err := db.Transaction(t.Context(), matrix.Transaction{User: "@a:b", Scope: "s", ID: string(id)}); err != nil {
				t.Fatalf("round %d: the transaction of %s is lost: %v", round, id, err)
			}
		}
		checkWhole(t, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: %d events acknowledged", round, len(acked)-before)
	}
	if len(acked) < 20 {
		t.Errorf("only %d events were written in all: the test proves nothing", len(acked))
	}
}

// killOnce runs a child for a random time and notes what it acknowledged.
func killOnce(t *testing.T, path string, acked map[matrix.EventID]bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killEnv+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "ready":
			wait := time.Duration(rand.Int64N(int64(200 * time.Millisecond)))
			timer := time.AfterFunc(wait, func() { _ = cmd.Process.Kill() })
			defer timer.Stop()
		case "ok":
			acked[matrix.EventID(rest)] = true
		default:
			t.Errorf("the child says %q", lines.Text())
		}
	}
	_ = cmd.Wait() // it was killed
}

// checkWhole checks that no transaction was applied by half.
func checkWhole(t *testing.T, db *DB) {
	t.Helper()
	for what, query := range map[string]string{
		"rooms whose head is not their newest event":      "SELECT count(*) FROM rooms WHERE head_pos != (SELECT max(pos) FROM events WHERE room_nid = nid)",
		"rooms without exactly one forward extremity":     "SELECT count(*) FROM rooms WHERE 1 != (SELECT count(*) FROM forward_extremities f JOIN events e USING (event_id) WHERE f.room_nid = nid AND e.pos = head_pos)",
		"a stream that is behind the events":              "SELECT count(*) FROM stream WHERE pos < (SELECT max(pos) FROM events)",
		"state that is not the newest":                    "SELECT count(*) FROM current_state c WHERE event_pos != (SELECT max(pos) FROM events e WHERE e.room_nid = c.room_nid AND e.type = c.type AND e.state_key = c.state_key)",
		"state events that changed no state":              "SELECT count(*) FROM events e WHERE state_key IS NOT NULL AND NOT EXISTS (SELECT 1 FROM state_changes s WHERE s.event_pos = e.pos)",
		"messages without the transaction that sent them": "SELECT count(*) FROM events e WHERE depth > 2 AND NOT EXISTS (SELECT 1 FROM transactions x WHERE x.result = e.event_id)",
		"broken references":                               "SELECT count(*) FROM pragma_foreign_key_check",
	} {
		var n int
		if err := db.read.QueryRow(query).Scan(&n); err != nil || n != 0 {
			t.Fatalf("%s: %d, %v", what, n, err)
		}
	}
}
