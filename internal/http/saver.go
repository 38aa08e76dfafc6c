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
	// saveEvery is how long changes of sessions gather before they are saved,
	// saveSoon how long those do that a client may come back for at once: a
	// session that has begun, one whose socket has ended, and the rooms of a
	// client that remembers none itself.
	saveEvery = time.Second
	saveSoon  = 50 * time.Millisecond
	// saveTries is how often a save that failed is made, before it waits for
	// the client's next answer to a ping.
	saveTries = 3
	// saveBatch is how many are saved in one call.
	saveBatch = 500
)

// A saver saves the sessions of sockets, gathered: one is saved when its
// client has answered a ping, when it begins, when it ends, and with rooms=1
// when it joins or leaves. Safe for concurrent use.
type saver struct {
	server *Server
	wake   chan struct{} // holds a token when something is to be saved soon

	// saving is held while a batch is taken and saved: who is not due any more was
	// saved, and of two looks at a client the later one is kept.
	saving sync.Mutex

	mu  sync.Mutex
	due map[*socket]struct{}
}

// soon has the socket's session saved at once, or as good as that.
func (v *saver) soon(k *socket) {
	v.add(k)
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// add has the socket's session saved within a second. What waits is bounded by the
// sockets there are, and those that ended within the last round.
func (v *saver) add(k *socket) {
	if k.held == nil {
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
func (v *saver) loop(stop <-chan struct{}) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	var soon <-chan time.Time
	for {
		select {
		case <-tick.C:
			v.flush()
		case <-v.wake:
			if soon == nil {
				soon = time.After(saveSoon)
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
func (v *saver) flush() {
	v.mu.Lock()
	due := slices.Collect(maps.Keys(v.due))
	v.mu.Unlock()
	for batch := range slices.Chunk(due, saveBatch) {
		v.saving.Lock()
		was := v.take(batch) // not those that keep had in between
		v.saveAll(func(yield func(*socket) bool) {
			for i, k := range batch {
				if was[i] && !yield(k) {
					return
				}
			}
		})
		v.saving.Unlock()
	}
}

// keep sees to it that a client that is asked to move has a session to come
// back with: it saves those that are not kept yet or have changed, and returns
// who may be asked now. The others may at the next wave, and in any case at the
// one after: nothing waits for long for a Redis that is away.
func (v *saver) keep(wave []*socket) []*socket {
	v.saving.Lock()
	defer v.saving.Unlock()
	changed := v.take(wave)
	v.saveAll(func(yield func(*socket) bool) {
		for i, k := range wave {
			if (changed[i] || k.unkept()) && !yield(k) {
				return
			}
		}
	})
	return slices.DeleteFunc(wave, func(k *socket) bool { return k.unkept() && k.waits() })
}

// take says which of these were due, and has them so no more.
func (v *saver) take(sockets []*socket) []bool {
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
func (v *saver) saveAll(sockets iter.Seq[*socket]) {
	batch := make([]message.SessionSave, 0, saveBatch)
	of := make([]*socket, 0, saveBatch)
	for k := range sockets {
		if save, ok := k.state(); ok {
			batch, of = append(batch, save), append(of, k)
		}
		if len(batch) == saveBatch {
			v.save(batch, of)
			batch, of = batch[:0], of[:0]
		}
	}
	if len(batch) > 0 {
		v.save(batch, of)
	}
}

func (v *saver) save(batch []message.SessionSave, of []*socket) {
	for i, r := range v.server.cfg.Sessions.Save(context.Background(), batch) {
		if of[i].saved(r) {
			v.add(of[i])
		}
	}
}
