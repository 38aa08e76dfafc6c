package session

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

// A writer saves sessions in batches. A session is saved when it begins, when its client
// has answered a ping, when its connection ends, and with rooms=1 when the client joins
// or leaves. It is safe for concurrent use.
type writer struct {
	store Store
	wake  chan struct{} // has an element if something is to be saved soon

	// saving is held from the claim of a batch until its results are handled, so that
	// saves of one session do not overtake each other: of two states of a client the
	// later one is stored.
	saving sync.Mutex

	mu  sync.Mutex
	due map[*Session]struct{}
}

// scheduleSoon schedules a save after saveSoonDelay.
func (w *writer) scheduleSoon(s *Session) {
	w.schedule(s)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// schedule schedules a save within saveInterval. The number of due sessions is bounded
// by the open connections and those that ended in the last interval.
func (w *writer) schedule(s *Session) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due[s] = struct{}{}
}

// loop saves due sessions until stop closes, and then once more.
func (w *writer) loop(stop <-chan struct{}) {
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
// the timeout of Store.
func (w *writer) flush() {
	w.mu.Lock()
	due := slices.Collect(maps.Keys(w.due))
	w.mu.Unlock()
	for batch := range slices.Chunk(due, saveBatchSize) {
		w.saving.Lock()
		wasDue := w.claimDue(batch) // SaveBeforeMove may have saved some in between
		w.saveAll(func(yield func(*Session) bool) {
			for i, s := range batch {
				if wasDue[i] && !yield(s) {
					return
				}
			}
		})
		w.saving.Unlock()
	}
}

// SaveBeforeMove saves the sessions of clients that are about to be asked to move, if they
// are unsaved or have changed. It returns for which of them another node can resume the
// session. A client without one, whose session is nil, has nothing to resume.
func (set *Set) SaveBeforeMove(wave []*Session) (saved []bool) {
	w := &set.writer
	w.saving.Lock()
	defer w.saving.Unlock()
	changed := w.claimDue(wave)
	w.saveAll(func(yield func(*Session) bool) {
		for i, s := range wave {
			if (changed[i] || s.isUnsaved()) && !yield(s) {
				return
			}
		}
	})
	saved = make([]bool, len(wave))
	for i, s := range wave {
		saved[i] = !s.isUnsaved()
	}
	return saved
}

// claimDue returns which of these sessions were due, and unschedules them.
func (w *writer) claimDue(sessions []*Session) []bool {
	due := make([]bool, len(sessions))
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, s := range sessions {
		if _, due[i] = w.due[s]; due[i] {
			delete(w.due, s)
		}
	}
	return due
}

// saveAll saves these sessions. Caller holds saving.
func (w *writer) saveAll(sessions iter.Seq[*Session]) {
	batch := make([]message.SessionSave, 0, saveBatchSize)
	owners := make([]*Session, 0, saveBatchSize)
	for s := range sessions {
		if save, ok := s.pendingSave(); ok {
			batch, owners = append(batch, save), append(owners, s)
		}
		if len(batch) == saveBatchSize {
			w.save(batch, owners)
			batch, owners = batch[:0], owners[:0]
		}
	}
	if len(batch) > 0 {
		w.save(batch, owners)
	}
}

func (w *writer) save(batch []message.SessionSave, sessions []*Session) {
	for i, r := range w.store.Save(context.Background(), batch) {
		if sessions[i].handleSaveResult(r) {
			w.schedule(sessions[i])
		}
	}
}
