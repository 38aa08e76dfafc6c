package inspect

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

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
	{"RESIDENT", `process_resident_memory_bytes{job="switchyard"}`, "B"},
	{"LIMIT", `switchyard_memory_limit_bytes{job="switchyard"}`, "B"},
	{"HEAP", `go_memstats_heap_inuse_bytes{job="switchyard"}`, "B"},
	{"QUEUES", `websocket_queue_bytes{job="switchyard"}`, "B"},
	{"GOROUTINES", `go_goroutines{job="switchyard"}`, ""},
	{"CONNECTIONS", `websocket_active_connections{job="switchyard"}`, ""},
	{"RESIDENT 1 H AGO", `process_resident_memory_bytes{job="switchyard"} offset 1h`, "B"},
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
	text, err := execOnNode(ctx, s, c, "look", "heap")
	if err == nil {
		h.Bytes, h.Sites, err = parseHeap(text)
	}
	if err == nil && folder != "" {
		var b []byte
		if b, err = execOnNode(ctx, s, c, "profile", "heap"); err == nil {
			h.File = filepath.Join(folder, c.Name+".heap.pprof")
			err = os.WriteFile(h.File, b, 0o600)
		}
	}
	if err != nil {
		h.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return h
}

// parseHeap reads the text form of a heap profile: for each stack a line
// "objects: bytes [all objects: all bytes] @ addresses", then one line for each
// frame, which begins with #. The runtime has already scaled the samples up.
func parseHeap(text []byte) (total int64, sites []AllocationSite, err error) {
	byFunction := map[string]*AllocationSite{}
	var pending *AllocationSite // not nil: the current stack has no function yet
	var bytesOf, objectsOf int64
	innermost := ""
	record := func(function string) {
		if byFunction[function] == nil {
			byFunction[function] = &AllocationSite{Function: function}
		}
		byFunction[function].Bytes += bytesOf
		byFunction[function].Objects += objectsOf
		pending = nil
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	headerFound := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "heap profile:"):
			headerFound = true
		case strings.HasPrefix(line, "#\t") && pending != nil:
			f := strings.Fields(line)
			if len(f) < 3 {
				continue
			}
			function, _, _ := strings.Cut(f[2], "+0x")
			innermost = cmp.Or(innermost, function)
			if strings.HasPrefix(function, "switchyard/") {
				record(function)
			}
		case strings.Contains(line, " @ ") && line[0] != '#':
			if pending != nil {
				record(cmp.Or(innermost, "unknown"))
			}
			if objectsOf, bytesOf, err = parseStack(line); err != nil {
				return 0, nil, err
			}
			total += bytesOf
			pending, innermost = new(AllocationSite), ""
		}
	}
	if pending != nil {
		record(cmp.Or(innermost, "unknown"))
	}
	if err := lines.Err(); err != nil || !headerFound {
		return 0, nil, fmt.Errorf("the answer is no heap profile: %q", truncate(string(text), 80))
	}
	for _, s := range byFunction {
		if s.Bytes > 0 {
			sites = append(sites, *s)
		}
	}
	slices.SortFunc(sites, func(a, b AllocationSite) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Function, b.Function))
	})
	return total, sites[:min(len(sites), 12)], nil
}

// parseStack reads the objects and bytes in use of a stack's first line.
func parseStack(line string) (objects, size int64, err error) {
	head, _, _ := strings.Cut(line, "[")
	o, b, found := strings.Cut(head, ":")
	objects, err1 := strconv.ParseInt(strings.TrimSpace(o), 10, 64)
	size, err2 := strconv.ParseInt(strings.TrimSpace(b), 10, 64)
	if !found || err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("%q is not a line of a heap profile", line)
	}
	return objects, size, nil
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
