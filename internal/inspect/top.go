package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// A Room is the state of a room that has members, merged from all nodes.
type Room struct {
	Room    string `json:"room"`
	Seq     int64  `json:"seq"`
	Members int    `json:"members"`
	// Rate is messages a second since the previous snapshot; -1 in the first.
	Rate float64 `json:"rate"`
	// Buffered counts messages in the reorder buffer and Behind those that are
	// known and not yet delivered, each on the node where it is largest.
	Buffered int   `json:"held"`
	Behind   int64 `json:"behind"`

	seqAt time.Time // when Seq was read from a node
}

// A TopSnapshot is one screen of `switchyard top`.
type TopSnapshot struct {
	At    time.Time  `json:"at"`
	Nodes [][]string `json:"nodes"`
	Rooms []Room     `json:"rooms"`
	// LiveRooms is how many rooms there are. A node lists at most 1,000.
	LiveRooms int `json:"live_rooms"`
	// MetricsError says why Nodes are missing, RoomsError why Rooms are.
	MetricsError string `json:"untold,omitempty"`
	RoomsError   string `json:"mute,omitempty"`
}

const rateWindow = `[1m]`

var topColumns = []column{
	{"CONNECTIONS", `websocket_active_connections{job="websocket-app"}`, ""},
	{"IN/S", `sum by (instance, color) (rate(websocket_messages_received_total{job="websocket-app"}` + rateWindow + `))`, ""},
	{"OUT/S", `rate(websocket_messages_sent_total{job="websocket-app"}` + rateWindow + `)`, ""},
	{"QUEUED", `websocket_queue_bytes{job="websocket-app"}`, "B"},
	{"SLOW/MIN", `60 * rate(websocket_disconnections_total{job="websocket-app",reason="slow"}` + rateWindow + `)`, ""},
	{"PENDING", `store_pending_messages{job="websocket-app"}`, ""},
	{"ACK P99", `histogram_quantile(0.99, sum by (le, instance, color) (rate(websocket_publish_duration_seconds_bucket{job="websocket-app"}` + rateWindow + `)))`, "s"},
	{"DELIVERY P99", `histogram_quantile(0.99, sum by (le, instance, color) (rate(websocket_delivery_duration_seconds_bucket{job="websocket-app"}` + rateWindow + `)))`, "s"},
	{"CPU", `rate(process_cpu_seconds_total{job="websocket-app"}` + rateWindow + `)`, "%"},
	{"RESIDENT", `process_resident_memory_bytes{job="websocket-app"}`, "B"},
	{"DRAINING", `websocket_draining{job="websocket-app"}`, ""},
}

// A Watcher takes snapshots of a stack one after the other. Its methods belong to
// one goroutine.
type Watcher struct {
	Stack      Stack
	Prometheus *stack.Prometheus
	// MaxRooms bounds the rooms of a snapshot.
	MaxRooms int

	previous map[string]Room
}

// Snapshot reads nodes and rooms. It fails only when both can't be read.
func (w *Watcher) Snapshot(ctx context.Context) (*TopSnapshot, error) {
	n := &TopSnapshot{At: time.Now().UTC()}
	var err error
	if n.Nodes, err = nodeRows(ctx, w.Prometheus, topColumns); err != nil {
		n.MetricsError = err.Error()
	}
	if err := w.readRooms(ctx, n); err != nil {
		n.RoomsError = strings.ReplaceAll(err.Error(), "\n", "; ")
		if n.MetricsError != "" {
			return nil, fmt.Errorf("%s; %s", n.MetricsError, n.RoomsError)
		}
	}
	return n, nil
}

// readRooms reads the live rooms of each node, and merges them.
func (w *Watcher) readRooms(ctx context.Context, n *TopSnapshot) error {
	all, err := runningNodes(ctx, w.Stack)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	merged := map[string]Room{}
	for _, c := range all {
		answer, err := execOnNode(ctx, w.Stack, c, "look", "rooms")
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		at := time.Now()
		var rooms []Room
		if err := json.Unmarshal(answer, &rooms); err != nil {
			return fmt.Errorf("%s answered %q", c.Name, truncate(string(answer), 80))
		}
		for _, r := range rooms {
			if strings.HasPrefix(r.Room, "_") {
				continue
			}
			m := merged[r.Room]
			if m.seqAt.IsZero() || r.Seq > m.Seq {
				m.Seq, m.seqAt = r.Seq, at
			}
			merged[r.Room] = Room{
				Room: r.Room, Seq: m.Seq, Members: m.Members + r.Members,
				Buffered: max(m.Buffered, r.Buffered), Behind: max(m.Behind, r.Behind), seqAt: m.seqAt,
			}
		}
	}
	w.setRates(merged)
	n.LiveRooms = len(merged)
	for _, r := range merged {
		n.Rooms = append(n.Rooms, r)
	}
	slices.SortFunc(n.Rooms, func(a, b Room) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Members, a.Members), strings.Compare(a.Room, b.Room))
	})
	n.Rooms = n.Rooms[:min(len(n.Rooms), w.MaxRooms)]
	return nil
}

// setRates sets how fast each room has grown since the previous snapshot. It
// divides by the time between the reads, since a busy host stretches the period.
func (w *Watcher) setRates(now map[string]Room) {
	for name, r := range now {
		r.Rate = -1
		if before, ok := w.previous[name]; ok && r.seqAt.After(before.seqAt) {
			r.Rate = float64(max(r.Seq-before.Seq, 0)) / r.seqAt.Sub(before.seqAt).Seconds()
		}
		now[name] = r
	}
	w.previous = now
}

func (s *TopSnapshot) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", s.At.Format(time.RFC3339))
	if s.MetricsError != "" {
		fmt.Fprintf(&b, "The activity of nodes is unknown: %s\n", s.MetricsError)
	} else {
		writeNodeTable(&b, topColumns, s.Nodes)
	}
	if s.RoomsError != "" {
		fmt.Fprintf(&b, "\nRooms are unknown: %s\n", s.RoomsError)
		return b.String()
	}
	fmt.Fprintf(&b, "\n%d live rooms\n", s.LiveRooms)
	var rows [][]string
	for _, r := range s.Rooms {
		rate := "–"
		if r.Rate >= 0 {
			rate = fmt.Sprintf("%.1f", r.Rate)
		}
		rows = append(rows, []string{r.Room, rate, fmt.Sprint(r.Members), fmt.Sprint(r.Seq), fmt.Sprint(r.Behind), fmt.Sprint(r.Buffered)})
	}
	writeTable(&b, []string{"ROOM", "MESSAGES/S", "MEMBERS", "SEQ", "BEHIND", "HELD"}, rows)
	return b.String()
}
