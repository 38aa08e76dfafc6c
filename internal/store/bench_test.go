package store

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"switchyard/internal/message"
	"switchyard/internal/testkit"
)

// BenchmarkAppend stores 128-byte messages in 100 rooms with 2,000 under way,
// PostgreSQL on the same machine and fsync on.
func BenchmarkAppend(b *testing.B) {
	pg := testkit.StartPostgres(b)
	if err := Migrate(b.Context(), pg.URL()); err != nil {
		b.Fatal(err)
	}
	p, err := OpenPostgres(b.Context(), Config{URL: pg.URL()})
	if err != nil {
		b.Fatal(err)
	}
	slots := make(chan struct{}, 2000)
	var failed error
	var once sync.Once
	p.Start(func(pubs []*message.Publication) {
		for _, pub := range pubs {
			if pub.Err != nil {
				once.Do(func() { failed = pub.Err })
			}
			<-slots
		}
	})
	data := []byte(`"` + strings.Repeat("x", 126) + `"`)
	began := time.Now()
	for i := range b.N {
		slots <- struct{}{}
		p.Append(&message.Publication{Draft: message.Draft{
			Room: message.Room(numbered("room", i%100)), ID: numbered("id", i), Data: data}})
	}
	if err := p.Close(context.Background()); err != nil || failed != nil {
		b.Fatal(err, failed)
	}
	b.ReportMetric(float64(b.N)/time.Since(began).Seconds(), "messages/s")
}
