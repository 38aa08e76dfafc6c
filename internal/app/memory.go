package app

import (
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
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
