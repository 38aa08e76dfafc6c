package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// clusterSlots is fixed by Redis: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
const clusterSlots = 16384

// slotOf is the slot of a hash tag: CRC16 (XMODEM), as the cluster
// specification says.
func slotOf(tag string) int {
	var crc uint16
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % clusterSlots
}

// discoverCluster asks one server after the other for the map of slots. The
// first answer is taken: a server that lags behind is put right by MOVED.
func discoverCluster(p *redisConfig) func(context.Context, []string) (ownerFunc, error) {
	slots := make([]int, clusterBuckets)
	for i := range slots {
		slots[i] = slotOf(bucketTag(i))
	}
	return func(ctx context.Context, candidates []string) (ownerFunc, error) {
		var errs []error
		for _, addr := range candidates {
			if ctx.Err() != nil {
				break
			}
			found, err := querySlots(ctx, p, addr, slots)
			if err == nil {
				return func(index int) string { return found[index] }, nil
			}
			errs = append(errs, fmt.Errorf("ask %s for the cluster's slots: %w", addr, err))
		}
		return nil, errors.Join(errs...)
	}
}

// querySlots returns the masters of the slots, in their order: "" for a slot
// that has none.
func querySlots(ctx context.Context, p *redisConfig, addr string, slots []int) ([]string, error) {
	client := redis.NewClient(withAddr(p.server, addr))
	defer func() { _ = client.Close() }()
	// Not CLUSTER SHARDS, which leaves it to us to choose among hostname, address
	// and the two ports: this answer fits the connection that asks.
	ranges, err := client.ClusterSlots(ctx).Result() //nolint:staticcheck // as above
	if err != nil {
		return nil, err
	}
	found := make([]string, len(slots))
	for i, slot := range slots {
		for _, r := range ranges {
			if r.Start <= slot && slot <= r.End && len(r.Nodes) > 0 {
				found[i] = withDefaultHost(r.Nodes[0].Addr, addr)
			}
		}
	}
	if strings.Join(found, "") == "" {
		return nil, errors.New("it has no slot of ours: is the cluster complete?")
	}
	return found, nil
}

// movedTo returns whom a MOVED error of the server at addr points to.
func movedTo(err error, addr string) (string, bool) {
	if err == nil {
		return "", false
	}
	to, ok := redis.IsMovedError(err)
	return withDefaultHost(to, addr), ok
}
