package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// change runs one statement as a write of its own. what words the error.
func (db *DB) change(ctx context.Context, what, query string, args ...any) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(query, args...)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// changeOne is change for a row that must exist.
func (db *DB) changeOne(ctx context.Context, what, query string, args ...any) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec(query, args...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, call.ErrNotFound)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// collect reads all rows with scan, which returns one of them.
func collect[T any](rows *sql.Rows, err error, scan func(scan func(...any) error) (T, error)) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows.Scan)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// millis is a time as it is stored: Unix milliseconds, 0 for the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// fromMillis is the inverse of millis.
func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// CreateUser adds an account with its first push rules.
func (db *DB) CreateUser(ctx context.Context, u matrix.User, pushRules json.RawMessage) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec(`INSERT INTO users (user_id, password_hash, guest, admin, created_ts)
			VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`, u.ID, u.PasswordHash, u.Guest, u.Admin, millis(u.Created))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, call.ErrConflict)
		}
		return db.putAccountData(tx, u.ID, "", matrix.AccountData{Type: "m.push_rules", Content: pushRules})
	})
	if err != nil {
		return fmt.Errorf("create user %s: %w", u.ID, err)
	}
	return nil
}

const userColumns = "user_id, password_hash, guest, admin, deactivated, created_ts"

func scanUser(scan func(...any) error) (matrix.User, error) {
	var u matrix.User
	var created int64
	err := scan(&u.ID, &u.PasswordHash, &u.Guest, &u.Admin, &u.Deactivated, &created)
	u.Created = fromMillis(created)
	return u, err
}

// User returns an account, also a deactivated one.
func (db *DB) User(ctx context.Context, id matrix.UserID) (matrix.User, error) {
	u, err := scanUser(db.read.QueryRowContext(ctx, "SELECT "+userColumns+" FROM users WHERE user_id = ?", id).Scan)
	if err != nil {
		return matrix.User{}, fmt.Errorf("user %s: %w", id, notFound(err))
	}
	return u, nil
}

// Users lists all accounts but guests.
func (db *DB) Users(ctx context.Context) ([]matrix.User, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT "+userColumns+" FROM users WHERE guest = 0 ORDER BY user_id")
	all, err := collect(rows, err, scanUser)
	if err != nil {
		return nil, fmt.Errorf("users: %w", err)
	}
	return all, nil
}

// SetPasswordHash replaces the password of an account that is not deactivated.
func (db *DB) SetPasswordHash(ctx context.Context, id matrix.UserID, hash string) error {
	return db.changeOne(ctx, "set password of "+string(id),
		"UPDATE users SET password_hash = ? WHERE user_id = ? AND deactivated = 0", hash, id)
}

// Deactivate ends an account for ever; its ID stays taken.
func (db *DB) Deactivate(ctx context.Context, id matrix.UserID, erase bool) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE users SET deactivated = 1, password_hash = '' WHERE user_id = ?", id)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, call.ErrNotFound)
		}
		queries := []string{
			"DELETE FROM devices WHERE user_id = ?",
			"DELETE FROM openid_tokens WHERE user_id = ?",
			"DELETE FROM pushers WHERE user_id = ?",
			"DELETE FROM cross_signing_keys WHERE user_id = ?",
			"DELETE FROM key_signatures WHERE user_id = ?",
			"DELETE FROM key_backups WHERE user_id = ?",
			"DELETE FROM filters WHERE user_id = ?",
			"DELETE FROM account_data WHERE user_id = ?",
		}
		if erase {
			queries = append(queries, "DELETE FROM profiles WHERE user_id = ?")
		}
		for _, q := range queries {
			if _, err := tx.Exec(q, id); err != nil {
				return err
			}
		}
		return db.deviceListChanged(tx, id)
	})
	if err != nil {
		return fmt.Errorf("deactivate %s: %w", id, err)
	}
	return nil
}

