package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"switchyard/internal/stack"
)

// Queries describes the work of PostgreSQL: its most expensive statements, those
// that run or wait now, and its largest tables.
type Queries struct {
	// Service is the Compose service that takes writes.
	Service string `json:"service"`
	// StatisticsSince is the moment since which statements are counted. It is empty
	// where they are not counted, and then StatisticsMissing says what to set up.
	StatisticsSince   string             `json:"statistics_since"`
	StatisticsMissing string             `json:"uncounted,omitempty"`
	Statements        []Statement        `json:"statements"`
	Running           []RunningStatement `json:"running"`
	Tables            []TableStats       `json:"tables"`
}

// A Statement sums up all calls of one statement, as pg_stat_statements does. The
// values are text as psql prints it.
type Statement struct {
	Calls  string `json:"calls"`
	Total  string `json:"total_ms"`
	Mean   string `json:"mean_ms"`
	Max    string `json:"max_ms"`
	Share  string `json:"share_percent"`
	Query  string `json:"query"`
	Blocks string `json:"blocks_read"`
}

// A RunningStatement is a statement or transaction that has run for longer than a
// second or waits for a lock. Age is in seconds. The field names are keys of
// the JSON output.
type RunningStatement struct {
	PID, Age, State, Wait, Blockers, Application, Query string
}

// A TableStats has the size of one table and how it is scanned. The field names
// are keys of the JSON output.
type TableStats struct {
	Name, Rows, Dead, Size, Scans string
}

// All lists are bounded, and the largest values come first.
const (
	sqlHasStatements = `SELECT current_setting('shared_preload_libraries') ~ '\mpg_stat_statements\M', EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_stat_statements'), current_database()`
	sqlStatements    = `SELECT calls, round(total_exec_time::numeric, 1), round(mean_exec_time::numeric, 2), round(max_exec_time::numeric, 1),
 round((100 * total_exec_time / nullif(sum(total_exec_time) OVER (), 0))::numeric, 1), shared_blks_read, left(regexp_replace(query, '\s+', ' ', 'g'), 160)
 FROM pg_stat_statements WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY total_exec_time DESC LIMIT 15`
	sqlStatisticsSince = `SELECT to_char(stats_reset AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') FROM pg_stat_statements_info`
	sqlRunning         = `SELECT pid, round(extract(epoch FROM now() - coalesce(xact_start, query_start))::numeric, 1), state, coalesce(wait_event_type || ':' || wait_event, ''),
 array_to_string(pg_blocking_pids(pid), ','), application_name, left(regexp_replace(query, '\s+', ' ', 'g'), 160)
 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
 AND (now() - coalesce(xact_start, query_start) > interval '1 second' OR cardinality(pg_blocking_pids(pid)) > 0) ORDER BY 2 DESC LIMIT 20`
	// Sizes are those of the last vacuum: pg_total_relation_size would wait for
	// locks on the table.
	sqlTables = `SELECT relname, n_live_tup, n_dead_tup, pg_size_pretty(8192 * (SELECT sum(c.relpages::bigint) FROM pg_class c
 WHERE c.oid = relid OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid = relid))), coalesce(seq_scan, 0) FROM pg_stat_user_tables ORDER BY n_live_tup DESC LIMIT 10`
)

// ReadQueries queries the PostgreSQL server that takes writes.
func ReadQueries(ctx context.Context, s Stack) (*Queries, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	service, err := primary(ctx, s)
	if err != nil {
		return nil, err
	}
	q := &Queries{Service: service}
	query := func(sql string, columns int) ([][]string, error) { return queryRows(ctx, s, service, sql, columns) }
	if err := q.statements(query); err != nil {
		return nil, err
	}
	found, err := query(sqlRunning, 7)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		q.Running = append(q.Running, RunningStatement{r[0], r[1], r[2], r[3], r[4], r[5], r[6]})
	}
	if found, err = query(sqlTables, 5); err != nil {
		return nil, err
	}
	for _, r := range found {
		q.Tables = append(q.Tables, TableStats{r[0], r[1], r[2], r[3], r[4]})
	}
	return q, nil
}

