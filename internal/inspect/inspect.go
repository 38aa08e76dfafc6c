// Package inspect shows operators the state of a stack: a daily report, live
// activity, slow queries, patterns of connections, errors, memory, and the report
// of a deploy or an incident. It queries Prometheus, PostgreSQL and the debug
// pages of the nodes, and reads the log of the service. It changes nothing.
package inspect

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"switchyard/internal/stack"
)

// A Stack is what this package needs of a stack on this host.
type Stack interface {
	// Run runs a program beside a running service.
	Run(ctx context.Context, service string, p stack.Program) error
	// Exec runs a program in a container that is known by its name.
	Exec(ctx context.Context, container string, p stack.Program) error
	// Containers returns all containers of the stack.
	Containers(ctx context.Context) ([]stack.Container, error)
	// Logs writes the log lines of services since a moment.
	Logs(ctx context.Context, since time.Time, w io.Writer, services ...string) error
}

// nodeServices are the services that run the service itself.
var nodeServices = []string{"app_blue", "app_green"}

// A Status is the result of a check, as the page prints it.
type Status string

// The values of Status.
const (
	StatusOK   Status = "ok"
	StatusWarn Status = "look" // out of the ordinary, without harm to users yet
	StatusFail Status = "BAD"
)

// A CheckResult is one line of a page.
type CheckResult struct {
	Status Status `json:"mark"`
	Name   string `json:"what"`
	Detail string `json:"says"`
}

// A Section is a part of a page.
type Section struct {
	Title   string        `json:"title"`
	Results []CheckResult `json:"lines"`
}

func (s *Section) add(status Status, name, format string, args ...any) {
	s.Results = append(s.Results, CheckResult{status, name, fmt.Sprintf(format, args...)})
}

// fail adds a check that could not be run.
func (s *Section) fail(name string, err error) {
	s.add(StatusFail, name, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// A DailyResult is the daily report that `switchyard check` prints.
type DailyResult struct {
	At       time.Time `json:"at"`
	Sections []Section `json:"sections"`
}

// Worst returns the worst status of all lines.
func (p *DailyResult) Worst() Status {
	worst := StatusOK
	for _, s := range p.Sections {
		for _, l := range s.Results {
			if l.Status == StatusFail || l.Status == StatusWarn && worst == StatusOK {
				worst = l.Status
			}
		}
	}
	return worst
}

func (p *DailyResult) String() string {
	var b strings.Builder
	counts := map[Status]int{}
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "%s\n", s.Title)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, l := range s.Results {
			counts[l.Status]++
			fmt.Fprintf(w, "  %s\t%s\t%s\n", l.Status, l.Name, l.Detail)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(&b, "%d bad, %d to look at, %d good, at %s.\n", counts[StatusFail], counts[StatusWarn], counts[StatusOK], p.At.UTC().Format(time.RFC3339))
	return b.String()
}

// writeTable prints rows in aligned columns under a head.
func writeTable(w io.Writer, head []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush()
}

// runningNodes returns the containers of the nodes that run.
func runningNodes(ctx context.Context, s Stack) ([]stack.Container, error) {
	all, err := s.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var out []stack.Container
	for _, c := range all {
		if c.Running && c.IsNode() {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, stack.ErrNoNode
	}
	return out, nil
}
