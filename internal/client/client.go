// Package client is the Go client of Switchyard. It reconnects by itself, rejoins
// its rooms from the last position it saw, delivers each message once and in
// order, reports the gaps that the service reports, and resends a publish until
// the service acks it. When the service asks it to move, it opens the next
// connection before it closes the current one. web/client.js behaves in the same
// way; test/behaviors holds both to one list. DESIGN.md says why the package is
// built as it is.
//
// An idle connection costs two goroutines: the reader of this package and one of
// the WebSocket library.
package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"switchyard/internal/message"
)

// Defaults of Options.
const (
	DefaultIDWindow   = 10 * time.Minute
	DefaultMaxPending = 1024 // publishes
)

// Options configure a client. Only URLs is required.
type Options struct {
	// URLs are ws:// or wss:// addresses of the socket, such as wss://host/ws.
	// After a failure the client tries the next one.
	URLs []string
	// Token, if set, returns the token for a connection. The client calls it at
	// each connect, and again before the token expires, and sends the result as
	// Authorization: Bearer. A call may take half a minute. An error counts as a
	// failed attempt.
	Token func(ctx context.Context) (string, error)
	// Session is the secret of the session to resume, from the Welcome of an
	// earlier client; empty starts a new one. A client resumes its own session
	// at each reconnect.
	Session string
	// Header is sent with each handshake.
	Header http.Header
	// HTTPClient makes the handshakes; nil means http.DefaultClient.
	HTTPClient *http.Client
	// IDWindow is how long the service remembers ids; the client resends a
	// publish for half of it. The service's welcome has its own value, and the
	// shorter of the two applies. Without either it is DefaultIDWindow.
	IDWindow time.Duration
	// MaxPending bounds the publishes without an answer; 0 means
	// DefaultMaxPending. Each takes at most max_frame bytes of memory.
	MaxPending int
	// OnState, if set, is called at each change of state, in order, and under
	// the rules of handlers: it must not wait for this client.
	OnState func(StateEvent)
	// OnMoved, if set, is called when a move is complete and another connection
	// is the current one. Nothing was lost, and the state has not changed. The
	// rules of handlers apply.
	OnMoved func(MovedEvent)
	// OnFrame, if set, is called with each frame about a room's order before the
	// client acts on it, for a checker: handlers never get duplicates or
	// reordered messages. The rules of handlers apply.
	OnFrame func(Frame)
	Logger  *slog.Logger // nil discards the logs

	// random returns a number in [0, 1). Tests replace it.
	random func() float64
}

