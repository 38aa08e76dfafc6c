package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/message"
)

// sqlPage reads one row more than the limit, to learn whether there are more.
// It sums the sizes before it fetches any data: octet_length of a bytea does
// not read a value that is stored out of line.
const sqlPage = `
SELECT m.epoch, coalesce(r.head, 0), coalesce(r.first, 1), coalesce(p.candidates, 0),
	p.seq, p.at, p.id, p.sender, p.data
FROM meta m
LEFT JOIN rooms r ON r.name = $1
LEFT JOIN LATERAL (
	SELECT s.* FROM (
		SELECT c.*, sum(octet_length(c.data)) OVER w AS total, row_number() OVER w AS n,
			count(*) OVER () AS candidates
		FROM (
			SELECT seq, at, id, sender, data FROM messages
			WHERE room_id = r.id AND seq %[1]s $2 ORDER BY seq %[2]s LIMIT $3::bigint + 1
		) c WINDOW w AS (ORDER BY c.seq %[2]s)
	) s WHERE s.n <= $3 AND (s.n = 1 OR s.total <= $4)
) p ON true
ORDER BY p.seq`

var (
	sqlPageUp   = fmt.Sprintf(sqlPage, ">", "ASC")
	sqlPageDown = fmt.Sprintf(sqlPage, "<", "DESC")
)

// Read returns part of a room, all of it from one snapshot. An unknown room
// reads as an empty one.
func (p *Postgres) Read(ctx context.Context, r message.Range) (message.Page, error) {
	defer p.m.observe("read", time.Now())
	ctx, cancel, err := p.readContext(ctx)
	if err != nil {
		return message.Page{}, fmt.Errorf("read: %w", err)
	}
	defer cancel()
	sql, from := sqlPageUp, r.After
	if r.Before > 0 {
		sql, from = sqlPageDown, r.Before
	}
	pool := p.reads
	if r.ForDelivery {
		pool = p.repair
	}
	rows, err := pool.Query(ctx, sql, string(r.Room), int64(from), r.Limit, r.MaxBytes)
	if err != nil {
		return message.Page{}, fmt.Errorf("read: %w", err)
	}
	page, err := scanPage(rows, r.Room)
	if err != nil {
		return message.Page{}, fmt.Errorf("read: %w", err)
	}
	return page, nil
}

// scanPage reads the rows of sqlPage. Each has the state of the room, and a
// message if the page has any.
func scanPage(rows pgx.Rows, room message.Room) (message.Page, error) {
	defer rows.Close()
	var page message.Page
	var candidates int
	for rows.Next() {
		var seq *message.Seq
		var at *time.Time
		var id, sender *string
		var data []byte
		err := rows.Scan(&page.Epoch, &page.Head, &page.First, &candidates, &seq, &at, &id, &sender, &data)
		if err != nil {
			return message.Page{}, err
		}
		if seq == nil { // the row of an empty page
			continue
		}
		page.Messages = append(page.Messages, message.Message{
			Draft: message.Draft{Room: room, ID: *id, From: *sender, Data: data},
			Epoch: page.Epoch, Seq: *seq, At: at.UTC(),
		})
	}
	page.More = candidates > len(page.Messages)
	return page, rows.Err()
}

// sqlHeads always returns a row, for the epoch.
const sqlHeads = `
SELECT m.epoch, r.name, r.head FROM meta m LEFT JOIN rooms r ON r.name = ANY ($1::text[])`

// Heads returns the seq of each room's last message, in the order of rooms; an
// unknown room is at 0. All rooms go into one query, so a caller with many
// should ask in pages.
func (p *Postgres) Heads(ctx context.Context, rooms []message.Room) (message.Epoch, []message.Head, error) {
	defer p.m.observe("heads", time.Now())
	ctx, cancel, err := p.readContext(ctx)
	if err != nil {
		return "", nil, fmt.Errorf("read heads: %w", err)
	}
	defer cancel()
	names := make([]string, len(rooms))
	for i, room := range rooms {
		names[i] = string(room)
	}
	slices.Sort(names)
	rows, err := p.repair.Query(ctx, sqlHeads, slices.Compact(names))
	if err != nil {
		return "", nil, fmt.Errorf("read heads: %w", err)
	}
	defer rows.Close()
	var epoch message.Epoch
	found := make(map[message.Room]message.Seq, len(rooms))
	for rows.Next() {
		var name *message.Room
		var head *message.Seq
		if err := rows.Scan(&epoch, &name, &head); err != nil {
			return "", nil, fmt.Errorf("read heads: %w", err)
		}
		if name != nil {
			found[*name] = *head
		}
	}
	if err := rows.Err(); err != nil {
		return "", nil, fmt.Errorf("read heads: %w", err)
	}
	return epoch, inOrder(rooms, found), nil
}

// inOrder returns the heads in the order of rooms, 0 for a room that is not in
// found.
func inOrder(rooms []message.Room, found map[message.Room]message.Seq) []message.Head {
	heads := make([]message.Head, len(rooms))
	for i, room := range rooms {
		heads[i] = message.Head{Room: room, Seq: found[room]}
	}
	return heads
}
