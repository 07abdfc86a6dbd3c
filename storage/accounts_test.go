package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/homeserver"
	"github.com/trunkhall/trunkhall/matrix"
)

var _ homeserver.AccountStore = (*DB)(nil)

const (
	alice = matrix.UserID("@alice:x")
	bob   = matrix.UserID("@bob:x")
)

// hashOf is a token's hash for tests.
func hashOf(name string) (h matrix.TokenHash) {
	copy(h[:], name)
	return h
}

// people adds alice with the devices A and B and bob with C.
func people(t *testing.T, db *DB) {
	t.Helper()
	ctx := t.Context()
	for u, devices := range map[matrix.UserID][]matrix.DeviceID{alice: {"A", "B"}, bob: {"C"}} {
		if err := db.CreateUser(ctx, matrix.User{ID: u, PasswordHash: "h", Created: time.Now()}, json.RawMessage(`{"global":{}}`)); err != nil {
			t.Fatal(err)
		}
		for _, d := range devices {
			refresh := hashOf("refresh" + string(d))
			if err := db.CreateSession(ctx, matrix.Session{User: u, Device: d, Access: hashOf("access" + string(d)), Refresh: &refresh}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// fill gives every device of alice one of everything.
func fill(t *testing.T, db *DB) {
	t.Helper()
	ctx := t.Context()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	key := func(id string) []matrix.EncryptionKey {
		return []matrix.EncryptionKey{{Algorithm: "alg", ID: id, Value: json.RawMessage(`"k"`)}}
	}
	for _, d := range []matrix.DeviceID{"A", "B"} {
		_, err := db.UploadKeys(ctx, alice, d, matrix.KeyUpload{DeviceKeys: json.RawMessage(`{}`), OneTime: key("1"), Fallback: key("f")})
		check(err)
		check(db.SetPusher(ctx, alice, matrix.Pusher{AppID: "app", PushKey: string(d), Device: d, JSON: json.RawMessage(`{}`)}, true))
		check(db.PutKeySignatures(ctx, []matrix.KeySignature{{User: alice, Key: string(d), Signer: alice, SignerKey: "ed25519:x", Signature: "s"}}))
	}
	_, err := db.SendToDevice(ctx, bob, "C", "t", []matrix.ToDevice{{User: alice, Device: "*", Event: json.RawMessage(`{}`)}})
	check(err)
	check(db.PutCrossSigningKeys(ctx, alice, map[string]json.RawMessage{"master": json.RawMessage(`{}`)}))
	check(db.SetProfileField(ctx, alice, "displayname", json.RawMessage(`"Alice"`)))
	check(db.PutOpenIDToken(ctx, hashOf("openid"), alice, time.Now().Add(time.Hour)))
	_, err = db.PutFilter(ctx, alice, json.RawMessage(`{}`))
	check(err)
	v, err := db.CreateBackup(ctx, alice, "alg", json.RawMessage(`{}`))
	check(err)
	_, err = db.PutBackupKeys(ctx, alice, v, []matrix.BackupKey{{Room: "!r", Session: "s", SessionData: json.RawMessage(`{}`)}})
	check(err)
}

// rows counts what a table holds for alice, of one device if it is named.
func rows(t *testing.T, db *DB, table, device string) int {
	t.Helper()
	query, args := "SELECT count(*) FROM "+table+" WHERE user_id = ?", []any{alice}
	if device != "" {
		column := "device_id"
		if table == "key_signatures" {
			column = "key"
		}
		query, args = query+" AND "+column+" = ?", append(args, device)
	}
	var n int
	if err := db.read.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", table, err)
	}
	return n
}

var deviceTables = []string{"devices", "access_tokens", "refresh_tokens", "to_device", "device_keys", "one_time_keys", "fallback_keys", "pushers", "key_signatures"}

func TestDeletedDeviceLeavesNothing(t *testing.T) {
	db := open(t)
	people(t, db)
	fill(t, db)
	if err := db.DeleteDevices(t.Context(), alice, "A"); err != nil {
		t.Fatal(err)
	}
	for _, table := range deviceTables {
		if n := rows(t, db, table, "A"); n != 0 {
			t.Errorf("%d rows of the deleted device stay in %s", n, table)
		}
		if n := rows(t, db, table, "B"); n != 1 {
			t.Errorf("%s has %d rows of the device that was not deleted", table, n)
		}
	}
	if _, err := db.TokenOwner(t.Context(), hashOf("accessA")); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("its token: %v", err)
	}
}

func TestDeactivatedUserLeavesOnlyTheName(t *testing.T) {
	db := open(t)
	people(t, db)
	fill(t, db)
	if err := db.Deactivate(t.Context(), alice, true); err != nil {
		t.Fatal(err)
	}
	for _, table := range append(deviceTables, "profiles", "filters", "account_data", "cross_signing_keys", "key_backups", "key_backup_keys", "openid_tokens") {
		if n := rows(t, db, table, ""); n != 0 {
			t.Errorf("%d rows stay in %s", n, table)
		}
	}
	u, err := db.User(t.Context(), alice)
	if err != nil || !u.Deactivated || u.PasswordHash != "" {
		t.Errorf("account: %+v, %v", u, err)
	}
	if err := db.CreateUser(t.Context(), matrix.User{ID: alice}, json.RawMessage(`{}`)); !errors.Is(err, call.ErrConflict) {
		t.Errorf("the name can be taken again: %v", err)
	}
	if err := db.SetPasswordHash(t.Context(), alice, "h"); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("a password for a deactivated user: %v", err)
	}
}

func TestEveryKeyIsClaimedOnce(t *testing.T) {
	db := open(t)
	people(t, db)
	const keys, claimers = 40, 8
	for i := range keys {
		_, err := db.UploadKeys(t.Context(), alice, "A", matrix.KeyUpload{OneTime: []matrix.EncryptionKey{{Algorithm: "alg", ID: fmt.Sprint(i), Value: json.RawMessage(`"k"`)}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	var mu sync.Mutex
	seen := make(map[string]int)
	var wg sync.WaitGroup
	for range claimers {
		wg.Go(func() {
			for range keys / claimers {
				got, err := db.ClaimKeys(t.Context(), []matrix.KeyClaim{{User: alice, Device: "A", Algorithm: "alg"}})
				if err != nil || got[0].Key == nil {
					t.Errorf("claim: %v, %v", got, err)
					return
				}
				mu.Lock()
				seen[got[0].Key.ID]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != keys {
		t.Errorf("%d different keys were given %d times: messages could not be decrypted", len(seen), keys)
	}
	got, err := db.ClaimKeys(t.Context(), []matrix.KeyClaim{{User: alice, Device: "A", Algorithm: "alg"}})
	if err != nil || got[0].Key != nil {
		t.Errorf("one more: %v, %v", got, err)
	}
}

func TestToDeviceIsSentOnce(t *testing.T) {
	db := open(t)
	people(t, db)
	var wg sync.WaitGroup
	var mu sync.Mutex
	sent := 0
	for range 8 {
		wg.Go(func() {
			ok, err := db.SendToDevice(t.Context(), bob, "C", "same", []matrix.ToDevice{{User: alice, Device: "A", Event: json.RawMessage(`{}`)}})
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if ok {
				sent++
			}
		})
	}
	wg.Wait()
	if n := rows(t, db, "to_device", "A"); sent != 1 || n != 1 {
		t.Errorf("sent %d times, %d events wait", sent, n)
	}
	if err := db.Expire(t.Context(), time.Now().Add(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	if ok, err := db.SendToDevice(t.Context(), bob, "C", "same", nil); !ok || err != nil {
		t.Errorf("transaction IDs are kept for ever: %v, %v", ok, err)
	}
}

func TestAccountsOutliveARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	db, err := OpenSQLite(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	people(t, db)
	fill(t, db)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db, err = OpenSQLite(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the test is over
	for _, table := range deviceTables {
		if n := rows(t, db, table, "A"); n != 1 {
			t.Errorf("%s has %d rows", table, n)
		}
	}
	if o, err := db.TokenOwner(t.Context(), hashOf("accessA")); err != nil || o.User != alice || o.Device != "A" || o.Guest || o.Fresh || !o.Expires.IsZero() {
		t.Errorf("token: %+v, %v", o, err)
	}
}

func TestUpdateAccountDataKeepsWhatARefusalLeaves(t *testing.T) {
	db := open(t)
	people(t, db)
	no := errors.New("no")
	before, err := db.Position(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = db.UpdateAccountData(t.Context(), alice, "", "m.push_rules", func(old json.RawMessage) (json.RawMessage, error) {
		if string(old) != `{"global":{}}` {
			t.Errorf("old: %s", old)
		}
		return nil, no
	})
	if !errors.Is(err, no) {
		t.Errorf("error: %v", err)
	}
	if pos, err := db.Position(t.Context()); err != nil || pos != before {
		t.Errorf("a refused change moved the stream to %d, %v", pos, err)
	}
	for range 3 {
		err = db.UpdateAccountData(context.Background(), alice, "!r", "m.tag", func(old json.RawMessage) (json.RawMessage, error) {
			return json.RawMessage(`[` + string(old) + `]`), nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if got, err := db.AccountDataEvent(t.Context(), alice, "!r", "m.tag"); err != nil || string(got) != "[[[]]]" {
		t.Errorf("after three changes: %s, %v", got, err)
	}
}

// What waits for a device that nobody uses any more is bounded.
func TestToDeviceQueueIsBounded(t *testing.T) {
	db := open(t)
	people(t, db)
	fill := func(n int) {
		t.Helper()
		err := db.write(t.Context(), func(tx *sql.Tx) error {
			_, err := tx.Exec(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
				INSERT INTO to_device (user_id, device_id, pos, event) SELECT ?, 'A', -i, '{}' FROM n`, n, alice)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	fill(maxToDeviceQueue + 500)
	for i := range 2 * toDevicePrune { // positions grow by one with each
		event := []matrix.ToDevice{{User: alice, Device: "*", Event: json.RawMessage(fmt.Sprintf(`{"n":%d}`, i))}}
		if _, err := db.SendToDevice(t.Context(), bob, "C", fmt.Sprint(i), event); err != nil {
			t.Fatal(err)
		}
	}
	if n := rows(t, db, "to_device", "A"); n > maxToDeviceQueue+toDevicePrune || n < maxToDeviceQueue {
		t.Errorf("%d events wait", n)
	}
	var newest string
	err := db.read.QueryRow("SELECT event FROM to_device WHERE user_id = ? AND device_id = 'A' ORDER BY pos DESC LIMIT 1", alice).Scan(&newest)
	if want := fmt.Sprintf(`{"n":%d}`, 2*toDevicePrune-1); err != nil || newest != want {
		t.Errorf("the newest event is %s (%v), want %s", newest, err, want)
	}
}

func TestFiltersAreBounded(t *testing.T) {
	db := open(t)
	people(t, db)
	var first, last string
	for i := range maxFilters + 5 {
		id, err := db.PutFilter(t.Context(), alice, json.RawMessage(fmt.Sprintf(`{"n":%d}`, i)))
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = id
		}
		last = id
	}
	if _, err := db.Filter(t.Context(), alice, first); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("the oldest filter: %v", err)
	}
	if got, err := db.Filter(t.Context(), alice, last); err != nil || string(got) != fmt.Sprintf(`{"n":%d}`, maxFilters+4) {
		t.Errorf("the newest filter: %s, %v", got, err)
	}
}

func TestOpenIDTokensAreBounded(t *testing.T) {
	db := open(t)
	people(t, db)
	token := func(i int) (h matrix.TokenHash) {
		h[0], h[1], h[2] = byte(i%openIDPrune), byte(i), byte(i>>8)
		return h
	}
	start := time.Now()
	const n = maxOpenIDTokens + 3*openIDPrune
	if err := db.PutOpenIDToken(t.Context(), hashOf("bob's"), bob, start.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for i := range n + 1 {
		if err := db.PutOpenIDToken(t.Context(), token(i), alice, start.Add(time.Hour+time.Duration(i)*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if got := rows(t, db, "openid_tokens", ""); got > maxOpenIDTokens+openIDPrune || got < maxOpenIDTokens {
		t.Errorf("%d tokens are kept", got)
	}
	if _, err := db.OpenIDUser(t.Context(), token(0), start); !errors.Is(err, call.ErrNotFound) {
		t.Errorf("the oldest token: %v", err)
	}
	for h, want := range map[matrix.TokenHash]matrix.UserID{token(n): alice, hashOf("bob's"): bob} {
		if got, err := db.OpenIDUser(t.Context(), h, start); got != want || err != nil {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
}
