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
	// saveInterval is how long changes of sessions gather before they are saved,
	// saveSoonDelay how long those do that a client may come back for at once: a
	// session that has begun, one whose socket has ended, and the rooms of a
	// client that remembers none itself.
	saveInterval  = time.Second
	saveSoonDelay = 50 * time.Millisecond
	// maxSaveTries is how often a save that failed is made, before it waits for
	// the client's next answer to a ping.
	maxSaveTries = 3
	// saveBatchSize is how many are saved in one call.
	saveBatchSize = 500
)

// A sessionWriter saves the sessions of sockets, gathered: one is saved when its
// client has answered a ping, when it begins, when it ends, and with rooms=1
// when it joins or leaves. Safe for concurrent use.
type sessionWriter struct {
	server *Server
	wake   chan struct{} // holds a token when something is to be saved soon

	// saving is held while a batch is taken and saved: who is not due any more was
	// saved, and of two looks at a client the later one is kept.
	saving sync.Mutex

	mu  sync.Mutex
	due map[*socket]struct{}
}

// scheduleSoon has the socket's session saved at once, or as good as that.
func (v *sessionWriter) scheduleSoon(k *socket) {
	v.schedule(k)
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// schedule has the socket's session saved within a second. What waits is bounded by the
// sockets there are, and those that ended within the last round.
func (v *sessionWriter) schedule(k *socket) {
	if k.session == nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.due == nil {
		v.due = make(map[*socket]struct{})
	}
	v.due[k] = struct{}{}
}

// loop saves what is due, each second or soon, until stop closes, and then
// once more.
func (v *sessionWriter) loop(stop <-chan struct{}) {
	tick := time.NewTicker(saveInterval)
	defer tick.Stop()
	var soon <-chan time.Time
	for {
		select {
		case <-tick.C:
			v.flush()
		case <-v.wake:
			if soon == nil {
				soon = time.After(saveSoonDelay)
			}
		case <-soon:
			soon = nil
			v.flush()
		case <-stop:
			v.flush()
			return
		}
	}
}

// flush saves all that is due now, a batch at a time. Each call is bounded by
// the sessions' own timeout.
func (v *sessionWriter) flush() {
	v.mu.Lock()
	due := slices.Collect(maps.Keys(v.due))
	v.mu.Unlock()
	for batch := range slices.Chunk(due, saveBatchSize) {
		v.saving.Lock()
		wasDue := v.claimDue(batch) // not those that keep had in between
		v.saveAll(func(yield func(*socket) bool) {
			for i, k := range batch {
				if wasDue[i] && !yield(k) {
					return
				}
			}
		})
		v.saving.Unlock()
	}
}

// saveBeforeMove sees to it that a client that is asked to move has a session to come
// back with: it saves those that are not kept yet or have changed, and returns
// who may be asked now. The others may at the next wave, and in any case at the
// one after: nothing waits for long for a Redis that is away.
func (v *sessionWriter) saveBeforeMove(wave []*socket) []*socket {
	v.saving.Lock()
	defer v.saving.Unlock()
	changed := v.claimDue(wave)
	v.saveAll(func(yield func(*socket) bool) {
		for i, k := range wave {
			if (changed[i] || k.isUnsaved()) && !yield(k) {
				return
			}
		}
	})
	return slices.DeleteFunc(wave, func(k *socket) bool { return k.isUnsaved() && k.deferMove() })
}

// claimDue says which of these were due, and has them so no more.
func (v *sessionWriter) claimDue(sockets []*socket) []bool {
	due := make([]bool, len(sockets))
	v.mu.Lock()
	defer v.mu.Unlock()
	for i, k := range sockets {
		if _, due[i] = v.due[k]; due[i] {
			delete(v.due, k)
		}
	}
	return due
}

// saveAll saves where these sockets' sessions stand. Caller holds saving.
func (v *sessionWriter) saveAll(sockets iter.Seq[*socket]) {
	batch := make([]message.SessionSave, 0, saveBatchSize)
	batchSockets := make([]*socket, 0, saveBatchSize)
	for k := range sockets {
		if save, ok := k.pendingSave(); ok {
			batch, batchSockets = append(batch, save), append(batchSockets, k)
		}
		if len(batch) == saveBatchSize {
			v.save(batch, batchSockets)
			batch, batchSockets = batch[:0], batchSockets[:0]
		}
	}
	if len(batch) > 0 {
		v.save(batch, batchSockets)
	}
}

func (v *sessionWriter) save(batch []message.SessionSave, sockets []*socket) {
	for i, r := range v.server.cfg.Sessions.Save(context.Background(), batch) {
		if sockets[i].handleSaveResult(r) {
			v.schedule(sockets[i])
		}
	}
}
