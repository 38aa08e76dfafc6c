package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Each mistake is reported in one line with the flag and the bound, before the
// command does anything.
func TestWrongUsageOfStackCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "docker-compose.prod.yml")
	if err := os.WriteFile(file, []byte("services: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"--keep must be 1 to 10000, not 0":                       {"backup", "--dir", dir, "--keep", "0"},
		"docker-compose.prod.yml is not in /none: name its":      {"backup", "--dir", "/none"},
		`unknown command "prove" for "switchyard backup"`:        {"backup", "prove"},
		"BACKUP_DIR: stat /none":                                 {"backup", "list", "--dir", dir, "--backups", "/none"},
		"--to must be a moment with its zone, such as":           {"restore", "--dir", dir},
		`or latest, not "yesterday"`:                             {"restore", "--dir", dir, "--to", "yesterday"},
		`or latest, not "2026-11-26T10:00:00"`:                   {"restore", "--dir", dir, "--to", "2026-11-26T10:00:00"},
		"--timeline must be 1 or more, not -1":                   {"restore", "--dir", dir, "--to", "latest", "--timeline", "-1"},
		"--no-database leaves nothing to restore":                {"restore", "--dir", dir, "--to", "latest", "--no-database"},
		"--keep must be 1 to 10000, not 10001":                   {"backup", "--dir", dir, "--keep", "10001"},
		"--since must be 1m to 720h, not 1s":                     {"errors", "--dir", dir, "--since", "1s"},
		"--since must be 1m to 720h, not 720h0m1s":               {"errors", "--dir", dir, "--since", "720h1s"},
		"--every must be 1s to 1h, not 1ms":                      {"top", "--dir", dir, "--every", "1ms"},
		"--rooms must be 1 to 1000, not 0":                       {"top", "--dir", dir, "--rooms", "0"},
		"--prometheus must be an address such as":                {"check", "--dir", dir, "--prometheus", "localhost"},
		"--class must be P0, P1, P2 or P3":                       {"report", "--dir", dir, "--class", "bad"},
		"--out must name a folder":                               {"report", "--dir", dir},
		`--from must be a moment with its zone, such as`:         {"report", "--dir", dir, "--from", "now"},
		"--from must be before --to, by 31 days at most":         {"report", "--dir", dir, "--from", "2026-11-26T10:00:00Z", "--to", "2026-11-26T09:00:00Z"},
		"by 31 days at most: 2026-10-01T00:00:00Z, ":             {"report", "--dir", dir, "--out", dir, "--from", "2026-10-01T00:00:00Z", "--to", "2026-11-01T00:00:01Z"},
		"unknown flag: --force":                                  {"promote-replica", "--force"},
		"docker-compose.prod.yml is not in /none: name its fold": {"queries", "--dir", "/none"},
	} {
		code, out, errs := switchyard(t.Context(), args...)
		if code != 2 || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 || out != "" {
			t.Errorf("%q: exit %d, want one line with %q:\n%s%s", args, code, want, out, errs)
		}
	}
}

