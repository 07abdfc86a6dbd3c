package storage

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/trunkhall/trunkhall/call"
	"github.com/trunkhall/trunkhall/matrix"
)

// Relations returns the events that relate to an event.
func (db *DB) Relations(ctx context.Context, room matrix.RoomID, parent matrix.EventID, relType, typ string, since, upTo int64, backwards bool, limit int) ([]matrix.StoredEvent, error) {
	order := "ASC"
	if backwards {
		order = "DESC"
	}
	return db.events(ctx, selectEvent+`JOIN relations x ON x.event_pos = e.pos
		WHERE x.parent_id = ? AND +r.room_id = ? AND (? = '' OR x.rel_type = ?) AND (? = '' OR x.type = ?) AND e.pos > ? AND e.pos <= ?
		ORDER BY e.pos `+order+" LIMIT 0+?", parent, room, relType, relType, typ, typ, since, upTo, limit)
}

// RelationsOf returns the relations to any of the events, oldest first.
func (db *DB) RelationsOf(ctx context.Context, room matrix.RoomID, parents []matrix.EventID) ([]matrix.Relation, error) {
	if len(parents) == 0 {
		return nil, nil
	}
	args := make([]any, 0, len(parents)+1)
	args = append(args, room)
	for _, p := range parents {
		args = append(args, p)
	}
	// The plus keeps SQLite from starting with the room and all of its events.
	query := strings.Replace(selectEvent, "e.pos,", "x.parent_id, x.rel_type, x.agg_key, e.pos,", 1) +
		"JOIN relations x ON x.event_pos = e.pos WHERE +r.room_id = ? AND x.parent_id IN (?" + strings.Repeat(", ?", len(parents)-1) + ") ORDER BY e.pos"
	rows, err := db.read.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err says it
	var list []matrix.Relation
	for rows.Next() {
		var rel matrix.Relation
		if rel.Event, err = scanEvent(leading{rows, []any{&rel.Parent, &rel.RelType, &rel.Key}}); err != nil {
			return nil, err
		}
		list = append(list, rel)
	}
	return list, rows.Err()
}

// leading scans some columns in front of those that it is asked for.
type leading struct {
	scanner
	first []any
}

func (l leading) Scan(dest ...any) error {
	return l.scanner.Scan(append(append([]any{}, l.first...), dest...)...)
}

// HasAnnotation reports whether a user has annotated an event with a key.
func (db *DB) HasAnnotation(ctx context.Context, parent matrix.EventID, sender matrix.UserID, typ, key string) (bool, error) {
	var n int
	err := db.read.QueryRowContext(ctx, "SELECT count(*) FROM relations WHERE parent_id = ? AND rel_type = 'm.annotation' AND sender = ? AND type = ? AND agg_key = ?",
		parent, sender, typ, key).Scan(&n)
	return n > 0, err
}

