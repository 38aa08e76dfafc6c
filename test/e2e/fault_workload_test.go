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
	urls  []string // WebSocket URLs, one for each node
	rooms int      // each has a publisher and an observer on every node
	rate  int      // messages a second, of all publishers together
	size  int      // bytes of each message's data, about
}

// A workload runs publishers and observers in some rooms, until finish. Publishers
// publish and receive with our Go client, which resumes and resends. Observers only
// receive, and speak the bare protocol. The history records
// all publishes and all received frames.
type workload struct {
	workloadConfig
	history     *load.History
	waits       waitTracker
	subscribers []*subscriber
	publishers  []*client.Client

	publishing    sync.WaitGroup // the running publishLoops
	listening     sync.WaitGroup // the running listenLoops
	stopping      chan struct{}  // closed to end publishLoop
	stopObservers context.CancelFunc
	acks          atomic.Int64
}

// startWorkload starts a workload, and returns when every publisher has joined.
func startWorkload(t *testing.T, rng *rand.Rand, cfg workloadConfig) *workload {
	t.Helper()
	w := &workload{workloadConfig: cfg, history: load.NewHistory(), stopping: make(chan struct{})}
	ctx, stopObservers := context.WithCancel(context.Background())
	w.stopObservers = stopObservers
	t.Cleanup(w.closeAll)
	joinCtx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range cfg.rooms * len(cfg.urls) {
		room := message.Room(fmt.Sprintf("room-%d", i%cfg.rooms))
		home := i / cfg.rooms
		w.addPublisher(joinCtx, t, room, home, rng)
		w.addObserver(ctx, room, home, rng)
	}
	interval := time.Duration(len(w.publishers)) * time.Second / time.Duration(cfg.rate)
	for i, publisher := range w.publishers {
		s := w.subscribers[2*i]
		w.publishing.Go(func() {
			w.publishLoop(s, publisher, interval, time.Duration(i)*interval/time.Duration(len(w.publishers)))
		})
	}
	return w
}

// urlsFrom returns the addresses of the nodes: home first, the others in random order.
func (w *workload) urlsFrom(home int, rng *rand.Rand) []string {
	urls := []string{w.urls[home]}
	for _, i := range rng.Perm(len(w.urls)) {
		if i != home {
			urls = append(urls, w.urls[i])
		}
	}
	return urls
}

func (w *workload) addPublisher(ctx context.Context, t *testing.T, room message.Room, home int, rng *rand.Rand) {
	t.Helper()
	s := w.addSubscriber(fmt.Sprintf("publisher-%d-%s", home, room), room)
	publisher, err := client.Dial(ctx, client.Options{URLs: w.urlsFrom(home, rng)})
	if err != nil {
		t.Fatal(err)
	}
	w.publishers = append(w.publishers, publisher)
	if _, err := publisher.Join(ctx, room, client.Start(), client.Handler{Message: s.onMessage, Gap: s.sub.Gap, Joined: s.onJoined}); err != nil {
		t.Fatal(err)
	}
}

// publishLoop publishes at a fixed interval, whether the acks keep up or not.
func (w *workload) publishLoop(s *subscriber, publisher *client.Client, interval, first time.Duration) {
	next := time.NewTimer(first)
	defer next.Stop()
	padding := strings.Repeat("x", w.size)
	for i := 0; ; i++ {
		select {
		case <-w.stopping:
			return
		case <-next.C:
			next.Reset(interval)
		}
		id := fmt.Sprintf("%s-%d", s.name, i)
		data := json.RawMessage(fmt.Sprintf(`"%s %s"`, id, padding))
		attempt := w.history.Publish(s.room, s.name, "", id, data)
		w.waits.recordPublish(id)
		err := publisher.Send(s.room, data, id, func(ack client.Ack, err error) {
			attempt.Done(ack, err)
			w.acks.Add(1)
			w.waits.recordAnswer(id)
		})
		if err != nil { // too many publishes await their acks: it was not sent
			attempt.Done(client.Ack{}, err)
			w.waits.recordAnswer(id)
		}
	}
}

// finish ends publishing, waits until everything is answered and delivered, and
// checks the history.
func (w *workload) finish(t *testing.T) *load.Report {
	t.Helper()
	close(w.stopping)
	w.publishing.Wait()
	testkit.Eventually(t, "the last answers", func() bool { return !w.waits.hasUnanswered(time.Now()) })
	testkit.Eventually(t, "the last deliveries", func() bool { return w.history.CaughtUp() })
	w.closeAll()
	return load.Check(w.history)
}

// closeAll closes all clients. It may be called twice.
func (w *workload) closeAll() {
	select {
	case <-w.stopping:
	default:
		close(w.stopping)
	}
	w.publishing.Wait()
	for _, publisher := range w.publishers {
		publisher.Close()
	}
	w.stopObservers()
	w.listening.Wait()
}

// subscriberBehind returns the name of a subscriber that has received no message stored
// after moment, "" when there is none.
func (w *workload) subscriberBehind(moment time.Time) string {
	for _, s := range w.subscribers {
		s.mu.Lock()
		stored := s.lastStored
		s.mu.Unlock()
		if !stored.After(moment) {
			return s.name
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

func (w *workload) addSubscriber(name string, room message.Room) *subscriber {
	s := &subscriber{name: name, room: room, sub: w.history.Subscribe(name, room, client.Start()), waits: &w.waits}
	w.subscribers = append(w.subscribers, s)
	return s
}

func (s *subscriber) onMessage(m message.Message) {
	now := time.Now()
	s.mu.Lock()
	// This message has waited since it was stored, or since the previous one was
	// received.
	since := later(s.lastReceived, m.At)
	pause, connectedPause := now.Sub(since), now.Sub(later(since, s.joinedAt))
	s.lastReceived, s.lastStored = now, m.At
	s.mu.Unlock()
	s.waits.recordDelivery(pause, connectedPause)
	s.sub.Deliver(m)
}

func (s *subscriber) onJoined(j client.Joined) {
	s.mu.Lock()
	s.joinedAt = time.Now()
	s.mu.Unlock()
	s.sub.Joined(j)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// worstWaits are the longest waits of clients in some span of time.
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

func (t *waitTracker) recordDelivery(pause, connectedPause time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.worst.pause = max(t.worst.pause, pause)
	t.worst.connectedPause = max(t.worst.connectedPause, connectedPause)
}

func (t *waitTracker) recordPublish(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.unanswered == nil {
		t.unanswered = map[string]time.Time{}
	}
	t.unanswered[id] = time.Now()
}

func (t *waitTracker) recordAnswer(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.worst.ackWait = max(t.worst.ackWait, time.Since(t.unanswered[id]))
	delete(t.unanswered, id)
}

// hasUnanswered reports whether a publish from before a moment has no answer yet.
func (t *waitTracker) hasUnanswered(before time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, at := range t.unanswered {
		if at.Before(before) {
			return true
		}
	}
	return false
}

// resetWorst returns the longest waits since the last call.
func (t *waitTracker) resetWorst() worstWaits {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.worst
	t.worst = worstWaits{}
	return w
}

func (w worstWaits) String() string {
	return fmt.Sprintf("longest pause %v, while connected %v, longest wait for an ack %v",
		w.pause.Round(time.Millisecond), w.connectedPause.Round(time.Millisecond), w.ackWait.Round(time.Millisecond))
}
