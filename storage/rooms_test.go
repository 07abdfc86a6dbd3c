package storage

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/matrix"
)

var _ homeserver.Store = (*DB)(nil)

const testRoom = matrix.RoomID("!room:hs.test")

var testKey = matrix.Key{Server: "hs.test", ID: "ed25519:t", Seed: bytes.Repeat([]byte{1}, ed25519.SeedSize)}

// event builds an event; the rules of rooms are not asked here.
func event(t testing.TB, depth int64, prev []matrix.EventID, typ string, key *string, content string) matrix.StoredEvent {
	t.Helper()
	e, err := matrix.Build(matrix.Draft{
		RoomID: testRoom, Version: matrix.RoomVersion11, Type: typ, StateKey: key, Sender: "@alice:hs.test", Content: json.RawMessage(content),
		PrevEvents: prev, Depth: depth, Time: time.UnixMilli(1700000000000 + depth),
	}, testKey)
	if err != nil {
		t.Fatal(err)
	}
	return matrix.StoredEvent{Event: e}
}

// makeRoom stores a room with a create event and a joined member.
func makeRoom(t testing.TB, db *DB) int64 {
	t.Helper()
	empty, alice := "", "@alice:hs.test"
	create := event(t, 1, nil, "m.room.create", &empty, `{"room_version":"11"}`)
	join := event(t, 2, []matrix.EventID{create.ID}, "m.room.member", &alice, `{"membership":"join"}`)
	pos, err := db.CreateRoom(t.Context(), matrix.RoomInfo{ID: testRoom, Version: matrix.RoomVersion11, Creator: "@alice:hs.test"}, "#one:hs.test",
		[]matrix.Append{{Event: create}, {Event: join}})
	if err != nil {
		t.Fatal(err)
	}
	return pos
}

func TestAppendOnlyAtTheHead(t *testing.T) {
	db := open(t)
	pos := makeRoom(t, db)
	info, err := db.Room(t.Context(), testRoom)
	if err != nil || info.HeadPos != pos || len(info.Heads) != 1 || info.Depth != 2 {
		t.Fatalf("room: %+v, %v", info, err)
	}
	a := event(t, 3, info.Heads, "m.room.message", nil, `{"body":"a"}`)
	next, err := db.Append(t.Context(), testRoom, pos, matrix.Append{Event: a})
	if err != nil {
		t.Fatal(err)
	}
	b := event(t, 3, info.Heads, "m.room.message", nil, `{"body":"b"}`)
	if _, err := db.Append(t.Context(), testRoom, pos, matrix.Append{Event: b}); !errors.Is(err, call.ErrConflict) {
		t.Errorf("an event that was authorised against an older state was stored: %v", err)
	}
	if _, err := db.Append(t.Context(), "!nowhere:hs.test", 0, matrix.Append{Event: b}); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("append to no room: %v", err)
	}
	if now, _ := db.Position(t.Context()); now != next {
		t.Errorf("a refused event took position %d", now)
	}
	if _, err := db.Event(t.Context(), testRoom, b.ID); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("the refused event is there: %v", err)
	}
	// A second room of that ID, or with that alias, is not made; nothing of it stays.
	for _, again := range []matrix.RoomID{testRoom, "!other:hs.test"} {
		_, err := db.CreateRoom(t.Context(), matrix.RoomInfo{ID: again, Version: matrix.RoomVersion11}, "#one:hs.test", nil)
		if !errors.Is(err, call.ErrConflict) {
			t.Errorf("room %s: %v", again, err)
		}
	}
	if _, err := db.Room(t.Context(), "!other:hs.test"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("half a room was made: %v", err)
	}
}

