package conn

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"switchyard/internal/fairqueue"
)

// budgetShards is how many locks the frames of a Budget share.
const budgetShards = 64

// slotBytes is what a frame takes of a queue itself: a slice header, and room to grow.
const slotBytes = 32

// ReserveTimeout is how long Reserve waits at most.
const ReserveTimeout = 5 * time.Second

// urgentAfter is how long a Reserve waits until clients are closed for it that take something,
// if slowly.
const urgentAfter = time.Second

// A Budget counts the memory of the frames that wait for the clients of a node, and of what
// is being read for them or from them. A frame that waits for many is counted once: it is
// one frame in memory, however many queues have it. Only its place in each queue counts for
// each. It is safe for concurrent use.
type Budget struct {
	// Timeout bounds the wait of Reserve. It may be changed before the first one.
	Timeout  time.Duration
	limit    int64
	queued   atomic.Int64 // the sum of all queues
	held     atomic.Int64 // by frames in queues, and by their places there
	reserved atomic.Int64 // for answers that are being read, frames and bodies that arrive
	tight    chan struct{}
	shards   [budgetShards]budgetShard

	waitingCount atomic.Int64 // of the reservations that wait, for those that look without the lock

	// mu protects waiting, and makes a reservation one step.
	mu      sync.Mutex
	waiting fairqueue.Queue[*reservation]
}

// A reservation is a call of Reserve that waits.
type reservation struct {
	bytes   int64
	began   time.Time
	granted chan struct{}
}

// A budgetShard has the number of queues of each frame, by its first byte.
type budgetShard struct {
	mu     sync.Mutex
	queues map[*byte]int
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget {
	b := &Budget{Timeout: ReserveTimeout, limit: limit, tight: make(chan struct{}, 1)}
	for i := range b.shards {
		b.shards[i].queues = map[*byte]int{}
	}
	return b
}

// Queued returns how many bytes wait in all queues together.
func (b *Budget) Queued() int64 { return b.queued.Load() }

// Held returns how many bytes of memory the frames in all queues take.
func (b *Budget) Held() int64 { return b.held.Load() }

// used returns how many bytes of the budget are in use.
func (b *Budget) used() int64 { return b.held.Load() + b.reserved.Load() }

// IsSpent reports whether more memory is used than the budget has.
func (b *Budget) IsSpent() bool { return b.used() > b.limit }

// Tight delivers a token after a frame was queued beyond the budget, and after a Reserve
// had to wait.
func (b *Budget) Tight() <-chan struct{} { return b.tight }

// Shortage returns how many bytes must be freed now: until nine tenths of a spent budget
// are used, so that what comes next does not exceed it again at once, or until the first
// Reserve that waits can be granted. isShort is false when nothing waits. It is urgent when
// the budget is spent or a Reserve has waited for a second: whoever has the most waiting
// makes way then, though it takes something.
func (b *Budget) Shortage() (bytes int64, isShort, urgent bool) {
	if b.IsSpent() {
		return b.used() - b.limit/10*9, true, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting.IsEmpty() {
		return 0, false, false
	}
	first := b.waiting.Next()
	return b.used() + first.bytes - b.limit/4*3, true, time.Since(first.began) >= urgentAfter
}

// fits reports whether n bytes can be reserved. A quarter of the budget is kept for what
// can't wait. What no empty budget has place for can have all of it. Caller holds mu.
func (b *Budget) fits(n int64) bool {
	used := b.used()
	return used == 0 || used+n <= b.limit/4*3
}

// signalTight puts a token into Tight.
func (b *Budget) signalTight() {
	select {
	case b.tight <- struct{}{}:
	default:
	}
}

// Reserve waits until there are n bytes for what is about to be read, and reserves them
// until Free is called with as many. Calls that wait are served reader by reader, one each. It returns an error when ctx ends or after Timeout.
func (b *Budget) Reserve(ctx context.Context, reader any, n int) error {
	b.mu.Lock()
	b.waitingCount.Add(1) // before fits, or what is released meanwhile would go unseen
	if b.waiting.IsEmpty() && b.fits(int64(n)) {
		b.reserved.Add(int64(n))
		b.waitingCount.Add(-1)
		b.mu.Unlock()
		return nil
	}
	r := &reservation{int64(n), time.Now(), make(chan struct{})}
	b.waiting.Push(reader, r)
	b.mu.Unlock()
	b.signalTight()
	ctx, cancel := context.WithTimeout(ctx, b.Timeout)
	defer cancel()
	select {
	case <-r.granted:
		return nil
	case <-ctx.Done():
	}
	if !b.withdraw(reader, r) {
		return nil // it was granted meanwhile
	}
	b.grant() // the next one may need less
	return fmt.Errorf("waiting for memory: %w", ctx.Err())
}

// withdraw removes a reservation that waits. It returns false if it was granted.
func (b *Budget) withdraw(reader any, r *reservation) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.waiting.Remove(reader, r) {
		return false
	}
	b.waitingCount.Add(-1)
	return true
}

// Free gives back what Reserve has reserved. An answer is held by its queue by now.
func (b *Budget) Free(n int) {
	b.reserved.Add(-int64(n))
	b.grant()
}

// grant lets those go on that wait in Reserve, as far as it fits.
func (b *Budget) grant() {
	if b.waitingCount.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.waiting.IsEmpty() && b.fits(b.waiting.Next().bytes) {
		first := b.waiting.Pop()
		b.waitingCount.Add(-1)
		b.reserved.Add(first.bytes)
		close(first.granted)
	}
}

// shardOf returns the lock of a frame, which is not empty.
func (b *Budget) shardOf(first *byte) *budgetShard {
	return &b.shards[uintptr(unsafe.Pointer(first))>>5%budgetShards] //nolint:gosec // hashed only
}

// hold counts a frame in one queue more.
func (b *Budget) hold(f []byte) {
	if len(f) == 0 {
		return
	}
	first := unsafe.SliceData(f)
	s := b.shardOf(first)
	s.mu.Lock()
	s.queues[first]++
	isNew := s.queues[first] == 1
	s.mu.Unlock()
	bytes := int64(slotBytes)
	if isNew {
		bytes += int64(len(f))
	}
	if b.held.Add(bytes); b.IsSpent() {
		b.signalTight()
	}
}

// release counts a frame in one queue less. f is what hold got.
func (b *Budget) release(f []byte) {
	if len(f) == 0 {
		return
	}
	first := unsafe.SliceData(f)
	s := b.shardOf(first)
	s.mu.Lock()
	left := s.queues[first] - 1
	if s.queues[first] = left; left == 0 {
		delete(s.queues, first)
	}
	s.mu.Unlock()
	bytes := int64(slotBytes)
	if left == 0 {
		bytes += int64(len(f))
	}
	b.held.Add(-bytes)
	b.grant()
}

// share returns what a frame in one queue takes: its place there, and an equal share of the
// frame itself.
func (b *Budget) share(f []byte) int {
	if len(f) == 0 {
		return 0
	}
	first := unsafe.SliceData(f)
	s := b.shardOf(first)
	s.mu.Lock()
	defer s.mu.Unlock()
	return slotBytes + len(f)/max(1, s.queues[first])
}
