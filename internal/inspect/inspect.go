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
	Nodes
}

// Nodes are the containers.
type Nodes interface {
	// Exec runs a program in a container that is known by its name.
	Exec(ctx context.Context, container string, p backup.Program) error
	// Containers returns all containers of the stack.
	Containers(ctx context.Context) ([]backup.Container, error)
	// Logs writes the log lines of services since a moment.
	Logs(ctx context.Context, since time.Time, w io.Writer, services ...string) error
}

// nodes are the services that run the service itself.
var nodes = []string{"app_blue", "app_green"}

// A Mark says what to make of a line.
type Mark string

// The marks.
const (
	Good Mark = "ok"
	Look Mark = "look" // not as it should be; nobody is hurt yet
	Bad  Mark = "BAD"
)

// A Line is one statement of a page.
type Line struct {
	Mark Mark   `json:"mark"`
	What string `json:"what"`
	Says string `json:"says"`
}

// A Section is a part of a page.
type Section struct {
	Title string `json:"title"`
	Lines []Line `json:"lines"`
}

func (s *Section) add(mark Mark, what, format string, args ...any) {
	s.Lines = append(s.Lines, Line{mark, what, fmt.Sprintf(format, args...)})
}

// fail adds that something can't be told, which is bad news itself.
func (s *Section) fail(what string, err error) {
	s.add(Bad, what, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

// A Page is what check prints.
type Page struct {
	At       time.Time `json:"at"`
	Sections []Section `json:"sections"`
}

// Worst returns the worst mark of all lines.
func (p *Page) Worst() Mark {
	worst := Good
	for _, s := range p.Sections {
		for _, l := range s.Lines {
			if l.Mark == Bad || l.Mark == Look && worst == Good {
				worst = l.Mark
			}
		}
	}
	return worst
}

func (p *Page) String() string {
	var b strings.Builder
	counts := map[Mark]int{}
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "%s\n", s.Title)
		w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		for _, l := range s.Lines {
			counts[l.Mark]++
			fmt.Fprintf(w, "  %s\t%s\t%s\n", l.Mark, l.What, l.Says)
		}
		_ = w.Flush()
	}
	fmt.Fprintf(&b, "%d bad, %d to look at, %d good, at %s.\n", counts[Bad], counts[Look], counts[Good], p.At.UTC().Format(time.RFC3339))
	return b.String()
}

// table prints rows under a head, aligned.
func table(w io.Writer, head []string, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	_ = t.Flush()
}

// ErrNoNode says that no node of the service runs.
var ErrNoNode = errors.New("no node of the service runs: neither app_blue nor app_green")

// running returns the containers of the nodes that run.
func running(ctx context.Context, s Stack) ([]backup.Container, error) {
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

func isNode(service string) bool { return service == nodes[0] || service == nodes[1] }

// ago prints an age for people.
func ago(d time.Duration) string {
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
