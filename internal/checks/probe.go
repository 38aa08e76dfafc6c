package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/load"
	"switchyard/internal/message"
	"switchyard/internal/stack"
)

// smokeLimit bounds one smoke test.
const smokeLimit = 20 * time.Second

// A Target is where a probe connects: to Replica, or from outside through the
// balancer when Replica is nil. The server that answers must be of the deployment.
type Target struct {
	Replica    *stack.Replica
	Deployment string
}

// A Prober tests the stack as its users meet it, or a single replica. It publishes in
// rooms of its own.
type Prober struct{ Stack *stack.Stack }

// Smoke connects, joins, publishes and receives, and then resumes on a second
// connection from before the first message.
func (p *Prober) Smoke(ctx context.Context, t Target) error {
	url, http := p.Stack.Balancer().URL("wss", "/ws"), p.Stack.Balancer().HTTPClient()
	if t.Replica != nil {
		// With the users' host name: a replica may refuse others.
		url, http = "ws://"+p.Stack.Env["DOMAIN"]+"/ws", clientFor(t.Replica.Address)
	}
	return p.smoke(ctx, url, http, t)
}

// clientFor returns a client that connects to address, whatever the URL's host is.
func clientFor(address string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
		},
		IdleConnTimeout: 10 * time.Second,
	}}
}

// SmokeURL runs the smoke test on any address.
func (p *Prober) SmokeURL(ctx context.Context, url string) error {
	return p.smoke(ctx, url, http.DefaultClient, Target{})
}

func (p *Prober) smoke(ctx context.Context, url string, http *http.Client, t Target) error {
	ctx, cancel := context.WithTimeoutCause(ctx, smokeLimit, fmt.Errorf("no end within %v", smokeLimit))
	defer cancel()
	room := message.Room("deploy-smoke-" + strings.ToLower(client.NewID()[:8]))
	first, err := p.dial(ctx, url, http)
	if err != nil {
		return err
	}
	defer first.Close()
	if w := first.Welcome(); t.Deployment != "" && w.Deployment != t.Deployment {
		return fmt.Errorf("the server is of deployment %q, not %q", w.Deployment, t.Deployment)
	}
	got := make(chan message.Message, 8)
	handler := client.Handler{Message: func(m message.Message) {
		select {
		case got <- m:
		default:
		}
	}}
	joined, err := first.Join(ctx, room, client.Now(), handler)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := publishAndReceive(ctx, first, room, got, "one"); err != nil {
		return err
	}
	if _, err := first.Publish(ctx, room, json.RawMessage(`"two"`), ""); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	second, err := p.dial(ctx, url, http)
	if err != nil {
		return err
	}
	defer second.Close()
	// From before the first message: both must arrive, in order.
	resumed := make(chan message.Message, 8)
	handler.Message = func(m message.Message) { resumed <- m }
	if _, err := second.Join(ctx, room, client.After(joined.Epoch, joined.Head), handler); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	for _, want := range []string{`"one"`, `"two"`} {
		if err := expectMessage(ctx, resumed, want); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
	}
	return nil
}

// dial connects once. It returns the first error, where the client by itself would
// retry.
func (p *Prober) dial(ctx context.Context, url string, http *http.Client) (*client.Client, error) {
	token, err := p.Stack.Token(time.Now())
	if err != nil {
		return nil, err
	}
	failed := make(chan error, 1)
	opts := client.Options{URLs: []string{url}, HTTPClient: http, OnState: func(s client.StateEvent) {
		if s.State == client.Waiting {
			select {
			case failed <- s.Err:
			default:
			}
		}
	}}
	if token != "" {
		opts.Token = func(context.Context) (string, error) { return token, nil }
	}
	c, err := client.New(opts)
	if err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() { ready <- c.Ready(ctx) }()
	select {
	case err = <-ready:
	case err = <-failed:
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connect to %s: %w", url, contextCause(ctx, err))
	}
	return c, nil
}

// contextCause returns the cause of the context's end if err is only that end.
func contextCause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(err, ctx.Err()) {
		return c
	}
	return err
}

// publishAndReceive publishes a message and waits until it is received.
func publishAndReceive(ctx context.Context, c *client.Client, room message.Room, got chan message.Message, text string) error {
	data, err := json.Marshal(text)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if _, err := c.Publish(ctx, room, data, ""); err != nil {
		return fmt.Errorf("publish: %w", contextCause(ctx, err))
	}
	return expectMessage(ctx, got, string(data))
}

// expectMessage waits for a message and compares its data with want.
func expectMessage(ctx context.Context, got chan message.Message, want string) error {
	select {
	case m := <-got:
		if string(m.Data) != want {
			return fmt.Errorf("received %s, want %s", m.Data, want)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("no message received: %w", context.Cause(ctx))
	}
}

// Verify verifies the service through the balancer with a few clients, and returns
// the p95 of the time from a publish to its ack.
func (p *Prober) Verify(ctx context.Context, d time.Duration) (time.Duration, error) {
	token, err := p.Stack.Token(time.Now())
	if err != nil {
		return 0, err
	}
	balancer := p.Stack.Balancer()
	plan := load.Plan{
		URLs: []string{balancer.URL("wss", "/ws")}, Dial: balancer.Dial, TLS: balancer.TLSConfig(),
		Clients: 12, Rooms: 4, Rate: 40, Duration: d, Cut: d / 5,
	}
	if token != "" {
		plan.Tokens = []string{token}
	}
	run, err := load.Start(ctx, plan)
	if err != nil {
		return 0, fmt.Errorf("verify: %w", err)
	}
	report := run.Report()
	if report.Verdict != load.Clean {
		first, _, _ := strings.Cut(report.String(), "\n")
		return 0, fmt.Errorf("verify: %s", first)
	}
	return report.PublishToAck.Quantile(0.95), nil
}

// LoadPage loads the page and the client's script through the balancer, as a
// browser does.
func (p *Prober) LoadPage(ctx context.Context) error {
	for path, want := range map[string]string{"/": "<html", "/client.js": "switchyard.v1"} {
		url := p.Stack.Balancer().URL("https", path)
		status, body, err := stack.Fetch(ctx, p.Stack.Balancer().HTTPClient(), url)
		switch {
		case err != nil:
			return fmt.Errorf("load %s: %w", url, err)
		case status != http.StatusOK:
			return fmt.Errorf("load %s: status %d", url, status)
		case !strings.Contains(strings.ToLower(string(body)), want):
			return fmt.Errorf("load %s: its text has no %s", url, want)
		}
	}
	return nil
}
