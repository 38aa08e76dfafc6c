-- switchyard: breaking 90000
-- +goose Up
UPDATE meta SET min_schema = 90000;
ALTER TABLE messages RENAME COLUMN sender TO author;

-- +goose Down
