-- +goose Up

-- Times are microseconds since 1970.
CREATE TABLE rooms (
    id      INTEGER PRIMARY KEY,
    name    TEXT NOT NULL UNIQUE,
    head    INTEGER NOT NULL DEFAULT 0,
    first   INTEGER NOT NULL DEFAULT 1,
    last_at INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE messages (
    room_id INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    id      TEXT NOT NULL,
    sender  TEXT NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (room_id, seq)
);

CREATE TABLE message_ids (
    room_id INTEGER NOT NULL,
    sender  TEXT NOT NULL,
    id      TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    digest  BLOB NOT NULL,
    PRIMARY KEY (room_id, sender, id)
) WITHOUT ROWID;
CREATE INDEX message_ids_at ON message_ids (at);

-- The commit feed: one row a room and batch. AUTOINCREMENT, so that an id is
-- never given twice, even when the newest rows were removed.
CREATE TABLE commits (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    room TEXT NOT NULL,
    head INTEGER NOT NULL,
    at   INTEGER NOT NULL
);

-- identity and commits are held against the side file beside the database.
CREATE TABLE meta (
    single     INTEGER PRIMARY KEY DEFAULT 1 CHECK (single = 1),
    epoch      TEXT NOT NULL DEFAULT '',
    identity   TEXT NOT NULL DEFAULT '',
    commits    INTEGER NOT NULL DEFAULT 0,
    feed_floor INTEGER NOT NULL DEFAULT 1
);
INSERT INTO meta DEFAULT VALUES;

-- +goose Down
DROP TABLE meta;
DROP TABLE commits;
DROP TABLE message_ids;
DROP TABLE messages;
DROP TABLE rooms;
