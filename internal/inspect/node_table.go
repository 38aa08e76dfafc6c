package inspect

import (
	"bytes"
	"cmp"
	"context"
	"io"
	"slices"
	"strings"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// A column of a node table is an expression that has a value for each node.
type column struct{ head, expr, unit string }

// nodeRows evaluates the columns and returns one row for each node, which begins
// with the node's color and instance.
func nodeRows(ctx context.Context, p *stack.Prometheus, columns []column) ([][]string, error) {
	byNode := map[string][]string{}
	for i, c := range columns {
		samples, err := p.Query(ctx, c.expr)
		if err != nil {
			return nil, err
		}
		for _, s := range samples {
			node := strings.TrimSpace(s.Labels["color"] + " " + s.Labels["instance"])
			if byNode[node] == nil {
				byNode[node] = make([]string, len(columns)+1)
				byNode[node][0] = node
			}
			byNode[node][i+1] = checks.FormatValue(s.Value, c.unit)
		}
	}
	out := make([][]string, 0, len(byNode))
	for _, row := range byNode {
		for i := range row {
			row[i] = cmp.Or(row[i], "–")
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return out, nil
}

// writeNodeTable prints the rows that nodeRows returned.
func writeNodeTable(w io.Writer, columns []column, rows [][]string) {
	head := []string{"NODE"}
	for _, c := range columns {
		head = append(head, c.head)
	}
	writeTable(w, head, rows)
}

// execOnNode runs the service's program in a node's container, whose image has no
// other program, and returns its output.
func execOnNode(ctx context.Context, s Stack, c stack.Container, args ...string) ([]byte, error) {
	var out bytes.Buffer
	err := s.Exec(ctx, c.Name, stack.Program{Args: append([]string{"/server"}, args...), Stdout: &out})
	return out.Bytes(), err
}
