package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// maxPending bounds the publishes of a member that have no outcome yet. A message
// that is due beyond it is held back.
const maxPending = 256

// A member is one client of a run, in one room.
type member struct {
	// Static after connect.
	run  *Run
	n    int
	name string
	room message.Room
	user string
	conn *cuttableConn
	// sub and tap are nil in an unchecked run.
	sub *Subscription
	tap *frameTap

	client *client.Client

	published atomic.Int64
	pending   atomic.Int64
}

// connect connects a member and joins its room.
func (r *Run) connect(ctx context.Context, n int) (*member, error) {
	m := &member{run: r, n: n, name: fmt.Sprintf("%s-%d", r.plan.Prefix, n), room: r.plan.room(n % r.plan.Rooms), conn: new(cuttableConn)}
	opts := r.options(n, m.conn)
	handler := client.Handler{Message: m.timeDelivery}
	if r.history != nil {
		m.sub = r.history.Subscribe(m.name, m.room, client.Start())
		handler = m.sub.Handler()
		handler.Message = m.deliver
		m.tap = newFrameTap(r.history, func() string { return m.user })
		m.tap.watch(m.sub)
		opts.OnFrame = m.tap.onFrame
	}
	c, err := client.New(opts)
	if err != nil {
		return nil, err
	}
	m.client = c
	if err = c.Ready(ctx); err == nil {
		err = joinAndRecord(ctx, c, m.room, handler)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	// Messages come with their user, so the history needs it for publishes too.
	if user := c.Welcome().User; user != nil {
		m.user = *user
	}
	return m, nil
}

// joinAndRecord joins a room and returns when the handler has recorded it: Join may
// return before, and no member may publish until all are recorded as joined.
func joinAndRecord(ctx context.Context, c *client.Client, room message.Room, h client.Handler) error {
	record := h.Joined
	recorded := make(chan struct{})
	done := sync.OnceFunc(func() { close(recorded) })
	h.Joined = func(j client.Joined) {
		if record != nil {
			record(j)
		}
		done()
	}
	if _, err := c.Join(ctx, room, client.Start(), h); err != nil {
		return err
	}
	select {
	case <-recorded:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// options returns the options of the run's nth client.
func (r *Run) options(n int, conn *cuttableConn) client.Options {
	opts := client.Options{
		URLs: r.plan.urlsOf(n), MaxPending: 2 * maxPending,
		HTTPClient: &http.Client{Transport: &http.Transport{
			// Without keep-alives a refused handshake leaves no idle connection.
			Proxy: http.ProxyFromEnvironment, DialContext: conn.dial, DisableKeepAlives: true,
			// The empty map turns HTTP/2 off, because a handshake is HTTP/1.1.
			TLSClientConfig: r.plan.TLS, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}},
		OnState: r.onState,
		OnMoved: func(client.MovedEvent) { r.moves.Add(1) },
	}
	conn.dialFunc = r.plan.Dial
	if r.plan.Header != nil {
		opts.Header = r.plan.Header(n)
	}
	if tokens := r.plan.Tokens; len(tokens) > 0 {
		opts.Token = func(context.Context) (string, error) { return tokens[n%len(tokens)], nil }
	}
	return opts
}

// deliver records a message in the history.
func (m *member) deliver(msg message.Message) {
	m.run.delivered.Add(1)
	m.sub.Deliver(msg)
}

// timeDelivery measures the latency of a message, in an unchecked run.
func (m *member) timeDelivery(msg message.Message) {
	m.run.delivered.Add(1)
	if at, ok := sentAt(msg.Data); ok {
		m.run.deliveryLatencies.add(m.n, time.Since(m.run.began)-at)
	}
}

// publish sends one message. It calls done, unless that is nil, with the outcome.
// It returns false, without a call of done, if too many publishes have no outcome
// yet, the client has ended, or the history is full.
func (m *member) publish(done func(error)) bool {
	if m.run.historyFull() {
		m.run.endPublishing("the history is full")
		return false
	}
	if m.pending.Add(1) > maxPending || m.client.Err() != nil {
		m.pending.Add(-1)
		return false
	}
	id := m.name + "-" + strconv.FormatInt(m.published.Add(1), 10)
	began := time.Since(m.run.began)
	data := m.data(began)
	m.run.inFlight.Add(1)
	attempt := m.recordPublish(id, data) // before it is sent, because it may be delivered at once
	answered := func(ack client.Ack, err error) {
		m.recordOutcome(attempt, id, ack, err)
		m.run.countOutcome(m, began, err)
		m.pending.Add(-1)
		if done != nil {
			// The next publish begins before this one counts as over. So inFlight
			// is 0 only when no publish will follow.
			done(err)
		}
		m.run.inFlight.Add(-1)
	}
	m.run.published.Add(1)
	if err := m.client.Send(m.room, data, id, answered); err != nil {
		done = nil // the caller sees that it was not sent
		answered(client.Ack{}, err)
		return false
	}
	return true
}

// recordPublish records a publish, unless the run is unchecked.
func (m *member) recordPublish(id string, data json.RawMessage) Attempt {
	if m.run.history == nil {
		return Attempt{}
	}
	m.tap.publishStarted(m.room, id)
	return m.run.history.Publish(m.room, m.name, m.user, id, data)
}

// recordOutcome records the outcome of a publish, unless the run is unchecked.
func (m *member) recordOutcome(a Attempt, id string, ack client.Ack, err error) {
	a.Done(ack, err)
	if m.tap != nil {
		m.tap.publishAnswered(m.room, id)
	}
}

// data returns a JSON string of the plan's size that holds the member's number and
// the time.
func (m *member) data(at time.Duration) json.RawMessage {
	b := append(make([]byte, 0, m.run.plan.Size), '"')
	b = strconv.AppendInt(b, int64(m.n), 10)
	b = strconv.AppendInt(append(b, '.'), int64(at), 10)
	for b = append(b, ' '); len(b) < m.run.plan.Size-1; {
		b = append(b, 'x')
	}
	return append(b, '"')
}

// sentAt returns the time that a message's data holds.
func sentAt(data []byte) (time.Duration, bool) {
	_, rest, _ := bytes.Cut(data, []byte("."))
	digits, _, found := bytes.Cut(rest, []byte(" "))
	ns, err := strconv.ParseInt(string(digits), 10, 64)
	return time.Duration(ns), found && err == nil
}

// A cuttableConn holds the network connection of one client, to cut it. During a
// move it holds the newer one.
type cuttableConn struct {
	dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex // Protects following.
	conn net.Conn
}

func (c *cuttableConn) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := c.dialFunc(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn = conn
	return conn, nil
}

// cut closes the connection without a close frame, and reports whether it was
// open.
func (c *cuttableConn) cut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn != nil && !errors.Is(c.conn.Close(), net.ErrClosed)
}
