package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// A workloadConfig is the size of a workload.
type workloadConfig struct {
	urls  []string // of the nodes' sockets
	rooms int      // each has a publisher and an observer on every node
	rate  int      // messages a second, of all publishers together
	size  int      // bytes of each message's data, about
}

// A workload is publishers and observers of some rooms, until finish. Publishers
// publish and receive with our Go client, which resumes and resends. Observers only
// receive, and speak the bare protocol. The history has what both received.
type workload struct {
	workloadConfig
	history     *load.History
	waits       waitTracker
	subscribers []*subscriber
	publishers  []*client.Client

	publishing    sync.WaitGroup // joined by publishLoop
	listening     sync.WaitGroup // joined by listenLoop
	stopping      chan struct{}  // closed to end publishLoop
	stopObservers context.CancelFunc
	acks          atomic.Int64
}

// startWorkload starts a workload, and returns when every publisher has joined.
func startWorkload(t *testing.T, rng *rand.Rand, cfg workloadConfig) *workload {
	t.Helper()
	c := &workload{workloadConfig: cfg, history: load.NewHistory(), stopping: make(chan struct{})}
	ctx, stopObservers := context.WithCancel(context.Background())
	c.stopObservers = stopObservers
	t.Cleanup(c.closeAll)
	joinCtx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range cfg.rooms * len(cfg.urls) {
		room := message.Room(fmt.Sprintf("room-%d", i%cfg.rooms))
		home := i / cfg.rooms
		c.addPublisher(joinCtx, t, room, home, rng)
		c.addObserver(ctx, room, home, rng)
	}
	pace := time.Duration(len(c.publishers)) * time.Second / time.Duration(cfg.rate)
	for i, publisher := range c.publishers {
		e := c.subscribers[2*i]
		c.publishing.Go(func() { c.publishLoop(e, publisher, pace, time.Duration(i)*pace/time.Duration(len(c.publishers))) })
	}
	return c
}

// urlsFrom returns the addresses of the nodes: home first, the others in random order.
func (c *workload) urlsFrom(home int, rng *rand.Rand) []string {
	urls := []string{c.urls[home]}
	for _, i := range rng.Perm(len(c.urls)) {
		if i != home {
			urls = append(urls, c.urls[i])
		}
	}
	return urls
}

func (c *workload) addPublisher(ctx context.Context, t *testing.T, room message.Room, home int, rng *rand.Rand) {
	t.Helper()
	e := c.addSubscriber(fmt.Sprintf("publisher-%d-%s", home, room), room)
	publisher, err := client.Dial(ctx, client.Options{URLs: c.urlsFrom(home, rng)})
	if err != nil {
		t.Fatal(err)
	}
	c.publishers = append(c.publishers, publisher)
	if _, err := publisher.Join(ctx, room, client.Start(), client.Handler{Message: e.onMessage, Gap: e.sub.Gap, Joined: e.onJoined}); err != nil {
		t.Fatal(err)
	}
}

// publishLoop publishes at a steady pace, whether the acks keep up or not.
func (c *workload) publishLoop(e *subscriber, publisher *client.Client, pace, first time.Duration) {
	next := time.NewTimer(first)
	defer next.Stop()
	padding := strings.Repeat("x", c.size)
	for i := 0; ; i++ {
		select {
		case <-c.stopping:
			return
		case <-next.C:
			next.Reset(pace)
		}
		id := fmt.Sprintf("%s-%d", e.name, i)
		data := json.RawMessage(fmt.Sprintf(`"%s %s"`, id, padding))
		attempt := c.history.Publish(e.room, e.name, "", id, data)
		c.waits.recordPublish(id)
		err := publisher.Send(e.room, data, id, func(ack client.Ack, err error) {
			attempt.Done(ack, err)
			c.acks.Add(1)
			c.waits.recordAnswer(id)
		})
		if err != nil { // too many publishes await their acks: it was not sent
			attempt.Done(client.Ack{}, err)
			c.waits.recordAnswer(id)
		}
	}
}

