package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Room is a live room over all nodes.
type Room struct {
	Room    string `json:"room"`
	Seq     int64  `json:"seq"`
	Members int    `json:"members"`
	// Rate is messages a second since the last look; -1 at the first.
	Rate float64 `json:"rate"`
	// Held and Behind are what waits, on the node where it is worst.
	Held   int   `json:"held"`
	Behind int64 `json:"behind"`

	at time.Time // when a node said Seq
}

// A Now is one look of top.
type Now struct {
	At    time.Time  `json:"at"`
	Nodes [][]string `json:"nodes"`
	Rooms []Room     `json:"rooms"`
	// Live is how many rooms there are; the lists of nodes end at 1,000.
	Live   int    `json:"live_rooms"`
	Untold string `json:"untold,omitempty"`
	Mute   string `json:"mute,omitempty"`
}

const window = `[1m]`

var topColumns = []column{
	{"CONNECTIONS", `websocket_active_connections{job="switchyard"}`, ""},
	{"IN/S", `sum by (instance, color) (rate(websocket_messages_received_total{job="switchyard"}` + window + `))`, ""},
	{"OUT/S", `rate(websocket_messages_sent_total{job="switchyard"}` + window + `)`, ""},
	{"QUEUED", `websocket_queue_bytes{job="switchyard"}`, "B"},
	{"SLOW/MIN", `60 * rate(websocket_disconnections_total{job="switchyard",reason="slow"}` + window + `)`, ""},
	{"PENDING", `store_pending_messages{job="switchyard"}`, ""},
	{"ACK P99", `histogram_quantile(0.99, sum by (le, instance, color) (rate(websocket_publish_duration_seconds_bucket{job="switchyard"}` + window + `)))`, "s"},
	{"DELIVERY P99", `histogram_quantile(0.99, sum by (le, instance, color) (rate(websocket_delivery_duration_seconds_bucket{job="switchyard"}` + window + `)))`, "s"},
	{"CPU", `rate(process_cpu_seconds_total{job="switchyard"}` + window + `)`, "%"},
	{"RESIDENT", `process_resident_memory_bytes{job="switchyard"}`, "B"},
	{"DRAINING", `websocket_draining{job="switchyard"}`, ""},
}

// A Watcher looks again and again.
type Watcher struct {
	Stack      Stack
	Prometheus *Prometheus
	// Rooms are how many are told.
	Rooms int

	before map[string]Room
}

// Look looks once. It fails only when neither Prometheus nor a node answers.
func (w *Watcher) Look(ctx context.Context) (*Now, error) {
	n := &Now{At: time.Now().UTC()}
	var err error
	if n.Nodes, err = w.Prometheus.grid(ctx, topColumns); err != nil {
		n.Untold = err.Error()
	}
	if err := w.rooms(ctx, n); err != nil {
		n.Mute = strings.ReplaceAll(err.Error(), "\n", "; ")
		if n.Untold != "" {
			return nil, fmt.Errorf("%s; %s", n.Untold, n.Mute)
		}
	}
	return n, nil
}

// rooms asks each node for its live rooms, and brings them together.
func (w *Watcher) rooms(ctx context.Context, n *Now) error {
	all, err := running(ctx, w.Stack)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	merged := map[string]Room{}
	for _, c := range all {
		answer, err := askNode(ctx, w.Stack, c, "look", "rooms")
		if err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
		at := time.Now()
		var rooms []Room
		if err := json.Unmarshal(answer, &rooms); err != nil {
			return fmt.Errorf("%s answered %q", c.Name, short(string(answer), 80))
		}
		for _, r := range rooms {
			if strings.HasPrefix(r.Room, "_") {
				continue
			}
			m := merged[r.Room]
			if m.at.IsZero() || r.Seq > m.Seq {
				m.Seq, m.at = r.Seq, at
			}
			merged[r.Room] = Room{
				Room: r.Room, Seq: m.Seq, Members: m.Members + r.Members,
				Held: max(m.Held, r.Held), Behind: max(m.Behind, r.Behind), at: m.at,
			}
		}
	}
	w.rate(merged)
	n.Live = len(merged)
	for _, r := range merged {
		n.Rooms = append(n.Rooms, r)
	}
	slices.SortFunc(n.Rooms, func(a, b Room) int {
		return cmp.Or(cmp.Compare(b.Rate, a.Rate), cmp.Compare(b.Members, a.Members), strings.Compare(a.Room, b.Room))
	})
	n.Rooms = n.Rooms[:min(len(n.Rooms), w.Rooms)]
	return nil
}

// rate tells how fast each room has grown since the last look. Between two looks
// at a node lies what a busy host makes of a period.
func (w *Watcher) rate(now map[string]Room) {
	for name, r := range now {
		r.Rate = -1
		if before, ok := w.before[name]; ok && r.at.After(before.at) {
			r.Rate = float64(max(r.Seq-before.Seq, 0)) / r.at.Sub(before.at).Seconds()
		}
		now[name] = r
	}
	w.before = now
}

func (n *Now) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", n.At.Format(time.RFC3339))
	if n.Untold != "" {
		fmt.Fprintf(&b, "What nodes do is not known: %s\n", n.Untold)
	} else {
		gridTable(&b, topColumns, n.Nodes)
	}
	if n.Mute != "" {
		fmt.Fprintf(&b, "\nRooms are not known: %s\n", n.Mute)
		return b.String()
	}
	fmt.Fprintf(&b, "\n%d live rooms\n", n.Live)
	var rows [][]string
	for _, r := range n.Rooms {
		rate := "–"
		if r.Rate >= 0 {
			rate = fmt.Sprintf("%.1f", r.Rate)
		}
		rows = append(rows, []string{r.Room, rate, fmt.Sprint(r.Members), fmt.Sprint(r.Seq), fmt.Sprint(r.Behind), fmt.Sprint(r.Held)})
	}
	table(&b, []string{"ROOM", "MESSAGES/S", "MEMBERS", "SEQ", "BEHIND", "HELD"}, rows)
	return b.String()
}
