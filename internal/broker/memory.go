package broker

import (
	"context"
	"math"
	"sync"
	"time"

	"switchyard/internal/message"
)

// A Bus connects several Memory brokers of one process, as a Redis server
// connects Redis brokers. The zero value is ready to use, and it is safe for
// concurrent use.
type Bus struct {
	// mu protects nodes.
	mu    sync.RWMutex
	nodes []*Memory
}

func (b *Bus) attach(m *Memory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes = append(b.nodes, m)
}

func (b *Bus) detach(m *Memory) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, n := range b.nodes {
		if n == m {
			b.nodes = append(b.nodes[:i:i], b.nodes[i+1:]...)
			return
		}
	}
}

// Memory is the broker of a service without Redis. Like Redis it also delivers
// a node's own broadcasts to the node, in rooms that it has subscribed to.
type Memory struct {
	bus     *Bus
	metrics *metrics
	inbox   *queue
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed by receiveLoop

	// mu protects the fields below.
	mu      sync.RWMutex
	rooms   map[message.Room]struct{}
	started bool
	closed  bool
}

// NewMemory attaches a broker to bus, or to a new bus if bus is nil.
func NewMemory(bus *Bus, cfg Config) *Memory {
	if bus == nil {
		bus = new(Bus)
	}
	cfg = cfg.withDefaults()
	m := &Memory{
		bus:     bus,
		metrics: newMetrics(cfg.Registerer),
		inbox:   newQueue(cfg.Queue),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		rooms:   make(map[message.Room]struct{}),
	}
	m.metrics.up.Set(1)
	bus.attach(m)
	return m
}

// Start begins to call receive. A second call does nothing.
func (m *Memory) Start(receive Receive) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.started {
		return
	}
	m.started = true
	go m.receiveLoop(receive)
}

// receiveLoop calls receive with each broadcast of the inbox. After Close it
// empties the inbox and ends.
func (m *Memory) receiveLoop(receive Receive) {
	defer close(m.done)
	var batch []broadcast
	for stopping := false; !stopping; {
		select {
		case <-m.inbox.wake:
		case <-m.stop:
			stopping = true
		}
		batch = m.inbox.dequeue(batch[:0], math.MaxInt)
		for _, bc := range batch {
			receive(bc.room, bc.payload)
			m.metrics.publish.Observe(time.Since(bc.at).Seconds())
		}
		clear(batch)
	}
}

// Publish delivers payload to every node on the bus that has subscribed to the
// room. It never blocks: a node that does not keep up loses its oldest
// broadcasts. The payload must not be written to afterwards.
func (m *Memory) Publish(room message.Room, payload []byte) {
	m.mu.RLock()
	closed := m.closed
	m.mu.RUnlock()
	if closed {
		m.metrics.drop(dropClosed, 1)
		return
	}
	bc := broadcast{room: room, payload: payload, at: time.Now()}
	m.bus.mu.RLock()
	defer m.bus.mu.RUnlock()
	for _, node := range m.bus.nodes {
		node.deliver(bc)
	}
}

func (m *Memory) deliver(bc broadcast) {
	m.mu.RLock()
	_, subscribed := m.rooms[bc.room]
	m.mu.RUnlock()
	if !subscribed {
		return
	}
	dropped, ok := m.inbox.push(bc)
	m.metrics.drop(dropFull, dropped)
	if !ok {
		m.metrics.drop(dropClosed, 1)
	}
}

// Subscribe subscribes to the room. It takes effect at once.
func (m *Memory) Subscribe(ctx context.Context, room message.Room) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	m.rooms[room] = struct{}{}
	return nil
}

// Unsubscribe ends the room's subscription, if there is one.
func (m *Memory) Unsubscribe(room message.Room) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rooms, room)
}

// Up is true until Close.
func (m *Memory) Up() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return !m.closed
}

// Close detaches the broker from the bus, delivers what the inbox holds and
// ends the receive loop, unless ctx ends first. It may be called again.
func (m *Memory) Close(ctx context.Context) error {
	m.mu.Lock()
	first, started := !m.closed, m.started
	m.closed = true
	m.mu.Unlock()
	if first {
		m.bus.detach(m)
		m.inbox.close()
		m.metrics.up.Set(0)
		close(m.stop)
	}
	if !started {
		return nil
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
