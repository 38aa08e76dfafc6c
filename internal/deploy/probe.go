package deploy

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
	"switchyard/internal/message"
)

// smokeLimit bounds one smoke test.
const smokeLimit = 20 * time.Second

// Prober probes the stack as its users meet it, and its replicas one by one.
type Prober struct {
	Stack *Stack
	// Verifier runs many clients for a while, judges what they saw, and tells the p95
	// from their publishes to the acks.
	Verifier func(ctx context.Context, s *Stack, d time.Duration, token string) (time.Duration, error)
}

// Smoke connects, joins, publishes, receives, and resumes on a second
// connection what came while nobody listened.
func (o *Prober) Smoke(ctx context.Context, t Target) error {
	ctx, cancel := context.WithTimeoutCause(ctx, smokeLimit, fmt.Errorf("no end within %v", smokeLimit))
	defer cancel()
	url, http := o.Stack.URL("wss", "/ws"), o.Stack.HTTPClient()
	if t.Replica != nil {
		// By the name that users ask for: a replica may answer to no other.
		url, http = "ws://"+o.Stack.Env["DOMAIN"]+"/ws", clientFor(t.Replica.Address)
	}
	return o.smoke(ctx, url, http, t)
}

// clientFor connects to an address, whatever a URL says.
func clientFor(address string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
		},
		IdleConnTimeout: 10 * time.Second,
	}}
}

// SmokeURL is Smoke of any address.
func (o *Prober) SmokeURL(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, smokeLimit, fmt.Errorf("no end within %v", smokeLimit))
	defer cancel()
	return o.smoke(ctx, url, http.DefaultClient, Target{})
}

func (o *Prober) smoke(ctx context.Context, url string, http *http.Client, t Target) error {
	room := message.Room("deploy-smoke-" + strings.ToLower(client.NewID()[:8]))
	first, err := o.dial(ctx, url, http)
	if err != nil {
		return err
	}
	defer first.Close()
	if w := first.Welcome(); t.Deployment != "" && w.Deployment != t.Deployment {
		return fmt.Errorf("deployment %q answered, not %q", w.Deployment, t.Deployment)
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
	second, err := o.dial(ctx, url, http)
	if err != nil {
		return err
	}
	defer second.Close()
	// From before the first one: both must come, in order.
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

// dial connects once; what the client would put right by trying again is told.
func (o *Prober) dial(ctx context.Context, url string, http *http.Client) (*client.Client, error) {
	token, err := o.Stack.token(time.Now())
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

// contextCause prefers why a context ended to that it did.
func contextCause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(err, ctx.Err()) {
		return c
	}
	return err
}

// publishAndReceive publishes and waits for it to come back.
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

func expectMessage(ctx context.Context, got chan message.Message, want string) error {
	select {
	case m := <-got:
		if string(m.Data) != want {
			return fmt.Errorf("received %s and not %s", m.Data, want)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("nothing received: %w", context.Cause(ctx))
	}
}

// Verify has many clients publish and subscribe, and judges.
func (o *Prober) Verify(ctx context.Context, d time.Duration) (time.Duration, error) {
	if o.Verifier == nil {
		return 0, errNoVerifier
	}
	token, err := o.Stack.token(time.Now())
	if err != nil {
		return 0, err
	}
	return o.Verifier(ctx, o.Stack, d, token)
}

// LoadPage loads what a browser loads first.
func (o *Prober) LoadPage(ctx context.Context) error {
	for path, want := range map[string]string{"/": "<html", "/client.js": "switchyard.v1"} {
		url := o.Stack.URL("https", path)
		status, body, err := fetch(ctx, o.Stack.HTTPClient(), url)
		switch {
		case err != nil:
			return fmt.Errorf("load %s: %w", url, err)
		case status != http.StatusOK:
			return fmt.Errorf("load %s: status %d", url, status)
		case !strings.Contains(strings.ToLower(string(body)), want):
			return fmt.Errorf("load %s: it is not the page", url)
		}
	}
	return nil
}
