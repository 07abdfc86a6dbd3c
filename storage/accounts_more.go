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

// CreateBackup starts a new version of a user's key backup.
func (db *DB) CreateBackup(ctx context.Context, user matrix.UserID, algorithm string, authData json.RawMessage) (string, error) {
	var version int64
	err := db.write(ctx, func(tx *sql.Tx) error {
		return tx.QueryRow(`INSERT INTO key_backups (user_id, version, algorithm, auth_data)
			SELECT ?, coalesce(max(version), 0) + 1, ?, ? FROM key_backups WHERE user_id = ? RETURNING version`,
			user, algorithm, string(authData), user).Scan(&version)
	})
	if err != nil {
		return "", fmt.Errorf("create key backup: %w", err)
	}
	return strconv.FormatInt(version, 10), nil
}

// A querier is what *sql.DB and *sql.Tx have in common for one row.
type querier interface {
	QueryRow(query string, args ...any) *sql.Row
}

// backup returns one version that is not deleted; "" is the current one.
func backup(q querier, user matrix.UserID, version string) (matrix.BackupVersion, error) {
	var n int64
	if version != "" {
		var err error
		if n, err = strconv.ParseInt(version, 10, 64); err != nil {
			return matrix.BackupVersion{}, call.ErrNotFound
		}
	}
	var b matrix.BackupVersion
	var authData string
	err := q.QueryRow(`SELECT version, algorithm, auth_data, etag,
			(SELECT count(*) FROM key_backup_keys k WHERE k.user_id = b.user_id AND k.version = b.version)
		FROM key_backups b WHERE user_id = ? AND deleted = 0 AND (? = 0 OR version = ?)
		ORDER BY version DESC LIMIT 1`, user, n, n).Scan(&b.Version, &b.Algorithm, &authData, &b.ETag, &b.Count)
	b.AuthData = json.RawMessage(authData)
	return b, notFound(err)
}

// Backup returns a version of a user's key backup.
func (db *DB) Backup(ctx context.Context, user matrix.UserID, version string) (matrix.BackupVersion, error) {
	b, err := backup(db.read, user, version)
	if err != nil {
		return matrix.BackupVersion{}, fmt.Errorf("key backup: %w", err)
	}
	return b, nil
}

// SetBackupAuth replaces the auth_data of a version.
func (db *DB) SetBackupAuth(ctx context.Context, user matrix.UserID, version string, authData json.RawMessage) error {
	return db.changeOne(ctx, "change key backup",
		"UPDATE key_backups SET auth_data = ? WHERE user_id = ? AND version = ? AND deleted = 0", string(authData), user, version)
}

// DeleteBackup ends a version and deletes its keys.
func (db *DB) DeleteBackup(ctx context.Context, user matrix.UserID, version string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		b, err := backup(tx, user, version)
		if err != nil {
			return err
		}
		if _, err := tx.Exec("DELETE FROM key_backup_keys WHERE user_id = ? AND version = ?", user, b.Version); err != nil {
			return err
		}
		_, err = tx.Exec("UPDATE key_backups SET deleted = 1 WHERE user_id = ? AND version = ?", user, b.Version)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete key backup: %w", err)
	}
	return nil
}

// PutBackupKeys stores keys where they are better than what is there
// (client-server API, "Server-side key backups").
func (db *DB) PutBackupKeys(ctx context.Context, user matrix.UserID, version string, keys []matrix.BackupKey) (matrix.BackupVersion, error) {
	var b matrix.BackupVersion
	err := db.write(ctx, func(tx *sql.Tx) error {
		if _, err := backup(tx, user, version); err != nil {
			return err
		}
		current, err := backup(tx, user, "")
		if err != nil {
			return err
		}
		if current.Version != version {
			return fmt.Errorf("version %s is not the current one: %w", version, call.ErrConflict)
		}
		changed := false
		for _, k := range keys {
			res, err := tx.Exec(`INSERT INTO key_backup_keys
					(user_id, version, room_id, session_id, first_message_index, forwarded_count, is_verified, session_data)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET
					first_message_index = excluded.first_message_index, forwarded_count = excluded.forwarded_count,
					is_verified = excluded.is_verified, session_data = excluded.session_data
				WHERE (-excluded.is_verified, excluded.first_message_index, excluded.forwarded_count)
					< (-is_verified, first_message_index, forwarded_count)`,
				user, version, k.Room, k.Session, k.FirstMessageIndex, k.ForwardedCount, k.IsVerified, string(k.SessionData))
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			changed = changed || n > 0
		}
		b, err = touchBackup(tx, user, version, changed)
		return err
	})
	if err != nil {
		return matrix.BackupVersion{}, fmt.Errorf("store room keys: %w", err)
	}
	return b, nil
}

