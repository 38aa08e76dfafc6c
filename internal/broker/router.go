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
	sentinelRefreshEvery = time.Second
	clusterRefreshEvery  = 5 * time.Second
	// maxHops is how often a publication is sent on before it is given up.
	maxHops = 3
)

var errOwnerUnknown = errors.New("no server is known for the room")

// ownerFunc says which server, host:port, has the bucket with this index: "" when
// that is not known.
type ownerFunc func(index int) string

// A router knows, for each bucket, the server that has it, and keeps asking.
type router struct {
	// discover asks; first are servers whose answer is preferred. Nil for a
	// single server, which never moves.
	discover  func(ctx context.Context, first []string) (ownerFunc, error)
	interval  time.Duration
	refresh   chan struct{} // holds a token when discover should be asked now
	listeners []*subscriber // connections on which sentinels tell of a new master

	refreshMu   sync.Mutex // held while discover is asked. Protects following.
	refreshedAt time.Time  // when it was asked last
	refreshErr  error      // what came of it
}

// init is called once, by OpenRedis.
func (ro *router) init(r *Redis) {
	ro.refresh = make(chan struct{}, 1)
	switch r.config.topology {
	case topologySingle:
		r.assign(func(int) string { return r.config.addrs[0] })
	case topologySentinel:
		s := newSentinels(r.config)
		ro.discover, ro.interval = s.discover, sentinelRefreshEvery
		ro.listeners = s.listeners(ro.refreshNow)
	case topologyCluster:
		ro.discover, ro.interval = discoverCluster(r.config), clusterRefreshEvery
	}
}

// start is called once, with r.mu held.
func (ro *router) start(r *Redis) {
	if ro.discover == nil {
		return
	}
	r.loops.Go(func() { r.refreshLoop(r.ctx) })
	for _, e := range ro.listeners {
		r.loops.Go(func() {
			e.connectLoop(r.ctx, func(_ message.Room, _ []byte) { ro.refreshNow() })
		})
	}
}

// refreshNow never blocks.
func (ro *router) refreshNow() {
	select {
	case ro.refresh <- struct{}{}:
	default:
	}
}

// refreshLoop asks at times and when it is kicked, until ctx ends.
func (r *Redis) refreshLoop(ctx context.Context) {
	tick := time.NewTicker(r.router.interval)
	defer tick.Stop()
	for {
		_ = r.refreshOwners(ctx, "") // a link that needs the answer tells what is wrong
		select {
		case <-tick.C:
		case <-r.router.refresh:
		case <-ctx.Done():
			return
		}
	}
}

// refreshOwners finds out who has which bucket. Those who call at the same time share an
// answer. Whoever is at first is asked before others, unless that is "".
func (r *Redis) refreshOwners(ctx context.Context, first string) error {
	called := time.Now()
	ro := &r.router
	ro.refreshMu.Lock()
	defer ro.refreshMu.Unlock()
	if ro.refreshedAt.After(called) {
		return ro.refreshErr
	}
	ro.refreshedAt = time.Now()
	var found ownerFunc
	found, ro.refreshErr = ro.discover(ctx, r.candidates(first))
	if ro.refreshErr == nil {
		r.assign(found)
	}
	return ro.refreshErr
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
	all := slices.Concat([]string{first}, up, r.config.addrs, down)
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
		r.assignBucket(b, to)
	}
	addr := r.ownerAddr(b)
	if r.router.discover == nil || (addr != "" && addr != last.addr) {
		return addr, nil
	}
	var first string
	if errors.Is(last.err, errUnsubscribedByServer) {
		first = last.addr // who gave the bucket away knows to whom
	}
	err := r.refreshOwners(ctx, first)
	if addr = r.ownerAddr(b); addr == "" && err == nil {
		err = errOwnerUnknown
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

func (r *Redis) ownerAddr(b *bucket) string {
	if s := r.ownerServer(b); s != nil {
		return s.addr
	}
	return ""
}

// assign takes a new map. A bucket of which it knows nothing stays.
func (r *Redis) assign(found ownerFunc) {
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
	left = append(left, r.unrouted.dequeue(nil, math.MaxInt)...)
	for _, p := range left { // before anything newer gets there
		r.enqueue(p, r.bucket(p.room).owner)
	}
	r.mu.Unlock()
	if len(moved) > 0 {
		r.followOwners(moved)
	}
}

// assignBucket notes that a bucket has moved.
func (r *Redis) assignBucket(b *bucket, addr string) {
	if r.ownerAddr(b) == addr {
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

// followOwners has links follow their buckets.
func (r *Redis) followOwners(moved []*bucket) {
	for _, b := range moved {
		b.subscriber.recheck()
	}
	r.updateHealth()
	if r.router.discover != nil {
		r.logger.Info("Redis found for rooms", "buckets", len(moved), "addr", r.ownerAddr(moved[0]))
	}
}

// recheckSubscribers has the links of a server that came back try again now.
func (r *Redis) recheckSubscribers(s *server) {
	if !s.monitor.rooms.isUp() {
		return
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range r.buckets {
		if b.owner == s {
			b.subscriber.recheck()
		}
	}
}

// route queues a publication for the server that has its room.
func (r *Redis) route(p publication) {
	b := r.bucket(p.room)
	for range maxHops { // a server may retire just now
		if r.enqueue(p, r.ownerServer(b)) {
			return
		}
	}
	r.metrics.drop(dropClosed, 1)
}

// enqueue queues a publication for a server, or until there is one. False means
// that the queue is closed.
func (r *Redis) enqueue(p publication, s *server) bool {
	q, full := r.unrouted, dropDown
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

// reroute takes back a publication that its server refused, since another
// one has the bucket. False means that it has been around for long enough.
func (r *Redis) reroute(p publication, to string) bool {
	if p.hops++; p.hops > maxHops {
		return false
	}
	r.assignBucket(r.bucket(p.room), to)
	r.route(p)
	return true
}

// fixedAddr is the locate of a subscriber that stays where it is.
func fixedAddr(addr string) func(context.Context, attempt) (string, error) {
	return func(context.Context, attempt) (string, error) { return addr, nil }
}

// withDefaultHost completes an address without a host, which means: mine.
func withDefaultHost(addr, mine string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || (host != "" && host != "?") {
		return addr
	}
	host, _, _ = net.SplitHostPort(mine)
	return net.JoinHostPort(host, port)
}
