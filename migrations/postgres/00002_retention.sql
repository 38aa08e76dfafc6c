-- +goose Up

-- How far the walk over all rooms has come that looks for messages to remove:
-- the id of the last room, 0 between two walks. It is kept here so that nodes
-- share one walk, and the next one goes on where one died.
CREATE TABLE retention (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    walked bigint NOT NULL DEFAULT 0,
    begun  timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO retention DEFAULT VALUES;

-- The oldest schema version that a binary may have been built for to run on
-- this one: docs/migrations.md.
ALTER TABLE meta ADD COLUMN min_schema bigint NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE meta DROP COLUMN min_schema;
DROP TABLE retention;
