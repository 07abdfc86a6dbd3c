-- +goose Up
-- The PIN by which telephones come into a Matrix room: a keyed hash of it.
CREATE TABLE phone_pins (
    room_id  TEXT NOT NULL PRIMARY KEY,
    pin_hash BLOB NOT NULL UNIQUE -- so no PIN ever leads to two rooms
) WITHOUT ROWID;

-- Places of telephones in Matrix rooms that somebody must give back.
CREATE TABLE phone_seats (
    user_id   TEXT    NOT NULL, -- the ghost
    device_id TEXT    NOT NULL,
    room_id   TEXT    NOT NULL,
    stays     INTEGER NOT NULL, -- the ghost remains a member of the room
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- Trunks and dispatch rules made by the API, as JSON.
CREATE TABLE sip_trunks (
    id   TEXT NOT NULL PRIMARY KEY,
    json TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE sip_rules (
    pos  INTEGER PRIMARY KEY, -- the order in which they were first put
    id   TEXT NOT NULL UNIQUE,
    json TEXT NOT NULL
);

-- +goose Down
DROP TABLE sip_rules;
DROP TABLE sip_trunks;
DROP TABLE phone_seats;
DROP TABLE phone_pins;
