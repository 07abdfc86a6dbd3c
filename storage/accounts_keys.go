package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// deviceListChanged notes that others must fetch a user's device list again.
func (db *DB) deviceListChanged(tx *sql.Tx, user matrix.UserID) error {
	pos, err := db.nextPos(tx)
	if err != nil {
		return err
	}
	_, err = db.exec(tx, `INSERT INTO device_list_changes (user_id, pos) VALUES (?, ?)
		ON CONFLICT (user_id) DO UPDATE SET pos = excluded.pos`, user, pos)
	return err
}

// DeviceListChanges returns the users whose device list changed in (since, upTo].
// A user whose newest change is after upTo is found by the next question.
func (db *DB) DeviceListChanges(ctx context.Context, since, upTo int64) ([]matrix.UserID, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT user_id FROM device_list_changes WHERE pos > ? AND pos <= ? ORDER BY user_id", since, upTo)
	all, err := collect(rows, err, func(scan func(...any) error) (u matrix.UserID, err error) {
		err = scan(&u)
		return u, err
	})
	if err != nil {
		return nil, fmt.Errorf("device list changes: %w", err)
	}
	return all, nil
}

// How many events wait for one device. Beyond it the oldest go: the device has not
// been used for long, and the newest keys are what it needs. What is too much is
// looked for every toDevicePrune positions only, as counting is not for free.
const (
	maxToDeviceQueue = 10_000
	toDevicePrune    = 64
)

// pruneToDevice drops the oldest events of a device beyond the newest max.
func pruneToDevice(tx *sql.Tx, user matrix.UserID, device matrix.DeviceID, max int) error {
	const query = `SELECT device_id FROM devices WHERE user_id = ? AND (? = '*' OR device_id = ?)`
	rows, err := tx.Query(query, user, device, device)
	devices, err := collect(rows, err, func(scan func(...any) error) (d matrix.DeviceID, err error) {
		err = scan(&d)
		return d, err
	})
	if err != nil {
		return err
	}
	for _, d := range devices {
		_, err := tx.Exec(`DELETE FROM to_device WHERE user_id = ? AND device_id = ? AND pos <=
			(SELECT pos FROM to_device WHERE user_id = ? AND device_id = ? ORDER BY pos DESC LIMIT 1 OFFSET ?)`, user, d, user, d, max)
		if err != nil {
			return err
		}
	}
	return nil
}

// SendToDevice queues events, once for each transaction ID.
func (db *DB) SendToDevice(ctx context.Context, sender matrix.UserID, device matrix.DeviceID, txn string, events []matrix.ToDevice) (bool, error) {
	sent := false
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := db.exec(tx, "INSERT INTO to_device_txns (user_id, device_id, txn_id, ts) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
			sender, device, txn, millis(time.Now()))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return err // seen before
		}
		sent = true
		pos, err := db.nextPos(tx)
		if err != nil {
			return err
		}
		// One event for each device and request: what names a device wins over "*".
		const insert = `INSERT INTO to_device (user_id, device_id, pos, event)
			SELECT user_id, device_id, ?, ? FROM devices WHERE user_id = ? AND (? = '*' OR device_id = ?)
			ON CONFLICT DO NOTHING`
		for _, all := range []bool{false, true} {
			for _, e := range events {
				if (e.Device == "*") != all {
					continue
				}
				if _, err := db.exec(tx, insert, pos, string(e.Event), e.User, e.Device, e.Device); err != nil {
					return err
				}
				if pos%toDevicePrune == 0 {
					if err := pruneToDevice(tx, e.User, e.Device, maxToDeviceQueue); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("send to devices: %w", err)
	}
	return sent, nil
}

// ToDevice returns a device's oldest events up to a position, and the position
// of the last of them (upTo if that is all).
func (db *DB) ToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo int64, limit int) ([]json.RawMessage, int64, error) {
	type row struct {
		pos   int64
		event string
	}
	rows, err := db.read.QueryContext(ctx, `SELECT pos, event FROM to_device
		WHERE user_id = ? AND device_id = ? AND pos <= ? ORDER BY pos LIMIT 0+?`, user, device, upTo, limit+1)
	all, err := collect(rows, err, func(scan func(...any) error) (r row, err error) {
		err = scan(&r.pos, &r.event)
		return r, err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("to-device events: %w", err)
	}
	last := upTo
	if len(all) > limit {
		all = all[:limit]
		last = all[limit-1].pos
	}
	events := make([]json.RawMessage, len(all))
	for i, r := range all {
		events[i] = json.RawMessage(r.event)
	}
	return events, last, nil
}

// AckToDevice deletes a device's events up to a position.
func (db *DB) AckToDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo int64) error {
	var some bool // most acknowledgements acknowledge nothing: spare the write
	err := db.read.QueryRowContext(ctx, "SELECT EXISTS (SELECT 1 FROM to_device WHERE user_id = ? AND device_id = ? AND pos <= ?)",
		user, device, upTo).Scan(&some)
	if err != nil {
		return fmt.Errorf("acknowledge to-device events: %w", err)
	}
	if !some {
		return nil
	}
	return db.change(ctx, "acknowledge to-device events",
		"DELETE FROM to_device WHERE user_id = ? AND device_id = ? AND pos <= ?", user, device, upTo)
}

