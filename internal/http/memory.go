package http

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"switchyard/internal/conn"
	"switchyard/internal/hub"
	"switchyard/internal/protocol"
)

// A Memory bounds what waits for all clients of a node together, and what arrives.
type Memory = conn.Budget

// NewMemory returns a Memory of so many bytes.
func NewMemory(bytes int64) *Memory { return conn.NewBudget(bytes) }

// errNoMemory refuses a connection while the frames that wait for clients take more memory
// than QUEUE_TOTAL_BYTES.
var errNoMemory = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "this node has no memory for another client; see QUEUE_TOTAL_BYTES",
	RetryAfter: time.Second,
}

// smallFrame is the most bytes of a frame or of a body that are read without asking for
// memory first. 15,000 connections may send the beginnings of as many frames.
const smallFrame = 4 << 10

const (
	// relieveEvery is the time between two rounds of memoryLoop while memory is short.
	relieveEvery = 250 * time.Millisecond
	// smallShare is what a client may have waiting, in bytes, without being closed for who
	// waits for memory.
	smallShare = 16 << 10
	// stalledAfter is how long a client takes nothing until it makes room for answers that
	// wait. A slow client takes something.
	stalledAfter = 2 * time.Second
	// memoryCloseTimeout is how long a client that is closed for lack of memory has to take
	// what was written in part and the close frame. Until then it holds the memory.
	memoryCloseTimeout = time.Second
)

// memoryLoop closes clients while what waits for them takes too much memory, until s.stop
// closes.
func (s *Server) memoryLoop() {
	for {
		select {
		case <-s.stop:
			return
		case <-s.memory.Tight():
		}
		for s.relieveMemory() {
			select {
			case <-s.stop:
				return
			case <-time.After(relieveEvery):
			}
		}
	}
}

// A debtor uses memory of the budget, and can be closed for it.
type debtor struct {
	bytes int
	close func() bool // false: it was ending already
}

// relieveMemory closes clients with the most of the memory until it is not short any more,
// and returns whether it was: first those that take nothing, while that is not enough those
// that have more than a little, and where the budget is spent whichever have the most. They
// resume from the log. What waits for others as well is theirs in equal parts: to close a
// thousand members that are behind in one room frees little, so each of them has little.
func (s *Server) relieveMemory() bool {
	short, isShort, urgent := s.memory.Shortage()
	if !isShort {
		return false
	}
	least := 0 // of whoever has the most
	if !s.memory.IsSpent() {
		least = smallShare
	}
	debtors := s.answers.debtors()
	s.openSockets.Each(func(sock *socket) {
		bytes, ending := sock.conn.Share()
		if ending {
			short -= int64(bytes) // is freed soon
			return
		}
		isDebtor := bytes > 0 && (urgent && bytes > least || sock.conn.StuckFor() >= stalledAfter)
		if since := sock.largeSince.Load(); since != 0 && time.Since(sock.started) >= time.Duration(since)+stalledAfter {
			bytes, isDebtor = bytes+s.cfg.MaxFrame, true
		}
		if isDebtor {
			debtors = append(debtors, debtor{bytes, func() bool { return sock.conn.CloseSlow(memoryCloseTimeout) }})
		}
	})
	slices.SortFunc(debtors, func(a, b debtor) int { return cmp.Compare(b.bytes, a.bytes) })
	for _, d := range debtors {
		if short <= 0 {
			break
		}
		if d.close() {
			s.metrics.memoryCloses.Inc()
			short -= int64(d.bytes)
		}
	}
	return true
}

// reserveFrame reserves the memory of a large frame that arrives, until freeFrame.
func (sock *socket) reserveFrame() error {
	if err := sock.server.memory.Reserve(context.Background(), sock.readerKey(), sock.server.cfg.MaxFrame); err != nil {
		sock.server.metrics.memoryCloses.Inc()
		return fmt.Errorf("a frame: %w", err)
	}
	sock.largeSince.Store(max(1, int64(time.Since(sock.started))))
	return nil
}

// readerKey returns the key by which the connection takes turns with those of others.
func (sock *socket) readerKey() any {
	if sock.reader == "" {
		return sock
	}
	return sock.reader
}

func (sock *socket) freeFrame() {
	sock.largeSince.Store(0)
	sock.server.memory.Free(sock.server.cfg.MaxFrame)
}

// maxAnswersUnderWay bounds the history calls over HTTP of one reader that are under way.
// One that takes their answers slowly holds the memory of each.
const maxAnswersUnderWay = 16

// httpAnswers are the answers to history calls over HTTP. The zero value has none. It is safe
// for concurrent use.
type httpAnswers struct {
	mu       sync.Mutex     // Protects following.
	ofReader map[string]int // calls under way, of readers with a name
	// sending are the answers that have memory, and since when.
	sending map[*http.ResponseController]time.Time
}

// begin counts a call until end is called, unless its reader has maxAnswersUnderWay. reader
// is "" for an API key, which is trusted.
func (h *httpAnswers) begin(reader string) (end func(), err error) {
	if reader == "" {
		return func() {}, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ofReader[reader] >= maxAnswersUnderWay {
		return nil, rateLimited("too many history calls of this user are under way", time.Second)
	}
	if h.ofReader == nil {
		h.ofReader = map[string]int{}
	}
	h.ofReader[reader]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.ofReader[reader]--; h.ofReader[reader] == 0 {
			delete(h.ofReader, reader)
		}
	}, nil
}

// send counts an answer as one that has memory until end is called.
func (h *httpAnswers) send(w http.ResponseWriter) (end func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.sending == nil {
		h.sending = map[*http.ResponseController]time.Time{}
	}
	answer := http.NewResponseController(w)
	h.sending[answer] = time.Now()
	return func() { h.forget(answer) }
}

func (h *httpAnswers) forget(answer *http.ResponseController) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sending, answer)
}

// debtors returns the answers that their callers have had time to take, and did not.
func (h *httpAnswers) debtors() (all []debtor) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for answer, since := range h.sending {
		if time.Since(since) >= stalledAfter {
			all = append(all, debtor{hub.HistoryMemory, func() bool {
				h.forget(answer)
				return answer.SetWriteDeadline(time.Now()) == nil
			}})
		}
	}
	return all
}

// errNoMemoryForBody refuses a body for which there is no memory.
var errNoMemoryForBody = &protocol.Error{
	Code:       protocol.CodeUnavailable,
	Message:    "this node has no memory for the body at the moment; see QUEUE_TOTAL_BYTES",
	RetryAfter: time.Second,
}

// bodyMemory reserves the memory of large bodies while their requests are handled.
func (a *api) bodyMemory(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength >= 0 && r.ContentLength <= smallFrame {
			next.ServeHTTP(w, r)
			return
		}
		size := maxBatchBody // also of a body that does not say
		if r.ContentLength >= 0 {
			size = int(min(r.ContentLength, maxBatchBody))
		}
		if err := a.memory.Reserve(r.Context(), callerOf(r).readerKey(), size); err != nil {
			a.respond.refuse(w, r, errNoMemoryForBody)
			return
		}
		defer a.memory.Free(size)
		next.ServeHTTP(w, r)
	})
}
