package sharedstate

import (
	"container/list"
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// maxMemorySessions and maxMemoryBytes bound the sessions in one process; beyond
	// them the one saved longest ago goes.
	maxMemorySessions = 100_000
	maxMemoryBytes    = 64 << 20
	// memoryInboxSize bounds the letters that wait for a node.
	memoryInboxSize = 1024
)

// A MemoryBackend is what Redis is to nodes with Redis: the place where nodes of one
// process meet. The zero value is ready to use.
type MemoryBackend struct {
	mu         sync.Mutex // Protects following.
	sessions   map[message.SessionID]*list.Element
	bySaveTime list.List // of *kept, those saved longest ago first
	bytes      int
	// maxMemorySessions and maxMemoryBytes, which tests make small.
	maxSessions, maxBytes int
	inboxes               map[string]chan []byte // of nodes that listen
	nodes                 map[string]memoryNode
	banned                map[string]time.Time // until when, by user
	bansVersion           int64                // raised by each change of barred
	memoryPresence
	buckets        map[string]*userBucket
	bucketsAtSweep int // after they were looked through last
}

// A storedSession session is a record, in the form that Redis would have it: what is
// read from it shares nothing with what was saved.
type storedSession struct {
	id         message.SessionID
	generation int64
	revision   int64
	encoded    []byte
	expiresAt  time.Time
}

// nodeView is a node's view of a space.
type nodeView struct {
	*MemoryBackend
	ttl     time.Duration
	metrics *metrics
}

func (s *MemoryBackend) newView(cfg Config, m *metrics) *nodeView {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions == nil {
		s.maxSessions, s.maxBytes = maxMemorySessions, maxMemoryBytes
		s.sessions = make(map[message.SessionID]*list.Element)
		s.inboxes = make(map[string]chan []byte)
		s.nodes = make(map[string]memoryNode)
		s.banned = make(map[string]time.Time)
		s.buckets = make(map[string]*userBucket)
		s.rooms = make(map[message.Room]map[message.SessionID]memoryPresenceEntry)
	}
	return &nodeView{MemoryBackend: s, ttl: cfg.TTL, metrics: m}
}

func (m *nodeView) up() bool     { return true }
func (m *nodeView) close() error { return nil }

func (m *nodeView) resume(
	_ context.Context, id message.SessionID, user, node string,
) (message.Session, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.findSession(id)
	if k == nil {
		return message.Session{}, false, nil
	}
	rec, err := decodeRecord(k.encoded)
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

// saveOne is save.lua. Caller holds mu.
func (m *nodeView) saveOne(node string, s *message.SessionSave) message.SaveResult {
	k := m.findSession(s.ID)
	switch {
	case k != nil && k.generation > s.Generation:
		return message.SaveSuperseded
	case s.Renew && (k == nil || k.generation < s.Generation || k.revision != s.Revision):
		return message.SaveMissing
	case s.Renew:
		k.expiresAt = time.Now().Add(m.ttl)
		m.bySaveTime.MoveToBack(m.sessions[s.ID])
	case k == nil || k.generation < s.Generation || k.revision <= s.Revision:
		m.putSession(&sessionRecord{Session: s.Session, node: node})
	}
	return message.SaveDone
}

func (m *nodeView) end(_ context.Context, batch []endedSession) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch {
		if k := m.findSession(e.id); k != nil && k.generation <= e.generation {
			m.removeSession(k)
		}
	}
	return nil
}

// putSession puts a record in place of what there was, and drops the oldest where
// there are too many. Caller holds mu.
func (m *nodeView) putSession(rec *sessionRecord) {
	bytes, whole := rec.encode()
	if !whole {
		m.metrics.drop(dropPartial, 1)
	}
	if old := m.findSession(rec.ID); old != nil {
		m.removeSession(old)
	}
	k := &storedSession{
		id: rec.ID, generation: rec.Generation, revision: rec.Revision, encoded: bytes, expiresAt: time.Now().Add(m.ttl),
	}
	m.sessions[rec.ID] = m.bySaveTime.PushBack(k)
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

// findSession returns the session unless it has expired. Caller holds mu.
func (s *MemoryBackend) findSession(id message.SessionID) *storedSession {
	e := s.sessions[id]
	if e == nil {
		return nil
	}
	k := e.Value.(*storedSession)
	if time.Now().After(k.expiresAt) {
		s.removeSession(k)
		return nil
	}
	return k
}

// removeSession removes a session that is there. Caller holds mu.
func (s *MemoryBackend) removeSession(k *storedSession) {
	s.bytes -= len(k.encoded)
	s.bySaveTime.Remove(s.sessions[k.id])
	delete(s.sessions, k.id)
}

func (m *nodeView) send(_ context.Context, batch []envelope) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range batch {
		for node, inbox := range m.inboxes {
			if l.to != "" && l.to != node {
				continue
			}
			select {
			case inbox <- l.payload:
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
