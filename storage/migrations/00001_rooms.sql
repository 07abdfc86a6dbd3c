-- +goose Up

-- The one stream of positions; see DB.nextPos.
CREATE TABLE stream (
	id  INTEGER PRIMARY KEY CHECK (id = 1),
	pos INTEGER NOT NULL
);
INSERT INTO stream (id, pos) VALUES (1, 0);

-- Keys with which this server signs its events (ed25519 seeds).
CREATE TABLE signing_keys (
	key_id     TEXT PRIMARY KEY,
	seed       BLOB NOT NULL,
	created_ts INTEGER NOT NULL
);

CREATE TABLE rooms (
	nid        INTEGER PRIMARY KEY,
	room_id    TEXT NOT NULL UNIQUE,
	version    TEXT NOT NULL,
	creator    TEXT NOT NULL,
	created_ts INTEGER NOT NULL,
	-- Position and depth of the newest event. Append compares head_pos, so that
	-- nothing is stored that was authorised against an older state.
	head_pos   INTEGER NOT NULL,
	depth      INTEGER NOT NULL,
	listed     INTEGER NOT NULL DEFAULT 0 -- 1: in the public room directory
);
CREATE INDEX rooms_listed ON rooms (listed) WHERE listed = 1;

-- The events that no other event refers to yet. A room that lives on one server
-- has exactly one.
CREATE TABLE forward_extremities (
	room_nid INTEGER NOT NULL REFERENCES rooms (nid),
	event_id TEXT NOT NULL,
	PRIMARY KEY (room_nid, event_id)
) WITHOUT ROWID;

-- Events by stream position. Events that are fetched from other servers after
-- the fact will get positions below zero, before everything local.
CREATE TABLE events (
	pos         INTEGER PRIMARY KEY,
	event_id    TEXT NOT NULL UNIQUE,
	room_nid    INTEGER NOT NULL REFERENCES rooms (nid),
	type        TEXT NOT NULL,
	state_key   TEXT,             -- NULL: not a state event
	sender      TEXT NOT NULL,
	origin_ts   INTEGER NOT NULL,
	depth       INTEGER NOT NULL,
	json        TEXT NOT NULL,    -- the signed event, canonical JSON; replaced by its redacted form when redacted
	replaces    INTEGER,          -- position of the state event that this one replaced
	redacted_by INTEGER,          -- position of the m.room.redaction that was applied
	device_id   TEXT NOT NULL DEFAULT '', -- the device that sent it ...
	txn_id      TEXT NOT NULL DEFAULT '', -- ... and under which transaction ID
	delay_id    TEXT NOT NULL DEFAULT '', -- MSC4140: the delayed event that it was
	sticky_until INTEGER NOT NULL DEFAULT 0 -- MSC4354: Unix ms, 0: not sticky
);
CREATE INDEX events_room ON events (room_nid, pos);
CREATE INDEX events_sticky ON events (room_nid, sticky_until) WHERE sticky_until > 0;
CREATE INDEX events_sticky_pos ON events (pos) WHERE sticky_until > 0;

-- Every change of a room's current state. On one server each row stands for the
-- state event at the same position; with federation, state resolution adds rows
-- for changes that no timeline event shows. The state after an event is the
-- newest row at or before it for each key; a branch of a federated room adds
-- snapshot blocks beside this table, it does not change it.
CREATE TABLE state_changes (
	room_nid  INTEGER NOT NULL REFERENCES rooms (nid),
	type      TEXT NOT NULL,
	state_key TEXT NOT NULL,
	pos       INTEGER NOT NULL,
	event_pos INTEGER NOT NULL REFERENCES events (pos),
	PRIMARY KEY (room_nid, type, state_key, pos)
) WITHOUT ROWID;
CREATE INDEX state_changes_pos ON state_changes (room_nid, pos);

