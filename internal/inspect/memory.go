package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"switchyard/internal/backup"
	"switchyard/internal/stack"
)

// A Heap is the heap profile of one node, summed by function.
type Heap struct {
	Node  string `json:"node"`
	Bytes int64  `json:"bytes_in_use"`
	// Sites are the functions that allocated it, those with the most bytes first:
	// of each stack the innermost function of this module.
	Sites []AllocationSite `json:"sites"`
	// File is the path of the written profile.
	File string `json:"file,omitempty"`
	// Error says why there is no profile.
	Error string `json:"error,omitempty"`
}

// An AllocationSite is a function and what it allocated that is still in use.
type AllocationSite struct {
	Function string `json:"function"`
	Bytes    int64  `json:"bytes"`
	Objects  int64  `json:"objects"`
}

// Memory describes the memory of all nodes.
type Memory struct {
	At    time.Time  `json:"at"`
	Rows  [][]string `json:"nodes"`
	Heaps []Heap     `json:"heaps"`
	// MetricsError says why Rows are missing.
	MetricsError string `json:"untold,omitempty"`
}

var memoryColumns = []column{
	{"RESIDENT", `process_resident_memory_bytes{job="websocket-app"}`, "B"},
	{"LIMIT", `switchyard_memory_limit_bytes{job="websocket-app"}`, "B"},
	{"HEAP", `go_memstats_heap_inuse_bytes{job="websocket-app"}`, "B"},
	{"QUEUES", `websocket_queue_bytes{job="websocket-app"}`, "B"},
	{"GOROUTINES", `go_goroutines{job="websocket-app"}`, ""},
	{"CONNECTIONS", `websocket_active_connections{job="websocket-app"}`, ""},
	{"RESIDENT 1 H AGO", `process_resident_memory_bytes{job="websocket-app"} offset 1h`, "B"},
}

// ReadMemory queries Prometheus and records a heap profile of each node, which is
// also written into folder unless that is empty. p may be nil.
func ReadMemory(ctx context.Context, s Stack, p *stack.Prometheus, folder string) (*Memory, error) {
	m := &Memory{At: time.Now().UTC()}
	all, err := runningNodes(ctx, s)
	if err != nil {
		return nil, err
	}
	if p != nil {
		if m.Rows, err = nodeRows(ctx, p, memoryColumns); err != nil {
			m.MetricsError = err.Error()
		}
	}
	for _, c := range all {
		m.Heaps = append(m.Heaps, readHeap(ctx, s, c, folder))
	}
	return m, nil
}

func readHeap(ctx context.Context, s Stack, c stack.Container, folder string) Heap {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	h := Heap{Node: c.Name}
	b, err := execOnNode(ctx, s, c, "profile", "heap")
	if err == nil {
		h.Bytes, h.Sites, err = parseHeap(b)
	}
	if err == nil && folder != "" {
		h.File = filepath.Join(folder, c.Name+".heap.pprof")
		err = os.WriteFile(h.File, b, 0o600)
	}
	if err != nil {
		h.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return h
}

// parseHeap sums a heap profile by function. The runtime has scaled the samples up
// to estimates of everything that is in use.
func parseHeap(b []byte) (total int64, sites []AllocationSite, err error) {
	p, err := profile.ParseData(b)
	if err != nil {
		return 0, nil, fmt.Errorf("read a heap profile: %w", err)
	}
	objects, noObjects := p.SampleIndexByName("inuse_objects")
	size, noSize := p.SampleIndexByName("inuse_space")
	if err := errors.Join(noObjects, noSize); err != nil {
		return 0, nil, fmt.Errorf("read a heap profile: %w", err)
	}
	byFunction := map[string]*AllocationSite{}
	for _, s := range p.Sample {
		if s.Value[size] == 0 {
			continue
		}
		name := allocatingFunction(s)
		if byFunction[name] == nil {
			byFunction[name] = &AllocationSite{Function: name}
		}
		byFunction[name].Bytes += s.Value[size]
		byFunction[name].Objects += s.Value[objects]
		total += s.Value[size]
	}
	for _, s := range byFunction {
		sites = append(sites, *s)
	}
	slices.SortFunc(sites, func(a, b AllocationSite) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Function, b.Function))
	})
	return total, sites[:min(len(sites), 12)], nil
}

// allocatingFunction returns the innermost function of this module in a stack, or
// the innermost of all if there is none of this module.
func allocatingFunction(s *profile.Sample) string {
	innermost := ""
	for _, location := range s.Location {
		for _, line := range location.Line {
			if line.Function == nil {
				continue
			}
			innermost = cmp.Or(innermost, line.Function.Name)
			if strings.HasPrefix(line.Function.Name, "switchyard/") {
				return line.Function.Name
			}
		}
	}
	return cmp.Or(innermost, "unknown")
}

func (m *Memory) String() string {
	var b strings.Builder
	if m.MetricsError != "" {
		fmt.Fprintf(&b, "The memory of nodes is unknown: %s\n", m.MetricsError)
	} else {
		writeNodeTable(&b, memoryColumns, m.Rows)
	}
	for _, h := range m.Heaps {
		if h.Error != "" {
			fmt.Fprintf(&b, "\n%s: no heap profile: %s\n", h.Node, h.Error)
			continue
		}
		fmt.Fprintf(&b, "\n%s: %v on the heap, by the function that allocated it:\n", h.Node, backup.Bytes(h.Bytes))
		var rows [][]string
		for _, s := range h.Sites {
			rows = append(rows, []string{backup.Bytes(s.Bytes).String(), fmt.Sprint(s.Objects), s.Function})
		}
		writeTable(&b, []string{"BYTES", "OBJECTS", "FUNCTION"}, rows)
		if h.File != "" {
			fmt.Fprintf(&b, "The profile is in %s: go tool pprof -http : %[1]s\n", h.File)
		}
	}
	return b.String()
}