// PutReceipt moves a receipt forward.
func (db *DB) PutReceipt(ctx context.Context, r matrix.Receipt) (moved bool, err error) {
	err = db.write(ctx, func(tx *sql.Tx) error {
		pos, err := db.nextPos(tx)
		if err != nil {
			return err
		}
		res, err := db.exec(tx, `INSERT INTO receipts (room_nid, user_id, type, thread_id, event_id, event_pos, ts, pos)
			VALUES (`+roomNID+`, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT DO UPDATE SET event_id = excluded.event_id, event_pos = excluded.event_pos, ts = excluded.ts, pos = excluded.pos
			WHERE excluded.event_pos > event_pos`, r.Room, r.User, r.Type, r.Thread, r.Event, r.EventPos, r.TS, pos)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		moved = n > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("store receipt: %w", err)
	}
	return moved, nil
}

// ReceiptChanges returns receipts of the rooms.
func (db *DB) ReceiptChanges(ctx context.Context, rooms []matrix.RoomID, since, upTo int64) ([]matrix.Receipt, error) {
	const columns = `SELECT r.room_id, c.user_id, c.type, c.thread_id, c.event_id, c.event_pos, c.ts, c.pos
		FROM receipts c JOIN rooms r ON r.nid = c.room_nid `
	var list []matrix.Receipt
	query := func(keep map[matrix.RoomID]bool, q string, args ...any) error {
		rows, err := db.read.QueryContext(ctx, q, args...)
		if err != nil {
			return err
		}
		defer rows.Close() //nolint:errcheck // rows.Err says it
		for rows.Next() {
			var c matrix.Receipt
			if err := rows.Scan(&c.Room, &c.User, &c.Type, &c.Thread, &c.Event, &c.EventPos, &c.TS, &c.Pos); err != nil {
				return err
			}
			if keep == nil || keep[c.Room] {
				list = append(list, c)
			}
		}
		return rows.Err()
	}
	if since > 0 { // few are new: read those of all rooms
		keep := make(map[matrix.RoomID]bool, len(rooms))
		for _, r := range rooms {
			keep[r] = true
		}
		err := query(keep, columns+"WHERE c.pos > ? AND c.pos <= ? ORDER BY c.pos", since, upTo)
		return list, err
	}
	for _, room := range rooms {
		if err := query(nil, columns+"WHERE c.room_nid = "+roomNID+" AND c.pos <= ? ORDER BY c.pos", room, upTo); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ReadUpTo returns the position up to which a user has read a room.
func (db *DB) ReadUpTo(ctx context.Context, room matrix.RoomID, user matrix.UserID) (int64, error) {
	var pos int64
	err := db.read.QueryRowContext(ctx, "SELECT coalesce(max(event_pos), 0) FROM receipts WHERE room_nid = "+roomNID+
		" AND user_id = ? AND type IN ('m.read', 'm.read.private') AND thread_id IN ('', 'main')", room, user).Scan(&pos)
	return pos, err
}

// StickyEvents returns events of the rooms that are sticky at now.
func (db *DB) StickyEvents(ctx context.Context, rooms []matrix.RoomID, since, upTo int64, now time.Time, limit int) ([]matrix.StoredEvent, error) {
	if since > 0 { // few are new: read those of all rooms
		keep := make(map[matrix.RoomID]bool, len(rooms))
		for _, r := range rooms {
			keep[r] = true
		}
		all, err := db.events(ctx, selectEvent+"WHERE e.pos > ? AND e.pos <= ? AND e.sticky_until > 0 AND e.sticky_until > ? ORDER BY e.pos", since, upTo, now.UnixMilli())
		if err != nil {
			return nil, err
		}
		list := all[:0]
		for _, e := range all {
			if keep[e.RoomID] && len(list) < limit {
				list = append(list, e)
			}
		}
		return list, nil
	}
	if len(rooms) == 0 {
		return nil, nil
	}
	args := make([]any, 0, len(rooms)+3)
	args = append(args, now.UnixMilli(), upTo)
	for _, r := range rooms {
		args = append(args, r)
	}
	args = append(args, limit)
	return db.events(ctx, selectEvent+"WHERE e.sticky_until > 0 AND e.sticky_until > ? AND e.pos <= ? AND e.room_nid IN (SELECT nid FROM rooms WHERE room_id IN (?"+
		strings.Repeat(", ?", len(rooms)-1)+")) ORDER BY e.pos LIMIT 0+?", args...)
}

func (db *DB) putAlias(tx *sql.Tx, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error {
	res, err := db.exec(tx, "INSERT INTO aliases (alias, room_nid, creator) VALUES (?, "+roomNID+", ?) ON CONFLICT DO NOTHING", alias, room, creator)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil {
		return err
	} else if n == 0 {
		return fmt.Errorf("alias %s is taken: %w", alias, call.ErrConflict)
	}
	return nil
}

// PutAlias adds an alias.
func (db *DB) PutAlias(ctx context.Context, alias matrix.RoomAlias, room matrix.RoomID, creator matrix.UserID) error {
	return db.write(ctx, func(tx *sql.Tx) error { return db.putAlias(tx, alias, room, creator) })
}

// Alias returns the room of an alias and who made it.
func (db *DB) Alias(ctx context.Context, alias matrix.RoomAlias) (room matrix.RoomID, creator matrix.UserID, err error) {
	err = db.read.QueryRowContext(ctx, "SELECT r.room_id, a.creator FROM aliases a JOIN rooms r ON r.nid = a.room_nid WHERE a.alias = ?", alias).Scan(&room, &creator)
	if err != nil {
		return "", "", fmt.Errorf("alias %s: %w", alias, notFound(err))
	}
	return room, creator, nil
}

// DeleteAlias removes an alias.
func (db *DB) DeleteAlias(ctx context.Context, alias matrix.RoomAlias) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, "DELETE FROM aliases WHERE alias = ?", alias)
		return err
	})
}

// Aliases returns the aliases of a room.
func (db *DB) Aliases(ctx context.Context, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	return column[matrix.RoomAlias](ctx, db, "SELECT alias FROM aliases WHERE room_nid = "+roomNID+" ORDER BY alias", room)
}

// Publish puts a room into the public room directory or takes it out.
func (db *DB) Publish(ctx context.Context, room matrix.RoomID, listed bool) error {
	return db.write(ctx, func(tx *sql.Tx) error {
		_, err := db.exec(tx, "UPDATE rooms SET listed = ? WHERE room_id = ?", listed, room)
		return err
	})
}

// PublishedRooms returns the rooms of the directory.
func (db *DB) PublishedRooms(ctx context.Context) ([]matrix.RoomID, error) {
	return column[matrix.RoomID](ctx, db, "SELECT room_id FROM rooms WHERE listed = 1 ORDER BY nid")
}
