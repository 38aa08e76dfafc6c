// Command visitor is a user of the Go client. It is built with the client of one release
// and run against the server of another: visitor URL ROOM. It does what visit.mjs does,
// and prints the same report.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

type seqAndID struct {
	Seq message.Seq `json:"seq"`
	ID  string      `json:"id"`
}

type report struct {
	Version   string                 `json:"version"`
	Acks      map[string]message.Seq `json:"acks"`
	Messages  []seqAndID             `json:"messages"`
	Duplicate bool                   `json:"duplicate"`
	Conflict  string                 `json:"conflict"`
	Signal    json.RawMessage        `json:"signal"`
	History   []seqAndID             `json:"history"`
	More      bool                   `json:"more"`
	Gap       string                 `json:"gap"`
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := visit(ctx, os.Args[1], message.Room(os.Args[2])); err != nil {
		fmt.Fprintln(os.Stderr, "visitor:", err)
		os.Exit(1)
	}
}

func visit(ctx context.Context, url string, room message.Room) error {
	r := report{Acks: map[string]message.Seq{}}
	got := make(chan message.Message, 100)
	signals := make(chan client.Signal, 1)
	live := make(chan struct{}, 10)
	c, err := client.Dial(ctx, client.Options{URLs: []string{url}, OnState: func(s client.StateEvent) {
		if s.State == client.Live {
			live <- struct{}{}
		}
	}})
	if err != nil {
		return err
	}
	defer c.Close()
	<-live
	joined, err := c.Join(ctx, room, client.Start(), client.Handler{
		Message: func(m message.Message) { got <- m },
		Signal:  func(s client.Signal) { signals <- s },
	})
	if err != nil {
		return err
	}
	publish := func(from, to int) error {
		for i := from; i <= to; i++ {
			id := fmt.Sprintf("id-%d", i)
			ack, err := c.Publish(ctx, room, json.RawMessage(fmt.Sprint(i)), id)
			if err != nil {
				return err
			}
			r.Acks[id] = ack.Seq
		}
		return nil
	}
	if err := publish(1, 10); err != nil {
		return err
	}
	fmt.Println("half")
	select { // the test kills the server and restarts it
	case <-live:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := publish(11, 20); err != nil {
		return err
	}
	for len(r.Messages) < 20 {
		select {
		case m := <-got:
			r.Messages = append(r.Messages, seqAndID{m.Seq, m.ID})
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(visitOnce(ctx, c, room, joined, signals, &r), json.NewEncoder(os.Stdout).Encode(r))
}

// visitOnce does what is not repeated: a duplicate, a conflict, a signal, a page of
// history, and a join that gets a gap.
func visitOnce(ctx context.Context, c *client.Client, room message.Room, joined client.Joined, signals chan client.Signal, r *report) error {
	again, err := c.Publish(ctx, room, json.RawMessage("7"), "id-7")
	if err != nil {
		return err
	}
	r.Duplicate = again.Duplicate
	var refused *client.Error
	if _, err = c.Publish(ctx, room, json.RawMessage(`"other"`), "id-7"); errors.As(err, &refused) {
		r.Conflict = refused.Code
	}
	if err := c.Signal(room, json.RawMessage(`{"typing":true}`)); err != nil {
		return err
	}
	select {
	case s := <-signals:
		r.Signal = s.Data
	case <-ctx.Done():
		return ctx.Err()
	}
	page, err := c.History(ctx, room, client.HistoryRange{Limit: 3})
	if err != nil {
		return err
	}
	r.More = page.More
	for _, m := range page.Messages {
		r.History = append(r.History, seqAndID{m.Seq, m.ID})
	}
	c.Leave(room)
	gap := make(chan client.Gap, 1)
	if _, err := c.Join(ctx, room, client.After(joined.Epoch, 99), client.Handler{Gap: func(g client.Gap) { gap <- g }}); err != nil {
		return err
	}
	select {
	case g := <-gap:
		r.Gap = fmt.Sprintf("%d-%d %s", g.From, g.To, g.Reason)
	case <-ctx.Done():
		return ctx.Err()
	}
	r.Version = c.Welcome().Version
	return nil
}
