package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// pageCacheTTL is how long a page is kept for whoever comes to the same position
// next: thousands who are behind in one room do not come at one moment. In one
// epoch what a page holds never changes, only what it tells of the room's ends.
const pageCacheTTL = time.Second

// A encodedPage is part of the log, each message encoded for itself: a repair puts
// them into the ring one by one.
type encodedPage struct {
	message.Page // without its messages
	frames       []roomFrame
}

// A sharedPage is a page for all members who are at one position when it is
// read, or soon after, encoded as one frame: all of them send the same bytes.
// It counts towards the budget for as long as one of them has it, or it is kept.
type sharedPage struct {
	done  chan struct{} // closed when what follows is there
	err   error
	page  message.Page // without its messages
	body  protocol.Frame
	count message.Seq // messages in body

	refCount int // guarded by topic.mu
}

// errSkippedMessage says that the log contradicts itself. It is asked again: delivering
// past a hole could not be taken back.
var errHole = errors.New("the log returned a page with a hole")

// acquirePage returns the page that follows a position; it is given back. A read
// that others share may have begun before the position was stored: where it
// does not know the position, the log is asked again.
func (t *topic) acquirePage(p *progress) (*sharedPage, error) {
	t.mu.Lock()
	s := t.pages[p.seq]
	shared := s != nil
	if !shared {
		s = &sharedPage{done: make(chan struct{})}
		if t.pages == nil {
			t.pages = make(map[message.Seq]*sharedPage)
		}
		t.pages[p.seq] = s
	}
	s.refCount++
	t.mu.Unlock()
	// Whoever is first reads for all, outside the lock.
	if shared {
		<-s.done // bounded, as the read is
	} else {
		t.readShared(s, p.seq)
		t.cachePage(s, p.seq)
	}
	// A fresh read that does not know the position either is right: it is void.
	if shared && s.err == nil && (s.page.Head < p.seq || p.epoch != "" && s.page.Epoch != p.epoch) {
		t.releasePage(s)
		s = &sharedPage{done: make(chan struct{}), refCount: 1}
		t.readShared(s, p.seq)
	}
	if s.err != nil {
		t.releasePage(s)
		return nil, s.err
	}
	return s, nil
}

// readShared fills in a page for those who wait for it. How much it reads depends
// on how much is on its way to members already.
func (t *topic) readShared(s *sharedPage, after message.Seq) {
	ctx, cancel := context.WithTimeout(t.hub.ctx, logTimeout)
	defer cancel()
	p, err := t.fetch(ctx, t.hub.readSlots.pages, after, t.hub.pageLimit)
	if s.err = err; err == nil {
		frames := make([]protocol.Frame, len(p.frames))
		for i := range p.frames {
			frames[i] = p.frames[i].frame
		}
		s.page, s.count = p.Page, message.Seq(len(frames))
		if len(frames) > 0 {
			s.body = concatFrames(frames)
		}
		t.hub.memory.pages.Add(int64(len(s.body)))
	}
	close(s.done)
}

// cachePage leaves a page to be found for a moment, in the budget. One without
// messages is not kept: whoever took it would be where it was before, and ask
// for it again at once.
func (t *topic) cachePage(s *sharedPage, after message.Seq) {
	b := &t.hub.cfg.bounds
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.count == 0 || t.hub.memory.pages.Load() > b.pageBudget {
		t.evictPage(s, after)
		return
	}
	s.refCount++ // the timer's
	time.AfterFunc(pageCacheTTL, func() {
		t.mu.Lock()
		t.evictPage(s, after)
		t.mu.Unlock()
		t.releasePage(s)
	})
}

// evictPage has nobody find the page again. Caller holds mu.
func (t *topic) evictPage(s *sharedPage, after message.Seq) {
	if t.pages[after] == s {
		delete(t.pages, after)
	}
}

// releasePage says that one of those who have a page is done with it. The last one
// takes it off the books.
func (t *topic) releasePage(s *sharedPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.refCount--; s.refCount == 0 {
		t.hub.memory.pages.Add(-int64(len(s.body)))
	}
}

// fetch reads a page, encodes it, and checks that it has no hole. Ctx bounds
// the wait for a free read of its kind.
func (t *topic) fetch(ctx context.Context, kind chan struct{}, after message.Seq, size func() int) (*encodedPage, error) {
	r := message.Range{Room: t.room, After: after, Limit: t.hub.cfg.bounds.pageFrames}
	got, err := t.hub.read(ctx, kind, r, size)
	if err != nil {
		return nil, fmt.Errorf("reading %s after %d: %w", t.room, after, err)
	}
	// What is no longer stored is no hole: First says so.
	p := &encodedPage{Page: got}
	next := max(after+1, got.First)
	for i := range got.Messages {
		m := &got.Messages[i]
		if m.Seq != next {
			return nil, fmt.Errorf("%w: %s at %d, not %d", errHole, t.room, m.Seq, next)
		}
		next++
		p.frames = append(p.frames, roomFrame{
			seq:       m.Seq,
			epoch:     m.Epoch,
			frame:     protocol.Message(m),
			createdAt: m.At.UnixMicro(),
		})
	}
	if !got.More && next <= got.Head {
		return nil, fmt.Errorf("%w: %s ends before %d, its head is %d", errHole, t.room, next, got.Head)
	}
	p.Messages = nil
	return p, nil
}
