package http

import (
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// saveEvery is how long changes of sessions gather before they are saved.
	saveEvery = time.Second
	// saveBatch is how many are saved in one call.
	saveBatch = 500
)

// A saver saves the sessions of sockets, gathered: one is saved when its
// client has answered a ping, when it begins, and when it ends. Safe for
// concurrent use. The zero value needs its server.
type saver struct {
	server *Server

	mu  sync.Mutex
	due map[*socket]struct{}
}

// add has the socket's session saved soon. What waits is bounded by the
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

// loop saves what is due, each second, until stop closes, and then once more.
func (v *saver) loop(stop <-chan struct{}) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			v.flush()
		case <-stop:
			v.flush()
			return
		}
	}
}

// flush saves all that is due now. Each call is bounded by the sessions' own
// timeout.
func (v *saver) flush() {
	v.mu.Lock()
	due := v.due
	v.due = nil
	v.mu.Unlock()
	batch := make([]message.SessionSave, 0, min(len(due), saveBatch))
	of := make([]*socket, 0, cap(batch))
	for k := range due {
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