// finish ends publishing, waits until everything is answered and delivered, and
// judges the history.
func (c *workload) finish(t *testing.T) *load.Report {
	t.Helper()
	close(c.stopping)
	c.publishing.Wait()
	testkit.Eventually(t, "the last answers", func() bool { return !c.waits.hasUnanswered(time.Now()) })
	testkit.Eventually(t, "the last deliveries", func() bool { return c.history.CaughtUp() })
	c.closeAll()
	return load.Check(c.history)
}

// closeAll closes all clients. It may be called twice.
func (c *workload) closeAll() {
	select {
	case <-c.stopping:
	default:
		close(c.stopping)
	}
	c.publishing.Wait()
	for _, publisher := range c.publishers {
		publisher.Close()
	}
	c.stopObservers()
	c.listening.Wait()
}

// subscriberBehind returns the name of a subscriber that has received no message stored
// after moment, "" when there is none.
func (c *workload) subscriberBehind(moment time.Time) string {
	for _, e := range c.subscribers {
		e.mu.Lock()
		stored := e.lastStored
		e.mu.Unlock()
		if !stored.After(moment) {
			return e.name
		}
	}
	return ""
}

// A subscriber is one member of one room.
type subscriber struct {
	name  string
	room  message.Room
	sub   *load.Subscription
	waits *waitTracker

	mu           sync.Mutex // Protects following.
	lastReceived time.Time  // when the last message was received
	lastStored   time.Time  // when that message was stored
	joinedAt     time.Time  // when the present connection's join was answered
}

func (c *workload) addSubscriber(name string, room message.Room) *subscriber {
	e := &subscriber{name: name, room: room, sub: c.history.Subscribe(name, room, client.Start()), waits: &c.waits}
	c.subscribers = append(c.subscribers, e)
	return e
}

func (e *subscriber) onMessage(m message.Message) {
	now := time.Now()
	e.mu.Lock()
	// From the later of the two on, a message was stored and none received.
	since := later(e.lastReceived, m.At)
	pause, connectedPause := now.Sub(since), now.Sub(later(since, e.joinedAt))
	e.lastReceived, e.lastStored = now, m.At
	e.mu.Unlock()
	e.waits.recordDelivery(pause, connectedPause)
	e.sub.Deliver(m)
}

func (e *subscriber) onJoined(j client.Joined) {
	e.mu.Lock()
	e.joinedAt = time.Now()
	e.mu.Unlock()
	e.sub.Joined(j)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// worstWaits are the longest waits of users in some span of time.
type worstWaits struct {
	// pause is the time in which a member received nothing though messages were stored.
	// connectedPause leaves out the time until the member was connected again.
	pause, connectedPause time.Duration
	ackWait               time.Duration // from a publish to its answer
}

// A waitTracker measures waits. The zero value is ready; it is safe for concurrent use.
type waitTracker struct {
	mu         sync.Mutex
	worst      worstWaits
	unanswered map[string]time.Time // publishes without an answer, by id
}

func (p *waitTracker) recordDelivery(pause, connectedPause time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst.pause = max(p.worst.pause, pause)
	p.worst.connectedPause = max(p.worst.connectedPause, connectedPause)
}

func (p *waitTracker) recordPublish(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unanswered == nil {
		p.unanswered = map[string]time.Time{}
	}
	p.unanswered[id] = time.Now()
}

func (p *waitTracker) recordAnswer(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst.ackWait = max(p.worst.ackWait, time.Since(p.unanswered[id]))
	delete(p.unanswered, id)
}

// hasUnanswered says whether a publish from before a moment has no answer yet.
func (p *waitTracker) hasUnanswered(before time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.unanswered {
		if at.Before(before) {
			return true
		}
	}
	return false
}

// resetWorst returns the longest waits since the last call.
func (p *waitTracker) resetWorst() worstWaits {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.worst
	p.worst = worstWaits{}
	return w
}

func (w worstWaits) String() string {
	return fmt.Sprintf("longest pause %v, while connected %v, longest wait for an ack %v",
		w.pause.Round(time.Millisecond), w.connectedPause.Round(time.Millisecond), w.ackWait.Round(time.Millisecond))
}