// statements reads pg_stat_statements, or sets StatisticsMissing where it is not
// set up.
func (q *Queries) statements(query func(sql string, columns int) ([][]string, error)) error {
	answer, err := query(sqlHasStatements, 3)
	switch {
	case err != nil:
		return err
	case len(answer) != 1:
		return fmt.Errorf("psql answered %q", answer)
	case answer[0][0] != "t":
		q.StatisticsMissing = "shared_preload_libraries lacks pg_stat_statements: set it in postgresql.conf and restart the server"
		return nil
	case answer[0][1] != "t":
		q.StatisticsMissing = fmt.Sprintf("the database lacks the extension: docker compose exec %s psql -U postgres -d %s -c 'CREATE EXTENSION pg_stat_statements'", q.Service, answer[0][2])
		return nil
	}
	since, err := query(sqlStatisticsSince, 1)
	if err != nil {
		return err
	}
	if q.StatisticsSince = "the last reset"; len(since) == 1 && since[0][0] != "" {
		q.StatisticsSince = since[0][0]
	}
	found, err := query(sqlStatements, 7)
	if err != nil {
		return err
	}
	for _, r := range found {
		q.Statements = append(q.Statements, Statement{r[0], r[1], r[2], r[3], r[4], r[6], r[5]})
	}
	return nil
}

// primary returns the Compose service of the PostgreSQL that takes writes.
func primary(ctx context.Context, s Stack) (string, error) {
	var errs []string
	for _, service := range []string{stack.PostgresService, stack.PostgresReplicaService} {
		r, err := queryRows(ctx, s, service, "SELECT pg_is_in_recovery()", 1)
		if err == nil && len(r) == 1 && r[0][0] == "f" {
			return service, nil
		}
		if err != nil {
			errs = append(errs, service+": "+err.Error())
		}
	}
	if len(errs) == 0 {
		return "", errors.New("no PostgreSQL takes writes: both are in recovery")
	}
	return "", fmt.Errorf("no PostgreSQL that takes writes can be reached: %s", strings.Join(errs, "; "))
}

// queryRows runs a query by psql and returns its rows, which must have that many
// columns.
func queryRows(ctx context.Context, s Stack, service, sql string, columns int) (out [][]string, err error) {
	var answer bytes.Buffer
	err = s.Run(ctx, service, stack.Program{Stdout: &answer, Args: []string{"psql", "-XqAt", "-F", "\x1f", "-v", "ON_ERROR_STOP=1", "-c", "SET statement_timeout = '20s'", "-c", sql}})
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(answer.String()) {
		r := strings.Split(strings.TrimSuffix(line, "\n"), "\x1f")
		if len(r) != columns {
			return nil, fmt.Errorf("psql answered %q", line)
		}
		out = append(out, r)
	}
	return out, nil
}

func (q *Queries) String() string {
	var b strings.Builder
	if q.StatisticsSince == "" {
		fmt.Fprintf(&b, "Statements are not counted on %s: %s.\n", q.Service, q.StatisticsMissing)
	} else {
		fmt.Fprintf(&b, "Statements on %s since %s, the most expensive first:\n", q.Service, q.StatisticsSince)
		var rows [][]string
		for _, s := range q.Statements {
			rows = append(rows, []string{s.Calls, s.Total, s.Mean, s.Max, s.Share + " %", s.Blocks, truncate(s.Query, 100)})
		}
		writeTable(&b, []string{"CALLS", "TOTAL MS", "MEAN MS", "MAX MS", "SHARE", "BLOCKS READ", "QUERY"}, rows)
	}
	if len(q.Running) == 0 {
		b.WriteString("No statement has run for longer than a second, and none waits for a lock.\n")
	} else {
		b.WriteString("Statements that have run for longer than a second or wait for a lock:\n")
		var rows [][]string
		for _, r := range q.Running {
			rows = append(rows, []string{r.PID, r.Age + " s", r.State, r.Wait, r.Blockers, r.Application, truncate(r.Query, 80)})
		}
		writeTable(&b, []string{"PID", "AGE", "STATE", "WAITS FOR", "BLOCKED BY", "APPLICATION", "QUERY"}, rows)
	}
	var rows [][]string
	for _, t := range q.Tables {
		rows = append(rows, []string{t.Name, t.Rows, t.Dead, t.Size, t.Scans})
	}
	writeTable(&b, []string{"TABLE", "ROWS", "DEAD", "SIZE AT LAST VACUUM", "FULL SCANS"}, rows)
	return b.String()
}
