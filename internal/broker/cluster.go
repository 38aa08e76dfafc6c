package broker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/redis/go-redis/v9"
)

// clusterSlots is fixed by Redis: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
const clusterSlots = 16384

// slotOf returns the slot of a hash tag: its CRC16 (XMODEM) modulo the number
// of slots, as the cluster specification says.
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

// discoverCluster returns a discover function that asks one server after the
// other for the map of slots, and uses the first answer. If that server is
// behind the others, MOVED errors correct the map.
func discoverCluster(c *redisConfig) func(context.Context, []string) (ownerFunc, error) {
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
			found, err := querySlots(ctx, c, addr, slots)
			if err == nil {
				return func(index int) string { return found[index] }, nil
			}
			errs = append(errs, fmt.Errorf("query the cluster's slots at %s: %w", addr, err))
		}
		return nil, errors.Join(errs...)
	}
}

// querySlots returns the masters of the slots, in the order of slots: "" for a
// slot that has none.
func querySlots(ctx context.Context, c *redisConfig, addr string, slots []int) ([]string, error) {
	ranges, err := readSlots(ctx, c, addr)
	if err != nil {
		return nil, err
	}
	found := make([]string, len(slots))
	for i, slot := range slots {
		for _, r := range ranges {
			if r.Start <= slot && slot <= r.End && len(r.Nodes) > 0 {
				found[i] = r.Nodes[0].Addr
			}
		}
	}
	if strings.Join(found, "") == "" {
		return nil, errors.New("no master has any of the slots: is the cluster complete?")
	}
	return found, nil
}

// readSlots returns the map of slots of the server at addr, with full addresses.
func readSlots(ctx context.Context, c *redisConfig, addr string) ([]redis.ClusterSlot, error) {
	client := redis.NewClient(withAddr(c.server, addr))
	defer func() { _ = client.Close() }()
	// The newer CLUSTER SHARDS would leave the choice among hostname, address
	// and two ports to us. The answer of CLUSTER SLOTS fits this connection. The
	// library's own reader of it fails for a cluster that names no host.
	answer, err := client.Do(ctx, "cluster", "slots").Slice()
	if err != nil {
		return nil, err
	}
	ranges := make([]redis.ClusterSlot, 0, len(answer))
	for _, item := range answer {
		parts, _ := item.([]any)
		if len(parts) < 2 {
			return nil, errors.New("an invalid answer")
		}
		first, ok1 := parts[0].(int64)
		last, ok2 := parts[1].(int64)
		if !ok1 || !ok2 {
			return nil, errors.New("an invalid answer")
		}
		r := redis.ClusterSlot{Start: int(first), End: int(last)}
		for _, part := range parts[2:] {
			node, _ := part.([]any)
			if len(node) < 2 {
				return nil, errors.New("an invalid answer")
			}
			host, _ := node[0].(string) // nil: the host that was asked
			port := fmt.Sprint(node[1])
			if port == "0" { // as servers with TLS only say
				_, port, _ = net.SplitHostPort(addr)
			}
			r.Nodes = append(r.Nodes, redis.ClusterNode{Addr: withDefaultHost(net.JoinHostPort(host, port), addr)})
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

// movedTo returns the address in a MOVED error of the server at addr, and
// whether err is one.
func movedTo(err error, addr string) (string, bool) {
	if err == nil {
		return "", false
	}
	to, ok := redis.IsMovedError(err)
	return withDefaultHost(to, addr), ok
}
