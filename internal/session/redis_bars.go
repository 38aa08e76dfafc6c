package session

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"
)

var (
	barScript  = script("bar")
	barsScript = script("bars")
)

func (r *redisSpace) barKeys() []string {
	return []string{r.fleetKey("bars"), r.fleetKey("bars-state")}
}

func (r *redisSpace) bar(ctx context.Context, bars []bar) (refused int, err error) {
	c := &call{script: barScript, keys: r.barKeys(), args: []any{rand.Text(), maxBars}}
	for _, b := range bars {
		c.args = append(c.args, b.user, max(b.left.Milliseconds(), 1))
	}
	if err := r.run(ctx, opBar, c); err != nil {
		return 0, fmt.Errorf("bar users: %w", err)
	}
	count, _ := c.value.(int64)
	return int(count), nil
}

func (r *redisSpace) bars(ctx context.Context) (state string, bars []bar, err error) {
	c := &call{script: barsScript, keys: r.barKeys(), args: []any{maxBars}}
	if err := r.run(ctx, opBar, c); err != nil {
		return "", nil, fmt.Errorf("read who is barred: %w", err)
	}
	answer, _ := c.value.([]any)
	for i := 1; i+1 < len(answer); i += 2 {
		user, _ := answer[i].(string)
		left, _ := answer[i+1].(int64)
		bars = append(bars, bar{user: user, left: time.Duration(left) * time.Millisecond})
	}
	if len(answer) > 0 {
		state, _ = answer[0].(string)
	}
	return state, bars, nil
}
