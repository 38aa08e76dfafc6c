package sharedstate

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

var heartbeatScript = script("beat")

// nodesKey is a key of the slot that all about nodes is in, so that it is
// written and read in one round trip.
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
		return heartbeatReply{}, fmt.Errorf("tell and ask who is there: %w", err)
	}
	answer, _ := c.value.([]any)
	if len(answer) < 2 {
		return heartbeatReply{}, fmt.Errorf("tell and ask who is there: %d parts in the answer", len(answer))
	}
	returned, _ := answer[0].(string)
	var got heartbeatReply
	got.returned, _ = strconv.ParseInt(returned, 10, 64)
	got.bansVersion, _ = answer[1].(string)
	for i := 2; i+2 < len(answer); i += 3 {
		node, _ := answer[i].(string)
		age, _ := answer[i+1].(int64)
		status, _ := answer[i+2].(string)
		got.nodes = append(got.nodes, nodeReport{
			node: node, status: []byte(status), age: max(0, time.Duration(age)*time.Millisecond),
		})
	}
	return got, nil
}