// CreateSession stores a login.
func (db *DB) CreateSession(ctx context.Context, s matrix.Session) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec(`INSERT INTO devices (user_id, device_id, display_name, created_ts) VALUES (?, ?, ?, ?)
			ON CONFLICT DO NOTHING`, s.User, s.Device, s.DisplayName, millis(time.Now()))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 { // a known device: its older logins end
			for _, table := range []string{"access_tokens", "refresh_tokens"} {
				if _, err := tx.Exec("DELETE FROM "+table+" WHERE user_id = ? AND device_id = ?", s.User, s.Device); err != nil {
					return err
				}
			}
		} else if err := db.deviceListChanged(tx, s.User); err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO access_tokens (hash, user_id, device_id, expires_ts) VALUES (?, ?, ?, ?)",
			s.Access[:], s.User, s.Device, millis(s.Expires))
		if err != nil || s.Refresh == nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO refresh_tokens (hash, user_id, device_id) VALUES (?, ?, ?)", s.Refresh[:], s.User, s.Device)
		return err
	})
	if err != nil {
		return fmt.Errorf("log in %s: %w", s.User, err)
	}
	return nil
}

// TokenOwner returns whose access token it is, expired or not.
func (db *DB) TokenOwner(ctx context.Context, token matrix.TokenHash) (matrix.TokenOwner, error) {
	var o matrix.TokenOwner
	var expires int64
	err := db.read.QueryRowContext(ctx, `SELECT t.user_id, t.device_id, t.expires_ts, t.came_from IS NOT NULL, u.guest
		FROM access_tokens t JOIN users u USING (user_id) WHERE t.hash = ?`, token[:]).
		Scan(&o.User, &o.Device, &expires, &o.Fresh, &o.Guest)
	if err != nil {
		return matrix.TokenOwner{}, fmt.Errorf("access token: %w", notFound(err))
	}
	o.Expires = fromMillis(expires)
	return o, nil
}

// TokenUsed ends the predecessors of a fresh token.
func (db *DB) TokenUsed(ctx context.Context, token matrix.TokenHash) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		var user, device string
		var from []byte
		err := tx.QueryRow("SELECT user_id, device_id, came_from FROM access_tokens WHERE hash = ?", token[:]).Scan(&user, &device, &from)
		if err != nil {
			return notFound(err)
		}
		if from == nil {
			return nil
		}
		_, err = tx.Exec("DELETE FROM access_tokens WHERE user_id = ? AND device_id = ? AND hash != ?", user, device, token[:])
		if err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM refresh_tokens WHERE hash = ?", from); err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE access_tokens SET came_from = NULL WHERE hash = ?", token[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("first use of an access token: %w", err)
	}
	return nil
}

// RefreshSession trades a refresh token for new tokens.
func (db *DB) RefreshSession(ctx context.Context, refresh, newAccess matrix.TokenHash, expires time.Time, newRefresh matrix.TokenHash) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		var user, device string
		var from []byte
		err := tx.QueryRow("SELECT user_id, device_id, came_from FROM refresh_tokens WHERE hash = ?", refresh[:]).Scan(&user, &device, &from)
		if err != nil {
			return notFound(err)
		}
		for _, table := range []string{"access_tokens", "refresh_tokens"} { // what it gave before and nobody used
			if _, err := tx.Exec("DELETE FROM "+table+" WHERE came_from = ? AND user_id = ? AND device_id = ?", refresh[:], user, device); err != nil {
				return err
			}
		}
		if from != nil {
			if _, err := tx.Exec("DELETE FROM refresh_tokens WHERE hash = ?", from); err != nil {
				return err
			}
		}
		_, err = tx.Exec("INSERT INTO access_tokens (hash, user_id, device_id, expires_ts, came_from) VALUES (?, ?, ?, ?, ?)",
			newAccess[:], user, device, millis(expires), refresh[:])
		if err != nil {
			return err
		}
		_, err = tx.Exec("INSERT INTO refresh_tokens (hash, user_id, device_id, came_from) VALUES (?, ?, ?, ?)",
			newRefresh[:], user, device, refresh[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("refresh tokens: %w", err)
	}
	return nil
}

const deviceColumns = "device_id, display_name, last_seen_ip, last_seen_ts"

func scanDevice(scan func(...any) error) (matrix.Device, error) {
	var d matrix.Device
	var seen int64
	err := scan(&d.ID, &d.DisplayName, &d.LastSeenIP, &seen)
	d.LastSeen = fromMillis(seen)
	return d, err
}

// Devices lists a user's devices.
func (db *DB) Devices(ctx context.Context, user matrix.UserID) ([]matrix.Device, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT "+deviceColumns+" FROM devices WHERE user_id = ? ORDER BY device_id", user)
	all, err := collect(rows, err, scanDevice)
	if err != nil {
		return nil, fmt.Errorf("devices of %s: %w", user, err)
	}
	return all, nil
}

