package monitoring

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"switchyard/internal/testkit"
)

// The queries that postgres_exporter is given run on PostgreSQL, and return the columns
// that they name, while a transaction of another database is open and one is prepared.
func TestTheExportersQueriesReturnTheirColumns(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t, "max_prepared_transactions=2")
	pg.Exec("CREATE DATABASE reports")
	begin := func(database, end string) {
		conn, err := pgx.Connect(t.Context(), pg.URLOf(database))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		for _, sql := range []string{"BEGIN", "SELECT pg_current_xact_id()", end} {
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
	}
	begin("reports", "SELECT 1")
	begin("postgres", "PREPARE TRANSACTION 'forgotten'")

	var queries map[string]struct {
		Query   string
		Metrics []map[string]any
	}
	decode(t, root+"/monitoring/postgres_exporter/queries.yml", &queries)
	conn, err := pgx.Connect(t.Context(), pg.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	makeContainerMemory(t, pg, containerFiles{version: 2, limit: "1000000000", stat: "anon 300\nfile 70000\nshmem 20\nanon_thp 5\n"})
	for name, q := range queries {
		rows, err := conn.Query(t.Context(), q.Query)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		found, err := pgx.CollectRows(rows, pgx.RowToMap)
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d rows, %v", name, len(found), err)
		}
		for _, m := range q.Metrics {
			for column := range m {
				if value, ok := found[0][column]; !ok || value == nil {
					t.Errorf("%s does not return %s: %v", name, column, found[0])
				}
			}
		}
		if name != "pg_oldest_xid" {
			continue
		}
		var kinds []string
		for _, row := range found {
			kinds = append(kinds, row["datname"].(string)+" "+row["kind"].(string))
		}
		slices.Sort(kinds)
		if want := []string{"postgres prepared", "postgres session", "reports session"}; !slices.Equal(kinds, want) {
			t.Errorf("the oldest transaction ids are of %v, want %v", kinds, want)
		}
	}
}

// containerFiles has what the kernel tells a container of its memory.
type containerFiles struct {
	version     int // of control groups
	limit, stat string
}

// makeContainerMemory runs container_memory.sql on a server, over files of the test's own.
func makeContainerMemory(t *testing.T, pg *testkit.PG, files containerFiles) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cgroup") // which the server's user may read
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	limit, stat := "memory.max", "memory.stat"
	if files.version == 1 {
		limit, stat = "memory/memory.limit_in_bytes", "memory/memory.stat"
	}
	for name, text := range map[string]string{limit: files.limit + "\n", stat: files.stat} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Chmod(dir, 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	sql := strings.NewReplacer("\\connect switchyard\n", "", "/sys/fs/cgroup", dir).Replace(read(t, root+"/monitoring/postgres_exporter/container_memory.sql"))
	pg.Exec("DO $$ BEGIN CREATE ROLE monitor LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
	pg.Exec(sql)
}

// PostgreSQL tells of its container's memory with both versions of control groups, without
// a limit, and where the function was never made. Only the role monitor may ask.
func TestPostgresReportsItsContainersMemory(t *testing.T) {
	t.Parallel()
	pg := testkit.StartPostgres(t)
	var queries map[string]struct{ Query string }
	decode(t, root+"/monitoring/postgres_exporter/queries.yml", &queries)
	assertRows := func(what string, want ...int64) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), pg.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		rows, err := conn.Query(t.Context(), queries["pg_container_memory"].Query)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var got []int64
		for rows.Next() {
			var used, limit int64
			if err := rows.Scan(&used, &limit); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got = append(got, used, limit)
		}
		if rows.Err() != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", what, got, rows.Err(), want)
		}
	}
	assertRows("no function")
	makeContainerMemory(t, pg, containerFiles{2, "1000000000", "anon 300\nfile 70000\nshmem 20\nanon_thp 5\n"})
	assertRows("version 2", 320, 1_000_000_000)
	makeContainerMemory(t, pg, containerFiles{2, "max", "anon 300\nshmem 20\n"})
	assertRows("version 2 without a limit")
	makeContainerMemory(t, pg, containerFiles{1, "1000000000", "cache 9\nrss 1\nshmem 2\ntotal_cache 90000\ntotal_rss 300\ntotal_rss_huge 7\ntotal_shmem 20\n"})
	assertRows("version 1", 320, 1_000_000_000)
	makeContainerMemory(t, pg, containerFiles{1, "9223372036854771712", "total_rss 300\ntotal_shmem 20\n"})
	assertRows("version 1 without a limit")
	if got := pg.Query("SELECT has_function_privilege('monitor', 'container_memory()', 'EXECUTE'), has_function_privilege('public', 'container_memory()', 'EXECUTE')"); strings.TrimSpace(got) != "t|f" {
		t.Errorf("monitor and the public may ask: %s", got)
	}
}