func TestStateInThePast(t *testing.T) {
	db := open(t)
	head := makeRoom(t, db)
	empty := ""
	var marks []int64
	for i := range 3 {
		info, err := db.Room(t.Context(), testRoom)
		if err != nil {
			t.Fatal(err)
		}
		e := event(t, info.Depth+1, info.Heads, "m.room.topic", &empty, fmt.Sprintf(`{"topic":"t%d"}`, i))
		if head, err = db.Append(t.Context(), testRoom, head, matrix.Append{Event: e}); err != nil {
			t.Fatal(err)
		}
		marks = append(marks, head)
	}
	topic := matrix.StateKeyTuple{Type: "m.room.topic"}
	for i, at := range append(marks, 0) {
		l, err := db.StateEvents(t.Context(), testRoom, at, topic, matrix.StateKeyTuple{Type: "m.room.nothing"})
		want := fmt.Sprintf("t%d", min(i, 2))
		if err != nil || len(l) != 1 || l[0].ContentString("topic") != want {
			t.Errorf("topic at %d: %v, %v; want %s", at, l, err, want)
		}
		all, err := db.State(t.Context(), testRoom, at)
		if err != nil || len(all) != 3 {
			t.Errorf("state at %d has %d events, %v", at, len(all), err)
		}
	}
	if l, err := db.StateEvents(t.Context(), testRoom, marks[0]-1, topic); len(l) != 0 || err != nil {
		t.Errorf("a topic before the first: %v, %v", l, err)
	}
	l, err := db.StateChanges(t.Context(), testRoom, marks[0], marks[2])
	if err != nil || len(l) != 1 || l[0].ContentString("topic") != "t2" || string(l[0].PrevContent) != `{"topic":"t1"}` {
		t.Errorf("changes: %+v, %v", l, err)
	}
	if h, err := db.StateHistory(t.Context(), testRoom, topic, marks[1]); len(h) != 2 || err != nil {
		t.Errorf("history: %d, %v", len(h), err)
	}
}

func TestRedactionAndTransactionsAreOneCommit(t *testing.T) {
	db := open(t)
	head := makeRoom(t, db)
	info, _ := db.Room(t.Context(), testRoom)
	txn := &matrix.Transaction{User: "@alice:hs.test", Device: "D", Scope: "send", ID: "1"}
	msg := event(t, 3, info.Heads, "m.room.message", nil, `{"body":"secret","m.relates_to":{"event_id":"$p","rel_type":"m.annotation","key":"+"}}`)
	head, err := db.Append(t.Context(), testRoom, head, matrix.Append{Event: msg, Txn: txn})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := db.Transaction(t.Context(), *txn); id != string(msg.ID) || err != nil {
		t.Errorf("transaction: %s, %v", id, err)
	}
	if yes, err := db.HasAnnotation(t.Context(), "$p", "@alice:hs.test", "m.room.message", "+"); !yes || err != nil {
		t.Errorf("annotation: %v, %v", yes, err)
	}
	info, _ = db.Room(t.Context(), testRoom)
	red, err := msg.Redact()
	if err != nil {
		t.Fatal(err)
	}
	redaction := event(t, 4, info.Heads, "m.room.redaction", nil, `{"redacts":"`+string(msg.ID)+`"}`)
	if _, err := db.Append(t.Context(), testRoom, head, matrix.Append{Event: redaction, Redacted: &red, Txn: txn}); !errors.Is(err, call.ErrConflict) {
		t.Errorf("a transaction was used twice: %v", err)
	}
	if e, _ := db.Event(t.Context(), testRoom, msg.ID); e.RedactedBy != nil {
		t.Error("an event was redacted by a redaction that was not stored")
	}
	if _, err := db.Append(t.Context(), testRoom, head, matrix.Append{Event: redaction, Redacted: &red}); err != nil {
		t.Fatal(err)
	}
	e, err := db.Event(t.Context(), testRoom, msg.ID)
	if err != nil || e.RedactedBy == nil || e.RedactedBy.ID != redaction.ID || bytes.Contains(e.JSON, []byte("secret")) {
		t.Errorf("redacted: %s, %v", e.JSON, err)
	}
	if yes, _ := db.HasAnnotation(t.Context(), "$p", "@alice:hs.test", "m.room.message", "+"); yes {
		t.Error("a redacted reaction still counts")
	}
}

