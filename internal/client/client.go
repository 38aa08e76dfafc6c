// Package client is a resuming client of Switchyard. It keeps a connection,
// rejoins its rooms from the last position it saw, hands on each message once
// and in order, tells of a gap where the service told of one, and resends what
// it published until that is acked. When the service asks it to move, it opens
// the second connection before it lets go of the first. Its habits are those of
// web/client.js.
//
// A connection costs two goroutines (this package's reader and the library's)
// while nothing is to be written.
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

// What Options leave out.
const (
	DefaultIDWindow   = 10 * time.Minute
	DefaultMaxPending = 1024
)

// Options say where to connect and how.
type Options struct {
	// URLs are ws:// or wss:// addresses of the socket, such as
	// wss://host/ws. After a failure the next one is tried.
	URLs []string
	// Token, if set, is asked for a credential at each connect, and again before
	// it ends; it is sent as Authorization: Bearer. It has half a minute. An
	// error counts as a failed attempt.
	Token func(ctx context.Context) (string, error)
	// Session is the secret of an earlier client's session, as in its welcome;
	// empty begins a new one. A client offers its own at each connect.
	Session string
	// Header is sent with each handshake.
	Header http.Header
	// HTTPClient makes the handshakes; nil means http.DefaultClient.
	HTTPClient *http.Client
	// IDWindow is how long the service remembers ids: a publish is resent for
	// half of it. The service tells it in its welcome; a shorter one here
	// counts instead. Without either it is DefaultIDWindow.
	IDWindow time.Duration
	// MaxPending bounds the publishes that are not answered yet, and so the
	// memory for them: each is as large as max_frame at most.
	MaxPending int
	// OnState, if set, is told of each change, in order, and as handlers are
	// called: it must not wait for this client.
	OnState func(StateEvent)
	// OnMoved, if set, is told likewise when another connection has taken the
	// place of the one before, with nothing lost and no change of state.
	OnMoved func(MovedEvent)
	// OnFrame, if set, is shown each frame about a room's order before the client
	// acts on it, called as handlers are: for a checker, since what handlers get
	// is put right.
	OnFrame func(Frame)
	Logger  *slog.Logger // nil: silent

	// random returns a number in [0, 1); tests have dice of their own.
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

// A State is what a client is busy with.
type State int

// The states. Closed is final.
const (
	Connecting State = iota
	Live
	Waiting
	Closed
)

func (s State) String() string {
	return [...]string{"connecting", "live", "waiting", "closed"}[s]
}

// A StateEvent tells of a change of state.
type StateEvent struct {
	State State
	// Welcome is who serves this connection; set when Live.
	Welcome Welcome
	// Err is why the connection before ended, and Code its close code (1006
	// when there was none); RetryIn is how long a Waiting client waits.
	Err     error
	Code    int
	RetryIn time.Duration
}

// A MovedEvent tells of a move that the service asked for.
type MovedEvent struct {
	From, To Welcome
	Reason   string // the service's
	// Took is how long it took from opening the new connection until all rooms
	// were joined there.
	Took time.Duration
}

// A Client is safe for concurrent use. Handlers are called one at a time and
// must not wait for the client itself: Publish, Join and History would wait for
// an answer that is not read meanwhile.
type Client struct {
	// Static after construction.
	opts              Options
	ctx               context.Context // the client's life
	cancel            context.CancelFunc
	slots             chan struct{} // one token for each pending publication
	connectionsClosed chan struct{} // closed when Close has said goodbye to all connections
	done              chan struct{} // closed when the client has ended

	// running counts the client's own goroutines.
	running sync.WaitGroup

	// turn is held while a frame is handled or a change told, since two
	// connections are read during a move. It is locked before mu.
	handlerMu sync.Mutex

	mu           sync.Mutex      // Protects following.
	current      *connection     // nil unless live
	next         *connection     // the second connection of a move, from its welcome on
	move         *move           // nil when none is asked for
	moveDone     <-chan struct{} // closed when the last move is done
	signalDedup  *signalDedup    // of the last move; nil long after it
	live         chan struct{}
	closing      bool  // Close was called
	err          error // why the client has ended
	welcome      Welcome
	session      string // to offer at the next connect
	connectCount uint64 // connections tried so far
	urlIndex     int    // index into URLs, modulo their number
	refs         uint64

	backoff backoff // owned by who carries on, see carryOn

	// Under mu, too.
	rooms            map[message.Room]*room
	pending          map[publicationKey]*publication
	retryQueues      map[message.Room]*retryQueue
	publicationCount uint64 // of publications
	calls            map[string]*call
}

// New starts a client, which connects in the background and goes on trying.
// An error means that the Options cannot work.
func New(opts Options) (*Client, error) {
	if len(opts.URLs) == 0 {
		return nil, errors.New("client: no URL to connect to")
	}
	for _, raw := range opts.URLs {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || (u.Scheme != "ws" && u.Scheme != "wss") {
			return nil, fmt.Errorf("client: %q is no ws:// or wss:// URL", raw)
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
		rooms:             make(map[message.Room]*room),
		pending:           make(map[publicationKey]*publication),
		retryQueues:       make(map[message.Room]*retryQueue),
		calls:             make(map[string]*call),
	}
	c.running.Go(c.run)
	return c, nil
}

// Dial is New that waits for the first connection. When ctx ends before, or
// the service turns the client away, the client is closed.
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

// Ready returns once the client is live, or why it never will be, or when ctx ends.
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

// Welcome returns who serves the present connection, or served the last one.
func (c *Client) Welcome() Welcome {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.welcome
}

// Done returns a channel that is closed when the client has ended, because of
// Close or of a close code that says to stay away.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err returns why the client has ended: ErrClosed after Close, a *ClosedError
// when the service turned it away, nil while it lives.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close says goodbye with 1000 and ends the client within about a second.
// What was published and not acked is answered with ErrOutcomeUnknown. Never
// call it from a handler; calling it again is harmless.
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

// nextRef returns a fresh ref; the caller holds mu.
func (c *Client) nextRef() string {
	c.refs++
	return "r" + strconv.FormatUint(c.refs, 10)
}
