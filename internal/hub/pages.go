package hub

import (
	"context"
	"errors"
	"fmt"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/protocol"
)

// pageCacheTTL is how long a page is kept for other members at the same
// position. Thousands of members that are behind in one room do not all join at
// the same moment. Within an epoch the messages of a page never change; its
// head and first may be outdated.
const pageCacheTTL = time.Second

// An encodedPage is a page of the log with one frame per message. A repair adds
// them to the ring one by one.
type encodedPage struct {
	message.Page // without its messages
	frames       []roomFrame
}

// A sharedPage is a page for all members that are at one position, encoded as
// one frame, so that all of them send the same bytes. It counts towards the
// budget while a member uses it or it is cached.
type sharedPage struct {
	done  chan struct{} // closed when the fields below are set
	err   error
	page  message.Page // without its messages
	body  protocol.Frame
	count message.Seq // number of messages in body

	refCount int // guarded by topic.mu
}

// errHole means that the log contradicts itself: a page lacks a message. The
// page is read again, because a skipped message could not be delivered later.
var errHole = errors.New("the log returned a page with a hole")

// acquirePage returns the page after a position, which the caller must release.
// It may share a read that began before the position was committed; if that
// read does not know the position, acquirePage reads again. On an error the
// caller releases nothing.
func (t *topic) acquirePage(p *catchUpProgress) (*sharedPage, error) {
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
	// The first caller reads for all, without the lock.
	if shared {
		<-s.done // bounded, as the read is
	} else {
		t.readShared(s, p.seq)
		t.cachePage(s, p.seq)
	}
	// If a fresh read does not know the position either, the position is invalid.
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

// readShared fills in a page for all that wait for it. The size depends on how
// much is being sent already.
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

// cachePage keeps a page for pageCacheTTL if the budget allows it. It does not
// keep a page without messages: a member at the head would get it again at
// once.
func (t *topic) cachePage(s *sharedPage, after message.Seq) {
	b := &t.hub.cfg.bounds
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.count == 0 || t.hub.memory.pages.Load() > b.pageBudget {
		t.evictPage(s, after)
		return
	}
	s.refCount++ // for the timer below
	time.AfterFunc(pageCacheTTL, func() {
		t.mu.Lock()
		t.evictPage(s, after)
		t.mu.Unlock()
		t.releasePage(s)
	})
}

// evictPage removes the page from the cache. Members that use it keep it.
// Caller holds mu.
func (t *topic) evictPage(s *sharedPage, after message.Seq) {
	if t.pages[after] == s {
		delete(t.pages, after)
	}
}

// releasePage undoes one acquirePage. After the last one the page no longer
// counts towards the budget.
func (t *topic) releasePage(s *sharedPage) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.refCount--; s.refCount == 0 {
		t.hub.memory.pages.Add(-int64(len(s.body)))
	}
}

// fetch reads a page, checks that it has no hole, and encodes it. Ctx bounds
// the wait for a read slot of the kind.
func (t *topic) fetch(ctx context.Context, kind chan struct{}, after message.Seq, size func() int) (*encodedPage, error) {
	r := message.Range{Room: t.room, After: after, Limit: t.hub.cfg.bounds.pageFrames}
	got, err := t.hub.read(ctx, kind, r, size)
	if err != nil {
		return nil, fmt.Errorf("reading %s after %d: %w", t.room, after, err)
	}
	// Messages before First are not a hole: they are no longer stored.
	p := &encodedPage{Page: got}
	next := max(after+1, got.First)
	for i := range got.Messages {
		m := &got.Messages[i]
		if m.Seq != next {
			return nil, fmt.Errorf("%w: %s has %d where %d is due", errHole, t.room, m.Seq, next)
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
