-- +goose Up

CREATE TABLE users (
	user_id       TEXT PRIMARY KEY,
	password_hash TEXT NOT NULL DEFAULT '', -- PHC string (argon2id); '': no password login
	guest         INTEGER NOT NULL DEFAULT 0,
	admin         INTEGER NOT NULL DEFAULT 0,
	deactivated   INTEGER NOT NULL DEFAULT 0,
	created_ts    INTEGER NOT NULL
) WITHOUT ROWID;

-- What belongs to a device goes with it.
CREATE TABLE devices (
	user_id      TEXT NOT NULL REFERENCES users (user_id),
	device_id    TEXT NOT NULL,
	display_name TEXT NOT NULL DEFAULT '',
	last_seen_ip TEXT NOT NULL DEFAULT '',
	last_seen_ts INTEGER NOT NULL DEFAULT 0,
	created_ts   INTEGER NOT NULL,
	PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- Of tokens only the SHA-256 is kept.
CREATE TABLE access_tokens (
	hash       BLOB PRIMARY KEY,
	user_id    TEXT NOT NULL,
	device_id  TEXT NOT NULL,
	expires_ts INTEGER NOT NULL DEFAULT 0, -- Unix ms, 0: never
	came_from  BLOB,                       -- the refresh token that was traded for it, until it is used
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX access_tokens_device ON access_tokens (user_id, device_id);

CREATE TABLE refresh_tokens (
	hash      BLOB PRIMARY KEY,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	came_from BLOB, -- the refresh token that was traded for it
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX refresh_tokens_device ON refresh_tokens (user_id, device_id);

CREATE TABLE openid_tokens (
	hash       BLOB PRIMARY KEY,
	user_id    TEXT NOT NULL,
	expires_ts INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX openid_tokens_expires ON openid_tokens (expires_ts);

CREATE TABLE profiles (
	user_id TEXT NOT NULL REFERENCES users (user_id),
	field   TEXT NOT NULL,
	value   TEXT NOT NULL, -- JSON
	PRIMARY KEY (user_id, field)
) WITHOUT ROWID;

CREATE TABLE filters (
	user_id   TEXT NOT NULL REFERENCES users (user_id),
	filter_id INTEGER NOT NULL,
	json      TEXT NOT NULL,
	PRIMARY KEY (user_id, filter_id)
) WITHOUT ROWID;

CREATE TABLE account_data (
	user_id TEXT NOT NULL REFERENCES users (user_id),
	room_id TEXT NOT NULL, -- '': global
	type    TEXT NOT NULL,
	content TEXT NOT NULL,
	pos     INTEGER NOT NULL,
	PRIMARY KEY (user_id, room_id, type)
) WITHOUT ROWID;
CREATE INDEX account_data_pos ON account_data (user_id, pos);

CREATE TABLE to_device (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	pos       INTEGER NOT NULL,
	event     TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id, pos),
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE to_device_txns (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	txn_id    TEXT NOT NULL,
	ts        INTEGER NOT NULL,
	PRIMARY KEY (user_id, device_id, txn_id)
) WITHOUT ROWID;
CREATE INDEX to_device_txns_ts ON to_device_txns (ts);

CREATE TABLE device_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	json      TEXT NOT NULL,
	PRIMARY KEY (user_id, device_id),
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;

-- In the order of upload: the oldest is claimed first (MSC4225).
CREATE TABLE one_time_keys (
	seq       INTEGER PRIMARY KEY,
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id    TEXT NOT NULL,
	json      TEXT NOT NULL,
	UNIQUE (user_id, device_id, algorithm, key_id),
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
);
CREATE INDEX one_time_keys_next ON one_time_keys (user_id, device_id, algorithm, seq);

CREATE TABLE fallback_keys (
	user_id   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	algorithm TEXT NOT NULL,
	key_id    TEXT NOT NULL,
	json      TEXT NOT NULL,
	used      INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (user_id, device_id, algorithm),
	FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE cross_signing_keys (
	user_id TEXT NOT NULL REFERENCES users (user_id),
	usage   TEXT NOT NULL, -- master, self_signing, user_signing
	json    TEXT NOT NULL,
	PRIMARY KEY (user_id, usage)
) WITHOUT ROWID;

-- Signatures that were added to keys after their upload.
CREATE TABLE key_signatures (
	user_id    TEXT NOT NULL, -- whose key is signed
	key        TEXT NOT NULL, -- device ID or public cross-signing key
	signer     TEXT NOT NULL,
	signer_key TEXT NOT NULL,
	signature  TEXT NOT NULL,
	PRIMARY KEY (user_id, key, signer, signer_key)
) WITHOUT ROWID;
CREATE INDEX key_signatures_signer ON key_signatures (user_id, signer);

-- The newest change of each user's device list or cross-signing keys.
CREATE TABLE device_list_changes (
	user_id TEXT PRIMARY KEY,
	pos     INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX device_list_changes_pos ON device_list_changes (pos);

CREATE TABLE key_backups (
	user_id   TEXT NOT NULL REFERENCES users (user_id),
	version   INTEGER NOT NULL,
	algorithm TEXT NOT NULL,
	auth_data TEXT NOT NULL,
	etag      INTEGER NOT NULL DEFAULT 0,
	deleted   INTEGER NOT NULL DEFAULT 0, -- the number is never given again
	PRIMARY KEY (user_id, version)
) WITHOUT ROWID;

CREATE TABLE key_backup_keys (
	user_id             TEXT NOT NULL,
	version             INTEGER NOT NULL,
	room_id             TEXT NOT NULL,
	session_id          TEXT NOT NULL,
	first_message_index INTEGER NOT NULL,
	forwarded_count     INTEGER NOT NULL,
	is_verified         INTEGER NOT NULL,
	session_data        TEXT NOT NULL,
	PRIMARY KEY (user_id, version, room_id, session_id),
	FOREIGN KEY (user_id, version) REFERENCES key_backups (user_id, version) ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE pushers (
	user_id   TEXT NOT NULL REFERENCES users (user_id),
	app_id    TEXT NOT NULL,
	pushkey   TEXT NOT NULL,
	device_id TEXT NOT NULL,
	json      TEXT NOT NULL,
	PRIMARY KEY (user_id, app_id, pushkey)
) WITHOUT ROWID;
CREATE INDEX pushers_key ON pushers (app_id, pushkey);

-- The bytes are files named by hash; several media may share one.
CREATE TABLE media (
	media_id     TEXT PRIMARY KEY,
	uploader     TEXT NOT NULL,
	hash         TEXT NOT NULL,
	size         INTEGER NOT NULL,
	content_type TEXT NOT NULL,
	name         TEXT NOT NULL DEFAULT '',
	created_ts   INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX media_hash ON media (hash);
