-- +goose Up

-- A release of the future, as far as docs/migrations.md lets it go.
CREATE TABLE reactions (
    room_id INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    emoji   TEXT NOT NULL,
    PRIMARY KEY (room_id, seq, emoji)
);
CREATE UNIQUE INDEX reactions_emoji ON reactions (emoji, room_id, seq);
ALTER TABLE messages ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE message_ids ADD COLUMN kind TEXT NOT NULL DEFAULT '';
ALTER TABLE rooms ADD COLUMN title TEXT;
ALTER TABLE commits ADD COLUMN node TEXT;
ALTER TABLE meta ADD COLUMN note TEXT NOT NULL DEFAULT '';

-- +goose Down
