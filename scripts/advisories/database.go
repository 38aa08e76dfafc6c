package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
)

// errUnreachable says that the database can't be read: nothing is known then.
var errUnreachable = errors.New("the database can't be reached")

const (
	// fetchLimit bounds one request; maxFile is the largest file that is read, and the
	// index of all modules had 1 MB in 2026.
	fetchLimit = 30 * time.Second
	maxFile    = 64 << 20
)

// A database is a Go vulnerability database, in the form that go.dev/doc/security/vuln/database
// describes.
type database struct{ base *url.URL }

// openDatabase returns the database at an https, http or file URL.
func openDatabase(address string) (*database, error) {
	base, err := url.Parse(address)
	if err != nil {
		return nil, fmt.Errorf("database %s: %w", address, err)
	}
	if !slices.Contains([]string{"https", "http", "file"}, base.Scheme) {
		return nil, fmt.Errorf("database %s: want an https, http or file URL", address)
	}
	return &database{base}, nil
}

// read decodes one file of the database.
func (d *database) read(ctx context.Context, into any, path ...string) error {
	at := d.base.JoinPath(path...)
	text, err := d.fetch(ctx, at)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", errUnreachable, at, err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

func (d *database) fetch(ctx context.Context, at *url.URL) ([]byte, error) {
	if at.Scheme == "file" {
		return os.ReadFile(filepath.FromSlash(at.Path))
	}
	ctx, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), http.NoBody)
	if err != nil {
		return nil, err
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = answer.Body.Close() }()
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", answer.Status)
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("over %d bytes", maxFile)
	}
	return text, err
}

// advisoryID matches the ids of the database, which become a part of a path.
var advisoryID = regexp.MustCompile(`^GO-\d{4}-\d+$`)

// ids returns the ids of a module's advisories.
func (d *database) ids(ctx context.Context, module string) (ids []string, err error) {
	var index []struct {
		Path  string
		Vulns []struct{ ID string }
	}
	if err := d.read(ctx, &index, "index", "modules.json"); err != nil {
		return nil, err
	}
	for _, m := range index {
		if m.Path != module {
			continue
		}
		for _, v := range m.Vulns {
			if !advisoryID.MatchString(v.ID) {
				return nil, fmt.Errorf("the index of %s: %s has the id %q", d.base, module, v.ID)
			}
			ids = append(ids, v.ID)
		}
	}
	return ids, nil
}

// An entry is what is read of an advisory (ossf.github.io/osv-schema).
type entry struct {
	ID        string
	Aliases   []string
	Summary   string
	Withdrawn string
	Affected  []struct {
		Package struct{ Name string }
		Ranges  []semverRange
	}
}

// A semverRange is a list of events: versions from which on something is affected, and
// versions from which on it is not.
type semverRange struct {
	Type   string
	Events []struct{ Introduced, Fixed string }
}

// advisory reads one advisory.
func (d *database) advisory(ctx context.Context, id string) (*entry, error) {
	e := new(entry)
	if err := d.read(ctx, e, "ID", id+".json"); err != nil {
		return nil, err
	}
	if e.ID != id {
		return nil, fmt.Errorf("%s of %s: the file is about %q", id, d.base, e.ID)
	}
	return e, nil
}

// affects reports whether a version of a module is affected, and by which version that
// ends, if any does. As for govulncheck, an advisory without versions affects all.
func (e *entry) affects(module, version string) (affected bool, fixed string) {
	if e.Withdrawn != "" {
		return false, ""
	}
	for _, a := range e.Affected {
		if a.Package.Name != module {
			continue
		}
		isSemver := func(r semverRange) bool { return r.Type == "SEMVER" }
		if !slices.ContainsFunc(a.Ranges, isSemver) {
			return true, ""
		}
		for _, r := range a.Ranges {
			if hit, end := r.contains(version); isSemver(r) && hit {
				return true, end
			}
		}
	}
	return false, ""
}

// contains reports whether a range has a version, and the first fixed one above it.
func (r semverRange) contains(version string) (hit bool, fixed string) {
	// The order of events is not promised.
	events := slices.Clone(r.Events)
	slices.SortStableFunc(events, func(a, b struct{ Introduced, Fixed string }) int {
		return semver.Compare(eventVersion(a), eventVersion(b))
	})
	for _, e := range events {
		if semver.Compare(eventVersion(e), version) > 0 {
			if hit && e.Fixed != "" {
				return true, eventVersion(e)
			}
			continue
		}
		hit = e.Introduced != ""
	}
	return hit, ""
}

// eventVersion returns the version of an event with the v that Go has and OSV has not; the
// introduced 0 stands before all versions.
func eventVersion(e struct{ Introduced, Fixed string }) string {
	version := e.Introduced + e.Fixed
	if version == "0" {
		return "v0.0.0-0"
	}
	return "v" + strings.TrimPrefix(version, "v")
}
