package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"switchyard/internal/backup"
	"switchyard/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// A fakeStack implements Stack without containers, on a real server and a real
// PostgreSQL.
type fakeStack struct {
	t          testing.TB
	server     *testkit.Server
	pg         *testkit.PG
	containers []backup.Container
	log        string // replaces the server's output if it is not empty
	// answers replaces the server's answers to Exec, by container.
	answers map[string]string
	err     error // returned by Containers and Logs
}

func (s *fakeStack) Containers(context.Context) ([]backup.Container, error) {
	return s.containers, s.err
}

func (s *fakeStack) Logs(_ context.Context, _ time.Time, w io.Writer, _ ...string) error {
	text := s.log
	if text == "" && s.server != nil {
		text = s.server.Output()
	}
	_, err := io.WriteString(w, text)
	return errors.Join(err, s.err)
}

// Exec answers as /server in the container would, from the admin listener.
func (s *fakeStack) Exec(ctx context.Context, container string, p backup.Program) error {
	if answer, ok := s.answers[container]; ok {
		_, err := io.WriteString(p.Stdout, answer)
		return err
	}
	path := map[string]string{
		"/server look rooms": "/debug/rooms", "/server profile heap": "/debug/pprof/heap",
	}[strings.Join(p.Args, " ")]
	if path == "" {
		return fmt.Errorf("the fake stack has no program %v", p.Args)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.server.Admin+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(p.Stdout, res.Body)
	return err
}

func (s *fakeStack) Run(ctx context.Context, service string, p backup.Program) error {
	if service != backup.PostgresService || s.pg == nil {
		return fmt.Errorf("service %q is not running", service)
	}
	psql, err := testkit.FindPostgresProgram(p.Args[0])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, psql, p.Args[1:]...)
	cmd.Env = append(cmd.Environ(), "PGHOST=127.0.0.1", "PGPORT="+strconv.Itoa(s.pg.Port()), "PGUSER=postgres", "PGDATABASE="+s.pg.Database())
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = p.Stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("psql: %s", stderr.String())
	}
	return nil
}

// fakePrometheus answers a query with the JSON of the longest key that it
// contains, and other queries with an empty result. An answer that begins with
// "error" becomes a refusal.
func fakePrometheus(t testing.TB, answers map[string]string) *Prometheus {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.FormValue("query")
		w.Header().Set("Content-Type", "application/json")
		best := ""
		for key := range answers {
			if strings.Contains(query, key) && len(key) > len(best) {
				best = key
			}
		}
		kind := "vector"
		if strings.HasSuffix(r.URL.Path, "query_range") {
			kind = "matrix"
		}
		if strings.HasPrefix(answers[best], "error") {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"status":"error","errorType":"bad_data","error":"%s"}`, answers[best])
			return
		}
		fmt.Fprintf(w, `{"status":"success","data":{"resultType":"%s","result":[%s]}}`, kind, answers[best])
	}))
	t.Cleanup(srv.Close)
	p, err := NewPrometheus(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// seriesJSON returns one series of an answer.
func seriesJSON(labels string, value float64) string {
	return fmt.Sprintf(`{"metric":{%s},"value":[1700000000,"%g"]}`, labels, value)
}

// unreachablePrometheus returns a Prometheus at a port that nobody listens on.
func unreachablePrometheus(t testing.TB) *Prometheus {
	t.Helper()
	p, err := NewPrometheus("http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func nodeContainer(name string) backup.Container {
	return backup.Container{Name: name, Service: "app_blue", Running: true, Status: "running", Health: "healthy"}
}

// backupRepository makes a repository with one backup of the given age and one
// new WAL segment.
func backupRepository(t testing.TB, age time.Duration, verified bool) *backup.Repository {
	t.Helper()
	v := &backup.Repository{Dir: t.TempDir()}
	name := "20261126T000000Z"
	at := time.Now().Add(-age).UTC().Format(time.RFC3339Nano)
	write(t, filepath.Join(v.Dir, "sets", name, "manifest.json"), fmt.Sprintf(
		`{"format":1,"name":"%s","started":"%s","finished":"%[2]s","consistent":"%[2]s","wal_segment_bytes":16777216,"start_lsn":"0/1000000","stop_lsn":"0/1000000"}`, name, at))
	if verified {
		write(t, filepath.Join(v.Dir, "sets", name, "proof.json"), fmt.Sprintf(`{"verified":"%s","replayed_to":"0/1000000"}`, at))
	}
	write(t, filepath.Join(v.Dir, "wal", "000000010000000000000001"), "")
	return v
}
