package storage

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/trunkhall/trunkhall/call"
)

// SaveMinted keeps m until it expires, in place of what was kept for its room
// and identity.
func (db *DB) SaveMinted(ctx context.Context, m call.Minted) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rtc_minted (room_name, identity, room_id, user_id, device_id, expires_ms)
			VALUES (?, ?, ?, ?, ?, ?)
			ON CONFLICT (room_name, identity) DO UPDATE SET room_id = excluded.room_id, user_id = excluded.user_id,
				device_id = excluded.device_id, expires_ms = max(expires_ms, excluded.expires_ms)`,
			m.Room, m.Identity, m.RoomID, m.UserID, m.DeviceID, m.Expires.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("save minted identity: %w", err)
	}
	return nil
}

// Minted returns what is kept for a room and identity, call.ErrNotFound if nothing.
func (db *DB) Minted(ctx context.Context, room call.RoomName, id call.Identity) (call.Minted, error) {
	row := db.read.QueryRowContext(ctx, `SELECT room_name, identity, room_id, user_id, device_id, expires_ms
		FROM rtc_minted WHERE room_name = ? AND identity = ?`, room, id)
	m, err := scanMinted(row)
	if err != nil {
		return call.Minted{}, fmt.Errorf("minted identity: %w", notFound(err))
	}
	return m, nil
}

// MintedFor returns every identity that was minted for a user of a Matrix room.
func (db *DB) MintedFor(ctx context.Context, roomID, userID string) ([]call.Minted, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT room_name, identity, room_id, user_id, device_id, expires_ms
		FROM rtc_minted WHERE room_id = ? AND user_id = ?`, roomID, userID)
	if err != nil {
		return nil, fmt.Errorf("minted identities: %w", err)
	}
	defer rows.Close()
	var all []call.Minted
	for rows.Next() {
		m, err := scanMinted(rows)
		if err != nil {
			return nil, fmt.Errorf("minted identities: %w", err)
		}
		all = append(all, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("minted identities: %w", err)
	}
	return all, nil
}

func scanMinted(row interface{ Scan(...any) error }) (call.Minted, error) {
	var m call.Minted
	var expires int64
	err := row.Scan(&m.Room, &m.Identity, &m.RoomID, &m.UserID, &m.DeviceID, &expires)
	m.Expires = time.UnixMilli(expires)
	return m, err
}

// ExtendMinted keeps what is known of a room and identity until then, if that
// is later than before. It is no error if nothing is kept.
func (db *DB) ExtendMinted(ctx context.Context, room call.RoomName, id call.Identity, until time.Time) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE rtc_minted SET expires_ms = max(expires_ms, ?)
			WHERE room_name = ? AND identity = ?`, until.UnixMilli(), room, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("extend minted identity: %w", err)
	}
	return nil
}

// RaiseFloor makes tokens of a room and identity dead that became valid before
// floor. A floor never sinks. It is forgotten at expires.
func (db *DB) RaiseFloor(ctx context.Context, room call.RoomName, id call.Identity, floor, expires time.Time) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rtc_floors (room_name, identity, floor_ms, expires_ms) VALUES (?, ?, ?, ?)
			ON CONFLICT (room_name, identity) DO UPDATE SET floor_ms = max(floor_ms, excluded.floor_ms),
				expires_ms = max(expires_ms, excluded.expires_ms)`,
			room, id, floor.UnixMilli(), expires.UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("raise revocation floor: %w", err)
	}
	return nil
}

// Floor returns the revocation floor of a room and identity, the zero time if
// there is none.
func (db *DB) Floor(ctx context.Context, room call.RoomName, id call.Identity) (time.Time, error) {
	var ms int64
	err := db.read.QueryRowContext(ctx, `SELECT floor_ms FROM rtc_floors WHERE room_name = ? AND identity = ?`, room, id).Scan(&ms)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("revocation floor: %w", err)
	}
	return time.UnixMilli(ms), nil
}

// SaveDelegation keeps d, in place of an older one for its room and identity.
func (db *DB) SaveDelegation(ctx context.Context, d call.Delegation) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO rtc_delegations
				(room_name, identity, room_id, user_id, delay_id, delay_ms, created_ms, seen)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (room_name, identity) DO UPDATE SET room_id = excluded.room_id, user_id = excluded.user_id,
				delay_id = excluded.delay_id, delay_ms = excluded.delay_ms, created_ms = excluded.created_ms, seen = excluded.seen`,
			d.Room, d.Identity, d.RoomID, d.UserID, d.DelayID, d.Delay.Milliseconds(), d.Created.UnixMilli(), d.Seen)
		return err
	})
	if err != nil {
		return fmt.Errorf("save delegation: %w", err)
	}
	return nil
}

// SawDelegated notes that the participant of a delegation has been there. It
// does nothing if another delayed event has been delegated since.
func (db *DB) SawDelegated(ctx context.Context, room call.RoomName, id call.Identity, delayID string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE rtc_delegations SET seen = 1
			WHERE room_name = ? AND identity = ? AND delay_id = ?`, room, id, delayID)
		return err
	})
	if err != nil {
		return fmt.Errorf("note delegation as seen: %w", err)
	}
	return nil
}

// DeleteDelegation forgets a finished delegation. It does nothing if another
// delayed event has been delegated since.
func (db *DB) DeleteDelegation(ctx context.Context, room call.RoomName, id call.Identity, delayID string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM rtc_delegations
			WHERE room_name = ? AND identity = ? AND delay_id = ?`, room, id, delayID)
		return err
	})
	if err != nil {
		return fmt.Errorf("delete delegation: %w", err)
	}
	return nil
}

// Delegations returns every delegation that is kept.
func (db *DB) Delegations(ctx context.Context) ([]call.Delegation, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT room_name, identity, room_id, user_id, delay_id, delay_ms, created_ms, seen
		FROM rtc_delegations`)
	if err != nil {
		return nil, fmt.Errorf("delegations: %w", err)
	}
	defer rows.Close()
	var all []call.Delegation
	for rows.Next() {
		var d call.Delegation
		var delay, created int64
		if err := rows.Scan(&d.Room, &d.Identity, &d.RoomID, &d.UserID, &d.DelayID, &delay, &created, &d.Seen); err != nil {
			return nil, fmt.Errorf("delegations: %w", err)
		}
		d.Delay = time.Duration(delay) * time.Millisecond
		d.Created = time.UnixMilli(created)
		all = append(all, d)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("delegations: %w", err)
	}
	return all, nil
}

// ForgetExpired deletes minted identities and floors that expired before now.
func (db *DB) ForgetExpired(ctx context.Context, now time.Time) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		for _, table := range []string{"rtc_minted", "rtc_floors"} {
			if _, err := tx.ExecContext(ctx, "DELETE FROM "+table+" WHERE expires_ms < ?", now.UnixMilli()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("forget expired call identities: %w", err)
	}
	return nil
}
