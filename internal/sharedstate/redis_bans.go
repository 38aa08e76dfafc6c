package sharedstate

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"
)

var (
	banScript  = script("ban")
	bansScript = script("bans")
)

// banKeys are the keys of the bans and of their version.
func (r *redisBackend) banKeys() []string {
	return []string{r.nodesKey("bars"), r.nodesKey("bars-state")}
}

func (r *redisBackend) ban(ctx context.Context, bans []ban) (refused int, err error) {
	c := &call{script: banScript, keys: r.banKeys(), args: []any{rand.Text(), maxBans}}
	for _, b := range bans {
		c.args = append(c.args, b.user, max(b.remaining.Milliseconds(), 1))
	}
	if err := r.run(ctx, opBan, c); err != nil {
		return 0, fmt.Errorf("ban users: %w", err)
	}
	count, _ := c.value.(int64)
	return int(count), nil
}

func (r *redisBackend) bans(ctx context.Context) (version string, bans []ban, err error) {
	c := &call{script: bansScript, keys: r.banKeys(), args: []any{maxBans}}
	if err := r.run(ctx, opBan, c); err != nil {
		return "", nil, fmt.Errorf("read the bans: %w", err)
	}
	reply, _ := c.value.([]any)
	for i := 1; i+1 < len(reply); i += 2 {
		user, _ := reply[i].(string)
		left, _ := reply[i+1].(int64)
		bans = append(bans, ban{user: user, remaining: time.Duration(left) * time.Millisecond})
	}
	if len(reply) > 0 {
		version, _ = reply[0].(string)
	}
	return version, bans, nil
}
