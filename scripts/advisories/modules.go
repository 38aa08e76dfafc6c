package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/mod/modfile"
)

// A movedModule is a module of go.mod whose project goes on under another path: new
// advisories name that path alone, and govulncheck, which compares paths, misses them.
type movedModule struct {
	path, version string // as go.mod requires it
	to, as        string // the path of today, and the version there that has the same code
}

// movedModules are all of go.mod, looked through in December 2026. Not here, since their
// path is the one of today or nothing of them goes on elsewhere:
// modernc.org/sqlite (SQLite itself has no Go advisories: follow sqlite.org/cves.html),
// github.com/redis/go-redis/v9 and github.com/golang-jwt/jwt/v5 (advisories of the old
// paths go-redis/redis and dgrijalva/jwt-go are about older code),
// github.com/kelseyhightower/envconfig and github.com/json-iterator/go (unmaintained, no
// successor), github.com/go-json-experiment/json (only tests; encoding/json/v2 has other
// versions).
var movedModules = []movedModule{
	// The same code but for the import path and comments: the versions of the old path
	// end with this one, of August 2024, and the new one counts on from v1.8.12.
	{"nhooyr.io/websocket", "v1.8.17", "github.com/coder/websocket", "v1.8.12"},
	// The repository was handed over in 2025; v3.0.2 is the first version there.
	{"gopkg.in/yaml.v3", "v3.0.1", "go.yaml.in/yaml/v3", "v3.0.1"},
}

// checkModules prints the advisories of moved modules and reports whether one applies.
func checkModules(ctx context.Context, w io.Writer, address, modFile string, moved []movedModule) (found bool, err error) {
	text, err := os.ReadFile(modFile)
	if err != nil {
		return false, fmt.Errorf("read the modules: %w", err)
	}
	required, err := modfile.Parse(modFile, text, nil)
	if err != nil {
		return false, err
	}
	db, err := openDatabase(address)
	if err != nil {
		return false, err
	}
	for _, m := range moved {
		if err := m.checkRequirement(required); err != nil {
			return found, fmt.Errorf("movedModules: %w", err)
		}
		hit, err := m.check(ctx, w, db)
		if err != nil {
			return found, err
		}
		found = found || hit
	}
	return found, nil
}

// checkRequirement checks that go.mod requires the version that the table is about: of
// another one it is not known which code it has.
func (m movedModule) checkRequirement(f *modfile.File) error {
	for _, r := range f.Replace {
		if r.Old.Path == m.path {
			return fmt.Errorf("%s is replaced: which version of %s has its code?", m.path, m.to)
		}
	}
	for _, r := range f.Require {
		if r.Mod.Path != m.path {
			continue
		}
		if r.Mod.Version != m.version {
			return fmt.Errorf("%s is at %s, the table at %s: which version of %s has its code?", m.path, r.Mod.Version, m.version, m.to)
		}
		return nil
	}
	return fmt.Errorf("%s is not required any more: remove it", m.path)
}

// check prints what the database has on a module and reports whether anything applies.
func (m movedModule) check(ctx context.Context, w io.Writer, db *database) (found bool, err error) {
	name := fmt.Sprintf("%s %s (the code of %s %s)", m.path, m.version, m.to, m.as)
	ids, err := db.ids(ctx, m.to)
	if err != nil {
		return false, err
	}
	var errs []error
	for _, id := range ids {
		e, err := db.advisory(ctx, id)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if affected, fixed := e.affects(m.to, m.as); affected {
			found = true
			fmt.Fprintf(w, "%s: %s: %s; fixed in %s; https://pkg.go.dev/vuln/%s\n", name,
				strings.Join(append([]string{id}, e.Aliases...), ", "), e.Summary, cmp.Or(fixed, "no version"), id)
		}
	}
	if !found && len(errs) == 0 {
		fmt.Fprintf(w, "%s: no advisory of %d applies\n", name, len(ids))
	}
	return found, errors.Join(errs...)
}
