package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// fillRoomSQL makes a room with so many messages, as the log stores them, but without
// their ids, which the log keeps for minutes only.
const fillRoomSQL = `INSERT INTO rooms (name, head, first, last_at) VALUES ('%[1]s', %[2]d, 1, clock_timestamp());
INSERT INTO messages (room_id, seq, at, id, sender, data)
SELECT (SELECT id FROM rooms WHERE name = '%[1]s'), n, clock_timestamp(), 'm' || n, '', convert_to('"' || repeat('a', 126) || '"', 'UTF8')
FROM generate_series(1, %[2]d) AS n;`

// stored makes the same requests to rooms with more and more messages: the cost must not
// depend on their number.
func (r *runner) stored(ctx context.Context) error {
	r.removeResults("stored")
	url, err := r.database(ctx)
	if err != nil {
		return err
	}
	t, err := r.startService(ctx, url, "0", false)
	if err != nil {
		return err
	}
	sizes := []int{1000, 100000, 10000000}
	if r.opts.quick {
		sizes = sizes[:2]
	}
	for _, n := range sizes {
		prefix := fmt.Sprintf("full%d.", n)
		if _, err := r.pg.psql(ctx, fmt.Sprintf("bench%d", r.pg.databases), fmt.Sprintf(fillRoomSQL, prefix+"0", n)); err != nil {
			return err
		}
		if _, err := r.pg.psql(ctx, fmt.Sprintf("bench%d", r.pg.databases), "ANALYZE messages"); err != nil {
			return err
		}
		for _, request := range [][]string{
			{"publish", "-n", "1", "-rooms", "1", "-window", "1", "-for", "3s"},
			{"join", "-count", "200", "-seq", strconv.Itoa(n / 2)},
			{"history", "-count", "200", "-seq", strconv.Itoa(n / 2)},
		} {
			args := append([]string{"-scenario", request[0], "-prefix", prefix}, request[1:]...)
			if _, err := r.measureLoad(ctx, "stored", fmt.Sprintf("%s of %d", request[0], n), t, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}
