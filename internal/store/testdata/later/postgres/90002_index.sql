-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX CONCURRENTLY messages_at ON messages (at);

-- +goose Down
