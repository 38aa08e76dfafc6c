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

// An observer resumes as any client would, and records every frame as it comes. Unlike
// our client libraries, it drops no duplicates, reorders nothing and requests nothing
// again.
type observer struct {
	*subscriber
	urls     []string
	position client.Position
}

func (w *workload) addObserver(ctx context.Context, room message.Room, home int, rng *rand.Rand) {
	o := &observer{subscriber: w.addSubscriber(fmt.Sprintf("observer-%d-%s", home, room), room), urls: w.urlsFrom(home, rng)}
	w.listening.Go(func() { o.listenLoop(ctx) })
}

// observerTimeout is how long an observer receives nothing, not even a heartbeat, before
// it reconnects elsewhere. Nodes with observers have HEARTBEAT=2s.
const observerTimeout = 5 * time.Second

// listenLoop listens on one connection after the other until ctx ends.
func (o *observer) listenLoop(ctx context.Context) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		if o.listen(ctx, o.urls[attempt%len(o.urls)]) {
			attempt-- // this node worked: try it again first
		}
		select {
		case <-time.After(rand.N(200 * time.Millisecond)):
		case <-ctx.Done():
		}
	}
}

// listen listens until its connection ends, and reports whether it had joined the room.
func (o *observer) listen(ctx context.Context, url string) (joined bool) {
	dialCtx, cancel := context.WithTimeout(ctx, observerTimeout)
	defer cancel()
	ws, _, err := websocket.Dial(dialCtx, url, nil)
	if err != nil {
		return false
	}
	defer ws.CloseNow()
	ws.SetReadLimit(4 << 20)
	join := fmt.Sprintf(`{"type":"join","room":%q,"after":0}`, o.room)
	if o.position.Epoch != "" {
		join = fmt.Sprintf(`{"type":"join","room":%q,"after":%d,"epoch":%q}`, o.room, o.position.After, o.position.Epoch)
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
		switch o.handleFrame(b) {
		case "joined":
			joined = true
		case "error": // such as while the log is down
			return false
		}
	}
}

// handleFrame records one frame and returns its type.
func (o *observer) handleFrame(b []byte) string {
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
		o.onJoined(client.Joined{Epoch: f.Epoch, Head: f.Seq, First: f.First})
	case "message":
		o.onMessage(message.Message{
			Draft: message.Draft{Room: f.Room, ID: f.ID, Data: f.Data}, Epoch: f.Epoch, Seq: f.Seq, At: f.At,
		})
		o.position = client.Position{Epoch: f.Epoch, After: f.Seq}
	case "gap":
		var from message.Seq
		if err := json.Unmarshal(f.From, &from); err != nil {
			return "error"
		}
		o.sub.Gap(client.Gap{Epoch: f.Epoch, From: from, To: f.To, Reason: f.Reason})
		o.position = client.Position{Epoch: f.Epoch, After: f.To}
	}
	return f.Type
}
