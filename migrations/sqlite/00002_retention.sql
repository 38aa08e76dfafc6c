-- +goose Up

-- The oldest schema version that a binary may have been built for to run on
-- this one: docs/migrations.md. Retention needs nothing: one process walks.
ALTER TABLE meta ADD COLUMN min_schema INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE meta DROP COLUMN min_schema;
