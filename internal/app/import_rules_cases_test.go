package app_test

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestAForbiddenImportIsFound(t *testing.T) {
	tests := []struct{ name, file, source, want string }{
		{
			"the hub imports the store", "internal/hub/a.go",
			`package hub; import _ "switchyard/internal/store"`, "internal/hub may not import switchyard/internal/store",
		},
		{
			"a package below an allowed one of this module", "internal/protocol/a.go",
			`package protocol; import _ "switchyard/internal/message/extra"`, "may not import switchyard/internal/message/extra",
		},
		{
			"a driver outside the store", "internal/http/a.go",
			`package http; import _ "github.com/jackc/pgx/v5"`, "internal/http may not import github.com/jackc/pgx/v5",
		},
		{
			"a module whose name only begins like an allowed one", "internal/broker/a.go",
			`package broker; import _ "github.com/redis/go-redis/v9000"`, "may not import github.com/redis/go-redis/v9000",
		},
		{
			"the vocabulary imports a library", "internal/message/a.go",
			`package message; import _ "golang.org/x/text/cases"`, "internal/message may not import golang.org/x/text/cases",
		},
		{"a package without a rule", "internal/helper/a.go", `package helper`, "internal/helper has no import rule"},
		{
			"the environment, under another name", "internal/store/a.go",
			"package store\nimport sys \"os\"\nvar home = sys.Getenv(\"HOME\")", "internal/store may not use os.Getenv",
		},
		{
			"an exit that skips deferred calls", "internal/app/a.go",
			"package app\nimport \"log\"\nfunc f() { log.Fatalf(\"no\") }", "internal/app may not use log.Fatalf",
		},
		{
			"a dot import, which hides what is used", "internal/app/a.go",
			"package app\nimport . \"os\"\nvar _ = Args", "internal/app may not dot-import os",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			found, err := checkImports(fstest.MapFS{tt.file: {Data: []byte(tt.source)}})
			if err != nil {
				t.Fatal(err)
			}
			if len(found.violations) != 1 || !strings.Contains(found.violations[0], tt.want) {
				t.Errorf("found %q, want one violation with %q", found.violations, tt.want)
			}
		})
	}
}

func TestAllowedImportsAreNoViolation(t *testing.T) {
	found, err := checkImports(fstest.MapFS{
		"internal/store/a.go":        {Data: []byte(`package store; import _ "github.com/jackc/pgx/v5/pgxpool"`)},
		"internal/store/a_test.go":   {Data: []byte(`package store; import _ "switchyard/internal/hub"`)},
		"bench/go.mod":               {Data: []byte("module switchyard/bench")},
		"bench/peer/a.go":            {Data: []byte(`package main; import _ "github.com/centrifugal/centrifuge"`)},
		"internal/config/a.go":       {Data: []byte("package config\nimport \"os\"\nvar _ = os.Getenv(\"X\")")},
		"cmd/server/main.go":         {Data: []byte("package main\nimport \"os\"\nfunc main() { os.Exit(1) }")},
		"node_modules/x/a.go":        {Data: []byte(`package broken import`)},
		"internal/hub/testdata/a.go": {Data: []byte(`package broken import`)},
		// A variable that has the name of a package is no package.
		"internal/hub/b.go": {Data: []byte("package hub\ntype exiter struct{ Exit func(int) }\nfunc f(os exiter) { os.Exit(1) }")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if found.files != 4 || len(found.violations) != 0 {
		t.Errorf("%d files, violations %q", found.files, found.violations)
	}
	if !found.used["internal/store"]["github.com/jackc/pgx/v5"] || len(found.used["internal/hub"]) != 0 {
		t.Errorf("used imports %v", found.used)
	}
}
