package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"nhooyr.io/websocket"

	"switchyard/internal/client"
	"switchyard/internal/message"
)

// A observer resumes as any client would, and hands on all that the wire brings,
// as it comes: it drops no double, puts nothing in order and asks for nothing
// again, as the clients of this house do.
type observer struct {
	*subscriber
	urls     []string
	position client.Position
}

func (c *workload) addObserver(ctx context.Context, room message.Room, home int, rng *rand.Rand) {
	w := &observer{subscriber: c.addSubscriber(fmt.Sprintf("witness-%d-%s", home, room), room), urls: c.urlsFrom(home, rng)}
	c.listening.Go(func() { w.listenLoop(ctx) })
}

// observerTimeout is how long a witness hears nothing, not even a heartbeat, before it
// goes elsewhere; nodes with witnesses have HEARTBEAT=2s.
const observerTimeout = 5 * time.Second

// listenLoop listens on one connection after the other until ctx ends.
func (w *observer) listenLoop(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if w.listen(ctx, w.urls[attempt%len(w.urls)]) {
			attempt-- // it was fine while it lasted
		}
		select {
		case <-time.After(rand.N(200 * time.Millisecond)):
		case <-ctx.Done():
		}
	}
}

// listen returns when its connection ends, and whether it was let in.
func (w *observer) listen(ctx context.Context, url string) (joined bool) {
	dialCtx, cancel := context.WithTimeout(ctx, observerTimeout)
	defer cancel()
	ws, _, err := websocket.Dial(dialCtx, url, nil)
	if err != nil {
		return false
	}
	defer ws.CloseNow()
	ws.SetReadLimit(4 << 20)
	join := fmt.Sprintf(`{"type":"join","room":%q,"after":0}`, w.room)
	if w.position.Epoch != "" {
		join = fmt.Sprintf(`{"type":"join","room":%q,"after":%d,"epoch":%q}`, w.room, w.position.After, w.position.Epoch)
	}
	if err := ws.Write(dialCtx, websocket.MessageText, []byte(join)); err != nil {
		return false
	}
	for {
		readCtx, cancel := context.WithTimeout(ctx, observerTimeout)
		_, b, err := ws.Read(readCtx)
		cancel()
		if err != nil {
			return joined
		}
		switch w.handleFrame(b) {
		case "joined":
			joined = true
		case "error": // the log is away, for example
			return false
		}
	}
}

// handleFrame hands on one frame and returns its type.
func (w *observer) handleFrame(b []byte) string {
	var f struct {
		Type       string
		Room       message.Room
		Epoch      message.Epoch
		Seq, First message.Seq
		ID         string
		At         time.Time
		Data       json.RawMessage
		From       json.RawMessage // of a message its user, of a gap its first seq
		To         message.Seq
		Reason     string
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return "error"
	}
	switch f.Type {
	case "joined":
		w.onJoined(client.Joined{Epoch: f.Epoch, Head: f.Seq, First: f.First})
	case "message":
		w.onMessage(message.Message{
			Draft: message.Draft{Room: f.Room, ID: f.ID, Data: f.Data}, Epoch: f.Epoch, Seq: f.Seq, At: f.At,
		})
		w.position = client.Position{Epoch: f.Epoch, After: f.Seq}
	case "gap":
		var from message.Seq
		if err := json.Unmarshal(f.From, &from); err != nil {
			return "error"
		}
		w.sub.Gap(client.Gap{Epoch: f.Epoch, From: from, To: f.To, Reason: f.Reason})
		w.position = client.Position{Epoch: f.Epoch, After: f.To}
	}
	return f.Type
}
