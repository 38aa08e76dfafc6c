package broker

import (
	"context"
	"errors"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"switchyard/internal/message"
)

const (
	// askEvery is how old what the sentinels or the cluster said may get.
	sentinelAskEvery = time.Second
	clusterAskEvery  = 5 * time.Second
	// maxHops is how often a publication is sent on before it is given up.
	maxHops = 3
)

var errNobodyKnows = errors.New("no server is known for the room")

// owners says which server, host:port, has the bucket with this index: "" when
// that is not known.
type owners func(index int) string

// A router knows, for each bucket, the server that has it, and keeps asking.
type router struct {
	// discover asks; first are servers whose answer is preferred. Nil for a
	// single server, which never moves.
	discover func(ctx context.Context, first []string) (owners, error)
	every    time.Duration
	kick     chan struct{} // holds a token when discover should be asked now
	events   []*subscriber // connections on which sentinels tell of a new master

	asking  sync.Mutex // held while discover is asked. Protects following.
	asked   time.Time  // when it was asked last
	problem error      // what came of it
}

// init is called once, by OpenRedis.
func (ro *router) init(r *Redis) {
	ro.kick = make(chan struct{}, 1)
	switch r.place.layout {
	case layoutSingle:
		r.assign(func(int) string { return r.place.addrs[0] })
	case layoutSentinel:
		s := newSentinels(r.place)
		ro.discover, ro.every = s.discover, sentinelAskEvery
		ro.events = s.listeners(ro.askNow)
	case layoutCluster:
		ro.discover, ro.every = discoverCluster(r.place), clusterAskEvery
	}
}

// start is called once, with r.mu held.
func (ro *router) start(r *Redis) {
	if ro.discover == nil {
		return
	}
	r.loops.Go(func() { r.askLoop(r.ctx) })
	for _, e := range ro.events {
		r.loops.Go(func() {
			e.connectLoop(r.ctx, func(_ message.Room, _ []byte) { ro.askNow() })
		})
	}
}

// askNow never blocks.
func (ro *router) askNow() {
	select {
	case ro.kick <- struct{}{}:
	default:
	}
}

// askLoop asks at times and when it is kicked, until ctx ends.
func (r *Redis) askLoop(ctx context.Context) {
	tick := time.NewTicker(r.router.every)
	defer tick.Stop()
	for {
		_ = r.ask(ctx, "") // a link that needs the answer tells what is wrong
		select {
		case <-tick.C:
		case <-r.router.kick:
		case <-ctx.Done():
			return
		}
	}
}

// ask finds out who has which bucket. Those who call at the same time share an
// answer. Whoever is at first is asked before others, unless that is "".
func (r *Redis) ask(ctx context.Context, first string) error {
	called := time.Now()
	ro := &r.router
	ro.asking.Lock()
	defer ro.asking.Unlock()
	if ro.asked.After(called) {
		return ro.problem
	}
	ro.asked = time.Now()
	var found owners
	found, ro.problem = ro.discover(ctx, r.candidates(first))
	if ro.problem == nil {
		r.assign(found)
	}
	return ro.problem
}

// candidates are the servers to ask, those that are up before others.
func (r *Redis) candidates(first string) []string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var up, down []string
	for addr, s := range r.servers {
		if s.publisher.up() {
			up = append(up, addr)
		} else {
			down = append(down, addr)
		}
	}
	all := slices.Concat([]string{first}, up, r.place.addrs, down)
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(all, func(addr string) bool {
		before := seen[addr]
		seen[addr] = true
		return before
	})
}

// An attempt is how a link's last connection went.
type attempt struct {
	addr string // "" when there was none
	err  error
}

// locate returns where the bucket's link should connect. Where the last
// attempt failed it asks first, unless the answer is already another one.
func (r *Redis) locate(ctx context.Context, b *bucket, last attempt) (string, error) {
	if to, ok := movedTo(last.err, last.addr); ok {
		r.assignOne(b, to)
	}
	addr := r.ownerOf(b)
	if r.router.discover == nil || (addr != "" && addr != last.addr) {
		return addr, nil
	}
	var first string
	if errors.Is(last.err, errTaken) {
		first = last.addr // who gave the bucket away knows to whom
	}
	err := r.ask(ctx, first)
	if addr = r.ownerOf(b); addr == "" && err == nil {
		err = errNobodyKnows
	}
	if addr != "" {
		err = nil // nobody answers, but the last one known may be back
	}
	return addr, err
}

