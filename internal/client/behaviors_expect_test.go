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

// clientStep is what a behaviour says that the client has done.
func (st *scriptPlayer) clientStep(s behaviors.Step) error {
	switch s.Client {
	case "connects":
		st.expectConnection(duration(s.MS))
	case "stays away":
		if !st.service.noConnectionForAnHour() {
			return errors.New("it came back")
		}
	case "opens nothing":
		if !st.service.noConnectionWaits() {
			return errors.New("it did")
		}
	case "hangs up", "holds on":
		p := st.peerFor(s)
		p.mu.Lock()
		defer p.mu.Unlock()
		if want := s.CloseCode(); (p.code == 0) != (s.Client == "holds on") || (want != 0 && p.code != want) {
			return fmt.Errorf("it hung up with %d", p.code)
		}
	case "is":
		return st.expectState(s)
	case "was":
		st.mu.Lock()
		defer st.mu.Unlock()
		if !slices.Equal(st.states, s.States) {
			return fmt.Errorf("it was %q", st.states)
		}
		st.states = nil
	case "sends", "sends first", "sends nothing":
		return st.expectFrame(s)
	case "tells":
		st.mu.Lock()
		defer st.mu.Unlock()
		if !slices.Equal(st.events, s.Events) {
			return fmt.Errorf("it told %q", st.events)
		}
		st.events = nil
	case "keeps", "answers":
		return st.expectOutcome(s)
	default:
		return fmt.Errorf("what is %q?", s.Client)
	}
	return nil
}

func (st *scriptPlayer) expectState(s behaviors.Step) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if code := s.CloseCode(); st.state.State.String() != s.State || (code != 0 && st.state.Code != code) {
		return fmt.Errorf("it is %v with %d", st.state.State, st.state.Code)
	}
	b, err := json.Marshal(st.state.Welcome)
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

// expectConnection waits for the next connection, which must come after exactly d.
func (st *scriptPlayer) expectConnection(d time.Duration) {
	st.t.Helper()
	start := time.Now()
	p := st.service.acceptWithoutWelcome()
	if took := p.connectedAt.Sub(start); took != d {
		st.t.Fatalf("it connected after %v, want %v", took, d)
	}
	st.service.mu.Lock()
	header := st.service.headers[len(st.service.headers)-1]
	st.service.mu.Unlock()
	peer := &scriptedPeer{peer: p, token: strings.TrimPrefix(header.Get("Authorization"), "Bearer "), session: header.Get(sessionHeader)}
	st.peers = append(st.peers, peer)
	go peer.readLoop()
	synctest.Wait()
}

// expectFrame takes the next frame of that type and room: an order holds in a room.
func (st *scriptPlayer) expectFrame(s behaviors.Step) error {
	p := st.peerFor(s)
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
		return fmt.Errorf("it did not; it sent %v", p.queue)
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
	st.frames[s.As] = frame
	return nil
}

func (st *scriptPlayer) expectOutcome(s behaviors.Step) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	o := st.outcomes[s.Of]
	if o == nil || o.done == (s.Client == "keeps") {
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

// jsErrorCode is what client.js calls that error.
func jsErrorCode(err error) (code string, unknown bool) {
	var refused *Error
	var closed *ClosedError
	unknown = errors.Is(err, ErrOutcomeUnknown)
	switch {
	case err == nil:
		return "", false
	case errors.As(err, &refused):
		return refused.Code, unknown
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
