package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

var million = flag.Bool("backup.million", false, "run TestAMillionMessages with a million messages: minutes")

// A log of a size that people have is backed up, proved, and restored to a
// moment in the middle of it. `make backup-million` runs it with 1,000,000
// messages; without the flag there are as many as fit into a second.
func TestAMillionMessages(t *testing.T) {
	t.Parallel()
	n := 4_096
	if *million {
		n = 1_000_000
	}
	w := newFixture(t, "max_wal_size=2GB")
	w.node = testkit.StartPlainServer(t, map[string]string{"DATABASE_URL": w.pg.URL(), "API_KEYS": "tests:0123456789abcdef", "RATE_API": "0", "RETENTION_COUNT": "0"})
	w.stack.apps["app_blue"] = false
	began := time.Now()
	w.flood(n / 2)
	s := w.createBackup()
	w.flood(n / 4)
	waitSecond(t)
	to := time.Now()
	waitSecond(t)
	w.flood(n - n/2 - n/4)
	filled := time.Since(began)
	w.switchWAL()
	w.node.Kill()
	result, err := w.repository.Verify(t.Context(), s.Name)
	if err != nil {
		t.Fatal(err)
	}
	if result.Log.Messages < int64(n) || result.Log.Rooms < 100 {
		t.Errorf("%+v", result)
	}
	t.Logf("%d messages stored in %v; backup of %v (%d messages) in %v; %d segments of WAL; verified in %s: %d messages",
		n, filled.Round(time.Second), Bytes(s.Size()), s.Log.Messages, s.Finished.Sub(s.Started).Round(time.Millisecond), result.Segments, result.Took, result.Log.Messages)

	// What was acked before the moment, by the clock of who published; and what
	// was committed before it, by that of the server.
	const ours = `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name LIKE 'room-%'`
	acked := strconv.Itoa(n/2 + n/4)
	if committed := w.pg.Query(ours + " AND pg_xact_commit_timestamp(m.xmin) < '" + to.Format(time.RFC3339Nano) + "'"); committed != acked {
		t.Errorf("%s messages were committed before the moment, and %s acked", committed, acked)
	}
	began = time.Now()
	out, err := w.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.pg.Query(ours); got != acked {
		t.Errorf("the restore brought %s messages, want %s", got, acked)
	}
	t.Logf("restored to %s messages in %v, the database away for %v", acked, time.Since(began).Round(time.Millisecond), out.Downtime.Round(time.Millisecond))
}

// flood publishes n messages over HTTP, in batches over 100 rooms.
func (w *fixture) flood(n int) {
	w.t.Helper()
	const batch, workers = 256, 8
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	failures := make(chan error, workers)
	hc := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers}}
	defer hc.CloseIdleConnections()
	for worker := range workers {
		wg.Go(func() {
			for {
				size := min(batch, left.Add(-batch)+batch)
				if size <= 0 {
					return
				}
				if err := w.batch(hc, worker, int(size)); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		w.t.Fatal(err)
	default:
	}
}

func (w *fixture) batch(hc *http.Client, worker, size int) error {
	type draft struct {
		Room string `json:"room"`
		Data string `json:"data"`
	}
	drafts := make([]draft, size)
	for i := range drafts {
		drafts[i] = draft{fmt.Sprintf("room-%d", (i+worker)%100), "a message of a size that people send, more or less, in a chat of some kind"}
	}
	body, err := json.Marshal(drafts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.node.URL()+"/v1/messages", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer 0123456789abcdef")
	req.Header.Set("Content-Type", "application/json")
	res, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", res.Status, answer)
	}
	return err
}
