package sharedstate

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

var heartbeatScript = script("heartbeat")

// nodesKey returns a key about nodes or bans. All have one hash tag, because one
// script reads and writes them.
func (r *redisBackend) nodesKey(name string) string { return r.prefix + "{fleet}:" + name }

func (r *redisBackend) heartbeat(ctx context.Context, b heartbeat) (heartbeatReply, error) {
	c := &call{
		script: heartbeatScript,
		keys:   []string{r.nodesKey("seen"), r.nodesKey("status"), r.nodesKey("returned"), r.nodesKey("bars-state")},
		args:   []any{b.node, b.status, nodeExpiry.Milliseconds(), forgetAfter.Milliseconds(), maxNodes},
	}
	for node, count := range b.returned {
		c.args = append(c.args, node, count)
	}
	if err := r.run(ctx, opHeartbeat, c); err != nil {
		return heartbeatReply{}, fmt.Errorf("send a heartbeat: %w", err)
	}
	reply, _ := c.value.([]any)
	if len(reply) < 2 {
		return heartbeatReply{}, fmt.Errorf("send a heartbeat: the reply has %d parts", len(reply))
	}
	returned, _ := reply[0].(string)
	var got heartbeatReply
	got.returned, _ = strconv.ParseInt(returned, 10, 64)
	got.bansVersion, _ = reply[1].(string)
	for i := 2; i+2 < len(reply); i += 3 {
		node, _ := reply[i].(string)
		age, _ := reply[i+1].(int64)
		status, _ := reply[i+2].(string)
		got.nodes = append(got.nodes, nodeReport{
			node: node, status: []byte(status), age: max(0, time.Duration(age)*time.Millisecond),
		})
	}
	return got, nil
}