func (o Options) withDefaults() Options {
	if o.HTTPClient == nil {
		o.HTTPClient = http.DefaultClient
	}
	if o.MaxPending <= 0 {
		o.MaxPending = DefaultMaxPending
	}
	if o.OnState == nil {
		o.OnState = func(StateEvent) {}
	}
	if o.OnMoved == nil {
		o.OnMoved = func(MovedEvent) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.random == nil {
		o.random = rand.Float64
	}
	return o
}

// A State is the state of a client's connection.
type State int

// The states. A client starts as Connecting, and Closed is final.
const (
	Connecting State = iota
	Live
	Waiting
	Closed
)

func (s State) String() string {
	return [...]string{"connecting", "live", "waiting", "closed"}[s]
}

// A StateEvent is a change of state.
type StateEvent struct {
	State State
	// Welcome is the welcome of the connection; set when Live.
	Welcome Welcome
	// Err and Code are how the last connection ended, when Waiting or Closed.
	// Code is its close code, 1006 without a close frame.
	Err  error
	Code int
	// RetryIn is the time until the next attempt, when Waiting.
	RetryIn time.Duration
}

// A MovedEvent is a completed move.
type MovedEvent struct {
	From, To Welcome
	Reason   string // as the service gave it
	// Took is the time from the start of the new connection's handshake until
	// the client had joined all rooms there.
	Took time.Duration
}

// A Client is a connection to the service that outlives its sockets. It is safe
// for concurrent use. It calls handlers one at a time, and reads no frame while
// one runs: a handler must not wait for the client itself, as Publish, Join and
// History do.
type Client struct {
	// Static after construction.
	opts              Options
	ctx               context.Context // ends with the client
	cancel            context.CancelFunc
	slots             chan struct{} // one element for each pending publish
	connectionsClosed chan struct{} // closed when Close has closed all connections
	done              chan struct{} // closed when the client has ended

	// running counts the client's own goroutines.
	running sync.WaitGroup

	// handlerMu is held while a frame is handled and while a callback runs: two
	// connections are read during a move. It is locked before mu.
	handlerMu sync.Mutex

	// mu protects the fields below.
	mu           sync.Mutex
	current      *connection     // nil unless live
	next         *connection     // the next connection of a move, from its welcome on
	move         *move           // nil without a move
	moveDone     <-chan struct{} // closed when the goroutine of the last move has ended
	signalDedup  *signalDedup    // of the last move; nil before the first
	live         chan struct{}   // closed while current is set
	closing      bool            // Close was called
	err          error           // why the client has ended
	welcome      Welcome         // of the current connection, or of the last one
	session      string          // the session to resume at the next connect
	connectCount uint64          // connections tried so far
	urlIndex     int             // index into URLs, modulo their number
	refs         uint64          // refs given out so far

	backoff backoff // owned by the goroutine in connectionLoop

	// Also protected by mu.
	rooms        map[message.Room]*roomState
	pending      map[publishKey]*pendingPublish
	retryQueues  map[message.Room]*retryQueue
	publishCount uint64           // publishes accepted so far
	calls        map[string]*call // by ref
}

// New starts a client, which connects in the background and retries until Close.
// It returns an error when the Options are invalid.
func New(opts Options) (*Client, error) {
	if len(opts.URLs) == 0 {
		return nil, errors.New("client: no URL to connect to")
	}
	for _, raw := range opts.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
			return nil, fmt.Errorf("client: %q is not a ws:// or wss:// URL", raw)
		}
	}
	opts = opts.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	c := &Client{
		opts: opts, ctx: ctx, cancel: cancel, session: opts.Session, backoff: backoff{random: opts.random},
		slots:             make(chan struct{}, opts.MaxPending),
		connectionsClosed: make(chan struct{}),
		done:              make(chan struct{}),
		live:              make(chan struct{}),
		rooms:             make(map[message.Room]*roomState),
		pending:           make(map[publishKey]*pendingPublish),
		retryQueues:       make(map[message.Room]*retryQueue),
		calls:             make(map[string]*call),
	}
	c.running.Go(c.run)
	return c, nil
}

// Dial is New followed by Ready. When Ready fails, Dial closes the client and
// returns the error.
func Dial(ctx context.Context, opts Options) (*Client, error) {
	c, err := New(opts)
	if err != nil {
		return nil, err
	}
	if err := c.Ready(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Ready waits until the client is live. It returns an error when the client has
// ended, or when ctx ends first.
func (c *Client) Ready(ctx context.Context) error {
	c.mu.Lock()
	live := c.live
	c.mu.Unlock()
	select {
	case <-live:
		return nil
	case <-c.done:
		return c.Err()
	case <-ctx.Done():
		return fmt.Errorf("connect to %s: %w", c.opts.URLs[0], ctx.Err())
	}
}

// Welcome returns the welcome of the current connection, or of the last one.
func (c *Client) Welcome() Welcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.welcome
}

// Done returns a channel that is closed when the client has ended: after Close,
// or when the service rejected it for good.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the client has ended: ErrClosed after Close, a *ClosedError
// when the service rejected it, nil while it runs.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close closes the connection with 1000 and ends the client, within about a
// second. Publishes without an answer fail with ErrOutcomeUnknown. Close must not
// be called from a handler; a second call does nothing.
func (c *Client) Close() {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	conns := []*connection{c.current, c.next}
	c.mu.Unlock()
	if first {
		var wg sync.WaitGroup
		for _, conn := range conns {
			if conn != nil {
				wg.Go(func() { conn.sock.closeGracefully(codeNormal) })
			}
		}
		wg.Wait()
		close(c.connectionsClosed)
		c.cancel()
	}
	<-c.done
	c.running.Wait()
}

func (c *Client) isClosing() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closing
}

// nextRef returns an unused ref. The caller holds mu.
func (c *Client) nextRef() string {
	c.refs++
	return "r" + strconv.FormatUint(c.refs, 10)
}
