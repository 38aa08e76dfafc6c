// Command peer is a chat server on github.com/centrifugal/centrifuge, the library under
// Centrifugo, in memory, with history and recovery on. -history=false turns both off.
package main

import (
	"context"
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/centrifugal/centrifuge"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:8000", "where to listen")
	history := flag.Bool("history", true, "keep 100 messages of a room for five minutes, and let clients recover")
	flag.Parse()
	node, err := centrifuge.New(centrifuge.Config{
		LogLevel:           centrifuge.LogLevelError,
		LogHandler:         func(e centrifuge.LogEntry) { log.Println(e.Message, e.Fields) },
		ClientQueueMaxSize: 16 << 20,
	})
	check(err)
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		return centrifuge.ConnectReply{Credentials: &centrifuge.Credentials{}}, nil
	})
	node.OnConnect(func(c *centrifuge.Client) {
		c.OnSubscribe(func(_ centrifuge.SubscribeEvent, done centrifuge.SubscribeCallback) {
			done(centrifuge.SubscribeReply{Options: centrifuge.SubscribeOptions{
				EnableRecovery: *history, EnablePositioning: *history,
			}}, nil)
		})
		c.OnPublish(func(_ centrifuge.PublishEvent, done centrifuge.PublishCallback) {
			var reply centrifuge.PublishReply
			if *history {
				reply.Options.HistorySize, reply.Options.HistoryTTL = 100, 5*time.Minute
			}
			done(reply, nil)
		})
	})
	check(node.Run())
	http.Handle("/connection/websocket", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{
		CheckOrigin: func(*http.Request) bool { return true },
	}))
	server := &http.Server{Addr: *addr, ReadHeaderTimeout: 5 * time.Second}
	check(server.ListenAndServe())
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
