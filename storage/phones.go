package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/trunkhall/trunkhall/call"
)

// SetRoomPIN keeps the hash of a Matrix room's PIN in place of an older one.
// call.ErrConflict: another room has that PIN.
func (db *DB) SetRoomPIN(ctx context.Context, roomID string, hash []byte) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		var other string
		switch err := tx.QueryRowContext(ctx, "SELECT room_id FROM phone_pins WHERE pin_hash = ?", hash).Scan(&other); {
		case err == nil && other != roomID:
			return call.ErrConflict
		case err != nil && !errors.Is(err, sql.ErrNoRows):
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO phone_pins (room_id, pin_hash) VALUES (?, ?)
			ON CONFLICT (room_id) DO UPDATE SET pin_hash = excluded.pin_hash`, roomID, hash)
		return err
	})
	if err != nil {
		return fmt.Errorf("keep PIN: %w", err)
	}
	return nil
}

// DeleteRoomPIN forgets a room's PIN.
func (db *DB) DeleteRoomPIN(ctx context.Context, roomID string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM phone_pins WHERE room_id = ?", roomID)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget PIN: %w", err)
	}
	return nil
}

// RoomOfPIN returns the Matrix room whose PIN has a hash, call.ErrNotFound if none has.
func (db *DB) RoomOfPIN(ctx context.Context, hash []byte) (roomID string, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT room_id FROM phone_pins WHERE pin_hash = ?", hash).Scan(&roomID)
	if err != nil {
		return "", fmt.Errorf("room of PIN: %w", notFound(err))
	}
	return roomID, nil
}

// RoomPIN returns the hash of a room's PIN, call.ErrNotFound if it has none.
func (db *DB) RoomPIN(ctx context.Context, roomID string) (hash []byte, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT pin_hash FROM phone_pins WHERE room_id = ?", roomID).Scan(&hash)
	if err != nil {
		return nil, fmt.Errorf("PIN of room: %w", notFound(err))
	}
	return hash, nil
}

// OpenPhoneSeat notes that a phone is about to take a place in a Matrix room.
func (db *DB) OpenPhoneSeat(ctx context.Context, s call.OpenSeat) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO phone_seats (user_id, device_id, room_id, stays) VALUES (?, ?, ?, ?)
			ON CONFLICT (user_id, device_id) DO UPDATE SET room_id = excluded.room_id, stays = excluded.stays`,
			s.UserID, s.DeviceID, s.RoomID, s.Stays)
		return err
	})
	if err != nil {
		return fmt.Errorf("note a phone's place: %w", err)
	}
	return nil
}

// ClosePhoneSeat notes that a phone's place has been given back.
func (db *DB) ClosePhoneSeat(ctx context.Context, s call.OpenSeat) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM phone_seats WHERE user_id = ? AND device_id = ?", s.UserID, s.DeviceID)
		return err
	})
	if err != nil {
		return fmt.Errorf("give back a phone's place: %w", err)
	}
	return nil
}

// OpenPhoneSeats returns the places that were not given back.
func (db *DB) OpenPhoneSeats(ctx context.Context) ([]call.OpenSeat, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT user_id, device_id, room_id, stays FROM phone_seats")
	all, err := collect(rows, err, func(scan func(...any) error) (s call.OpenSeat, err error) {
		err = scan(&s.UserID, &s.DeviceID, &s.RoomID, &s.Stays)
		return s, err
	})
	if err != nil {
		return nil, fmt.Errorf("phones' places: %w", err)
	}
	return all, nil
}

// SIPTrunks returns the trunks made by the API, passwords included, in order of
// their IDs.
func (db *DB) SIPTrunks(ctx context.Context) ([]call.Trunk, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT json FROM sip_trunks ORDER BY id")
	all, err := collect(rows, err, scanJSON[call.Trunk])
	if err != nil {
		return nil, fmt.Errorf("SIP trunks: %w", err)
	}
	return all, nil
}

// PutSIPTrunk keeps a trunk in place of an older one of its ID.
func (db *DB) PutSIPTrunk(ctx context.Context, t call.Trunk) error {
	return db.putJSON(ctx, `INSERT INTO sip_trunks (id, json) VALUES (?, ?)
		ON CONFLICT (id) DO UPDATE SET json = excluded.json`, t.ID, t)
}

// DeleteSIPTrunk forgets a trunk. One that is not there is no error.
func (db *DB) DeleteSIPTrunk(ctx context.Context, id string) error {
	return db.deleteByID(ctx, "DELETE FROM sip_trunks WHERE id = ?", id)
}

// SIPRules returns the dispatch rules made by the API, in the order in which they
// were first put.
func (db *DB) SIPRules(ctx context.Context) ([]call.DispatchRule, error) {
	rows, err := db.read.QueryContext(ctx, "SELECT json FROM sip_rules ORDER BY pos")
	all, err := collect(rows, err, scanJSON[call.DispatchRule])
	if err != nil {
		return nil, fmt.Errorf("SIP dispatch rules: %w", err)
	}
	return all, nil
}

// PutSIPRule keeps a rule in place of an older one of its ID, or else behind all others.
func (db *DB) PutSIPRule(ctx context.Context, r call.DispatchRule) error {
	return db.putJSON(ctx, `INSERT INTO sip_rules (id, json) VALUES (?, ?)
		ON CONFLICT (id) DO UPDATE SET json = excluded.json`, r.ID, r)
}

// DeleteSIPRule forgets a rule. One that is not there is no error.
func (db *DB) DeleteSIPRule(ctx context.Context, id string) error {
	return db.deleteByID(ctx, "DELETE FROM sip_rules WHERE id = ?", id)
}

func (db *DB) putJSON(ctx context.Context, query, id string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("keep %q: %w", id, err)
	}
	err = db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, id, string(data))
		return err
	})
	if err != nil {
		return fmt.Errorf("keep %q: %w", id, err)
	}
	return nil
}

func (db *DB) deleteByID(ctx context.Context, query, id string) error {
	err := db.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("forget %q: %w", id, err)
	}
	return nil
}

func scanJSON[T any](scan func(...any) error) (v T, err error) {
	var data string
	if err := scan(&data); err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(data), &v)
}
