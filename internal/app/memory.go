package app

import (
	"context"
	"fmt"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	httpd "switchyard/internal/http"
	"switchyard/internal/hub"
)

// memoryLimitFiles have the memory limit of this process's control group, as a
// container sees it: of cgroup version 2, then of version 1.
var memoryLimitFiles = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// Values from unlimited on mean no limit: version 1 has 2^63 minus a page then.
const unlimited = 1 << 62

// memoryLimit returns how many bytes the process may use before the kernel kills
// it; ok is false when there is no limit or it is not known.
func memoryLimit(files []string) (bytes int64, ok bool) {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		bytes, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // fails for "max", which is no limit
		return bytes, err == nil && bytes > 0 && bytes < unlimited
	}
	return 0, false
}

// machineMemoryFile has the memory of the machine, on Linux.
const machineMemoryFile = "/proc/meminfo"

// machineMemory returns how many bytes the machine has; ok is false if that is not known.
func machineMemory(file string) (bytes int64, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, false
	}
	_, rest, found := strings.Cut(string(text), "MemTotal:")
	number, _, _ := strings.Cut(strings.TrimSpace(rest), " kB")
	kib, err := strconv.ParseInt(number, 10, 64)
	return kib << 10, found && err == nil && kib > 0
}

// leastMemory returns how many bytes this process may use: the least of GOMEMLIMIT, the
// container's limit and the machine's memory, or 0 if none is known.
func leastMemory() int64 {
	least := debug.SetMemoryLimit(-1) // only returns it
	if limit, ok := memoryLimit(memoryLimitFiles); ok {
		least = min(least, limit)
	}
	if memory, ok := machineMemory(machineMemoryFile); ok {
		least = min(least, memory)
	}
	if least == math.MaxInt64 {
		return 0
	}
	return least
}

const (
	// assumedMemory is the memory of a node where it is not known, in bytes.
	assumedMemory = 2 << 30
	// processBytes is the memory of a node without WebSockets: 28 MiB, and 12 KiB each for
	// as many other connections as it takes, with the beginning of a body.
	processBytes = 52 << 20
	// connectionBytes is what a connection takes, with a token, in a room: 19.1 KiB in
	// bench/RESULTS.md, and 4 KiB for the beginning of a frame.
	connectionBytes = 24 << 10
	// leastConnections are accepted with however little memory.
	leastConnections = 100
	// maxPendingBytes bounds the data of publishes that wait for the database.
	maxPendingBytes = 64 << 20
)

// A memoryPlan divides the memory of a node, in bytes.
type memoryPlan struct {
	limit       int64
	queues      int64 // of what waits for clients, and of what is being read
	pending     int64 // of publishes that wait for the database
	hub         int64 // of rooms and the messages that are kept for them
	connections int   // as many as there is memory for, at most MAX_CONNECTIONS

	// capped has a sentence for each setting that is more than there is memory for.
	capped []string
}

// planMemory divides limit, 0 if it is not known. What waits for clients has a fifth,
// if QUEUE_TOTAL_BYTES says nothing else. The settings may come to more than there is:
// then less of each is used.
func planMemory(limit int64, maxConnections int, queueTotalBytes int64) memoryPlan {
	if limit <= 0 {
		limit = assumedMemory
	}
	p := memoryPlan{
		limit: limit, queues: limit / 5, pending: min(maxPendingBytes, limit/32), hub: hub.MemoryShare(limit), connections: maxConnections,
	}
	if queueTotalBytes > 0 {
		p.queues = min(queueTotalBytes, limit/2)
	}
	if p.queues < queueTotalBytes {
		p.capped = append(p.capped, fmt.Sprintf("QUEUE_TOTAL_BYTES=%d is over half of the memory; %d bytes are used", queueTotalBytes, p.queues))
	}
	affordable := int((limit - processBytes - p.queues - p.pending - p.hub) / connectionBytes)
	if affordable < p.connections {
		p.connections = min(p.connections, max(affordable, leastConnections))
		p.capped = append(p.capped, fmt.Sprintf("MAX_CONNECTIONS=%d needs %d MiB beside what the queues and rooms may take; there is memory for %d connections",
			maxConnections, maxConnections*connectionBytes>>20, p.connections))
	}
	return p
}

// planMemory plans the memory of this node. It logs what the settings have too much of, or
// returns it as an error with STRICT_SETTINGS.
func (a *App) planMemory(context.Context) error {
	a.memory = planMemory(leastMemory(), a.opt.Config.HTTP.MaxConnections, a.opt.Config.HTTP.QueueTotalBytes)
	a.queueMemory = httpd.NewMemory(a.memory.queues)
	if len(a.memory.capped) > 0 && a.opt.Config.Settings.Strict {
		return fmt.Errorf("%s: give the node more memory, or less to do (STRICT_SETTINGS=true refuses this)", strings.Join(a.memory.capped, "; "))
	}
	for _, text := range a.memory.capped {
		a.lifecycle.log.Warn("a setting is more than this node has memory for", "setting", text, "memory_bytes", a.memory.limit)
	}
	return nil
}

// registerMemoryLimit exports the container's memory limit, from which alerts
// compute the share in use. Without a limit there is no such metric.
func (a *App) registerMemoryLimit() {
	limit, ok := memoryLimit(memoryLimitFiles)
	if !ok {
		return
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "switchyard_memory_limit_bytes",
		Help: "Memory that the container may use before the kernel kills it. Missing where there is no limit.",
	})
	g.Set(float64(limit))
	a.registry.MustRegister(g)
}
