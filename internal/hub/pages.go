package hub

import (
	"errors"
	"fmt"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// A page is part of the log, encoded once for all who need it.
type page struct {
	message.Page // without its messages
	entries      []entry
}

// A pageRead is a read under way that others may wait for.
type pageRead struct {
	done chan struct{}
	page *page
	err  error
}

var errHole = errors.New("the log returned a page with a hole")

// page reads what follows a position, sharing the read with whoever asks for
// the same at the same time: a room that comes back asks the database once. A
// shared read may have begun before the position was stored; where it does not
// know the position, the log is asked again.
func (t *topic) page(p *progress) (*page, error) {
	t.mu.Lock()
	r := t.pages[p.seq]
	if r != nil {
		t.mu.Unlock()
		<-r.done // bounded by read
		if r.err == nil && (r.page.Head < p.seq || p.epoch != "" && r.page.Epoch != p.epoch) {
			return t.fetch(p.seq)
		}
		return r.page, r.err
	}
	r = &pageRead{done: make(chan struct{})}
	if t.pages == nil {
		t.pages = make(map[message.Seq]*pageRead)
	}
	t.pages[p.seq] = r
	t.mu.Unlock()

	r.page, r.err = t.fetch(p.seq)
	t.mu.Lock()
	delete(t.pages, p.seq)
	t.mu.Unlock()
	close(r.done)
	return r.page, r.err
}

// fetch reads a page, encodes it, and checks that it has no hole.
func (t *topic) fetch(after message.Seq) (*page, error) {
	b := &t.hub.cfg.bounds
	got, err := t.hub.read(t.hub.ctx, message.Range{Room: t.room, After: after, Limit: b.pageFrames, MaxBytes: b.pageBytes})
	if err != nil {
		return nil, fmt.Errorf("reading %s after %d: %w", t.room, after, err)
	}
	p := &page{Page: got}
	next := max(after+1, got.First)
	for i := range got.Messages {
		m := &got.Messages[i]
		if m.Seq != next {
			return nil, fmt.Errorf("%w: %s at %d, not %d", errHole, t.room, m.Seq, next)
		}
		next++
		p.entries = append(p.entries, entry{
			seq:    m.Seq,
			epoch:  m.Epoch,
			frame:  protocol.Message(m),
			bornAt: m.At.UnixMicro(),
		})
	}
	if !got.More && next <= got.Head {
		return nil, fmt.Errorf("%w: %s ends before %d, its head is %d", errHole, t.room, next, got.Head)
	}
	p.Messages = nil
	return p, nil
}
