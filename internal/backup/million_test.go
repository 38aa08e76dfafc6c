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

// A log of a realistic size is backed up, verified and restored to a moment in its
// middle. `make backup-million` runs the test with 1,000,000 messages; without the
// flag there are 4,096.
func TestAMillionMessages(t *testing.T) {
	t.Parallel()
	n := 4_096
	if *million {
		n = 1_000_000
	}
	prepare := copyCluster
	if *million {
		prepare = initCluster // segments of the size that people have
	}
	fx := newFixtureOn(t, prepare, "max_wal_size=2GB")
	fx.node = testkit.StartPlainServer(t, map[string]string{"DATABASE_URL": fx.pg.URL(), "API_KEYS": "tests:0123456789abcdef", "RATE_API": "0", "RETENTION_COUNT": "0"})
	fx.stack.apps["app_blue"] = false
	began := time.Now()
	fx.flood(n / 2)
	s := fx.createBackup()
	fx.flood(n / 4)
	waitSecond(t)
	to := time.Now()
	waitSecond(t)
	fx.flood(n - n/2 - n/4)
	filled := time.Since(began)
	fx.switchWAL()
	fx.node.Kill()
	result, err := fx.repository.Verify(t.Context(), s.Name)
	if err != nil {
		t.Fatal(err)
	}
	if result.Log.Messages < int64(n) || result.Log.Rooms < 100 {
		t.Errorf("%+v", result)
	}
	t.Logf("%d messages stored in %v; backup of %v (%d messages) in %v; %d segments of WAL; verified in %s: %d messages",
		n, filled.Round(time.Second), Bytes(s.Size()), s.Log.Messages, s.Finished.Sub(s.Started).Round(time.Millisecond), result.Segments, result.Took, result.Log.Messages)

	// The messages acked before the moment, by the publisher's clock, are those
	// committed before it, by the server's.
	const ours = `SELECT count(*) FROM messages m JOIN rooms r ON r.id = m.room_id WHERE r.name LIKE 'room-%'`
	acked := strconv.Itoa(n/2 + n/4)
	if committed := fx.pg.Query(ours + " AND pg_xact_commit_timestamp(m.xmin) < '" + to.Format(time.RFC3339Nano) + "'"); committed != acked {
		t.Errorf("%s messages were committed before the moment, but %s acked", committed, acked)
	}
	began = time.Now()
	out, err := fx.repository.Restore(t.Context(), RestoreRequest{To: to, Database: true, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := fx.pg.Query(ours); got != acked {
		t.Errorf("the restore has %s messages, want %s", got, acked)
	}
	t.Logf("restored %s messages in %v, with a downtime of %v", acked, time.Since(began).Round(time.Millisecond), out.Downtime.Round(time.Millisecond))
}

// flood publishes n messages over HTTP, in batches, to 100 rooms.
func (fx *fixture) flood(n int) {
	fx.t.Helper()
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
				if err := fx.batch(hc, worker, int(size)); err != nil {
					failures <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failures:
		fx.t.Fatal(err)
	default:
	}
}

func (fx *fixture) batch(hc *http.Client, worker, size int) error {
	type draft struct {
		Room string `json:"room"`
		Data string `json:"data"`
	}
	drafts := make([]draft, size)
	for i := range drafts {
		drafts[i] = draft{fmt.Sprintf("room-%d", (i+worker)%100), "a message of about the size of those that people send to each other online"}
	}
	body, err := json.Marshal(drafts)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(fx.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fx.node.URL()+"/v1/messages", bytes.NewReader(body))
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