func TestDelayedOutcomes(t *testing.T) {
	db := open(t)
	head := makeRoom(t, db)
	now := time.UnixMilli(1_800_000_000_000)
	key := "_k"
	put := func(id string, user matrix.UserID, delay time.Duration) {
		t.Helper()
		_, err := db.PutDelayed(t.Context(), matrix.DelayedEvent{ID: id, RoomID: testRoom, UserID: user, Type: "m.call", StateKey: &key,
			Content: json.RawMessage(`{}`), Delay: delay, RunningSince: now}, "", 3)
		if err != nil {
			t.Fatal(err)
		}
	}
	put("a", "@alice:hs.test", time.Second)
	put("b", "@bob:hs.test", 2*time.Second)
	put("c", "@alice:hs.test", time.Hour)
	ids := func(l []matrix.DelayedEvent) (out []string) {
		for _, d := range l {
			out = append(out, d.ID)
		}
		return out
	}
	due, next, err := db.DueDelayed(t.Context(), now.Add(999*time.Millisecond), 10)
	if len(due) != 0 || !next.Equal(now.Add(time.Second)) || err != nil {
		t.Errorf("too early: %v, %v, %v", ids(due), next, err)
	}
	if due, next, _ = db.DueDelayed(t.Context(), now.Add(time.Minute), 10); !slices.Equal(ids(due), []string{"a", "b"}) || !next.Equal(now.Add(time.Hour)) {
		t.Errorf("due: %v, next %v", ids(due), next)
	}
	if err := db.RestartDelayed(t.Context(), "a", now.Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if d, err := db.Delayed(t.Context(), "a"); !d.Due().Equal(now.Add(time.Minute+time.Second)) || *d.StateKey != key || err != nil {
		t.Errorf("restarted: %+v, %v", d, err)
	}
	// It was found due before the restart: it is not any more.
	stale, _ := db.Room(t.Context(), testRoom)
	early := event(t, 3, stale.Heads, "m.call", &key, `{"early":1}`)
	if _, err := db.Append(t.Context(), testRoom, head, matrix.Append{Event: early, DelayID: "a", DelayDue: now.Add(time.Second)}); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("an event was sent although it had been restarted: %v", err)
	}
	// Alice's own state sends a, cancels Bob's b, and leaves her c.
	info, _ := db.Room(t.Context(), testRoom)
	e := event(t, 3, info.Heads, "m.call", &key, `{}`)
	e.DelayID = "a"
	head, err = db.Append(t.Context(), testRoom, head, matrix.Append{Event: e, DelayID: "a", CancelDelayed: true})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]matrix.DelayedOutcome{"a": matrix.DelayedSent, "b": matrix.DelayedCancelled, "c": matrix.DelayedScheduled} {
		if d, err := db.Delayed(t.Context(), id); d.Outcome != want || err != nil {
			t.Errorf("%s: outcome %q, %v; want %q", id, d.Outcome, err, want)
		}
	}
	info, _ = db.Room(t.Context(), testRoom)
	twice := event(t, 4, info.Heads, "m.call", &key, `{"x":1}`)
	if _, err := db.Append(t.Context(), testRoom, head, matrix.Append{Event: twice, DelayID: "a"}); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("a delayed event was sent twice: %v", err)
	}
	if err := db.RestartDelayed(t.Context(), "a", now); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("restart after sending: %v", err)
	}
	if l, err := db.DelayedOf(t.Context(), "@alice:hs.test"); !slices.Equal(ids(l), []string{"c"}) || err != nil {
		t.Errorf("scheduled: %v, %v", ids(l), err)
	}
	put("d", "@alice:hs.test", time.Second)
	put("e", "@alice:hs.test", time.Second)
	if _, err := db.PutDelayed(t.Context(), matrix.DelayedEvent{ID: "f", UserID: "@alice:hs.test", Content: json.RawMessage(`{}`)}, "", 3); !errors.Is(err, call.ErrUnavailable) {
		t.Errorf("more than the maximum: %v", err)
	}
	if err := db.DeleteFinishedDelayed(t.Context(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Delayed(t.Context(), "a"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("an old outcome is still there: %v", err)
	}
}

func TestReceiptsGoForward(t *testing.T) {
	db := open(t)
	makeRoom(t, db)
	put := func(pos int64) bool {
		moved, err := db.PutReceipt(t.Context(), matrix.Receipt{Room: testRoom, User: "@alice:hs.test", Type: "m.read", Event: "$e", EventPos: pos, TS: 1})
		if err != nil {
			t.Fatal(err)
		}
		return moved
	}
	if !put(5) || put(4) || put(5) || !put(6) {
		t.Error("a receipt went back, or did not go forward")
	}
	if pos, err := db.ReadUpTo(t.Context(), testRoom, "@alice:hs.test"); pos != 6 || err != nil {
		t.Errorf("read up to %d, %v", pos, err)
	}
}
