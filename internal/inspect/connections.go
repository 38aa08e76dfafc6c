package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// An Address is what connections from one address did.
type Address struct {
	Address string `json:"address"`
	Ended   int    `json:"ended"`
	Short   int    `json:"short"` // ended within ten seconds
	Slow    int    `json:"slow"`
	Worst   string `json:"worst_reason"`
}

// Connections are the patterns of those that ended, and what there is now.
type Connections struct {
	Since time.Time `json:"since"`
	Open  float64   `json:"open"`
	Ended int       `json:"ended"`
	// Codes and Reasons say how; Results are those of handshakes.
	Codes   []Count `json:"codes"`
	Reasons []Count `json:"reasons"`
	Results []Count `json:"handshakes"`
	// Lives are the quantiles of how long those lived that ended.
	Lives     [3]time.Duration `json:"lives_p10_p50_p90"`
	Addresses []Address        `json:"addresses"`
	// Many is how many addresses there were.
	Many   int    `json:"address_count"`
	Untold string `json:"untold,omitempty"`
}

const (
	// shortLife is a connection that came for nothing.
	shortLife = 10 * time.Second
	// topAddresses are told; maxAddresses are told apart.
	topAddresses = 15
	maxAddresses = 200_000
	maxLives     = 1_000_000
)

// ReadConnections looks at connections since a moment. p may be nil.
func ReadConnections(ctx context.Context, s Stack, p *Prometheus, since time.Time) (*Connections, error) {
	out := &Connections{Since: since.UTC()}
	codes, reasons := map[string]float64{}, map[string]float64{}
	addresses := map[string]*Address{}
	worst := map[string]map[string]int{}
	var lives []time.Duration
	_, err := eachLine(ctx, s, since, func(l logLine) {
		if l.Msg != "connection ended" {
			return
		}
		out.Ended++
		codes[fmt.Sprint(l.Code)]++
		reasons[l.Reason]++
		life, _ := time.ParseDuration(l.Duration)
		if len(lives) < maxLives {
			lives = append(lives, life)
		}
		host := l.Remote
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		a := addresses[host]
		if a == nil {
			if len(addresses) >= maxAddresses {
				return
			}
			a = &Address{Address: host}
			addresses[host], worst[host] = a, map[string]int{}
		}
		a.Ended++
		if life < shortLife {
			a.Short++
		}
		if l.Reason == "slow" {
			a.Slow++
		}
		worst[host][l.Reason]++
	})
	if err != nil {
		return nil, err
	}
	out.Codes, out.Reasons = counted(codes), counted(reasons)
	out.Many = len(addresses)
	out.Addresses = busiest(addresses, worst)
	slices.Sort(lives)
	for i, q := range []float64{.1, .5, .9} {
		if n := len(lives); n > 0 {
			out.Lives[i] = lives[min(int(q*float64(n)), n-1)]
		}
	}
	if p != nil {
		if err := out.ask(ctx, p); err != nil {
			out.Untold = err.Error()
		}
	}
	return out, nil
}

func (c *Connections) ask(ctx context.Context, p *Prometheus) (err error) {
	if c.Open, _, err = p.One(ctx, "sum(websocket_active_connections)", time.Now()); err != nil {
		return err
	}
	c.Results, err = p.increases(ctx, "websocket_connections_total", "result", time.Since(c.Since))
	return err
}

func counted(m map[string]float64) (out []Count) {
	for name, n := range m {
		out = append(out, Count{name, n})
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name)) })
	return out
}

func busiest(all map[string]*Address, reasons map[string]map[string]int) (out []Address) {
	for host, a := range all {
		most := 0
		for reason, n := range reasons[host] {
			if n > most || n == most && reason < a.Worst {
				most, a.Worst = n, reason
			}
		}
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b Address) int {
		return cmp.Or(cmp.Compare(b.Ended, a.Ended), strings.Compare(a.Address, b.Address))
	})
	return out[:min(len(out), topAddresses)]
}

func (c *Connections) String() string {
	var b strings.Builder
	span := time.Since(c.Since)
	fmt.Fprintf(&b, "Since %s %d connections ended, %.1f a minute, from %d addresses", c.Since.Format(time.RFC3339), c.Ended, float64(c.Ended)/max(span.Minutes(), 1), c.Many)
	if c.Untold == "" {
		fmt.Fprintf(&b, "; %.0f are open", c.Open)
	}
	b.WriteString(".\n")
	if c.Ended > 0 {
		fmt.Fprintf(&b, "They had lived %v (p10), %v (p50), %v (p90).\n", round(c.Lives[0]), round(c.Lives[1]), round(c.Lives[2]))
	}
	for _, part := range []struct {
		name   string
		counts []Count
	}{{"Handshakes", c.Results}, {"Reasons", c.Reasons}, {"Close codes", c.Codes}} {
		if len(part.counts) == 0 {
			continue
		}
		texts := make([]string, len(part.counts))
		for i, n := range part.counts {
			texts[i] = fmt.Sprintf("%s %.0f", n.Name, n.Count)
		}
		fmt.Fprintf(&b, "%s: %s.\n", part.name, strings.Join(texts, ", "))
	}
	if len(c.Addresses) > 0 {
		var rows [][]string
		for _, a := range c.Addresses {
			rows = append(rows, []string{a.Address, fmt.Sprint(a.Ended), fmt.Sprint(a.Short), fmt.Sprint(a.Slow), a.Worst})
		}
		table(&b, []string{"ADDRESS", "ENDED", "WITHIN 10 S", "SLOW", "MOST OFTEN"}, rows)
	}
	if c.Untold != "" {
		fmt.Fprintf(&b, "Handshakes are not known: %s\n", c.Untold)
	}
	return b.String()
}

// round keeps three digits or so.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < time.Minute:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
