package testkit

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	clusterMasters = 3
	clusterSlots   = 16384
)

// A RedisCluster is a Redis Cluster of three masters without replicas, with the
// default settings except for a node timeout of two seconds. All are killed when
// the test ends. Its methods belong to the test's goroutine.
type RedisCluster struct {
	tb      testing.TB
	nodes   []*RedisServer
	nodeIDs []string // by the index of the node
}

// StartRedisCluster starts a cluster, with further arguments of each redis-server, and
// waits until each node reports that it is complete.
func StartRedisCluster(tb testing.TB, args ...string) *RedisCluster {
	tb.Helper()
	c := &RedisCluster{tb: tb, nodes: make([]*RedisServer, clusterMasters)}
	busPorts := make([]int, clusterMasters)
	var starting sync.WaitGroup
	for i := range c.nodes {
		busPorts[i] = FreePort() // the default, port + 10000, may be beyond 65535
		c.nodes[i] = &RedisServer{tb: tb, args: append([]string{
			"--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", strconv.Itoa(busPorts[i]),
		}, args...)}
		starting.Go(func() { startOrFail(tb, c.nodes[i]) })
	}
	starting.Wait()
	slotsPerMaster := clusterSlots/clusterMasters + 1
	for i, node := range c.nodes {
		c.nodeIDs = append(c.nodeIDs, node.Do(tb, "CLUSTER", "MYID"))
		node.Do(tb, "CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		node.Do(tb, "CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(i*slotsPerMaster), strconv.Itoa(min((i+1)*slotsPerMaster, clusterSlots)-1))
		for j := range i {
			node.Do(tb, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(c.nodes[j].port), strconv.Itoa(busPorts[j]))
		}
	}
	for _, node := range c.nodes {
		waitReply(tb, node, "the cluster to be complete", func(info string) bool {
			return strings.Contains(info, "cluster_state:ok") && strings.Contains(info, fmt.Sprintf("cluster_known_nodes:%d\r", clusterMasters))
		}, "CLUSTER", "INFO")
	}
	return c
}

// URL returns redis+cluster://host:port,host:port,host:port.
func (c *RedisCluster) URL() string {
	var hosts []string
	for _, node := range c.nodes {
		hosts = append(hosts, node.Addr())
	}
	return "redis+cluster://" + strings.Join(hosts, ",")
}

// Nodes returns the masters.
func (c *RedisCluster) Nodes() []*RedisServer { return c.nodes }

// Slot returns the slot of a key or of a shard channel.
func (c *RedisCluster) Slot(key string) int {
	c.tb.Helper()
	slot, err := strconv.Atoi(c.nodes[0].Do(c.tb, "CLUSTER", "KEYSLOT", key))
	if err != nil {
		c.tb.Fatalf("testkit: the slot of %s: %v", key, err)
	}
	return slot
}

// Owner returns the node that serves a slot, according to the node itself.
func (c *RedisCluster) Owner(slot int) *RedisServer {
	c.tb.Helper()
	return c.nodes[c.owner(slot)]
}

func (c *RedisCluster) owner(slot int) int {
	c.tb.Helper()
	for i, node := range c.nodes {
		lines, err := node.command("CLUSTER", "NODES")
		if err != nil {
			continue // the test has killed it
		}
		for line := range strings.Lines(lines) {
			if strings.HasPrefix(line, c.nodeIDs[i]) && hasSlot(line, slot) {
				return i
			}
		}
	}
	c.tb.Fatalf("testkit: no node serves slot %d", slot)
	return -1
}

// hasSlot reports whether a line of CLUSTER NODES contains a slot. After eight
// fields it has slots and ranges of slots.
func hasSlot(line string, slot int) bool {
	fields := strings.Fields(line)
	for _, f := range fields[min(8, len(fields)):] {
		low, high, ranged := strings.Cut(f, "-")
		from, err := strconv.Atoi(low)
		if err != nil {
			continue // a slot that is being moved: [93-<-id]
		}
		to := from
		if ranged {
			to, _ = strconv.Atoi(high)
		}
		if from <= slot && slot <= to {
			return true
		}
	}
	return false
}

// MoveSlot moves a slot without keys to another node, as redis-cli --cluster
// reshard does, and returns that node.
func (c *RedisCluster) MoveSlot(slot int) *RedisServer {
	c.tb.Helper()
	from := c.owner(slot)
	to := (from + 1) % len(c.nodes)
	number := strconv.Itoa(slot)
	c.nodes[to].Do(c.tb, "CLUSTER", "SETSLOT", number, "IMPORTING", c.nodeIDs[from])
	c.nodes[from].Do(c.tb, "CLUSTER", "SETSLOT", number, "MIGRATING", c.nodeIDs[to])
	for _, i := range []int{to, from, (to + 1) % len(c.nodes)} {
		c.nodes[i].Do(c.tb, "CLUSTER", "SETSLOT", number, "NODE", c.nodeIDs[to])
	}
	return c.nodes[to]
}

// Demote gives a master a replica, has the replica take its place, and returns the
// new master. The old one lives on as its replica and keeps its connections.
func (c *RedisCluster) Demote(node *RedisServer) *RedisServer {
	c.tb.Helper()
	busPort, id := FreePort(), node.Do(c.tb, "CLUSTER", "MYID")
	node.Do(c.tb, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
	replica := StartRedis(c.tb, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
		"--cluster-port", strconv.Itoa(busPort), "--repl-diskless-sync-delay", "0")
	for _, known := range c.nodes {
		known.Do(c.tb, "CLUSTER", "MEET", "127.0.0.1", strconv.Itoa(replica.port), strconv.Itoa(busPort))
	}
	waitReply(c.tb, replica, "the new node to know the master", func(reply string) bool { return reply == "OK" },
		"CLUSTER", "REPLICATE", id)
	replica.waitFollows(c.tb)
	for _, voter := range c.nodes {
		waitReply(c.tb, voter, "the masters to know the replica", func(nodes string) bool {
			return strings.Contains(nodes, " slave "+id)
		}, "CLUSTER", "NODES")
	}
	waitReply(c.tb, replica, "a failover to begin", func(reply string) bool { return reply == "OK" }, "CLUSTER", "FAILOVER")
	waitReply(c.tb, replica, "the replica to be the master", func(role string) bool { return strings.HasPrefix(role, "master ") }, "ROLE")
	node.waitFollows(c.tb)
	return replica
}
