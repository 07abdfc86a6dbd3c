package storage

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// selectEvent reads what scanEvent expects; e is the event, p the state event
// that it replaced, b the redaction that was applied to it.
const selectEvent = `SELECT e.pos, e.event_id, r.room_id, r.version, e.json, e.device_id, e.txn_id, e.delay_id, e.sticky_until,
	p.event_id, p.json, p.sender, b.event_id, b.json
	FROM events e JOIN rooms r ON r.nid = e.room_nid
	LEFT JOIN events p ON p.pos = e.replaces
	LEFT JOIN events b ON b.pos = e.redacted_by `

// roomNID is the inner number of a room, for use inside other statements.
const roomNID = `(SELECT nid FROM rooms WHERE room_id = ?)`

type scanner interface{ Scan(dest ...any) error }

// scanEvent reads a row of selectEvent.
func scanEvent(row scanner) (matrix.StoredEvent, error) {
	var (
		s                                   matrix.StoredEvent
		room, version, text                 string
		sticky                              int64
		prevID, prevJSON, prevSender, redID sql.NullString
		redJSON                             sql.NullString
	)
	err := row.Scan(&s.Pos, &s.ID, &room, &version, &text, &s.Device, &s.TxnID, &s.DelayID, &sticky,
		&prevID, &prevJSON, &prevSender, &redID, &redJSON)
	if err != nil {
		return s, notFound(err)
	}
	ev, err := matrix.ParseStored(s.ID, matrix.RoomVersion(version), []byte(text))
	if err != nil {
		return s, err
	}
	s.Event = ev
	s.StickyUntil = fromMS(sticky)
	if prevID.Valid {
		var prev struct {
			Content json.RawMessage `json:"content"`
		}
		if err := json.Unmarshal([]byte(prevJSON.String), &prev); err != nil {
			return s, fmt.Errorf("event %s: %w", prevID.String, err)
		}
		s.PrevID, s.PrevContent, s.PrevSender = matrix.EventID(prevID.String), prev.Content, matrix.UserID(prevSender.String)
	}
	if redID.Valid {
		red, err := matrix.ParseStored(matrix.EventID(redID.String), matrix.RoomVersion(version), []byte(redJSON.String))
		if err != nil {
			return s, err
		}
		s.RedactedBy = &red
	}
	return s, nil
}

