// Package audit writes the audit log: a line of JSON for each refusal, ban and
// drain. Strangers cause most of these events, so the log is bounded and never
// blocks: five lines of a kind and 100 of an event in a second, then a number.
// Lines for which the writer is too slow are dropped and counted.
package audit

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxSameLines bounds the lines of one second that differ only in time and
	// request id. maxEventLines bounds the lines of one event and second. Further
	// lines are counted and summarized at the end of the second.
	maxSameLines  = 5
	maxEventLines = 100
	// maxDistinctLines bounds the different lines that are counted separately in a
	// second.
	maxDistinctLines = 1000
	// queueSize bounds the lines that wait for the writer.
	queueSize = 1024
	// closeTimeout bounds the time to write the last lines at shutdown.
	closeTimeout = time.Second
)

// A lineCount counts the similar lines of one second, and how many of them were
// not written.
type lineCount struct{ seen, suppressed int }

// A Log writes the audit log. It never blocks its callers: lines for which the
// writer is too slow are dropped and counted. It is safe for concurrent use.
type Log struct {
	node    string
	out     io.Writer // nil: lines are only counted
	log     *slog.Logger
	metrics *metrics
	queue   chan []byte
	once    sync.Once
	stop    chan struct{}
	done    chan struct{} // closed when the last line is written

	// mu protects the fields below.
	mu             sync.Mutex
	second         int64 // the second that the counts below are for
	counts         map[Line]lineCount
	writtenByEvent map[Event]int // lines written in this second, by event
	overflow       map[Event]int // lines beyond maxDistinctLines, by event
}

// New returns the audit log of a node, which writes to out. Nil means that events are
// only counted. Close stops it.
func New(out io.Writer, node string, log *slog.Logger, reg prometheus.Registerer) *Log {
	l := &Log{
		node: node, out: out, log: log, metrics: newMetrics(reg),
		queue: make(chan []byte, queueSize), stop: make(chan struct{}), done: make(chan struct{}),
		counts: map[Line]lineCount{}, writtenByEvent: map[Event]int{}, overflow: map[Event]int{},
	}
	if out == nil {
		close(l.done)
		return l
	}
	go l.loop()
	return l
}

// Record writes an event, unless the limits of this second are reached. It
// truncates the line's texts.
func (l *Log) Record(line *Line) {
	l.metrics.events.WithLabelValues(string(line.Event)).Inc()
	if l.out == nil {
		return
	}
	line.shorten()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Unix() != l.second {
		l.writeSummaries(now)
		l.second = now.Unix()
	}
	key := line.key()
	n, known := l.counts[key]
	if !known && len(l.counts) >= maxDistinctLines {
		l.overflow[line.Event]++
		return
	}
	n.seen++
	if n.seen <= maxSameLines && l.writtenByEvent[line.Event] < maxEventLines {
		l.writtenByEvent[line.Event]++
		l.enqueue(line, now)
	} else {
		n.suppressed++
	}
	l.counts[key] = n
}

// writeSummaries writes how many lines of the last second were not written. Caller
// holds mu.
func (l *Log) writeSummaries(now time.Time) {
	for key, n := range l.counts {
		if n.suppressed > 0 {
			key.Count = n.suppressed
			l.enqueue(&key, now)
		}
	}
	for event, n := range l.overflow {
		l.enqueue(&Line{Event: event, Reason: "more different lines than are counted separately in a second", Count: n}, now)
	}
	clear(l.counts)
	clear(l.writtenByEvent)
	clear(l.overflow)
}

// enqueue passes a line to the writer, or drops it if the queue is full. Caller
// holds mu.
func (l *Log) enqueue(line *Line, now time.Time) {
	line.Time, line.Audit, line.Node = now.UTC().Format(timeLayout), "v1", l.node
	select {
	case l.queue <- line.encode():
	default:
		l.metrics.dropped.WithLabelValues(dropQueue).Inc()
	}
}

// loop writes lines until stop closes, and then the remaining ones.
func (l *Log) loop() {
	defer close(l.done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	failing := false
	writeLine := func(line []byte) {
		_, err := l.out.Write(line)
		if err != nil {
			l.metrics.dropped.WithLabelValues(dropWrite).Inc()
		}
		if failed := err != nil; failed != failing {
			failing = failed
			l.log.Warn("the audit log", "can_be_written", !failed, "error", err)
		}
	}
	for {
		select {
		case line := <-l.queue:
			writeLine(line)
		case now := <-tick.C:
			l.mu.Lock()
			if now.Unix() != l.second {
				l.writeSummaries(now)
			}
			l.mu.Unlock()
		case <-l.stop:
			l.mu.Lock()
			l.writeSummaries(time.Now())
			l.mu.Unlock()
			for {
				select {
				case line := <-l.queue:
					writeLine(line)
				default:
					return
				}
			}
		}
	}
}

// Close writes the remaining lines, for at most closeTimeout or until ctx ends. Lines recorded after it are lost.
func (l *Log) Close(ctx context.Context) error {
	if l.out == nil {
		return nil
	}
	l.once.Do(func() { close(l.stop) })
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("writing the last lines of the audit log: %w", ctx.Err())
	}
}