func (r *Redis) ownerServer(b *bucket) *server {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return b.owner
}

func (r *Redis) ownerOf(b *bucket) string {
	if s := r.ownerServer(b); s != nil {
		return s.addr
	}
	return ""
}

// assign takes a new map. A bucket of which it knows nothing stays.
func (r *Redis) assign(found owners) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return
	}
	var moved []*bucket
	used := make(map[string]bool)
	for _, b := range r.buckets {
		addr := found(b.index)
		if addr != "" && (b.owner == nil || b.owner.addr != addr) {
			b.owner = r.serverAt(addr)
			moved = append(moved, b)
		}
		if b.owner != nil {
			used[b.owner.addr] = true
		}
	}
	var left []publication
	for addr, s := range r.servers {
		if !used[addr] {
			delete(r.servers, addr)
			left = append(left, s.retire()...)
		}
	}
	left = append(left, r.limbo.take(nil, math.MaxInt)...)
	for _, p := range left { // before anything newer gets there
		r.put(p, r.bucket(p.room).owner)
	}
	r.mu.Unlock()
	if len(moved) > 0 {
		r.settle(moved)
	}
}

// assignOne notes that a bucket has moved.
func (r *Redis) assignOne(b *bucket, addr string) {
	if r.ownerOf(b) == addr {
		return
	}
	r.assign(func(index int) string {
		if index == b.index {
			return addr
		}
		return ""
	})
}

// serverAt is called with r.mu held.
func (r *Redis) serverAt(addr string) *server {
	s := r.servers[addr]
	if s == nil {
		s = r.newServer(addr)
		r.servers[addr] = s
		if r.receive != nil {
			s.start(r)
		}
	}
	return s
}

// settle has links follow their buckets.
func (r *Redis) settle(moved []*bucket) {
	for _, b := range moved {
		b.link.nudge()
	}
	r.health()
	if r.router.discover != nil {
		r.logger.Info("Redis found for rooms", "buckets", len(moved), "addr", r.ownerOf(moved[0]))
	}
}

// nudgeLinks has the links of a server that came back try again now.
func (r *Redis) nudgeLinks(s *server) {
	if !s.watch.rooms.isUp() {
		return
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range r.buckets {
		if b.owner == s {
			b.link.nudge()
		}
	}
}

// route queues a publication for the server that has its room.
func (r *Redis) route(p publication) {
	b := r.bucket(p.room)
	for range maxHops { // a server may retire just now
		if r.put(p, r.ownerServer(b)) {
			return
		}
	}
	r.metrics.drop(dropClosed, 1)
}

// put queues a publication for a server, or until there is one. False means
// that the queue is closed.
func (r *Redis) put(p publication, s *server) bool {
	q, full := r.limbo, dropDown
	if s != nil {
		q = s.publisher.queue
		if s.publisher.up() {
			full = dropFull
		}
	}
	dropped, ok := q.push(p)
	r.metrics.drop(full, dropped)
	return ok
}

// republish takes back a publication that its server refused, since another
// one has the bucket. False means that it has been around for long enough.
func (r *Redis) republish(p publication, to string) bool {
	if p.hops++; p.hops > maxHops {
		return false
	}
	r.assignOne(r.bucket(p.room), to)
	r.route(p)
	return true
}

// fixed is the locate of a subscriber that stays where it is.
func fixed(addr string) func(context.Context, attempt) (string, error) {
	return func(context.Context, attempt) (string, error) { return addr, nil }
}

// besides completes an address without a host, which means: mine.
func besides(addr, mine string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || (host != "" && host != "?") {
		return addr
	}
	host, _, _ = net.SplitHostPort(mine)
	return net.JoinHostPort(host, port)
}
