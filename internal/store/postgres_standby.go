package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
)

// This file keeps a commit that waits for a synchronous standby from becoming visible
// before the standby has it.

// neverCancel makes a connection of c send no request to cancel a statement once
// verified is set, which the driver does when the statement's context ends. A commit that
// waits for a synchronous standby would not be undone by that. It would stop waiting:
// readers would see messages that are lost if the standby takes over.
func neverCancel(c *pgx.ConnConfig) (verified *atomic.Bool) {
	verified = new(atomic.Bool)
	dial := c.DialFunc
	c.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if verified.Load() {
			return nil, errors.New("the statements of a writer are not canceled")
		}
		return dial(ctx, network, addr)
	}
	return verified
}

var errStandbyAway = errors.New("a commit waits for a synchronous standby (synchronous_standby_names), which is away or slow")

// awaitLeft returns an error while the server has not ended the last commit that this
// writer left without an answer. While a synchronous standby is away, each attempt
// would leave another one, until the server has no connection left.
func (w *pgWriter) awaitLeft(ctx context.Context) error {
	if w.left == 0 {
		return nil
	}
	var waitsFor string
	err := w.conn.QueryRow(ctx, `SELECT coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = $1 AND state = 'active'`, w.left).Scan(&waitsFor)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		w.left = 0
		return nil
	case err != nil:
		return fmt.Errorf("look for the last commit: %w", err)
	case waitsFor == "SyncRep":
		return errStandbyAway
	}
	return errors.New("the server has not ended the last commit")
}