// Device returns one device.
func (db *DB) Device(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (matrix.Device, error) {
	d, err := scanDevice(db.read.QueryRowContext(ctx,
		"SELECT "+deviceColumns+" FROM devices WHERE user_id = ? AND device_id = ?", user, device).Scan)
	if err != nil {
		return matrix.Device{}, fmt.Errorf("device of %s: %w", user, notFound(err))
	}
	return d, nil
}

// RenameDevice sets a device's display name.
func (db *DB) RenameDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, name string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		res, err := tx.Exec("UPDATE devices SET display_name = ? WHERE user_id = ? AND device_id = ?", name, user, device)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, call.ErrNotFound)
		}
		return db.deviceListChanged(tx, user)
	})
	if err != nil {
		return fmt.Errorf("rename device of %s: %w", user, err)
	}
	return nil
}

// TouchDevice notes when and from where a device was last used.
func (db *DB) TouchDevice(ctx context.Context, user matrix.UserID, device matrix.DeviceID, ip string, at time.Time) error {
	return db.change(ctx, "note last use of a device",
		"UPDATE devices SET last_seen_ip = ?, last_seen_ts = ? WHERE user_id = ? AND device_id = ?", ip, millis(at), user, device)
}

// DeleteDevices removes devices with everything that belongs to them.
func (db *DB) DeleteDevices(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		gone := int64(0)
		for _, d := range devices {
			res, err := tx.Exec("DELETE FROM devices WHERE user_id = ? AND device_id = ?", user, d)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			gone += n
			for _, q := range []string{
				"DELETE FROM pushers WHERE user_id = ? AND device_id = ?",
				"DELETE FROM key_signatures WHERE user_id = ? AND key = ?",
			} {
				if _, err := tx.Exec(q, user, d); err != nil {
					return err
				}
			}
		}
		if gone == 0 {
			return nil
		}
		return db.deviceListChanged(tx, user)
	})
	if err != nil {
		return fmt.Errorf("delete devices of %s: %w", user, err)
	}
	return nil
}

// Profile returns the display name and avatar URL, empty where unset.
func (db *DB) Profile(ctx context.Context, user matrix.UserID) (displayname, avatarURL string, err error) {
	fields, err := db.ProfileFields(ctx, user)
	if err != nil {
		return "", "", err
	}
	_ = json.Unmarshal(fields["displayname"], &displayname) // an absent or odd field is empty
	_ = json.Unmarshal(fields["avatar_url"], &avatarURL)
	return displayname, avatarURL, nil
}

