package sharedstate

import (
	"context"
	"fmt"
	"strconv"
)

var consumeScript = script("meter")

// consume takes what users spent out of their buckets, in as many round trips as
// the bounds need, and writes into each spending what came of it.
func (r *redisBackend) consume(ctx context.Context, rates [measureCount]rate, batch []*usage) {
	for len(batch) > 0 {
		part := batch[:min(len(batch), maxBatchCalls)]
		batch = batch[len(part):]
		calls := make([]*call, len(part))
		for i, s := range part {
			args := []any{maxDebt.Seconds(), s.ago.Seconds()}
			for m, rate := range rates {
				args = append(args, rate.perSecond, rate.burst, s.spent[m])
			}
			calls[i] = &call{script: consumeScript, keys: []string{r.prefix + "l:" + s.user}, args: args}
		}
		_ = r.run(ctx, opLimits, calls...) // each call has its own error
		for i, c := range calls {
			part[i].err = c.err
			if c.err == nil {
				part[i].level, part[i].err = readLevels(c.value)
			}
		}
	}
}

func readLevels(value any) (levels [measureCount]float64, err error) {
	answer, _ := value.([]any)
	if len(answer) != int(measureCount) {
		return levels, fmt.Errorf("share a limit: %d parts in the answer", len(answer))
	}
	for m := range levels {
		text, _ := answer[m].(string)
		if levels[m], err = strconv.ParseFloat(text, 64); err != nil {
			return levels, fmt.Errorf("share a limit: %w", err)
		}
	}
	return levels, nil
}
