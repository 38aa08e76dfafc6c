package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"switchyard/test/behaviors"
)

// clientStep checks an expectation of the client.
func (sp *scriptPlayer) clientStep(s behaviors.Step) error {
	switch s.Client {
	case "connects":
		sp.expectConnection(duration(s.MS))
	case "does not reconnect":
		if !sp.service.noConnectionForAnHour() {
			return errors.New("it reconnected")
		}
	case "has not connected":
		if !sp.service.noConnectionWaits() {
			return errors.New("it connected")
		}
	case "closes", "stays connected":
		p := sp.peerFor(s)
		p.mu.Lock()
		defer p.mu.Unlock()
		if want := s.CloseCode(); (p.code == 0) != (s.Client == "stays connected") || (want != 0 && p.code != want) {
			return fmt.Errorf("it closed with %d (0: not closed)", p.code)
		}
	case "has state":
		return sp.expectState(s)
	case "had states":
		sp.mu.Lock()
		defer sp.mu.Unlock()
		if !slices.Equal(sp.states, s.States) {
			return fmt.Errorf("its states were %q", sp.states)
		}
		sp.states = nil
	case "sends", "sends first", "sends nothing":
		return sp.expectFrame(s)
	case "emits":
		sp.mu.Lock()
		defer sp.mu.Unlock()
		if !slices.Equal(sp.events, s.Events) {
			return fmt.Errorf("it emitted %q", sp.events)
		}
		sp.events = nil
	case "is pending", "completes":
		return sp.expectOutcome(s)
	default:
		return fmt.Errorf("unknown word of the client: %q", s.Client)
	}
	return nil
}

func (sp *scriptPlayer) expectState(s behaviors.Step) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if code := s.CloseCode(); sp.state.State.String() != s.State || (code != 0 && sp.state.Code != code) {
		return fmt.Errorf("its state is %v with code %d", sp.state.State, sp.state.Code)
	}
	b, err := json.Marshal(sp.state.Welcome)
	if err != nil {
		return err
	}
	var welcome map[string]any
	if err := json.Unmarshal(b, &welcome); err != nil {
		return err
	}
	for field, want := range s.Welcome {
		if !reflect.DeepEqual(welcome[field], want) {
			return fmt.Errorf("the welcome is %v", welcome)
		}
	}
	return nil
}

// expectConnection waits for the next connection, which must arrive after exactly
// d, and accepts it.
func (sp *scriptPlayer) expectConnection(d time.Duration) {
	sp.t.Helper()
	start := time.Now()
	p := sp.service.acceptWithoutWelcome()
	if took := p.ConnectedAt.Sub(start); took != d {
		sp.t.Fatalf("it connected after %v, want %v", took, d)
	}
	sp.service.mu.Lock()
	header := sp.service.headers[len(sp.service.headers)-1]
	sp.service.mu.Unlock()
	peer := &scriptedPeer{peer: p, token: strings.TrimPrefix(header.Get("Authorization"), "Bearer "), session: header.Get(sessionHeader)}
	sp.peers = append(sp.peers, peer)
	go peer.readLoop()
	synctest.Wait()
}

// expectFrame removes the next frame of that type and room from the queue and
// checks it. Frames are in order within a room only.
func (sp *scriptPlayer) expectFrame(s behaviors.Step) error {
	p := sp.peerFor(s)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.Client == "sends nothing" {
		if len(p.queue) > 0 {
			return fmt.Errorf("it sent %v", p.queue)
		}
		return nil
	}
	at := slices.IndexFunc(p.queue, func(f map[string]any) bool {
		return s.Client == "sends first" || f["type"] == s.Frame["type"] && f["room"] == s.Frame["room"]
	})
	if at < 0 {
		return fmt.Errorf("it did not send that frame; it sent %v", p.queue)
	}
	frame := p.queue[at]
	p.queue = slices.Delete(p.queue, at, at+1)
	for field, want := range s.Frame {
		if !reflect.DeepEqual(frame[field], want) {
			return fmt.Errorf("it sent %v", frame)
		}
	}
	for _, field := range s.Without {
		if _, present := frame[field]; present {
			return fmt.Errorf("it sent %v", frame)
		}
	}
	sp.frames[s.As] = frame
	return nil
}

func (sp *scriptPlayer) expectOutcome(s behaviors.Step) error {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	o := sp.outcomes[s.Of]
	if o == nil || o.done == (s.Client == "is pending") {
		return fmt.Errorf("the outcome is %+v", o)
	}
	code, unknown := jsErrorCode(o.err)
	switch {
	case !o.done:
	case s.Ack != nil:
		got := map[string]any{"seq": float64(o.ack.Seq), "epoch": string(o.ack.Epoch), "id": o.ack.ID, "duplicate": o.ack.Duplicate}
		if o.err != nil || !reflect.DeepEqual(got, s.Ack) {
			return fmt.Errorf("the outcome is %v, %w", got, o.err)
		}
	case s.Seqs != nil:
		var seqs []int64
		for _, m := range o.history.Messages {
			seqs = append(seqs, int64(m.Seq))
		}
		if o.err != nil || !slices.Equal(seqs, s.Seqs) {
			return fmt.Errorf("the outcome is %v, %w", seqs, o.err)
		}
	case s.Count != nil:
		if o.err != nil || o.presence.Count != *s.Count {
			return fmt.Errorf("the outcome is %+v, %w", o.presence, o.err)
		}
	case code != s.Error || unknown != s.Unknown:
		return fmt.Errorf("the outcome is %s, unknown: %v (%w)", code, unknown, o.err)
	}
	return nil
}

// jsErrorCode returns the code and outcomeUnknown that client.js has for the error.
func jsErrorCode(err error) (code string, unknown bool) {
	var refused *Error
	var closed *ClosedError
	unknown = errors.Is(err, ErrOutcomeUnknown)
	switch {
	case err == nil:
		return "", false
	case errors.As(err, &refused):
		return refused.Code, unknown
	case errors.Is(err, ErrUserChanged):
		return "user_changed", unknown
	case errors.Is(err, ErrNoToken):
		return "unauthorized", unknown
	case errors.Is(err, ErrTooLarge):
		return "too_large", unknown
	case errors.Is(err, ErrClosed), errors.As(err, &closed):
		return "closed", unknown
	case unknown:
		return "outcome_unknown", unknown
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout", unknown
	}
	return fmt.Sprint(err), unknown
}
