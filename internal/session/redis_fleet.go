package session

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

var beatScript = script("beat")

// fleetKey is a key of the slot that all about nodes is in, so that it is
// written and read in one round trip.
func (r *redisSpace) fleetKey(name string) string { return r.prefix + "{fleet}:" + name }

func (r *redisSpace) beat(ctx context.Context, b beat) (board, error) {
	c := &call{
		script: beatScript,
		keys:   []string{r.fleetKey("seen"), r.fleetKey("status"), r.fleetKey("returned"), r.fleetKey("bars-state")},
		args:   []any{b.node, b.status, nodeExpiry.Milliseconds(), forgetAfter.Milliseconds(), maxNodes},
	}
	for node, count := range b.returned {
		c.args = append(c.args, node, count)
	}
	if err := r.run(ctx, opBeat, c); err != nil {
		return board{}, fmt.Errorf("tell and ask who is there: %w", err)
	}
	answer, _ := c.value.([]any)
	if len(answer) < 2 {
		return board{}, fmt.Errorf("tell and ask who is there: %d parts in the answer", len(answer))
	}
	returned, _ := answer[0].(string)
	var got board
	got.returned, _ = strconv.ParseInt(returned, 10, 64)
	got.bars, _ = answer[1].(string)
	for i := 2; i+2 < len(answer); i += 3 {
		node, _ := answer[i].(string)
		age, _ := answer[i+1].(int64)
		status, _ := answer[i+2].(string)
		got.nodes = append(got.nodes, entry{
			node: node, status: []byte(status), age: max(0, time.Duration(age)*time.Millisecond),
		})
	}
	return got, nil
}