// events runs a query of selectEvent.
func (db *DB) events(ctx context.Context, query string, args ...any) ([]matrix.StoredEvent, error) {
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	var list []matrix.StoredEvent
	for rows.Next() {
		e, err := scanEvent(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, rows.Err()
}

// toMS and fromMS keep times as Unix milliseconds; 0 is the zero time.
func toMS(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMS(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// SigningKey returns the server's key, which is seed if there was none before.
func (db *DB) SigningKey(ctx context.Context, keyID string, seed []byte) (id string, kept []byte, err error) {
	err = db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, `INSERT INTO signing_keys (key_id, seed, created_ts)
			SELECT ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM signing_keys)`, keyID, seed, time.Now().UnixMilli())
		if err != nil {
			return err
		}
		return db.row(tx, "SELECT key_id, seed FROM signing_keys ORDER BY created_ts DESC LIMIT 1").Scan(&id, &kept)
	})
	if err != nil {
		return "", nil, fmt.Errorf("signing key: %w", err)
	}
	return id, kept, nil
}

// CreateRoom stores a new room with its first events.
func (db *DB) CreateRoom(ctx context.Context, room matrix.RoomInfo, alias matrix.RoomAlias, events []matrix.Append) (pos int64, err error) {
	err = db.write(ctx, func(tx *sql.Tx) error {
		var nid int64
		err := db.row(tx, `INSERT INTO rooms (room_id, version, creator, created_ts, head_pos, depth, listed)
			VALUES (?, ?, ?, ?, 0, 0, ?) ON CONFLICT DO NOTHING RETURNING nid`,
			room.ID, room.Version, room.Creator, time.Now().UnixMilli(), room.Published).Scan(&nid)
		if errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("room %s exists: %w", room.ID, call.ErrConflict)
		}
		if err != nil {
			return err
		}
		if alias != "" {
			if err := db.putAlias(tx, alias, room.ID, room.Creator); err != nil {
				return err
			}
		}
		for _, ev := range events {
			if pos, err = db.addEvent(tx, nid, ev); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("create room: %w", err)
	}
	return pos, nil
}

// Room returns what is known of a room as a whole.
func (db *DB) Room(ctx context.Context, room matrix.RoomID) (matrix.RoomInfo, error) {
	info := matrix.RoomInfo{ID: room}
	var heads string
	err := db.read.QueryRowContext(ctx, `SELECT version, creator, head_pos, depth, listed,
		(SELECT group_concat(event_id, ' ') FROM forward_extremities WHERE room_nid = nid)
		FROM rooms WHERE room_id = ?`, room).
		Scan(&info.Version, &info.Creator, &info.HeadPos, &info.Depth, &info.Published, &heads)
	if err != nil {
		return info, fmt.Errorf("room %s: %w", room, notFound(err))
	}
	for _, h := range strings.Fields(heads) {
		info.Heads = append(info.Heads, matrix.EventID(h))
	}
	return info, nil
}

// Append adds an event to a room that has not moved past after.
func (db *DB) Append(ctx context.Context, room matrix.RoomID, after int64, ev matrix.Append) (pos int64, err error) {
	err = db.write(ctx, func(tx *sql.Tx) error {
		var nid, head int64
		if err := db.row(tx, "SELECT nid, head_pos FROM rooms WHERE room_id = ?", room).Scan(&nid, &head); err != nil {
			return notFound(err)
		}
		if head != after {
			return call.ErrConflict
		}
		pos, err = db.addEvent(tx, nid, ev)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("append to %s: %w", room, err)
	}
	return pos, nil
}

// addEvent stores one event and all that follows from it.
func (db *DB) addEvent(tx *sql.Tx, nid int64, ap matrix.Append) (int64, error) {
	e := &ap.Event
	pos, err := db.nextPos(tx)
	if err != nil {
		return 0, err
	}
	var replaces sql.NullInt64
	if e.StateKey != nil {
		err := db.row(tx, "SELECT event_pos FROM current_state WHERE room_nid = ? AND type = ? AND state_key = ?", nid, e.Type, *e.StateKey).Scan(&replaces)
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return 0, err
		}
	}
	_, err = db.exec(tx, `INSERT INTO events (pos, event_id, room_nid, type, state_key, sender, origin_ts, depth, json, replaces, device_id, txn_id, delay_id, sticky_until)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		pos, e.ID, nid, e.Type, e.StateKey, e.Sender, e.OriginServerTS, e.Depth, string(e.JSON), replaces, e.Device, e.TxnID, e.DelayID, toMS(e.StickyUntil))
	if err != nil {
		return 0, err
	}
	if _, err := db.exec(tx, "UPDATE rooms SET head_pos = ?, depth = ? WHERE nid = ?", pos, e.Depth, nid); err != nil {
		return 0, err
	}
	for _, prev := range e.PrevEvents {
		if _, err := db.exec(tx, "DELETE FROM forward_extremities WHERE room_nid = ? AND event_id = ?", nid, prev); err != nil {
			return 0, err
		}
	}
	if _, err := db.exec(tx, "INSERT INTO forward_extremities (room_nid, event_id) VALUES (?, ?)", nid, e.ID); err != nil {
		return 0, err
	}
	if e.StateKey != nil {
		if err := db.addState(tx, nid, pos, e); err != nil {
			return 0, err
		}
	}
	if parent, relType, key := e.RelatesTo(); parent != "" && relType != "" {
		_, err := db.exec(tx, "INSERT INTO relations (event_pos, room_nid, parent_id, rel_type, type, sender, agg_key) VALUES (?, ?, ?, ?, ?, ?, ?)",
			pos, nid, parent, relType, e.Type, e.Sender, key)
		if err != nil {
			return 0, err
		}
	}
	if r := ap.Redacted; r != nil {
		// The content is gone for good with the commit that makes the redaction visible.
		_, err := db.exec(tx, "UPDATE events SET json = ?, redacted_by = ?, sticky_until = 0 WHERE event_id = ? AND room_nid = ? AND redacted_by IS NULL",
			string(r.JSON), pos, r.ID, nid)
		if err != nil {
			return 0, err
		}
		if _, err := db.exec(tx, "DELETE FROM relations WHERE event_pos = (SELECT pos FROM events WHERE event_id = ?)", r.ID); err != nil {
			return 0, err
		}
	}
	if ap.Txn != nil {
		if err := db.putTransaction(tx, *ap.Txn, string(e.ID)); err != nil {
			return 0, err
		}
	}
	return pos, db.finishDelayedBy(tx, ap)
}

// addState makes an event the current state of its type and key.
func (db *DB) addState(tx *sql.Tx, nid, pos int64, e *matrix.StoredEvent) error {
	_, err := db.exec(tx, `INSERT INTO current_state (room_nid, type, state_key, event_pos) VALUES (?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET event_pos = excluded.event_pos`, nid, e.Type, *e.StateKey, pos)
	if err != nil {
		return err
	}
	_, err = db.exec(tx, "INSERT INTO state_changes (room_nid, type, state_key, pos, event_pos) VALUES (?, ?, ?, ?, ?)", nid, e.Type, *e.StateKey, pos, pos)
	if err != nil || e.Type != "m.room.member" {
		return err
	}
	_, err = db.exec(tx, `INSERT INTO memberships (room_nid, user_id, membership, sender, event_pos) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET membership = excluded.membership, sender = excluded.sender, event_pos = excluded.event_pos,
		forgotten = forgotten AND excluded.membership IN ('leave', 'ban')`, nid, *e.StateKey, e.Membership(), e.Sender, pos)
	return err
}

func (db *DB) putTransaction(tx *sql.Tx, t matrix.Transaction, result string) error {
	res, err := db.exec(tx, "INSERT INTO transactions (user_id, device_id, scope, txn_id, result, ts) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		t.User, t.Device, t.Scope, t.ID, result, time.Now().UnixMilli())
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return fmt.Errorf("transaction %q was answered before: %w", t.ID, call.ErrConflict)
	}
	return nil
}

// Transaction returns the result of a request that was answered before.
func (db *DB) Transaction(ctx context.Context, t matrix.Transaction) (result string, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT result FROM transactions WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?",
		t.User, t.Device, t.Scope, t.ID).Scan(&result)
	return result, notFound(err)
}

// DeleteTransactions forgets requests older than a time.
func (db *DB) DeleteTransactions(ctx context.Context, before time.Time) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, "DELETE FROM transactions WHERE ts < ?", before.UnixMilli())
		return err
	})
}

// Event returns an event of a room.
func (db *DB) Event(ctx context.Context, room matrix.RoomID, id matrix.EventID) (matrix.StoredEvent, error) {
	return scanEvent(db.read.QueryRowContext(ctx, selectEvent+"WHERE e.event_id = ? AND r.room_id = ?", id, room))
}

// Timeline returns events of a room in (since, upTo].
func (db *DB) Timeline(ctx context.Context, room matrix.RoomID, since, upTo int64, backwards bool, limit int) ([]matrix.StoredEvent, error) {
	order := "ASC"
	if backwards {
		order = "DESC"
	}
	return db.events(ctx, selectEvent+"WHERE e.room_nid = "+roomNID+" AND e.pos > ? AND e.pos <= ? ORDER BY e.pos "+order+" LIMIT 0+?",
		room, since, upTo, limit)
}

// State returns the state of a room after the event at a position; 0 is now.
func (db *DB) State(ctx context.Context, room matrix.RoomID, at int64) ([]matrix.StoredEvent, error) {
	if at == 0 {
		return db.events(ctx, selectEvent+"WHERE e.pos IN (SELECT event_pos FROM current_state WHERE room_nid = "+roomNID+") ORDER BY e.pos", room)
	}
	return db.StateChanges(ctx, room, 0, at)
}

// StateOfType returns the state events of a type as they are now.
func (db *DB) StateOfType(ctx context.Context, room matrix.RoomID, typ string) ([]matrix.StoredEvent, error) {
	return db.events(ctx, selectEvent+"WHERE e.pos IN (SELECT event_pos FROM current_state WHERE room_nid = "+roomNID+" AND type = ?) ORDER BY e.pos", room, typ)
}

// StateChanges returns the newest value of each piece of state that changed.
func (db *DB) StateChanges(ctx context.Context, room matrix.RoomID, since, upTo int64) ([]matrix.StoredEvent, error) {
	// With max() SQLite takes the other columns from the row of the maximum.
	return db.events(ctx, selectEvent+`WHERE e.pos IN (SELECT event_pos FROM (
		SELECT event_pos, max(pos) FROM state_changes WHERE room_nid = `+roomNID+` AND pos > ? AND pos <= ? GROUP BY type, state_key)) ORDER BY e.pos`,
		room, since, upTo)
}

// StateEvents returns those of the named pieces of state that exist.
func (db *DB) StateEvents(ctx context.Context, room matrix.RoomID, at int64, keys ...matrix.StateKeyTuple) ([]matrix.StoredEvent, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	var q strings.Builder
	args := []any{}
	q.WriteString(selectEvent + "WHERE e.pos IN (")
	for i, k := range keys {
		if i > 0 {
			q.WriteString(" UNION ALL ")
		}
		if at == 0 {
			q.WriteString("SELECT event_pos FROM current_state WHERE room_nid = " + roomNID + " AND type = ? AND state_key = ?")
			args = append(args, room, k.Type, k.Key)
		} else {
			q.WriteString("SELECT * FROM (SELECT event_pos FROM state_changes WHERE room_nid = " + roomNID + " AND type = ? AND state_key = ? AND pos <= ? ORDER BY pos DESC LIMIT 1)")
			args = append(args, room, k.Type, k.Key, at)
		}
	}
	q.WriteString(")")
	return db.events(ctx, q.String(), args...)
}

// StateHistory returns all values that a piece of state ever had.
func (db *DB) StateHistory(ctx context.Context, room matrix.RoomID, key matrix.StateKeyTuple, upTo int64) ([]matrix.StoredEvent, error) {
	return db.events(ctx, selectEvent+"WHERE e.pos IN (SELECT event_pos FROM state_changes WHERE room_nid = "+roomNID+
		" AND type = ? AND state_key = ? AND pos <= ?) ORDER BY e.pos", room, key.Type, key.Key, upTo)
}

// selectMember reads what members expects.
const selectMember = `SELECT r.room_id, m.user_id, m.membership, m.sender, m.event_pos, m.forgotten
	FROM memberships m JOIN rooms r ON r.nid = m.room_nid `

func (db *DB) members(ctx context.Context, query string, args ...any) ([]matrix.Member, error) {
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	var list []matrix.Member
	for rows.Next() {
		var m matrix.Member
		if err := rows.Scan(&m.Room, &m.User, &m.Membership, &m.Sender, &m.Pos, &m.Forgotten); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, rows.Err()
}

// Members returns the memberships of a room.
func (db *DB) Members(ctx context.Context, room matrix.RoomID) ([]matrix.Member, error) {
	return db.members(ctx, selectMember+"WHERE m.room_nid = "+roomNID+" ORDER BY m.event_pos", room)
}

// Memberships returns the memberships of a user.
func (db *DB) Memberships(ctx context.Context, user matrix.UserID) ([]matrix.Member, error) {
	return db.members(ctx, selectMember+"WHERE m.user_id = ? ORDER BY m.event_pos", user)
}

// Membership returns one membership.
func (db *DB) Membership(ctx context.Context, room matrix.RoomID, user matrix.UserID) (matrix.Member, error) {
	list, err := db.members(ctx, selectMember+"WHERE m.room_nid = "+roomNID+" AND m.user_id = ?", room, user)
	if err != nil {
		return matrix.Member{}, err
	}
	if len(list) == 1 {
		return list[0], nil
	}
	var nid int64
	if err := db.read.QueryRowContext(ctx, "SELECT nid FROM rooms WHERE room_id = ?", room).Scan(&nid); err != nil {
		return matrix.Member{}, fmt.Errorf("room %s: %w", room, notFound(err))
	}
	return matrix.Member{Room: room, User: user}, nil
}

// RoomHeads returns the newest position of each room that the user has joined.
func (db *DB) RoomHeads(ctx context.Context, user matrix.UserID) (map[matrix.RoomID]int64, error) {
	rows, err := db.read.QueryContext(ctx, `SELECT r.room_id, r.head_pos FROM memberships m JOIN rooms r ON r.nid = m.room_nid
		WHERE m.user_id = ? AND m.membership = 'join'`, user)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	heads := make(map[matrix.RoomID]int64)
	for rows.Next() {
		var id matrix.RoomID
		var pos int64
		if err := rows.Scan(&id, &pos); err != nil {
			return nil, err
		}
		heads[id] = pos
	}
	return heads, rows.Err()
}

// Forget hides a room that the user has left from them.
func (db *DB) Forget(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, "UPDATE memberships SET forgotten = 1 WHERE room_nid = "+roomNID+" AND user_id = ? AND membership IN ('leave', 'ban')", room, user)
		return err
	})
}

// UsersSharingRooms returns the users joined to a room that the user has joined.
func (db *DB) UsersSharingRooms(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	return column[matrix.UserID](ctx, db, `SELECT DISTINCT o.user_id FROM memberships m JOIN memberships o ON o.room_nid = m.room_nid AND o.membership = 'join'
		WHERE m.user_id = ? AND m.membership = 'join'`, user)
}

// column runs a query of one column of strings.
func column[T ~string](ctx context.Context, db *DB, query string, args ...any) ([]T, error) {
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	var list []T
	for rows.Next() {
		var v T
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// MembershipChanges returns the member events of the rooms in (since, upTo].
func (db *DB) MembershipChanges(ctx context.Context, rooms []matrix.RoomID, since, upTo int64) ([]matrix.StoredEvent, error) {
	var list []matrix.StoredEvent
	for _, room := range rooms {
		l, err := db.events(ctx, selectEvent+`WHERE e.pos IN (SELECT event_pos FROM state_changes INDEXED BY state_changes_pos
			WHERE room_nid = `+roomNID+` AND pos > ? AND pos <= ? AND type = 'm.room.member') ORDER BY e.pos`, room, since, upTo)
		if err != nil {
			return nil, err
		}
		list = append(list, l...)
	}
	return list, nil
}