// touchBackup changes the etag if keys changed and returns the version as it is now.
func touchBackup(tx *sql.Tx, user matrix.UserID, version string, changed bool) (matrix.BackupVersion, error) {
	if changed {
		if _, err := tx.Exec("UPDATE key_backups SET etag = etag + 1 WHERE user_id = ? AND version = ?", user, version); err != nil {
			return matrix.BackupVersion{}, err
		}
	}
	return backup(tx, user, version)
}

// BackupKeys returns the keys of a version; room and session "" are all.
func (db *DB) BackupKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) ([]matrix.BackupKey, error) {
	b, err := db.Backup(ctx, user, version)
	if err != nil {
		return nil, err
	}
	rows, err := db.read.QueryContext(ctx, `SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
		FROM key_backup_keys WHERE user_id = ? AND version = ? AND (? = '' OR room_id = ?) AND (? = '' OR session_id = ?)`,
		user, b.Version, room, room, session, session)
	all, err := collect(rows, err, func(scan func(...any) error) (k matrix.BackupKey, err error) {
		var data string
		err = scan(&k.Room, &k.Session, &k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, &data)
		k.SessionData = json.RawMessage(data)
		return k, err
	})
	if err != nil {
		return nil, fmt.Errorf("backed-up room keys: %w", err)
	}
	return all, nil
}

// DeleteBackupKeys deletes keys of a version; room and session "" are all.
func (db *DB) DeleteBackupKeys(ctx context.Context, user matrix.UserID, version string, room matrix.RoomID, session string) (matrix.BackupVersion, error) {
	var b matrix.BackupVersion
	err := db.write(ctx, func(tx *sql.Tx) error {
		if _, err := backup(tx, user, version); err != nil {
			return err
		}
		res, err := tx.Exec(`DELETE FROM key_backup_keys WHERE user_id = ? AND version = ?
			AND (? = '' OR room_id = ?) AND (? = '' OR session_id = ?)`, user, version, room, room, session, session)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		if err != nil {
			return err
		}
		b, err = touchBackup(tx, user, version, n > 0)
		return err
	})
	if err != nil {
		return matrix.BackupVersion{}, fmt.Errorf("delete room keys: %w", err)
	}
	return b, nil
}

