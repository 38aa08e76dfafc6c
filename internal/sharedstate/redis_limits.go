package sharedstate

import (
	"context"
	"fmt"
	"strconv"
)

var consumeScript = script("consume")

// consume makes as many round trips as maxBatchCalls demands.
func (r *redisBackend) consume(ctx context.Context, rates [measureCount]rate, batch []*usage) {
	for len(batch) > 0 {
		part := batch[:min(len(batch), maxBatchCalls)]
		batch = batch[len(part):]
		calls := make([]*call, len(part))
		for i, u := range part {
			args := []any{maxDebt.Seconds(), u.ago.Seconds()}
			for m, rate := range rates {
				args = append(args, rate.perSecond, rate.burst, u.spent[m])
			}
			calls[i] = &call{script: consumeScript, keys: []string{r.prefix + u.key}, args: args}
		}
		_ = r.run(ctx, opLimits, calls...) // the calls have their errors
		for i, c := range calls {
			part[i].err = c.err
			if c.err == nil {
				part[i].level, part[i].err = readLevels(c.value)
			}
		}
	}
}

// readLevels decodes the reply of consume.lua.
func readLevels(value any) (levels [measureCount]float64, err error) {
	reply, _ := value.([]any)
	if len(reply) != int(measureCount) {
		return levels, fmt.Errorf("sync a limit: the reply has %d parts", len(reply))
	}
	for m := range levels {
		text, _ := reply[m].(string)
		if levels[m], err = strconv.ParseFloat(text, 64); err != nil {
			return levels, fmt.Errorf("sync a limit: %w", err)
		}
	}
	return levels, nil
}
