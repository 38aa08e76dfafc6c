// Package inspect tells operators how a stack is: the morning's page, what
// happens now, slow queries, patterns of connections, errors, memory, and the
// report of a deploy or an incident. It asks Prometheus, reads the log lines of
// the service, and has PostgreSQL and the nodes look at themselves. It changes
// nothing.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"switchyard/internal/backup"
)

// A Stack is where programs can be run and logs be read.
type Stack interface {
	// Run runs a program beside a running service.
	Run(ctx context.Context, service string, p backup.Program) error
	ContainerRuntime
}

// ContainerRuntime are the containers.
type ContainerRuntime interface {
	// Exec runs a program in a container that is known by its name.
	Exec(ctx context.Context, container string, p backup.Program) error
	// Containers returns all containers of the stack.
	Containers(ctx context.Context) ([]backup.Container, error)
	// Logs writes the log lines of services since a moment.
	Logs(ctx context.Context, since time.Time, w io.Writer, services ...string) error
}

// nodeServices are the services that run the service itself.
var nodeServices = []string{"app_blue", "app_green"}

// A Status says what to make of a line.
type Status string

// The marks.
const (
	StatusOK   Status = "ok"
	StatusWarn Status = "look" // not as it should be; nobody is hurt yet
	StatusFail Status = "BAD"
)

// A CheckResult is one statement of a page.
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

// fail adds that something can't be told, which is bad news itself.
func (s *Section) fail(name string, err error) {
	s.add(StatusFail, name, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// A Page is what check prints.
type Page struct {
	At       time.Time `json:"at"`
	Sections []Section `json:"sections"`
}

// Worst returns the worst mark of all lines.
func (p *Page) Worst() Status {
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

func (p *Page) String() string {
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

// writeTable prints rows under a head, aligned.
func writeTable(w io.Writer, head []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush()
}

// ErrNoNode says that no node of the service runs.
var ErrNoNode = errors.New("no node of the service runs: neither app_blue nor app_green")

// runningNodes returns the containers of the nodes that run.
func runningNodes(ctx context.Context, s Stack) ([]backup.Container, error) {
	all, err := s.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var out []backup.Container
	for _, c := range all {
		if c.Running && isNode(c.Service) {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return nil, ErrNoNode
	}
	return out, nil
}

func isNode(service string) bool { return service == nodeServices[0] || service == nodeServices[1] }

// formatAge prints an age for people.
func formatAge(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 72*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	}
	return fmt.Sprintf("%.1f d", d.Hours()/24)
}