// The list works without Docker when --backups names the folder.
func TestBackupsAreListed(t *testing.T) {
	dir := t.TempDir()
	set := filepath.Join(dir, "sets", "20261126T031700Z")
	broken := filepath.Join(dir, "sets", "20261127T031700Z")
	at := time.Date(2026, 11, 26, 3, 18, 0, 0, time.UTC).Format(time.RFC3339)
	manifest := `{"format":1,"name":"20261126T031700Z","consistent":"` + at + `","wal_segment_bytes":16777216,"start_lsn":"0/1000000","stop_lsn":"0/1000000","log":{"messages":12,"rooms":3},"files":[{"name":"base.tar.gz","size":2048}]}`
	err := errors.Join(os.MkdirAll(set, 0o700), os.MkdirAll(filepath.Join(dir, "wal"), 0o700),
		os.WriteFile(filepath.Join(dir, "docker-compose.prod.yml"), nil, 0o600),
		os.WriteFile(filepath.Join(set, "manifest.json"), []byte(manifest), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	code, out, errs := switchyard(t.Context(), "backup", "list", "--dir", dir, "--backups", dir)
	if code != 0 || errs != "" || !strings.Contains(out, "20261126T031700Z  2.0 KiB  12") || !strings.Contains(out, "never") || !strings.Contains(out, "archive is empty") {
		t.Errorf("exit %d\n%s%s", code, out, errs)
	}
	if err := errors.Join(os.MkdirAll(broken, 0o700), os.WriteFile(filepath.Join(broken, "manifest.json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	code, out, _ = switchyard(t.Context(), "backup", "list", "--dir", dir, "--backups", dir, "--json")
	var got struct {
		Sets    []struct{ Name string }
		Damaged []string
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || len(got.Sets) != 1 || len(got.Damaged) != 1 || !strings.Contains(got.Damaged[0], "20261127T031700Z/manifest.json is damaged") {
		t.Errorf("exit %d, %v\n%s", code, err, out)
	}
	if code, _, errs = switchyard(t.Context(), "backup", "metrics", "--dir", dir, "--backups", dir); code != 0 || errs != "" {
		t.Errorf("exit %d\n%s", code, errs)
	}
	if _, err := os.Stat(filepath.Join(dir, "metrics", "switchyard_backup.prom")); err != nil {
		t.Error(err)
	}
}

// Without Prometheus each command says so in one line, and prints what it knows
// from other sources.
func TestInspectCommandsWithoutPrometheus(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(dir, "docker-compose.prod.yml"), []byte("services: {}\n"), 0o600),
		os.WriteFile(filepath.Join(bin, "docker"), []byte(`#!/bin/sh
case "$*" in
"ps -aq"*) echo abc ;;
inspect*) echo '[{"Name":"/yard-app_blue-1","State":{"Status":"running","Running":true},"Config":{"Labels":{"com.docker.compose.service":"app_blue"}}}]' ;;
*" logs "*) echo '{"time":"2026-11-26T01:00:00Z","level":"ERROR","msg":"no room on the disk"}' ;;
*) echo "unexpected: $*" >&2; exit 1 ;;
esac
`), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	const stopped, away = "prometheus does not run in the stack", "Prometheus at http://127.0.0.1:1 does not answer"
	for _, tt := range []struct {
		args              []string
		code              int
		wantOut, wantErrs string
	}{
		{[]string{"errors"}, 0, "no room on the disk", stopped},
		{[]string{"errors", "--prometheus", "http://127.0.0.1:1"}, 0, away, ""},
		{[]string{"connections"}, 0, "0 connections ended", stopped},
		{[]string{"top", "--once"}, 2, "", stopped},
		{[]string{"report", "--out", filepath.Join(dir, "report")}, 2, "", stopped},
		{[]string{"check"}, 1, stopped, ""},
		{[]string{"check", "--prometheus", "http://127.0.0.1:1"}, 1, away, ""},
	} {
		code, out, errs := switchyard(t.Context(), append(tt.args, "--dir", dir)...)
		if code != tt.code || !strings.Contains(out, tt.wantOut) || !strings.Contains(errs, tt.wantErrs) {
			t.Errorf("%v: exit %d, want %d, %q and %q\n%s%s", tt.args, code, tt.code, tt.wantOut, tt.wantErrs, out, errs)
		}
	}
	if code, _, errs := switchyard(t.Context(), "report", "--dir", dir, "--out", filepath.Join(dir, "report"), "--prometheus", "http://127.0.0.1:1"); code != 0 {
		t.Errorf("exit %d\n%s", code, errs)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "report", "report.md")); err != nil || !strings.Contains(string(text), "unknown: "+away) || !strings.Contains(string(text), "no room on the disk") {
		t.Errorf("%v\n%s", err, text)
	}
}
