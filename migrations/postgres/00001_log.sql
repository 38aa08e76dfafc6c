-- +goose Up

-- Names are compared byte by byte: all nodes must lock rooms in one order,
-- whatever the language of the database. Half of each page stays free, so that
-- a new head finds room beside the old one and no index is touched.
CREATE TABLE rooms (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name    text COLLATE "C" NOT NULL UNIQUE,
    head    bigint NOT NULL DEFAULT 0,
    first   bigint NOT NULL DEFAULT 1,
    last_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

-- data is the bytes as received: jsonb would refuse \u0000 and rewrite numbers.
CREATE TABLE messages (
    room_id bigint NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL,
    id      text COLLATE "C" NOT NULL,
    sender  text COLLATE "C" NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (room_id, seq)
);

-- Apart from messages, since ids are remembered whatever retention does.
CREATE TABLE message_ids (
    room_id bigint NOT NULL,
    sender  text COLLATE "C" NOT NULL,
    id      text COLLATE "C" NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL,
    digest  bytea NOT NULL,
    PRIMARY KEY (room_id, sender, id)
);
CREATE INDEX message_ids_at ON message_ids (at);

-- The commit feed: one row a batch.
CREATE TABLE commits (
    xid   xid8 PRIMARY KEY,
    rooms text[] NOT NULL,
    heads bigint[] NOT NULL,
    at    timestamptz NOT NULL
);

-- feed_floor is the lowest transaction id whose row would still be there.
CREATE TABLE meta (
    single      boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch       text NOT NULL DEFAULT '',
    fingerprint text NOT NULL DEFAULT '',
    feed_floor  bigint NOT NULL DEFAULT 0
);
INSERT INTO meta DEFAULT VALUES;

-- +goose Down
DROP TABLE meta, commits, message_ids, messages, rooms;
