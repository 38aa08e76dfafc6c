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
	// The intervals at which sentinels and clusters are queried for the owners.
	sentinelRefreshEvery = time.Second
	clusterRefreshEvery  = 5 * time.Second
	// maxHops bounds how often a broadcast is rerouted.
	maxHops = 3
)

var errOwnerUnknown = errors.New("no server is known for the room")

// An ownerFunc returns the host:port of the server that owns the bucket with
// this index, or "" when it is unknown.
type ownerFunc func(index int) string

// A router keeps the owner of each bucket up to date: the Redis server that
// serves the rooms of the bucket.
type router struct {
	// discover queries the owners; candidates are servers to query, the
	// preferred ones first. It is nil for a single server, which never changes.
	discover  func(ctx context.Context, candidates []string) (ownerFunc, error)
	interval  time.Duration
	refresh   chan struct{} // holds a token when discover should be called now
	listeners []*subscriber // connections on which sentinels announce a new master

	// refreshMu is held during discover, and protects the fields below.
	refreshMu   sync.Mutex
	refreshedAt time.Time // when the last discover began
	refreshErr  error     // its error
}

// init sets the router up for r's topology. OpenRedis calls it once.
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

// start starts the router's loops. It is called once, with r.mu held.
func (ro *router) start(r *Redis) {
	if ro.discover == nil {
		return
	}
	r.loops.Go(func() { r.refreshLoop(r.ctx) })
	for _, l := range ro.listeners {
		r.loops.Go(func() {
			l.connectLoop(r.ctx, func(_ message.Room, _ []byte) { ro.refreshNow() })
		})
	}
}

// refreshNow makes refreshLoop discover the owners at once. It never blocks.
func (ro *router) refreshNow() {
	select {
	case ro.refresh <- struct{}{}:
	default:
	}
}

// refreshLoop discovers the owners at each interval and after refreshNow, until
// ctx ends.
func (r *Redis) refreshLoop(ctx context.Context) {
	tick := time.NewTicker(r.router.interval)
	defer tick.Stop()
	for {
		_ = r.refreshOwners(ctx, "") // a subscriber that needs the answer logs the error
		select {
		case <-tick.C:
		case <-r.router.refresh:
		case <-ctx.Done():
			return
		}
	}
}

// refreshOwners discovers the owner of each bucket. Concurrent calls share an
// answer. The server at preferred, if not "", is queried first.
func (r *Redis) refreshOwners(ctx context.Context, preferred string) error {
	called := time.Now()
	ro := &r.router
	ro.refreshMu.Lock()
	defer ro.refreshMu.Unlock()
	if ro.refreshedAt.After(called) {
		return ro.refreshErr
	}
	ro.refreshedAt = time.Now()
	var found ownerFunc
	found, ro.refreshErr = ro.discover(ctx, r.candidates(preferred))
	if ro.refreshErr == nil {
		r.assign(found)
	}
	return ro.refreshErr
}

// candidates returns the servers to query for the owners: the preferred one, the
// servers that are up, those of the URL, and those that are down.
func (r *Redis) candidates(preferred string) []string {
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
	all := slices.Concat([]string{preferred}, up, r.config.addrs, down)
	seen := map[string]bool{"": true}
	return slices.DeleteFunc(all, func(addr string) bool {
		before := seen[addr]
		seen[addr] = true
		return before
	})
}

// A connectionResult is the outcome of a subscriber's last connection, or of
// its attempt to connect.
type connectionResult struct {
	addr string // "" when no server was known
	err  error  // why it ended
}

