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

// maxPending bounds what a member has published without an answer; a message
// that is due beyond it is held back.
const maxPending = 256

// A member is one client of a run, in one room.
type member struct {
	// Static once it has joined.
	run  *Run
	n    int
	name string
	room message.Room
	user string
	conn *cuttableConn
	// nil in a run that is not judged
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
		_, err = c.Join(ctx, m.room, client.Start(), handler)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	// Messages come with the user who published them, so that the history needs it.
	if user := c.Welcome().User; user != nil {
		m.user = *user
	}
	return m, nil
}

// options are those of the run's nth client.
func (r *Run) options(n int, l *cuttableConn) client.Options {
	opts := client.Options{
		URLs: r.plan.urlsOf(n), MaxPending: 2 * maxPending,
		HTTPClient: &http.Client{Transport: &http.Transport{
			// A refused handshake leaves no idle connection behind.
			Proxy: http.ProxyFromEnvironment, DialContext: l.dial, DisableKeepAlives: true,
			// A handshake is HTTP/1.1, whatever else the other side speaks.
			TLSClientConfig: r.plan.TLS, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		}},
		OnState: r.onState,
		OnMoved: func(client.MovedEvent) { r.moves.Add(1) },
	}
	l.dialFunc = r.plan.Dial
	if r.plan.Header != nil {
		opts.Header = r.plan.Header(n)
	}
	if tokens := r.plan.Tokens; len(tokens) > 0 {
		opts.Token = func(context.Context) (string, error) { return tokens[n%len(tokens)], nil }
	}
	return opts
}

// deliver takes a message for the history.
func (m *member) deliver(msg message.Message) {
	m.run.delivered.Add(1)
	m.sub.Deliver(msg)
}

// timeDelivery takes a message for its time alone.
func (m *member) timeDelivery(msg message.Message) {
	m.run.delivered.Add(1)
	if at, ok := sentAt(msg.Data); ok {
		m.run.deliveryLatencies.add(m.n, time.Since(m.run.began)-at)
	}
}

// publish sends one message; then, if set, is called with its outcome. False
// says that too many wait already, that the member's life is over, or the run.
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
	attempt := m.recordPublish(id, data) // told before it is sent: it may be delivered at once
	answered := func(ack client.Ack, err error) {
		m.recordOutcome(attempt, id, ack, err)
		m.run.countOutcome(m, began, err)
		m.pending.Add(-1)
		if done != nil {
			done(err) // the next publish begins before this one ends: none in flight means none to come
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

// recordPublish tells the history of a publish, if there is one.
func (m *member) recordPublish(id string, data json.RawMessage) Attempt {
	if m.run.history == nil {
		return Attempt{}
	}
	m.tap.publishStarted(m.room, id)
	return m.run.history.Publish(m.room, m.name, m.user, id, data)
}

// recordOutcome tells it of the outcome.
func (m *member) recordOutcome(a Attempt, id string, ack client.Ack, err error) {
	a.Done(ack, err)
	if m.tap != nil {
		m.tap.publishAnswered(m.room, id)
	}
}

// data is a JSON string of the plan's size that tells who sent it and when.
func (m *member) data(at time.Duration) json.RawMessage {
	b := append(make([]byte, 0, m.run.plan.Size), '"')
	b = strconv.AppendInt(b, int64(m.n), 10)
	b = strconv.AppendInt(append(b, '.'), int64(at), 10)
	for b = append(b, ' '); len(b) < m.run.plan.Size-1; {
		b = append(b, 'x')
	}
	return append(b, '"')
}

// sentAt reads the time out of a message's data.
func sentAt(data []byte) (time.Duration, bool) {
	_, rest, _ := bytes.Cut(data, []byte("."))
	digits, _, found := bytes.Cut(rest, []byte(" "))
	ns, err := strconv.ParseInt(string(digits), 10, 64)
	return time.Duration(ns), found && err == nil
}

// A cuttableConn is the network connection of one client, to be cut. While a client
// moves it is the newer one.
type cuttableConn struct {
	dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex // Protects following.
	conn net.Conn
}

func (l *cuttableConn) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := l.dialFunc(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn = conn
	return conn, nil
}

// cut breaks the connection, as a network does, and says whether there was one.
func (l *cuttableConn) cut() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn != nil && !errors.Is(l.conn.Close(), net.ErrClosed)
}
