package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file repairs the sequences that number rows. An import and logical replication
// copy the rows of a table, and not how far its sequence has come.

// errIDsAdvanced is the error of a batch that is to be tried again.
var errIDsAdvanced = errors.New("the ids of rooms were behind the table, as after an import; they go on after the highest one now")

// advanceRoomIDs is called after a batch could not create a room. It returns
// errIDsAdvanced if the id of the room was taken and the next ones are free, or else
// the error of the batch.
func (w *pgWriter) advanceRoomIDs(ctx context.Context, err error) error {
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.ConstraintName != "rooms_pkey" || w.conn == nil {
		return err
	}
	if failed := advanceIDs(ctx, w.conn, "rooms"); failed != nil {
		w.p.cfg.Logger.Error("no new room can be stored", "error", failed)
		return err
	}
	return errIDsAdvanced
}

// advanceIDs makes a table's ids go on after the highest one.
func advanceIDs(ctx context.Context, conn *pgx.Conn, table string) error {
	advance := fmt.Sprintf(`SELECT setval(pg_get_serial_sequence('%s', 'id'), (SELECT max(id) FROM %[1]s))`, table)
	// Another node may have advanced them further.
	_, err := conn.Exec(ctx, advance+fmt.Sprintf(` WHERE coalesce(pg_sequence_last_value(pg_get_serial_sequence('%s', 'id')), 0) < (SELECT max(id) FROM %[1]s)`, table))
	if err != nil {
		return fmt.Errorf("the ids of the table %s are behind its rows, as after an import, and cannot be advanced: run %s as its owner: %w", table, advance, err)
	}
	return nil
}
