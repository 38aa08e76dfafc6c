package app

import (
	"os"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// Where Linux tells what the control group of this process, as a container sees
// its own, may have in memory: version 2, then 1.
var memoryLimitFiles = []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}

// unlimited is what version 1 says of no limit, or more: 2^63 less a page.
const unlimited = 1 << 62

// memoryLimit returns how many bytes the process may have before the kernel
// ends it; false says that there is no such limit, or that it is not known.
func memoryLimit(files []string) (bytes int64, ok bool) {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		bytes, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max" is none
		return bytes, err == nil && bytes > 0 && bytes < unlimited
	}
	return 0, false
}

// registerMemoryLimit tells the container's limit, for the share of it that is in
// use. Where there is none, nothing is told: a share of it means nothing.
func (a *App) registerMemoryLimit() {
	limit, ok := memoryLimit(memoryLimitFiles)
	if !ok {
		return
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "switchyard_memory_limit_bytes",
		Help: "What the container may have in memory before the kernel ends it. Missing where there is no such limit.",
	})
	g.Set(float64(limit))
	a.registry.MustRegister(g)
}
