package store

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// The benchmarks store 128-byte messages in 100 rooms, the database on the
// same machine and flushing each commit.
var benchData = []byte(`"` + strings.Repeat("x", 126) + `"`)

func benchLog(b *testing.B, dialect string) (l logUnderTest) {
	b.Helper()
	url := "sqlite:" + filepath.Join(b.TempDir(), "bench.db")
	if dialect == "postgres" {
		url = testkit.StartPostgres(b).URL()
	}
	err := Migrate(b.Context(), url)
	if err != nil {
		b.Fatal(err)
	}
	if dialect == "postgres" {
		l, err = OpenPostgres(b.Context(), Config{URL: url})
	} else {
		l, err = OpenSQLite(b.Context(), Config{URL: url})
	}
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func benchPublication(i int) *message.Publication {
	return &message.Publication{Draft: message.Draft{
		Room: message.Room(numbered("room", i%100)), ID: numbered("id", i), Data: benchData}}
}

// BenchmarkAppend measures how many messages are stored in a second with 2,000
// under way.
func BenchmarkAppend(b *testing.B) {
	for _, dialect := range []string{"postgres", "sqlite"} {
		b.Run(dialect, func(b *testing.B) {
			l := benchLog(b, dialect)
			slots := make(chan struct{}, 2000)
			l.Start(func(pubs []*message.Publication) {
				for _, p := range pubs {
					if p.Err != nil {
						b.Error(p.Err)
					}
					<-slots
				}
			})
			b.ResetTimer()
			for i := range b.N {
				slots <- struct{}{}
				l.Append(benchPublication(i))
			}
			if err := l.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

// BenchmarkAppendBatch measures how many messages are stored in a second by
// atomic batches of 256, one after the other.
func BenchmarkAppendBatch(b *testing.B) {
	for _, dialect := range []string{"postgres", "sqlite"} {
		b.Run(dialect, func(b *testing.B) {
			l := benchLog(b, dialect)
			l.Start(func([]*message.Publication) {})
			b.ResetTimer()
			for i := 0; i < b.N; {
				var pubs []*message.Publication
				for ; len(pubs) < batchMessages && i < b.N; i++ {
					pubs = append(pubs, benchPublication(i))
				}
				if err := l.AppendBatch(b.Context(), pubs); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
			if err := l.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkAppendPaced measures how long 15,000 messages a second wait for their
// commit, alone, and while retention removes as many in one walk after another.
func BenchmarkAppendPaced(b *testing.B) {
	b.Run("alone", func(b *testing.B) { appendPaced(b, benchLog(b, "postgres")) })
	b.Run("retention", func(b *testing.B) {
		p := benchLog(b, "postgres").(*Postgres)
		ctx, stop := context.WithCancel(b.Context())
		var walks sync.WaitGroup
		walks.Go(func() {
			r := p.retention()
			r.policy.count = 50
			for ctx.Err() == nil {
				_, err := p.repair.Exec(ctx, `UPDATE retention SET begun = '-infinity'`)
				if err := errors.Join(err, r.runOnce(ctx)); err != nil && ctx.Err() == nil {
					b.Error(err)
				}
			}
			b.ReportMetric(testutil.ToFloat64(p.m.trimmed)/b.Elapsed().Seconds(), "removed/s")
		})
		appendPaced(b, p, func() { stop(); walks.Wait() })
	})
}

func appendPaced(b *testing.B, l logUnderTest, atEnd ...func()) {
	b.Helper()
	var mu sync.Mutex
	took := make([]time.Duration, 0, b.N)
	l.Start(func(pubs []*message.Publication) {
		mu.Lock()
		defer mu.Unlock()
		for _, p := range pubs {
			took = append(took, time.Since(p.Opaque.(time.Time)))
		}
	})
	b.ResetTimer()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	began := <-tick.C
	for sent := 0; sent < b.N; {
		due := int(time.Since(began).Seconds() * 15_000)
		for ; sent < min(due, b.N); sent++ {
			p := benchPublication(sent)
			p.Opaque = time.Now()
			l.Append(p)
		}
		<-tick.C
	}
	for _, f := range atEnd {
		f()
	}
	if err := l.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
