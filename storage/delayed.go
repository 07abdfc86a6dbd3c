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

const selectDelayed = `SELECT delay_id, user_id, device_id, room_id, type, state_key, content, delay_ms, running_since, sticky_ms, txn_id, outcome, finalised, event_id
	FROM delayed_events `

func scanDelayed(row scanner) (matrix.DelayedEvent, error) {
	var (
		d                        matrix.DelayedEvent
		key                      sql.NullString
		content                  string
		delay, running, finished int64
		sticky                   sql.NullInt64
	)
	err := row.Scan(&d.ID, &d.UserID, &d.DeviceID, &d.RoomID, &d.Type, &key, &content, &delay, &running, &sticky, &d.TxnID, &d.Outcome, &finished, &d.EventID)
	if err != nil {
		return d, notFound(err)
	}
	if key.Valid {
		d.StateKey = &key.String
	}
	if sticky.Valid {
		s := time.Duration(sticky.Int64) * time.Millisecond
		d.Sticky = &s
	}
	d.Content = json.RawMessage(content)
	d.Delay = time.Duration(delay) * time.Millisecond
	d.RunningSince, d.Finalised = time.UnixMilli(running), fromMS(finished)
	return d, nil
}

func (db *DB) delayed(ctx context.Context, query string, args ...any) ([]matrix.DelayedEvent, error) {
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	var list []matrix.DelayedEvent
	for rows.Next() {
		d, err := scanDelayed(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, d)
	}
	return list, rows.Err()
}

// PutDelayed schedules a delayed event.
func (db *DB) PutDelayed(ctx context.Context, d matrix.DelayedEvent, scope string, max int) (id string, err error) {
	id = d.ID
	err = db.write(ctx, func(tx *sql.Tx) error {
		if d.TxnID != "" {
			err := db.row(tx, "SELECT result FROM transactions WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?",
				d.UserID, d.DeviceID, scope, d.TxnID).Scan(&id)
			if !errors.Is(err, sql.ErrNoRows) {
				return err // nil: it was answered before, with id
			}
		}
		var n int
		if err := db.row(tx, "SELECT count(*) FROM delayed_events WHERE user_id = ? AND outcome = ''", d.UserID).Scan(&n); err != nil {
			return err
		}
		if n >= max {
			return call.ErrUnavailable
		}
		var sticky any
		if d.Sticky != nil {
			sticky = d.Sticky.Milliseconds()
		}
		running := d.RunningSince.UnixMilli()
		_, err := db.exec(tx, `INSERT INTO delayed_events (delay_id, user_id, device_id, room_id, type, state_key, content, delay_ms, running_since, due, sticky_ms, txn_id)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`, d.ID, d.UserID, d.DeviceID, d.RoomID, d.Type, d.StateKey, string(d.Content),
			d.Delay.Milliseconds(), running, running+d.Delay.Milliseconds(), sticky, d.TxnID)
		if err != nil || d.TxnID == "" {
			return err
		}
		return db.putTransaction(tx, matrix.Transaction{User: d.UserID, Device: d.DeviceID, Scope: scope, ID: d.TxnID}, d.ID)
	})
	if err != nil {
		return "", fmt.Errorf("schedule delayed event: %w", err)
	}
	return id, nil
}

// Delayed returns a delayed event, finalised or not.
func (db *DB) Delayed(ctx context.Context, id string) (matrix.DelayedEvent, error) {
	return scanDelayed(db.read.QueryRowContext(ctx, selectDelayed+"WHERE delay_id = ?", id))
}

// DelayedOf returns the user's scheduled events.
func (db *DB) DelayedOf(ctx context.Context, user matrix.UserID) ([]matrix.DelayedEvent, error) {
	return db.delayed(ctx, selectDelayed+"WHERE user_id = ? AND outcome = '' ORDER BY running_since, delay_id", user)
}

// RestartDelayed starts the delay anew.
func (db *DB) RestartDelayed(ctx context.Context, id string, now time.Time) error {
	return db.changeDelayed(ctx, "UPDATE delayed_events SET running_since = ?, due = ? + delay_ms WHERE delay_id = ? AND outcome = ''",
		now.UnixMilli(), now.UnixMilli(), id)
}

// FinishDelayed notes an outcome other than sent.
func (db *DB) FinishDelayed(ctx context.Context, id string, outcome matrix.DelayedOutcome, now time.Time) error {
	return db.changeDelayed(ctx, "UPDATE delayed_events SET outcome = ?, finalised = ? WHERE delay_id = ? AND outcome = ''",
		outcome, now.UnixMilli(), id)
}

func (db *DB) changeDelayed(ctx context.Context, query string, args ...any) error {
	return db.write(ctx, func(tx *sql.Tx) error { return db.mustChange(tx, query, args...) })
}

// mustChange runs a statement that must change a row; otherwise it is ErrNotFound.
func (db *DB) mustChange(tx *sql.Tx, query string, args ...any) error {
	res, err := db.exec(tx, query, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return call.ErrNotFound
	}
	return nil
}

// finishDelayedBy ends the delayed events that an appended event ends: the one
// that it was, and those of other users that it overrules.
func (db *DB) finishDelayedBy(tx *sql.Tx, ap matrix.Append) error {
	e := &ap.Event
	now := time.Now().UnixMilli()
	if ap.DelayID != "" {
		err := db.mustChange(tx, "UPDATE delayed_events SET outcome = 'sent', finalised = ?, event_id = ? WHERE delay_id = ? AND outcome = '' AND (? = 0 OR due <= ?)",
			now, e.ID, ap.DelayID, toMS(ap.DelayDue), toMS(ap.DelayDue))
		if err != nil {
			return fmt.Errorf("delayed event: %w", err)
		}
	}
	if ap.CancelDelayed && e.StateKey != nil {
		_, err := db.exec(tx, `UPDATE delayed_events SET outcome = 'cancelled', finalised = ?
			WHERE room_id = ? AND type = ? AND state_key = ? AND outcome = '' AND user_id != ?`, now, e.RoomID, e.Type, *e.StateKey, e.Sender)
		return err
	}
	return nil
}

// DueDelayed returns events due at now and when the next one is due.
func (db *DB) DueDelayed(ctx context.Context, now time.Time, limit int) (due []matrix.DelayedEvent, next time.Time, err error) {
	due, err = db.delayed(ctx, selectDelayed+"WHERE outcome = '' AND due <= ? ORDER BY due, delay_id LIMIT 0+?", now.UnixMilli(), limit)
	if err != nil {
		return nil, next, err
	}
	var ms sql.NullInt64
	err = db.read.QueryRowContext(ctx, "SELECT min(due) FROM delayed_events WHERE outcome = '' AND due > ?", now.UnixMilli()).Scan(&ms)
	if ms.Valid {
		next = time.UnixMilli(ms.Int64)
	}
	return due, next, err
}

// DeleteFinishedDelayed forgets outcomes older than a time.
func (db *DB) DeleteFinishedDelayed(ctx context.Context, before time.Time) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, "DELETE FROM delayed_events WHERE outcome != '' AND finalised < ?", before.UnixMilli())
		return err
	})
}