// Pushers lists a user's pushers.
func (db *DB) Pushers(ctx context.Context, user matrix.UserID) ([]matrix.Pusher, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT app_id, pushkey, device_id, json FROM pushers WHERE user_id = ? ORDER BY app_id, pushkey", user)
	all, err := collect(rows, err, func(scan func(...any) error) (p matrix.Pusher, err error) {
		var data string
		err = scan(&p.AppID, &p.PushKey, &p.Device, &data)
		p.JSON = json.RawMessage(data)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("pushers of %s: %w", user, err)
	}
	return all, nil
}

// SetPusher stores a pusher; exclusive removes it from other users.
func (db *DB) SetPusher(ctx context.Context, user matrix.UserID, p matrix.Pusher, exclusive bool) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		if exclusive {
			_, err := tx.Exec("DELETE FROM pushers WHERE app_id = ? AND pushkey = ? AND user_id != ?", p.AppID, p.PushKey, user)
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO pushers (user_id, app_id, pushkey, device_id, json) VALUES (?, ?, ?, ?, ?)
			ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, json = excluded.json`,
			user, p.AppID, p.PushKey, p.Device, string(p.JSON))
		return err
	})
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	return nil
}

// DeletePusher removes a pusher; an unknown one is no error.
func (db *DB) DeletePusher(ctx context.Context, user matrix.UserID, appID, pushKey string) error {
	return db.change(ctx, "delete pusher", "DELETE FROM pushers WHERE user_id = ? AND app_id = ? AND pushkey = ?", user, appID, pushKey)
}

// DeletePushersExcept drops the pushers that other devices set.
func (db *DB) DeletePushersExcept(ctx context.Context, user matrix.UserID, keep matrix.DeviceID) error {
	return db.change(ctx, "delete pushers", "DELETE FROM pushers WHERE user_id = ? AND device_id != ?", user, keep)
}

// PutMedia notes an uploaded file.
func (db *DB) PutMedia(ctx context.Context, m matrix.Media) error {
	return db.change(ctx, "store media", `INSERT INTO media (media_id, uploader, hash, size, content_type, name, created_ts)
		VALUES (?, ?, ?, ?, ?, ?, ?)`, m.ID, m.Uploader, m.Hash, m.Size, m.ContentType, m.Name, millis(m.Created))
}

// Media returns what is known of an uploaded file.
func (db *DB) Media(ctx context.Context, id string) (matrix.Media, error) {
	m := matrix.Media{ID: id}
	var created int64
	err := db.read.QueryRowContext(ctx, "SELECT uploader, hash, size, content_type, name, created_ts FROM media WHERE media_id = ?", id).
		Scan(&m.Uploader, &m.Hash, &m.Size, &m.ContentType, &m.Name, &created)
	if err != nil {
		return matrix.Media{}, fmt.Errorf("media: %w", notFound(err))
	}
	m.Created = fromMillis(created)
	return m, nil
}

// How many OpenID tokens of one user are kept, the newest ones. What is too much
// is looked for with one in openIDPrune tokens only: it takes a look at all.
const (
	maxOpenIDTokens = 1000
	openIDPrune     = 64
)

// PutOpenIDToken stores an OpenID token.
func (db *DB) PutOpenIDToken(ctx context.Context, token matrix.TokenHash, user matrix.UserID, expires time.Time) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO openid_tokens (hash, user_id, expires_ts) VALUES (?, ?, ?)", token[:], user, millis(expires))
		if err != nil || token[0]%openIDPrune != 0 {
			return err
		}
		_, err = tx.Exec(`DELETE FROM openid_tokens WHERE user_id = ? AND hash NOT IN
			(SELECT hash FROM openid_tokens WHERE user_id = ? ORDER BY expires_ts DESC LIMIT ?)`, user, user, maxOpenIDTokens)
		return err
	})
	if err != nil {
		return fmt.Errorf("store OpenID token: %w", err)
	}
	return nil
}

// OpenIDUser returns whose OpenID token it is, unless it has expired.
func (db *DB) OpenIDUser(ctx context.Context, token matrix.TokenHash, now time.Time) (matrix.UserID, error) {
	var user matrix.UserID
	err := db.read.QueryRowContext(ctx, "SELECT user_id FROM openid_tokens WHERE hash = ? AND expires_ts > ?", token[:], millis(now)).Scan(&user)
	if err != nil {
		return "", fmt.Errorf("OpenID token: %w", notFound(err))
	}
	return user, nil
}

// Expire deletes OpenID tokens that ended, access tokens that ended long ago and
// transaction IDs that nobody repeats any more.
func (db *DB) Expire(ctx context.Context, now time.Time) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		day := millis(now.Add(-24 * time.Hour))
		_, err1 := tx.Exec("DELETE FROM openid_tokens WHERE expires_ts <= ?", millis(now))
		_, err2 := tx.Exec("DELETE FROM to_device_txns WHERE ts < ?", day)
		// An expired token answers "soft logout" for a month, then "unknown".
		_, err3 := tx.Exec("DELETE FROM access_tokens WHERE expires_ts > 0 AND expires_ts < ?", millis(now.Add(-30*24*time.Hour)))
		return errors.Join(err1, err2, err3)
	})
	if err != nil {
		return fmt.Errorf("expire: %w", err)
	}
	return nil
}
