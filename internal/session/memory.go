package session

import (
	"container/list"
	"context"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// spaceSessions and spaceBytes bound the sessions in one process; beyond
	// them the one saved longest ago goes.
	spaceSessions = 100_000
	spaceBytes    = 64 << 20
	// memoryInbox bounds the letters that wait for a node.
	memoryInbox = 1024
)

// A Space is what Redis is to nodes with Redis: the place where nodes of one
// process meet. The zero value is ready to use.
type Space struct {
	mu       sync.Mutex // Protects following.
	sessions map[message.SessionID]*list.Element
	saved    list.List // of *kept, those saved longest ago first
	bytes    int
	// spaceSessions and spaceBytes, which tests make small.
	most, mostBytes int
	inboxes         map[string]chan []byte // of nodes that listen
	nodes           map[string]spaceNode
	barred          map[string]time.Time // until when, by user
	state           int64                // raised by each change of barred
	spaceRooms
	spenders     map[string]*spender
	spendersLeft int // after they were looked through last
}

// A kept session is a record, in the form that Redis would have it: what is
// read from it shares nothing with what was saved.
type kept struct {
	id         message.SessionID
	generation int64
	revision   int64
	record     []byte
	until      time.Time
}

// member is a node's view of a space.
type member struct {
	*Space
	ttl     time.Duration
	metrics *metrics
}

func (s *Space) join(cfg Config, m *metrics) *member {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions == nil {
		s.most, s.mostBytes = spaceSessions, spaceBytes
		s.sessions = make(map[message.SessionID]*list.Element)
		s.inboxes = make(map[string]chan []byte)
		s.nodes = make(map[string]spaceNode)
		s.barred = make(map[string]time.Time)
		s.spenders = make(map[string]*spender)
		s.rooms = make(map[message.Room]map[message.SessionID]spaceSeat)
	}
	return &member{Space: s, ttl: cfg.TTL, metrics: m}
}

func (m *member) up() bool     { return true }
func (m *member) close() error { return nil }

func (m *member) resume(
	_ context.Context, id message.SessionID, user, node string,
) (message.Session, bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := m.find(id)
	if k == nil {
		return message.Session{}, false, nil
	}
	rec, err := decodeRecord(k.record)
	if err != nil || rec.User != user {
		return message.Session{}, false, err
	}
	rec.ID, rec.From, rec.node = id, rec.node, node
	rec.Generation++
	rec.Revision = 0
	m.keep(&rec)
	return rec.Session, true, nil
}

func (m *member) save(_ context.Context, node string, batch []message.SessionSave) []message.SaveResult {
	m.mu.Lock()
	defer m.mu.Unlock()
	results := make([]message.SaveResult, len(batch))
	for i := range batch {
		results[i] = m.saveOne(node, &batch[i])
	}
	return results
}

// saveOne is save.lua. Caller holds mu.
func (m *member) saveOne(node string, s *message.SessionSave) message.SaveResult {
	k := m.find(s.ID)
	switch {
	case k != nil && k.generation > s.Generation:
		return message.SaveSuperseded
	case s.Touch && (k == nil || k.generation < s.Generation || k.revision != s.Revision):
		return message.SaveMissing
	case s.Touch:
		k.until = time.Now().Add(m.ttl)
		m.saved.MoveToBack(m.sessions[s.ID])
	case k == nil || k.generation < s.Generation || k.revision <= s.Revision:
		m.keep(&record{Session: s.Session, node: node})
	}
	return message.SaveDone
}

func (m *member) end(_ context.Context, batch []ended) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range batch {
		if k := m.find(e.id); k != nil && k.generation <= e.generation {
			m.forget(k)
		}
	}
	return nil
}

// keep puts a record in place of what there was, and drops the oldest where
// there are too many. Caller holds mu.
func (m *member) keep(rec *record) {
	bytes, whole := rec.encode()
	if !whole {
		m.metrics.drop(dropPartial, 1)
	}
	if old := m.find(rec.ID); old != nil {
		m.forget(old)
	}
	k := &kept{
		id: rec.ID, generation: rec.Generation, revision: rec.Revision, record: bytes, until: time.Now().Add(m.ttl),
	}
	m.sessions[rec.ID] = m.saved.PushBack(k)
	m.bytes += len(bytes)
	for front := m.saved.Front(); front != nil; front = m.saved.Front() {
		oldest := front.Value.(*kept)
		expired := time.Now().After(oldest.until)
		if !expired && len(m.sessions) <= m.most && m.bytes <= m.mostBytes {
			return
		}
		if !expired {
			m.metrics.drop(dropOldest, 1)
		}
		m.forget(oldest)
	}
}

// find returns the session unless it has expired. Caller holds mu.
func (s *Space) find(id message.SessionID) *kept {
	e := s.sessions[id]
	if e == nil {
		return nil
	}
	k := e.Value.(*kept)
	if time.Now().After(k.until) {
		s.forget(k)
		return nil
	}
	return k
}

// forget removes a session that is there. Caller holds mu.
func (s *Space) forget(k *kept) {
	s.bytes -= len(k.record)
	s.saved.Remove(s.sessions[k.id])
	delete(s.sessions, k.id)
}

func (m *member) send(_ context.Context, batch []letter) error {
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
				m.metrics.drop(dropNotice, 1)
			}
		}
	}
	return nil
}

func (m *member) listenLoop(ctx context.Context, node string, receive func([]byte), connected func()) {
	inbox := make(chan []byte, memoryInbox)
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