// ProfileFields returns all fields of a profile.
func (db *DB) ProfileFields(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT coalesce(p.field, ''), coalesce(p.value, '')
		FROM users u LEFT JOIN profiles p USING (user_id) WHERE u.user_id = ?`, user)
	all, err := collect(rows, err, func(scan func(...any) error) (kv [2]string, err error) {
		err = scan(&kv[0], &kv[1])
		return kv, err
	})
	if err == nil && len(all) == 0 {
		err = call.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("profile of %s: %w", user, err)
	}
	fields := make(map[string]json.RawMessage)
	for _, kv := range all {
		if kv[0] != "" {
			fields[kv[0]] = json.RawMessage(kv[1])
		}
	}
	return fields, nil
}

// SetProfileField sets a field, or removes it if value is nil.
func (db *DB) SetProfileField(ctx context.Context, user matrix.UserID, key string, value json.RawMessage) error {
	what := "set profile of " + string(user)
	if value == nil {
		return db.change(ctx, what, "DELETE FROM profiles WHERE user_id = ? AND field = ?", user, key)
	}
	return db.change(ctx, what, `INSERT INTO profiles (user_id, field, value) VALUES (?, ?, ?)
		ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`, user, key, string(value))
}

// maxFilters is how many filters of one user are kept, the newest ones. Clients
// make a new one when theirs is gone.
const maxFilters = 200

// PutFilter stores a filter and returns its ID.
func (db *DB) PutFilter(ctx context.Context, user matrix.UserID, filter json.RawMessage) (string, error) {
	var id int64
	err := db.write(ctx, func(tx *sql.Tx) error {
		err := tx.QueryRow("SELECT filter_id FROM filters WHERE user_id = ? AND json = ?", user, string(filter)).Scan(&id)
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		err = tx.QueryRow("SELECT coalesce(max(filter_id), 0) + 1 FROM filters WHERE user_id = ?", user).Scan(&id)
		if err != nil {
			return err
		}
		_, err1 := tx.Exec("INSERT INTO filters (user_id, filter_id, json) VALUES (?, ?, ?)", user, id, string(filter))
		_, err2 := tx.Exec("DELETE FROM filters WHERE user_id = ? AND filter_id <= ?", user, id-maxFilters)
		return errors.Join(err1, err2)
	})
	if err != nil {
		return "", fmt.Errorf("store filter: %w", err)
	}
	return strconv.FormatInt(id, 10), nil
}

// Filter returns a stored filter.
func (db *DB) Filter(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", call.ErrNotFound)
	}
	var filter string
	err = db.read.QueryRowContext(ctx, "SELECT json FROM filters WHERE user_id = ? AND filter_id = ?", user, n).Scan(&filter)
	if err != nil {
		return nil, fmt.Errorf("filter: %w", notFound(err))
	}
	return json.RawMessage(filter), nil
}

// PutAccountData sets one event of account data; room "" is global.
func (db *DB) PutAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, d matrix.AccountData) error {
	err := db.write(ctx, func(tx *sql.Tx) error { return db.putAccountData(tx, user, room, d) })
	if err != nil {
		return fmt.Errorf("account data of %s: %w", user, err)
	}
	return nil
}

func (db *DB) putAccountData(tx *sql.Tx, user matrix.UserID, room matrix.RoomID, d matrix.AccountData) error {
	pos, err := db.nextPos(tx)
	if err != nil {
		return err
	}
	_, err = db.exec(tx, `INSERT INTO account_data (user_id, room_id, type, content, pos) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, pos = excluded.pos`,
		user, room, d.Type, string(d.Content), pos)
	return err
}

// UpdateAccountData sets one event of account data to what change makes of it.
func (db *DB) UpdateAccountData(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string, change func(old json.RawMessage) (json.RawMessage, error)) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		var old json.RawMessage
		var content string
		err := tx.QueryRow("SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?", user, room, typ).Scan(&content)
		if err == nil {
			old = json.RawMessage(content)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("account data of %s: %w", user, err)
		}
		now, err := change(old)
		if err != nil {
			return err // the caller's own
		}
		return db.putAccountData(tx, user, room, matrix.AccountData{Type: typ, Content: now})
	})
}

// AccountDataEvent returns the content of one event of account data.
func (db *DB) AccountDataEvent(ctx context.Context, user matrix.UserID, room matrix.RoomID, typ string) (json.RawMessage, error) {
	var content string
	err := db.read.QueryRowContext(ctx, "SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?",
		user, room, typ).Scan(&content)
	if err != nil {
		return nil, fmt.Errorf("account data %s: %w", typ, notFound(err))
	}
	return json.RawMessage(content), nil
}

// GlobalAccountData returns what changed in (since, upTo].
func (db *DB) GlobalAccountData(ctx context.Context, user matrix.UserID, since, upTo int64) ([]matrix.AccountData, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT type, content FROM account_data
		WHERE user_id = ? AND room_id = '' AND pos > ? AND pos <= ? ORDER BY pos`, user, since, upTo)
	all, err := collect(rows, err, func(scan func(...any) error) (d matrix.AccountData, err error) {
		var content string
		err = scan(&d.Type, &content)
		d.Content = json.RawMessage(content)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", user, err)
	}
	return all, nil
}

// RoomAccountData returns what changed in (since, upTo] in the user's rooms.
func (db *DB) RoomAccountData(ctx context.Context, user matrix.UserID, since, upTo int64) (map[matrix.RoomID][]matrix.AccountData, error) {
	type row struct {
		room matrix.RoomID
		data matrix.AccountData
	}
	rows, err := db.read.QueryContext(ctx, `SELECT room_id, type, content FROM account_data
		WHERE user_id = ? AND room_id != '' AND pos > ? AND pos <= ? ORDER BY pos`, user, since, upTo)
	all, err := collect(rows, err, func(scan func(...any) error) (r row, err error) {
		var content string
		err = scan(&r.room, &r.data.Type, &content)
		r.data.Content = json.RawMessage(content)
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("account data of %s: %w", user, err)
	}
	byRoom := make(map[matrix.RoomID][]matrix.AccountData)
	for _, r := range all {
		byRoom[r.room] = append(byRoom[r.room], r.data)
	}
	return byRoom, nil
}
