-- +goose Up

-- A release of the future, as far as docs/migrations.md lets it go.
CREATE TABLE reactions (
    room_id bigint NOT NULL,
    seq     bigint NOT NULL,
    emoji   text NOT NULL,
    PRIMARY KEY (room_id, seq, emoji)
);
CREATE UNIQUE INDEX reactions_emoji ON reactions (emoji, room_id, seq);
ALTER TABLE messages ADD COLUMN kind text NOT NULL DEFAULT '', ADD COLUMN expires timestamptz;
ALTER TABLE message_ids ADD COLUMN kind text NOT NULL DEFAULT '';
ALTER TABLE rooms ADD COLUMN title text, ADD COLUMN owner text NOT NULL DEFAULT 'nobody';
ALTER TABLE commits ADD COLUMN node text;
ALTER TABLE meta ADD COLUMN note text NOT NULL DEFAULT '';

-- +goose Down
