package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// AddressStats counts the connections from one address that ended.
type AddressStats struct {
	Address   string `json:"address"`
	Ended     int    `json:"ended"`
	Short     int    `json:"short"` // lived less than shortLifetime
	Slow      int    `json:"slow"`
	TopReason string `json:"worst_reason"`
}

// Connections summarizes the connections that ended since a moment, from the
// log, and those that are open, from the metrics.
type Connections struct {
	Since time.Time `json:"since"`
	Open  float64   `json:"open"`
	Ended int       `json:"ended"`
	// Codes and Reasons count the close codes and the reasons of connections that
	// ended. Handshakes counts the results of handshakes, from the metrics.
	Codes      []Count `json:"codes"`
	Reasons    []Count `json:"reasons"`
	Handshakes []Count `json:"handshakes"`
	// Lifetimes are the 10th, 50th and 90th percentile of how long connections
	// lived that ended.
	Lifetimes [3]time.Duration `json:"lives_p10_p50_p90"`
	// Addresses are those with the most connections that ended, at most
	// topAddresses of AddressCount.
	Addresses    []AddressStats `json:"addresses"`
	AddressCount int            `json:"address_count"`
	// MetricsError says why Open and Handshakes are missing.
	MetricsError string `json:"untold,omitempty"`
}

const (
	// A connection that lived less than shortLifetime is counted as short: many of
	// them from one address are a client that fails and retries.
	shortLifetime = 10 * time.Second
	// topAddresses is how many addresses are listed.
	topAddresses = 15
	// maxAddresses and maxLifetimes bound the memory that a long log takes.
	maxAddresses = 200_000
	maxLifetimes = 1_000_000
)

// ReadConnections summarizes the connections since a moment. Without Prometheus
// (p is nil) it has only what the log says.
func ReadConnections(ctx context.Context, s Stack, p *stack.Prometheus, since time.Time) (*Connections, error) {
	out := &Connections{Since: since.UTC()}
	codes, reasons := map[string]float64{}, map[string]float64{}
	addresses := map[string]*AddressStats{}
	reasonsByHost := map[string]map[string]int{}
	var lifetimes []time.Duration
	_, err := eachLine(ctx, s, since, func(l logLine) {
		if l.Msg != "connection ended" {
			return
		}
		out.Ended++
		codes[fmt.Sprint(l.Code)]++
		reasons[l.Reason]++
		lifetime, _ := time.ParseDuration(l.Duration)
		if len(lifetimes) < maxLifetimes {
			lifetimes = append(lifetimes, lifetime)
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
			a = &AddressStats{Address: host}
			addresses[host], reasonsByHost[host] = a, map[string]int{}
		}
		a.Ended++
		if lifetime < shortLifetime {
			a.Short++
		}
		if l.Reason == "slow" {
			a.Slow++
		}
		reasonsByHost[host][l.Reason]++
	})
	if err != nil {
		return nil, err
	}
	out.Codes, out.Reasons = sortedCounts(codes), sortedCounts(reasons)
	out.AddressCount = len(addresses)
	out.Addresses = busiest(addresses, reasonsByHost)
	slices.Sort(lifetimes)
	for i, q := range []float64{.1, .5, .9} {
		if n := len(lifetimes); n > 0 {
			out.Lifetimes[i] = lifetimes[min(int(q*float64(n)), n-1)]
		}
	}
	if p != nil {
		if err := out.queryMetrics(ctx, p); err != nil {
			out.MetricsError = err.Error()
		}
	}
	return out, nil
}

func (c *Connections) queryMetrics(ctx context.Context, p *stack.Prometheus) (err error) {
	if c.Open, _, err = p.QueryValue(ctx, "sum(websocket_active_connections)", time.Now()); err != nil {
		return err
	}
	c.Handshakes, err = increases(ctx, p, "websocket_connections_total", "result", time.Since(c.Since))
	return err
}

// sortedCounts returns the counts of a map, the largest first.
func sortedCounts(m map[string]float64) (out []Count) {
	for name, n := range m {
		out = append(out, Count{name, n})
	}
	slices.SortFunc(out, func(a, b Count) int { return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name)) })
	return out
}

// busiest sets the most frequent reason of each address, and returns the
// topAddresses with the most connections.
func busiest(all map[string]*AddressStats, reasons map[string]map[string]int) (out []AddressStats) {
	for host, a := range all {
		topCount := 0
		for reason, n := range reasons[host] {
			if n > topCount || n == topCount && reason < a.TopReason {
				topCount, a.TopReason = n, reason
			}
		}
		out = append(out, *a)
	}
	slices.SortFunc(out, func(a, b AddressStats) int {
		return cmp.Or(cmp.Compare(b.Ended, a.Ended), strings.Compare(a.Address, b.Address))
	})
	return out[:min(len(out), topAddresses)]
}

func (c *Connections) String() string {
	var b strings.Builder
	span := time.Since(c.Since)
	fmt.Fprintf(&b, "Since %s %d connections ended, %.1f a minute, from %d addresses", c.Since.Format(time.RFC3339), c.Ended, float64(c.Ended)/max(span.Minutes(), 1), c.AddressCount)
	if c.MetricsError == "" {
		fmt.Fprintf(&b, "; %.0f are open", c.Open)
	}
	b.WriteString(".\n")
	if c.Ended > 0 {
		fmt.Fprintf(&b, "They had lived %v (p10), %v (p50), %v (p90).\n", round(c.Lifetimes[0]), round(c.Lifetimes[1]), round(c.Lifetimes[2]))
	}
	for _, part := range []struct {
		name   string
		counts []Count
	}{{"Handshakes", c.Handshakes}, {"Reasons", c.Reasons}, {"Close codes", c.Codes}} {
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
			rows = append(rows, []string{a.Address, fmt.Sprint(a.Ended), fmt.Sprint(a.Short), fmt.Sprint(a.Slow), a.TopReason})
		}
		writeTable(&b, []string{"ADDRESS", "ENDED", "WITHIN 10 S", "SLOW", "MOST OFTEN"}, rows)
	}
	if c.MetricsError != "" {
		fmt.Fprintf(&b, "Handshakes are unknown: %s\n", c.MetricsError)
	}
	return b.String()
}

// round leaves about three digits of a duration.
func round(d time.Duration) time.Duration {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond)
	case d < time.Minute:
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Second)
}
