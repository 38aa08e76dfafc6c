package sharedstate

import (
	"container/list"
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// maxMemorySessions and maxMemoryBytes bound the sessions in one process.
	// Beyond them the session that was saved longest ago is dropped.
	maxMemorySessions = 100_000
	maxMemoryBytes    = 64 << 20
	// memoryInboxSize bounds the envelopes that wait for one node.
	memoryInboxSize = 1024
)

// A MemoryBackend holds the shared state of the nodes of one process, in place
// of Redis. The zero value is ready to use, and safe for concurrent use.
type MemoryBackend struct {
	mu         sync.Mutex // Protects following.
	sessions   map[message.SessionID]*list.Element
	bySaveTime list.List // of *storedSession, saved longest ago first
	bytes      int       // of all records
	// maxMemorySessions and maxMemoryBytes, unless a test changes them.
	maxSessions, maxBytes int
	inboxes               map[string]chan []byte // of the nodes that listen
	nodes                 map[string]memoryNode
	banned                map[string]time.Time // the end of the ban, by user
	bansVersion           int64                // raised by each change of banned
	memoryPresence
	buckets        map[string]*sharedBucket
	bucketsAtSweep int // the number of buckets after the last removal of idle ones
}

// A storedSession holds a record in its encoded form, as Redis does: a session
// that is read shares no memory with the one that was saved.
type storedSession struct {
	id         message.SessionID
	generation int64
	revision   int64
	encoded    []byte
	expiresAt  time.Time
}

// A nodeView is one node's access to a MemoryBackend. It implements backend.
type nodeView struct {
	*MemoryBackend
	ttl     time.Duration
	metrics *metrics
}

// newView returns the view of another node.
func (s *MemoryBackend) newView(cfg Config, m *metrics) *nodeView {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions == nil {
		s.maxSessions, s.maxBytes = maxMemorySessions, maxMemoryBytes
		s.sessions = make(map[message.SessionID]*list.Element)
		s.inboxes = make(map[string]chan []byte)
		s.nodes = make(map[string]memoryNode)
		s.banned = make(map[string]time.Time)
		s.buckets = make(map[string]*sharedBucket)
		s.rooms = make(map[message.Room]map[message.SessionID]memoryPresenceEntry)
	}
	return &nodeView{MemoryBackend: s, ttl: cfg.TTL, metrics: m}
}

func (m *nodeView) state() string { return stateUp }
func (m *nodeView) close() error  { return nil }

func (m *nodeView) resume(
	_ context.Context, id message.SessionID, user, node string,
) (message.Session, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stored := m.findSession(id)
	if stored == nil {
		return message.Session{}, false, nil
	}
	rec, err := decodeRecord(stored.encoded)
	if err != nil || rec.User != user {
		return message.Session{}, false, err
	}
	rec.ID, rec.PreviousNode, rec.node = id, rec.node, node
	rec.Generation++
	rec.Revision = 0
	m.putSession(&rec)
	return rec.Session, true, nil
}

func (m *nodeView) save(_ context.Context, node string, batch []message.SessionSave) []message.SaveResult {
	m.mu.Lock()
	defer m.mu.Unlock()
	results := make([]message.SaveResult, len(batch))
	for i := range batch {
		results[i] = m.saveOne(node, &batch[i])
	}
	return results
}

// saveOne does what save.lua does. The caller holds mu.
func (m *nodeView) saveOne(node string, s *message.SessionSave) message.SaveResult {
	stored := m.findSession(s.ID)
	switch {
	case stored != nil && stored.generation > s.Generation:
		return message.SaveSuperseded
	case s.Renew && (stored == nil || stored.generation < s.Generation || stored.revision != s.Revision):
		return message.SaveMissing
	case s.Renew:
		stored.expiresAt = time.Now().Add(m.ttl)
		m.bySaveTime.MoveToBack(m.sessions[s.ID])
	case stored == nil || stored.generation < s.Generation || stored.revision <= s.Revision:
		m.putSession(&sessionRecord{Session: s.Session, node: node})
	}
	return message.SaveDone
}

func (m *nodeView) end(_ context.Context, batch []endedSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch {
		if stored := m.findSession(e.id); stored != nil && stored.generation <= e.generation {
			m.removeSession(stored)
		}
	}
	return nil
}

// putSession stores a record in place of an older one. It then removes expired
// sessions, and drops the oldest while a bound is exceeded. The caller holds mu.
func (m *nodeView) putSession(rec *sessionRecord) {
	bytes, whole := rec.encode()
	if !whole {
		m.metrics.drop(dropPartial, 1)
	}
	if old := m.findSession(rec.ID); old != nil {
		m.removeSession(old)
	}
	m.sessions[rec.ID] = m.bySaveTime.PushBack(&storedSession{
		id: rec.ID, generation: rec.Generation, revision: rec.Revision, encoded: bytes, expiresAt: time.Now().Add(m.ttl),
	})
	m.bytes += len(bytes)
	for front := m.bySaveTime.Front(); front != nil; front = m.bySaveTime.Front() {
		oldest := front.Value.(*storedSession)
		expired := time.Now().After(oldest.expiresAt)
		if !expired && len(m.sessions) <= m.maxSessions && m.bytes <= m.maxBytes {
			return
		}
		if !expired {
			m.metrics.drop(dropOldest, 1)
		}
		m.removeSession(oldest)
	}
}

// findSession returns a session, or nil if there is none or it has expired. The
// caller holds mu.
func (s *MemoryBackend) findSession(id message.SessionID) *storedSession {
	e := s.sessions[id]
	if e == nil {
		return nil
	}
	stored := e.Value.(*storedSession)
	if time.Now().After(stored.expiresAt) {
		s.removeSession(stored)
		return nil
	}
	return stored
}

// removeSession removes a stored session. The caller holds mu.
func (s *MemoryBackend) removeSession(stored *storedSession) {
	s.bytes -= len(stored.encoded)
	s.bySaveTime.Remove(s.sessions[stored.id])
	delete(s.sessions, stored.id)
}

func (m *nodeView) send(_ context.Context, batch []envelope) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch {
		for node, inbox := range m.inboxes {
			if e.to != "" && e.to != node {
				continue
			}
			select {
			case inbox <- e.payload:
			default:
				m.metrics.drop(dropEventLost, 1)
			}
		}
	}
	return nil
}

func (m *nodeView) listenLoop(ctx context.Context, node string, receive func([]byte), connected func()) {
	inbox := make(chan []byte, memoryInboxSize)
	m.mu.Lock()
	m.inboxes[node] = inbox
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.inboxes, node)
	}()
	connected()
	for {
		select {
		case payload := <-inbox:
			receive(payload)
		case <-ctx.Done():
			return
		}
	}
}