// UploadKeys stores keys of a device.
func (db *DB) UploadKeys(ctx context.Context, user matrix.UserID, device matrix.DeviceID, k matrix.KeyUpload) (bool, error) {
	changed := false
	err := db.write(ctx, func(tx *sql.Tx) error {
		var err error
		if k.DeviceKeys != nil {
			if changed, err = db.putDeviceKeys(tx, user, device, k.DeviceKeys); err != nil {
				return err
			}
		}
		for _, key := range k.OneTime {
			if err := putOneTimeKey(tx, user, device, key); err != nil {
				return err
			}
		}
		for _, key := range k.Fallback {
			// The same key again stays used; another one is fresh.
			_, err := tx.Exec(`INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET
					used = CASE WHEN key_id = excluded.key_id AND json = excluded.json THEN used ELSE 0 END,
					key_id = excluded.key_id, json = excluded.json`,
				user, device, key.Algorithm, key.ID, string(key.Value))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("upload keys: %w", err)
	}
	return changed, nil
}

func (db *DB) putDeviceKeys(tx *sql.Tx, user matrix.UserID, device matrix.DeviceID, keys json.RawMessage) (changed bool, err error) {
	var have string
	err = tx.QueryRow("SELECT json FROM device_keys WHERE user_id = ? AND device_id = ?", user, device).Scan(&have)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if have == string(keys) {
		return false, nil
	}
	_, err = tx.Exec(`INSERT INTO device_keys (user_id, device_id, json) VALUES (?, ?, ?)
		ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json`, user, device, string(keys))
	if err != nil {
		return false, err
	}
	if _, err := tx.Exec("DELETE FROM key_signatures WHERE user_id = ? AND key = ?", user, device); err != nil {
		return false, err
	}
	return true, db.deviceListChanged(tx, user)
}

func putOneTimeKey(tx *sql.Tx, user matrix.UserID, device matrix.DeviceID, key matrix.EncryptionKey) error {
	var have string
	err := tx.QueryRow("SELECT json FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ? AND key_id = ?",
		user, device, key.Algorithm, key.ID).Scan(&have)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = tx.Exec("INSERT INTO one_time_keys (user_id, device_id, algorithm, key_id, json) VALUES (?, ?, ?, ?, ?)",
			user, device, key.Algorithm, key.ID, string(key.Value))
		return err
	case err != nil:
		return err
	case have != string(key.Value):
		return fmt.Errorf("one-time key %s:%s exists with another value: %w", key.Algorithm, key.ID, call.ErrInvalid)
	}
	return nil
}

// OneTimeKeyCounts counts a device's one-time keys by algorithm.
func (db *DB) OneTimeKeyCounts(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (map[string]int, error) {
	type count struct {
		algorithm string
		n         int
	}
	rows, err := db.read.QueryContext(ctx, `SELECT algorithm, count(*) FROM one_time_keys
		WHERE user_id = ? AND device_id = ? GROUP BY algorithm`, user, device)
	all, err := collect(rows, err, func(scan func(...any) error) (c count, err error) {
		err = scan(&c.algorithm, &c.n)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("one-time key counts: %w", err)
	}
	counts := map[string]int{"signed_curve25519": 0} // clients look for it to know that they must upload
	for _, c := range all {
		counts[c.algorithm] = c.n
	}
	return counts, nil
}

// UnusedFallbackKeyTypes lists the algorithms of a device's unused fallback keys.
func (db *DB) UnusedFallbackKeyTypes(ctx context.Context, user matrix.UserID, device matrix.DeviceID) ([]string, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT algorithm FROM fallback_keys
		WHERE user_id = ? AND device_id = ? AND used = 0 ORDER BY algorithm`, user, device)
	all, err := collect(rows, err, func(scan func(...any) error) (a string, err error) {
		err = scan(&a)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("fallback keys: %w", err)
	}
	return all, nil
}

// DeviceKeys returns the keys of the named devices that have any, or of all.
func (db *DB) DeviceKeys(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) ([]matrix.DeviceKeys, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT k.device_id, d.display_name, k.json FROM device_keys k
		JOIN devices d USING (user_id, device_id) WHERE k.user_id = ? ORDER BY k.device_id`, user)
	all, err := collect(rows, err, func(scan func(...any) error) (k matrix.DeviceKeys, err error) {
		var keys string
		err = scan(&k.Device, &k.DisplayName, &keys)
		k.Keys = json.RawMessage(keys)
		return k, err
	})
	if err != nil {
		return nil, fmt.Errorf("device keys of %s: %w", user, err)
	}
	if len(devices) == 0 {
		return all, nil
	}
	var named []matrix.DeviceKeys
	for _, k := range all {
		for _, d := range devices {
			if k.Device == d {
				named = append(named, k)
				break
			}
		}
	}
	return named, nil
}

// CrossSigningKeys returns a user's cross-signing keys by usage.
func (db *DB) CrossSigningKeys(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT usage, json FROM cross_signing_keys WHERE user_id = ?", user)
	all, err := collect(rows, err, func(scan func(...any) error) (kv [2]string, err error) {
		err = scan(&kv[0], &kv[1])
		return kv, err
	})
	if err != nil {
		return nil, fmt.Errorf("cross-signing keys of %s: %w", user, err)
	}
	keys := make(map[string]json.RawMessage, len(all))
	for _, kv := range all {
		keys[kv[0]] = json.RawMessage(kv[1])
	}
	return keys, nil
}

// PutCrossSigningKeys stores keys by usage.
func (db *DB) PutCrossSigningKeys(ctx context.Context, user matrix.UserID, keys map[string]json.RawMessage) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		for usage, key := range keys {
			_, err := tx.Exec(`INSERT INTO cross_signing_keys (user_id, usage, json) VALUES (?, ?, ?)
				ON CONFLICT (user_id, usage) DO UPDATE SET json = excluded.json`, user, usage, string(key))
			if err != nil {
				return err
			}
		}
		return db.deviceListChanged(tx, user)
	})
	if err != nil {
		return fmt.Errorf("cross-signing keys of %s: %w", user, err)
	}
	return nil
}

