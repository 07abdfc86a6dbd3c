package storage

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/matrix"
)

// TestNoScans runs the queries of a sync and of sending and looks at how SQLite
// goes about them: none may walk through a whole table, or through all events of
// a room.
func TestNoScans(t *testing.T) {
	db := open(t)
	makeRoom(t, db)
	ctx, rooms := t.Context(), []matrix.RoomID{testRoom}
	const user = "@alice:hs.test"
	calls := map[string]func() error{
		"Room":        func() error { _, err := db.Room(ctx, testRoom); return err },
		"Timeline":    func() error { _, err := db.Timeline(ctx, testRoom, 1, 9, true, 5); return err },
		"StateOfType": func() error { _, err := db.StateOfType(ctx, testRoom, "a"); return err },
		"StateEvents now": func() error {
			_, err := db.StateEvents(ctx, testRoom, 0, matrix.StateKeyTuple{Type: "a"}, matrix.StateKeyTuple{Type: "b"})
			return err
		},
		"StateEvents then": func() error { _, err := db.StateEvents(ctx, testRoom, 5, matrix.StateKeyTuple{Type: "a"}); return err },
		"StateHistory": func() error {
			_, err := db.StateHistory(ctx, testRoom, matrix.StateKeyTuple{Type: "a"}, 5)
			return err
		},
		"StateChanges":      func() error { _, err := db.StateChanges(ctx, testRoom, 1, 5); return err },
		"MembershipChanges": func() error { _, err := db.MembershipChanges(ctx, rooms, 1, 5); return err },
		"Memberships":       func() error { _, err := db.Memberships(ctx, user); return err },
		"Members":           func() error { _, err := db.Members(ctx, testRoom); return err },
		"RoomHeads":         func() error { _, err := db.RoomHeads(ctx, user); return err },
		"UsersSharingRooms": func() error { _, err := db.UsersSharingRooms(ctx, user); return err },
		"Relations":         func() error { _, err := db.Relations(ctx, testRoom, "$p", "", "", 0, 9, true, 5); return err },
		"RelationsOf":       func() error { _, err := db.RelationsOf(ctx, testRoom, []matrix.EventID{"$p", "$q"}); return err },
		"HasAnnotation":     func() error { _, err := db.HasAnnotation(ctx, "$p", user, "m.reaction", "k"); return err },
		"ReceiptChanges":    func() error { _, err := db.ReceiptChanges(ctx, rooms, 1, 9); return err },
		"Receipts":          func() error { _, err := db.ReceiptChanges(ctx, rooms, 0, 9); return err },
		"ReadUpTo":          func() error { _, err := db.ReadUpTo(ctx, testRoom, user); return err },
		"StickyEvents new":  func() error { _, err := db.StickyEvents(ctx, rooms, 1, 9, time.Now(), 5); return err },
		"StickyEvents":      func() error { _, err := db.StickyEvents(ctx, rooms, 0, 9, time.Now(), 5); return err },
		"DueDelayed":        func() error { _, _, err := db.DueDelayed(ctx, time.Now(), 5); return err },
		"DelayedOf":         func() error { _, err := db.DelayedOf(ctx, user); return err },
	}
	for name, call := range calls {
		before := queries(db)
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n := 0
		for q := range queries(db) {
			if before[q] {
				continue
			}
			n++
			for _, step := range plan(t, db, q) {
				// Small things may be walked: the results of an inner query, the
				// few columns of the stream.
				if strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "subquery") && !strings.HasPrefix(step, "SCAN (") {
					t.Errorf("%s: %s\n%s", name, step, q)
				}
				if strings.Contains(step, "events_room (room_nid=?)") {
					t.Errorf("%s reads all events of a room: %s\n%s", name, step, q)
				}
			}
		}
		if n == 0 {
			t.Errorf("%s ran no query that was not seen before", name)
		}
	}
}

// queries returns the texts of the statements that readers have prepared.
func queries(db *DB) map[string]bool {
	db.read.mu.Lock()
	defer db.read.mu.Unlock()
	out := make(map[string]bool)
	for q := range db.read.ready {
		out[q] = true
	}
	return out
}

func plan(t *testing.T, db *DB, query string) (steps []string) {
	t.Helper()
	args := make([]any, strings.Count(query, "?"))
	rows, err := db.read.DB.QueryContext(context.Background(), "EXPLAIN QUERY PLAN "+query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	for rows.Next() {
		var a, b, c int
		var step string
		if err := rows.Scan(&a, &b, &c, &step); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	return steps
}
