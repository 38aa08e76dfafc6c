package monitoring

import (
	"context"
	"slices"
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
