package sharedstate

import (
	"context"
	"fmt"

	"switchyard/internal/message"
)

var (
	resumeScript = script("resume")
	saveScript   = script("save")
	endScript    = script("end")
)

// sessionKey returns the key of a session, as the keys of a script.
func (r *redisBackend) sessionKey(id message.SessionID) []string {
	return []string{r.prefix + "s:" + string(id)}
}

func (r *redisBackend) resume(
	ctx context.Context, id message.SessionID, user, node string,
) (message.Session, bool, error) {
	c := &call{script: resumeScript, keys: r.sessionKey(id), args: []any{user, node, r.ttl.Milliseconds()}}
	if err := r.runBatched(ctx, c); err != nil {
		return message.Session{}, false, fmt.Errorf("resume a session: %w", err)
	}
	raw, ok := c.value.(string)
	if !ok {
		return message.Session{}, false, nil
	}
	rec, err := decodeRecord([]byte(raw))
	if err != nil {
		return message.Session{}, false, fmt.Errorf("resume a session: %w", err)
	}
	rec.ID = id
	return rec.Session, true, nil
}

// save makes as many round trips as maxBatchCalls and maxBatchBytes demand.
func (r *redisBackend) save(ctx context.Context, node string, batch []message.SessionSave) []message.SaveResult {
	results := make([]message.SaveResult, 0, len(batch))
	for len(results) < len(batch) {
		var calls []*call
		rest := batch[len(results):]
		for size := 0; len(calls) < min(len(rest), maxBatchCalls) && size < maxBatchBytes; {
			s := &rest[len(calls)]
			var bytes []byte
			if !s.Renew {
				bytes = r.encode(&sessionRecord{Session: s.Session, node: node})
			}
			size += len(bytes)
			calls = append(calls, &call{
				script: saveScript, keys: r.sessionKey(s.ID),
				args: []any{s.Generation, s.Revision, r.ttl.Milliseconds(), bytes},
			})
		}
		_ = r.run(ctx, opSave, calls...) // a call that failed has no value
		for _, c := range calls {
			result, ok := c.value.(int64)
			if !ok {
				result = int64(message.SaveFailed)
			}
			results = append(results, message.SaveResult(result))
		}
	}
	return results
}

// encode encodes a record, and counts those that are partial.
func (r *redisBackend) encode(rec *sessionRecord) []byte {
	bytes, whole := rec.encode()
	if !whole {
		r.metrics.drop(dropPartial, 1)
	}
	return bytes
}

func (r *redisBackend) end(ctx context.Context, batch []endedSession) error {
	calls := make([]*call, len(batch))
	for i, e := range batch {
		calls[i] = &call{script: endScript, keys: r.sessionKey(e.id), args: []any{e.generation}}
	}
	if err := r.run(ctx, opEnd, calls...); err != nil {
		return fmt.Errorf("end sessions: %w", err)
	}
	return nil
}