// KeySignatures returns the signatures over a user's keys made by the user or by signer.
func (db *DB) KeySignatures(ctx context.Context, user, signer matrix.UserID) ([]matrix.KeySignature, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT user_id, key, signer, signer_key, signature FROM key_signatures
		WHERE user_id = ? AND signer IN (?, ?)`, user, user, signer)
	all, err := collect(rows, err, func(scan func(...any) error) (s matrix.KeySignature, err error) {
		err = scan(&s.User, &s.Key, &s.Signer, &s.SignerKey, &s.Signature)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("signatures on keys of %s: %w", user, err)
	}
	return all, nil
}

// PutKeySignatures stores signatures over keys.
func (db *DB) PutKeySignatures(ctx context.Context, sigs []matrix.KeySignature) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		touched := make(map[matrix.UserID]bool)
		for _, s := range sigs {
			_, err := tx.Exec(`INSERT INTO key_signatures (user_id, key, signer, signer_key, signature) VALUES (?, ?, ?, ?, ?)
				ON CONFLICT (user_id, key, signer, signer_key) DO UPDATE SET signature = excluded.signature`,
				s.User, s.Key, s.Signer, s.SignerKey, s.Signature)
			if err != nil {
				return err
			}
			touched[s.User] = true
		}
		for u := range touched {
			if err := db.deviceListChanged(tx, u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store key signatures: %w", err)
	}
	return nil
}

// ClaimKeys takes one key for each claim, oldest first, else the fallback key.
func (db *DB) ClaimKeys(ctx context.Context, claims []matrix.KeyClaim) ([]matrix.KeyClaim, error) {
	granted := make([]matrix.KeyClaim, len(claims))
	copy(granted, claims)
	err := db.write(ctx, func(tx *sql.Tx) error {
		for i := range granted {
			c := &granted[i]
			key := matrix.EncryptionKey{Algorithm: c.Algorithm}
			var value string
			err := tx.QueryRow(`DELETE FROM one_time_keys WHERE seq = (SELECT min(seq) FROM one_time_keys
				WHERE user_id = ? AND device_id = ? AND algorithm = ?) RETURNING key_id, json`,
				c.User, c.Device, c.Algorithm).Scan(&key.ID, &value)
			if errors.Is(err, sql.ErrNoRows) {
				err = tx.QueryRow(`UPDATE fallback_keys SET used = 1 WHERE user_id = ? AND device_id = ? AND algorithm = ?
					RETURNING key_id, json`, c.User, c.Device, c.Algorithm).Scan(&key.ID, &value)
			}
			if errors.Is(err, sql.ErrNoRows) {
				continue
			}
			if err != nil {
				return err
			}
			key.Value = json.RawMessage(value)
			c.Key = &key
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim keys: %w", err)
	}
	return granted, nil
}