// locate returns the address at which the bucket's subscriber should connect.
// If the last attempt failed at the known owner, it discovers the owners first.
func (r *Redis) locate(ctx context.Context, b *bucket, last connectionResult) (string, error) {
	if to, ok := movedTo(last.err, last.addr); ok {
		r.assignBucket(b, to)
	}
	addr := r.ownerAddr(b)
	if r.router.discover == nil || (addr != "" && addr != last.addr) {
		return addr, nil
	}
	var preferred string
	if errors.Is(last.err, errUnsubscribedByServer) {
		preferred = last.addr // the server that lost the bucket can name its new owner
	}
	err := r.refreshOwners(ctx, preferred)
	if addr = r.ownerAddr(b); addr == "" && err == nil {
		err = errOwnerUnknown
	}
	if addr != "" {
		err = nil // no server answers, but the last known owner may answer again
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

// assign gives the buckets their owners. A bucket for which found returns ""
// keeps its owner. Broadcasts that wait for a server without buckets move to
// the new owners' queues.
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
	var unsent []broadcast
	for addr, s := range r.servers {
		if !used[addr] {
			delete(r.servers, addr)
			unsent = append(unsent, s.retire()...)
		}
	}
	unsent = append(unsent, r.unrouted.dequeue(nil, math.MaxInt)...)
	for _, bc := range unsent { // mu is held, so no newer broadcast can be queued before these
		r.enqueue(bc, r.bucket(bc.room).owner)
	}
	r.mu.Unlock()
	if len(moved) > 0 {
		r.followOwners(moved)
	}
}

// assignBucket gives one bucket a new owner.
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

// serverAt returns the server at addr, and creates it if it is new. The caller
// holds r.mu.
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

// followOwners makes the subscribers of moved buckets connect to the new owners.
func (r *Redis) followOwners(moved []*bucket) {
	for _, b := range moved {
		b.subscriber.reconnectNow()
	}
	r.updateHealth()
	if r.router.discover != nil {
		r.logger.Info("assigned rooms to a Redis server", "buckets", len(moved), "addr", r.ownerAddr(moved[0]))
	}
}

// reconnectSubscribers makes the subscribers of a server that came back reconnect
// without waiting for their backoff.
func (r *Redis) reconnectSubscribers(s *server) {
	if !s.monitor.rooms.isUp() {
		return
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, b := range r.buckets {
		if b.owner == s {
			b.subscriber.reconnectNow()
		}
	}
}

// route queues a broadcast for the server that owns its room.
func (r *Redis) route(bc broadcast) {
	// A read lock until it is queued: if assign came in between, the broadcast would wait with
	// the old owner, and later ones of the room would overtake it.
	r.mu.RLock()
	queued := r.enqueue(bc, r.bucket(bc.room).owner)
	r.mu.RUnlock()
	if !queued {
		r.metrics.drop(dropClosed, 1)
	}
}

// enqueue queues a broadcast for s, or with s nil until an owner is known. It
// returns false when the queue is closed. The caller holds r.mu.
func (r *Redis) enqueue(bc broadcast, s *server) bool {
	q, dropReason := r.unrouted, dropDown
	if s != nil {
		q = s.publisher.queue
		if s.publisher.up() {
			dropReason = dropFull
		}
	}
	dropped, ok := q.push(bc)
	r.metrics.drop(dropReason, dropped)
	return ok
}

// reroute queues a broadcast for the server at to, after another server has
// refused it with MOVED. It returns false when the broadcast has been
// rerouted maxHops times.
func (r *Redis) reroute(bc broadcast, to string) bool {
	if bc.hops++; bc.hops > maxHops {
		return false
	}
	r.assignBucket(r.bucket(bc.room), to)
	r.route(bc)
	return true
}

// fixedAddr returns the locate function of a subscriber whose server never changes.
func fixedAddr(addr string) func(context.Context, connectionResult) (string, error) {
	return func(context.Context, connectionResult) (string, error) { return addr, nil }
}

// withDefaultHost completes an address without a host with the host of the
// server that sent it, whose address is sender.
func withDefaultHost(addr, sender string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || (host != "" && host != "?") {
		return addr
	}
	host, _, _ = net.SplitHostPort(sender)
	return net.JoinHostPort(host, port)
}
