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
)

// A traffic says who talks to whom.
type traffic struct {
	urls  []string // of the nodes' sockets
	rooms int      // each has a talker and a witness on every node
	rate  int      // messages a second, of all talkers together
	size  int      // bytes of each message's data, about
}

// A gathering talks in some rooms until it is told to end. Talkers publish and
// listen with the client that users have, which resumes and resends; witnesses
// only listen, on the bare wire, and believe nothing but what comes. What both
// are told goes into one history, to be judged.
type gathering struct {
	traffic
	history *load.History
	pauses  pauses
	ears    []*ear
	clients []*client.Client

	talking   sync.WaitGroup // joined by talkLoop
	listening sync.WaitGroup // joined by witnesses
	ending    chan struct{}  // closed when nobody is to publish any more
	leave     context.CancelFunc
	acks      atomic.Int64
}

// gather starts a crowd, and returns when everybody has joined.
func gather(t *testing.T, dice *rand.Rand, what traffic) *gathering {
	t.Helper()
	c := &gathering{traffic: what, history: load.NewHistory(), ending: make(chan struct{})}
	ctx, leave := context.WithCancel(context.Background())
	c.leave = leave
	t.Cleanup(c.scatter)
	joining, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range what.rooms * len(what.urls) {
		room := message.Room(fmt.Sprintf("room-%d", i%what.rooms))
		home := i / what.rooms
		c.seatTalker(joining, t, room, home, dice)
		c.seatWitness(ctx, room, home, dice)
	}
	pace := time.Duration(len(c.clients)) * time.Second / time.Duration(what.rate)
	for i, talker := range c.clients {
		e := c.ears[2*i]
		c.talking.Go(func() { c.talkLoop(e, talker, pace, time.Duration(i)*pace/time.Duration(len(c.clients))) })
	}
	return c
}

// away returns the addresses of the nodes: home first, the others in any order.
func (c *gathering) away(home int, dice *rand.Rand) []string {
	urls := []string{c.urls[home]}
	for _, i := range dice.Perm(len(c.urls)) {
		if i != home {
			urls = append(urls, c.urls[i])
		}
	}
	return urls
}

func (c *gathering) seatTalker(ctx context.Context, t *testing.T, room message.Room, home int, dice *rand.Rand) {
	t.Helper()
	e := c.ear(fmt.Sprintf("talker-%d-%s", home, room), room)
	talker, err := client.Dial(ctx, client.Options{URLs: c.away(home, dice)})
	if err != nil {
		t.Fatal(err)
	}
	c.clients = append(c.clients, talker)
	if _, err := talker.Join(ctx, room, client.Start(), client.Handler{Message: e.hear, Gap: e.sub.Gap, Joined: e.join}); err != nil {
		t.Fatal(err)
	}
}

// talkLoop publishes at its pace, whether the acks keep up or not.
func (c *gathering) talkLoop(e *ear, talker *client.Client, pace, first time.Duration) {
	next := time.NewTimer(first)
	defer next.Stop()
	padding := strings.Repeat("x", c.size)
	for i := 0; ; i++ {
		select {
		case <-c.ending:
			return
		case <-next.C:
			next.Reset(pace)
		}
		id := fmt.Sprintf("%s-%d", e.name, i)
		data := json.RawMessage(fmt.Sprintf(`"%s %s"`, id, padding))
		attempt := c.history.Publish(e.room, e.name, "", id, data)
		c.pauses.asks(id)
		err := talker.Send(e.room, data, id, func(ack client.Ack, err error) {
			attempt.Done(ack, err)
			c.acks.Add(1)
			c.pauses.answered(id)
		})
		if err != nil { // too much waits already: it was not sent
			attempt.Done(client.Ack{}, err)
			c.pauses.answered(id)
		}
	}
}

// end lets everybody finish, waits until all is delivered, and judges.
func (c *gathering) end(ctx context.Context, t *testing.T) *load.Report {
	t.Helper()
	close(c.ending)
	c.talking.Wait()
	waitFor(ctx, t, "the last answers", func() bool { return !c.pauses.asking(time.Now()) })
	waitFor(ctx, t, "the last deliveries", func() bool { return c.history.Settled() })
	c.scatter()
	return load.Check(c.history)
}

// scatter sends everybody away. It may be called twice.
func (c *gathering) scatter() {
	select {
	case <-c.ending:
	default:
		close(c.ending)
	}
	c.talking.Wait()
	for _, talker := range c.clients {
		talker.Close()
	}
	c.leave()
	c.listening.Wait()
}

// deaf names somebody who has got no message that was stored after a moment, ""
// when there is nobody.
func (c *gathering) deaf(moment time.Time) string {
	for _, e := range c.ears {
		e.mu.Lock()
		stored := e.stored
		e.mu.Unlock()
		if !stored.After(moment) {
			return e.name
		}
	}
	return ""
}

// An ear is one member of one room.
type ear struct {
	name   string
	room   message.Room
	sub    *load.Subscription
	pauses *pauses

	mu     sync.Mutex // Protects following.
	heard  time.Time  // when the last message came
	stored time.Time  // and when it had been stored
	joined time.Time  // when the present connection's join was answered
}

func (c *gathering) ear(name string, room message.Room) *ear {
	e := &ear{name: name, room: room, sub: c.history.Subscribe(name, room, client.Start()), pauses: &c.pauses}
	c.ears = append(c.ears, e)
	return e
}

func (e *ear) hear(m message.Message) {
	now := time.Now()
	e.mu.Lock()
	// Since the later of the two it has heard nothing though there was something.
	since := later(e.heard, m.At)
	pause, connected := now.Sub(since), now.Sub(later(since, e.joined))
	e.heard, e.stored = now, m.At
	e.mu.Unlock()
	e.pauses.delivered(pause, connected)
	e.sub.Deliver(m)
}

func (e *ear) join(j client.Joined) {
	e.mu.Lock()
	e.joined = time.Now()
	e.mu.Unlock()
	e.sub.Joined(j)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// waits are the longest of some time.
type waits struct {
	// pause: a member heard nothing though something was stored. connected: the
	// same, not counting the time until its connection was there; what is more
	// is how clients come back.
	pause, connected time.Duration
	answer           time.Duration // a publisher had no answer
}

// pauses gather waits. The zero value is ready.
type pauses struct {
	mu    sync.Mutex
	worst waits
	asked map[string]time.Time // publishes without an answer, by id
}

func (p *pauses) delivered(pause, connected time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst.pause = max(p.worst.pause, pause)
	p.worst.connected = max(p.worst.connected, connected)
}

func (p *pauses) asks(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked == nil {
		p.asked = map[string]time.Time{}
	}
	p.asked[id] = time.Now()
}

func (p *pauses) answered(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.worst.answer = max(p.worst.answer, time.Since(p.asked[id]))
	delete(p.asked, id)
}

// asking says whether something that was published before a moment has no
// answer yet.
func (p *pauses) asking(before time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.asked {
		if at.Before(before) {
			return true
		}
	}
	return false
}

// take returns the longest waits since the last call.
func (p *pauses) take() waits {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.worst
	p.worst = waits{}
	return w
}

func (w waits) String() string {
	return fmt.Sprintf("longest silence %v, on a living connection %v, longest wait for an ack %v",
		w.pause.Round(time.Millisecond), w.connected.Round(time.Millisecond), w.answer.Round(time.Millisecond))
}
