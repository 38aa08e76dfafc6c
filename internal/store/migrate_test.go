package store

import (
	"context"
	"testing"
	"time"

	"switchyard/internal/testkit"
)

// Pending lists the migrations that Migrate would apply, and changes nothing.
func TestPendingMigrationsAreListed(t *testing.T) {
	t.Parallel()
	url := testkit.Postgres(t).URL()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all, err := Pending(ctx, url)
	if err != nil || len(all) != int(latestVersion("postgres")) || all[0].Name != "00001_log.sql" || all[0].Breaking != 0 {
		t.Fatal(all, err)
	}
	again, err := Pending(ctx, url)
	if err != nil || len(again) != len(all) {
		t.Fatal(again, err)
	}
	if err := Migrate(ctx, url); err != nil {
		t.Fatal(err)
	}
	if none, err := Pending(ctx, url); err != nil || none == nil || len(none) != 0 {
		t.Fatal(none, err)
	}
	if _, err := Pending(ctx, "sqlite:"+t.TempDir()+"/x.db"); err == nil {
		t.Error("a SQLite file has a list of pending migrations")
	}
}
