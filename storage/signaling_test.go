package storage

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

func openSignaling(t *testing.T) *DB {
	t.Helper()
	db, err := OpenSQLite(context.Background(), filepath.Join(t.TempDir(), "t.db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func TestMintedIdentities(t *testing.T) {
	ctx, db := context.Background(), openSignaling(t)
	if _, err := db.Minted(ctx, "room", "id"); !errors.Is(err, call.ErrNotFound) {
		t.Fatalf("Minted of an empty store: %v, want not found", err)
	}
	now := time.UnixMilli(1_800_000_000_000)
	a := call.Minted{Room: "room", Identity: "id", RoomID: "!r:x", UserID: "@a:x", DeviceID: "D", Expires: now.Add(time.Hour)}
	b := call.Minted{Room: "room", Identity: "other", RoomID: "!r:x", UserID: "@a:x", DeviceID: "E", Expires: now.Add(time.Minute)}
	c := call.Minted{Room: "room", Identity: "third", RoomID: "!r:x", UserID: "@c:x", DeviceID: "D", Expires: now.Add(time.Minute)}
	for _, m := range []call.Minted{a, b, c} {
		if err := db.SaveMinted(ctx, m); err != nil {
			t.Fatal(err)
		}
	}
	got, err := db.Minted(ctx, "room", "id")
	if err != nil || got != a {
		t.Fatalf("Minted = %+v, %v; want %+v", got, err, a)
	}
	if all, err := db.MintedFor(ctx, "!r:x", "@a:x"); err != nil || len(all) != 2 {
		t.Fatalf("MintedFor = %+v, %v; want the user's two", all, err)
	}
	sooner := a
	sooner.Expires = now
	if err := db.SaveMinted(ctx, sooner); err != nil {
		t.Fatal(err)
	}
	if err := db.ExtendMinted(ctx, "room", "other", now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := db.ForgetExpired(ctx, now.Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if all, err := db.MintedFor(ctx, "!r:x", "@a:x"); err != nil || len(all) != 2 {
		t.Errorf("after the sweep MintedFor = %+v, %v; an identity was forgotten before its time", all, err)
	}
	if _, err := db.Minted(ctx, "room", "third"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("an expired identity is still kept: %v", err)
	}
}

func TestFloorsNeverSink(t *testing.T) {
	ctx, db := context.Background(), openSignaling(t)
	if f, err := db.Floor(ctx, "room", "id"); err != nil || !f.IsZero() {
		t.Fatalf("Floor of an empty store = %v, %v; want zero", f, err)
	}
	high := time.UnixMilli(1_800_000_001_000)
	for _, f := range []time.Time{high.Add(-time.Second), high, high.Add(-time.Minute)} {
		if err := db.RaiseFloor(ctx, "room", "id", f, f.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := db.Floor(ctx, "room", "id"); err != nil || !f.Equal(high) {
		t.Errorf("Floor = %v, %v; want %v: a revoked token would live again", f, err, high)
	}
	if err := db.ForgetExpired(ctx, high.Add(30*time.Minute)); err != nil {
		t.Fatal(err)
	}
	if f, _ := db.Floor(ctx, "room", "id"); !f.Equal(high) {
		t.Error("the floor was forgotten before its time")
	}
	if err := db.ForgetExpired(ctx, high.Add(2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if f, _ := db.Floor(ctx, "room", "id"); !f.IsZero() {
		t.Error("an expired floor is still kept")
	}
}

func TestDelegationsSurviveReopening(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "t.db")
	db, err := OpenSQLite(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := call.Delegation{
		Room: "room", Identity: "id", RoomID: "!r:x", UserID: "@a:x", DelayID: "one",
		Delay: time.Hour, Created: time.UnixMilli(1_800_000_000_123),
	}
	if err := db.SaveDelegation(ctx, d); err != nil {
		t.Fatal(err)
	}
	if err := db.SawDelegated(ctx, "room", "id", "older"); err != nil {
		t.Fatal(err)
	}
	if all, err := db.Delegations(ctx); err != nil || len(all) != 1 || all[0] != d {
		t.Fatalf("Delegations = %+v, %v; want %+v", all, err, d)
	}
	d.DelayID = "two"
	if err := db.SaveDelegation(ctx, d); err != nil {
		t.Fatal(err)
	}
	if err := db.DeleteDelegation(ctx, "room", "id", "one"); err != nil { // the replaced one ends late
		t.Fatal(err)
	}
	if err := db.SawDelegated(ctx, "room", "id", "two"); err != nil {
		t.Fatal(err)
	}
	d.Seen = true
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = OpenSQLite(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if all, err := db.Delegations(ctx); err != nil || len(all) != 1 || all[0] != d {
		t.Fatalf("after reopening Delegations = %+v, %v; want %+v", all, err, d)
	}
	if err := db.DeleteDelegation(ctx, "room", "id", "two"); err != nil {
		t.Fatal(err)
	}
	if all, err := db.Delegations(ctx); err != nil || len(all) != 0 {
		t.Errorf("a finished delegation is still kept: %+v, %v", all, err)
	}
}
