package http

import (
	"context"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// saveInterval is how long changes of sessions are collected before they are
	// saved. saveSoonDelay is the same for changes that a client may need at once:
	// a new session, a connection that ended, and the rooms of a client with
	// rooms=1.
	saveInterval  = time.Second
	saveSoonDelay = 50 * time.Millisecond
	// maxSaveTries is how often a failed save is tried, before it waits for the
	// client's next pong.
	maxSaveTries = 3
	// saveBatchSize is how many sessions one call saves.
	saveBatchSize = 500
)

// A sessionWriter saves the sessions of connections in batches. A session is saved
// when it begins, when its client has answered a ping, when its connection ends,
// and with rooms=1 when the client joins or leaves. It is safe for concurrent use.
type sessionWriter struct {
	server *Server
	wake   chan struct{} // holds a token if something is to be saved soon

	// saving is locked while a batch is claimed and saved. A socket that is no
	// longer due was therefore saved, and of two states of a client the later one
	// is stored.
	saving sync.Mutex

	mu  sync.Mutex
	due map[*socket]struct{}
}

// scheduleSoon schedules a save of the socket's session after saveSoonDelay.
func (w *sessionWriter) scheduleSoon(sock *socket) {
	w.schedule(sock)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// schedule schedules a save of the socket's session within saveInterval. The number
// of due sockets is bounded by the open ones and those that ended in the last
// interval.
func (w *sessionWriter) schedule(sock *socket) {
	if sock.session == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.due == nil {
		w.due = make(map[*socket]struct{})
	}
	w.due[sock] = struct{}{}
}

// loop saves due sessions until stop closes, and then once more.
func (w *sessionWriter) loop(stop <-chan struct{}) {
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	var soon <-chan time.Time
	for {
		select {
		case <-tick.C:
			w.flush()
		case <-w.wake:
			if soon == nil {
				soon = time.After(saveSoonDelay)
			}
		case <-soon:
			soon = nil
			w.flush()
		case <-stop:
			w.flush()
			return
		}
	}
}

// flush saves all sessions that are due now, in batches. Each call is bounded by
// the timeout of Sessions.
func (w *sessionWriter) flush() {
	w.mu.Lock()
	due := slices.Collect(maps.Keys(w.due))
	w.mu.Unlock()
	for batch := range slices.Chunk(due, saveBatchSize) {
		w.saving.Lock()
		wasDue := w.claimDue(batch) // saveBeforeMove may have saved some in between
		w.saveAll(func(yield func(*socket) bool) {
			for i, sock := range batch {
				if wasDue[i] && !yield(sock) {
					return
				}
			}
		})
		w.saving.Unlock()
	}
}

// saveBeforeMove makes sure that clients have a session before they are asked to
// move. It saves the sessions of the wave that are unsaved or have changed, and
// returns the clients that may be asked now. The others wait for the next wave,
// twice at most, so that a drain does not wait long for a Redis that is down.
func (w *sessionWriter) saveBeforeMove(wave []*socket) []*socket {
	w.saving.Lock()
	defer w.saving.Unlock()
	changed := w.claimDue(wave)
	w.saveAll(func(yield func(*socket) bool) {
		for i, sock := range wave {
			if (changed[i] || sock.isUnsaved()) && !yield(sock) {
				return
			}
		}
	})
	return slices.DeleteFunc(wave, func(sock *socket) bool { return sock.isUnsaved() && sock.deferMove() })
}

// claimDue returns which of these sockets were due, and unschedules them.
func (w *sessionWriter) claimDue(sockets []*socket) []bool {
	due := make([]bool, len(sockets))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, sock := range sockets {
		if _, due[i] = w.due[sock]; due[i] {
			delete(w.due, sock)
		}
	}
	return due
}

// saveAll saves the sessions of these sockets. Caller holds saving.
func (w *sessionWriter) saveAll(sockets iter.Seq[*socket]) {
	batch := make([]message.SessionSave, 0, saveBatchSize)
	batchSockets := make([]*socket, 0, saveBatchSize)
	for sock := range sockets {
		if save, ok := sock.pendingSave(); ok {
			batch, batchSockets = append(batch, save), append(batchSockets, sock)
		}
		if len(batch) == saveBatchSize {
			w.save(batch, batchSockets)
			batch, batchSockets = batch[:0], batchSockets[:0]
		}
	}
	if len(batch) > 0 {
		w.save(batch, batchSockets)
	}
}

func (w *sessionWriter) save(batch []message.SessionSave, sockets []*socket) {
	for i, r := range w.server.cfg.Sessions.Save(context.Background(), batch) {
		if sockets[i].handleSaveResult(r) {
			w.schedule(sockets[i])
		}
	}
}
