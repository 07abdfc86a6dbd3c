-- +goose Up
-- Who is behind a participant of a Matrix call.
CREATE TABLE rtc_minted (
    room_name  TEXT    NOT NULL, -- the media room
    identity   TEXT    NOT NULL,
    room_id    TEXT    NOT NULL, -- the Matrix room
    user_id    TEXT    NOT NULL,
    device_id  TEXT    NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (room_name, identity)
) WITHOUT ROWID;
CREATE INDEX rtc_minted_member ON rtc_minted (room_id, user_id);
CREATE INDEX rtc_minted_expires ON rtc_minted (expires_ms);

-- Tokens of a participant that became valid before floor_ms are dead.
CREATE TABLE rtc_floors (
    room_name  TEXT    NOT NULL,
    identity   TEXT    NOT NULL,
    floor_ms   INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL, -- when every such token has expired by itself
    PRIMARY KEY (room_name, identity)
) WITHOUT ROWID;
CREATE INDEX rtc_floors_expires ON rtc_floors (expires_ms);

-- Delayed leave events to restart while a participant is there and to send when it is gone.
CREATE TABLE rtc_delegations (
    room_name  TEXT    NOT NULL,
    identity   TEXT    NOT NULL,
    room_id    TEXT    NOT NULL,
    user_id    TEXT    NOT NULL,
    delay_id   TEXT    NOT NULL,
    delay_ms   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    seen       INTEGER NOT NULL, -- the participant has been there
    PRIMARY KEY (room_name, identity)
) WITHOUT ROWID;

-- +goose Down
DROP TABLE rtc_delegations;
DROP TABLE rtc_floors;
DROP TABLE rtc_minted;