CREATE TABLE current_state (
	room_nid  INTEGER NOT NULL REFERENCES rooms (nid),
	type      TEXT NOT NULL,
	state_key TEXT NOT NULL,
	event_pos INTEGER NOT NULL REFERENCES events (pos),
	PRIMARY KEY (room_nid, type, state_key)
) WITHOUT ROWID;

CREATE TABLE memberships (
	room_nid   INTEGER NOT NULL REFERENCES rooms (nid),
	user_id    TEXT NOT NULL,
	membership TEXT NOT NULL,
	sender     TEXT NOT NULL,
	event_pos  INTEGER NOT NULL,
	forgotten  INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (room_nid, user_id)
) WITHOUT ROWID;
CREATE INDEX memberships_user ON memberships (user_id, membership);
CREATE INDEX memberships_joined ON memberships (room_nid, membership);

-- The answer given to a request with a transaction ID.
CREATE TABLE transactions (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	scope     TEXT NOT NULL,    -- endpoint and its path parameters
	txn_id    TEXT NOT NULL,
	result    TEXT NOT NULL,    -- event ID or delay ID
	ts        INTEGER NOT NULL,
	PRIMARY KEY (user_id, device_id, scope, txn_id)
) WITHOUT ROWID;
CREATE INDEX transactions_ts ON transactions (ts);

CREATE TABLE relations (
	event_pos INTEGER PRIMARY KEY REFERENCES events (pos),
	room_nid  INTEGER NOT NULL,
	parent_id TEXT NOT NULL,
	rel_type  TEXT NOT NULL,
	type      TEXT NOT NULL,
	sender    TEXT NOT NULL,
	agg_key   TEXT NOT NULL DEFAULT '' -- m.annotation: its key
);
CREATE INDEX relations_parent ON relations (parent_id, event_pos);

CREATE TABLE receipts (
	room_nid  INTEGER NOT NULL REFERENCES rooms (nid),
	user_id   TEXT NOT NULL,
	type      TEXT NOT NULL,
	thread_id TEXT NOT NULL,    -- '': unthreaded
	event_id  TEXT NOT NULL,
	event_pos INTEGER NOT NULL,
	ts        INTEGER NOT NULL,
	pos       INTEGER NOT NULL,
	PRIMARY KEY (room_nid, user_id, type, thread_id)
) WITHOUT ROWID;
CREATE INDEX receipts_pos ON receipts (pos);
CREATE INDEX receipts_room ON receipts (room_nid, pos);

CREATE TABLE aliases (
	alias    TEXT PRIMARY KEY,
	room_nid INTEGER NOT NULL REFERENCES rooms (nid),
	creator  TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX aliases_room ON aliases (room_nid);

-- MSC4140. A finalised row stays for a day, so that a repeated request can be
-- told what became of it.
CREATE TABLE delayed_events (
	delay_id      TEXT PRIMARY KEY,
	user_id       TEXT NOT NULL,
	device_id     TEXT NOT NULL,
	room_id       TEXT NOT NULL,
	type          TEXT NOT NULL,
	state_key     TEXT,
	content       TEXT NOT NULL,
	delay_ms      INTEGER NOT NULL,
	running_since INTEGER NOT NULL, -- Unix ms
	due           INTEGER NOT NULL, -- Unix ms: running_since + delay_ms
	sticky_ms     INTEGER,
	txn_id        TEXT NOT NULL DEFAULT '',
	outcome       TEXT NOT NULL DEFAULT '', -- '': scheduled, 'sent', 'cancelled', 'failed'
	finalised     INTEGER NOT NULL DEFAULT 0, -- Unix ms
	event_id      TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
CREATE INDEX delayed_events_due ON delayed_events (due) WHERE outcome = '';
CREATE INDEX delayed_events_user ON delayed_events (user_id) WHERE outcome = '';
CREATE INDEX delayed_events_state ON delayed_events (room_id, type, state_key) WHERE outcome = '';
CREATE INDEX delayed_events_finalised ON delayed_events (finalised) WHERE outcome != '';
