package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"
	"gopkg.in/yaml.v3"
)

// maxAge is how old the list may be until a warning asks to look it through again.
const maxAge = 90 * 24 * time.Hour

// A list is deploy/advisories.yml, which says what its fields mean.
type list struct {
	Looked    time.Time
	Programs  map[string]program
	Elsewhere map[string]string
	// Advisories are by the program's name.
	Advisories map[string][]advisory
}

// A program is one whose advisories are listed.
type program struct {
	Image, Source string
	// Parts is how many numbers a whole version has.
	Parts int
}

// An advisory is a known weakness of a program.
type advisory struct {
	ID, Effect, Source string
	Affected           affected
}

// readYAML reads a file that may have no other fields than those of into.
func readYAML(file string, into any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// check returns what is wrong with a list.
func (l *list) check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if l.Looked.IsZero() {
		wrong("looked: when was the list last looked through?")
	}
	for name, p := range l.Programs {
		if p.Image == "" || p.Source == "" || p.Parts < 2 || p.Parts > 3 {
			wrong("programs: %s needs an image, a source, and 2 or 3 parts", name)
		}
	}
	for name, all := range l.Advisories {
		if l.Programs[name].Image == "" {
			wrong("advisories: there is no program %s", name)
		}
		ids := map[string]bool{}
		for _, a := range all {
			if a.ID == "" || a.Effect == "" || !strings.HasPrefix(a.Source, "https://") || len(a.Affected) == 0 || ids[a.ID] {
				wrong("advisories: %s: %q needs an id of its own, what is affected, an effect and an https source", name, a.ID)
			}
			ids[a.ID] = true
		}
	}
	return errors.Join(errs...)
}

// checkImages prints the advisories of images and reports whether one applies. Without
// refs it checks all of a file, each of which the list must know.
func checkImages(stdout, stderr io.Writer, now time.Time, listFile, imagesFile string, refs []string) (found bool, err error) {
	l := new(list)
	if err := readYAML(listFile, l); err != nil {
		return false, fmt.Errorf("read the advisories: %w", err)
	}
	if err := l.check(); err != nil {
		return false, fmt.Errorf("%s: %w", listFile, err)
	}
	pinned := len(refs) == 0
	if pinned {
		images := map[string]string{}
		if err := readYAML(imagesFile, &images); err != nil {
			return false, fmt.Errorf("read the images: %w", err)
		}
		for _, name := range slices.Sorted(maps.Keys(images)) {
			refs = append(refs, images[name])
		}
	}
	for _, ref := range refs {
		hit, known := l.report(stdout, ref)
		found = found || hit
		if pinned && !known {
			err = errors.Join(err, fmt.Errorf("%s: %s is neither among the programs nor elsewhere", listFile, ref))
		}
	}
	if age := now.Sub(l.Looked); age > maxAge {
		fmt.Fprintf(stderr, "advisories: warning: %s was last looked through on %s, %d days ago: see the sources of its programs\n",
			listFile, l.Looked.Format(time.DateOnly), int(age.Hours()/24))
	}
	return found, err
}

// report prints what is known of an image, and reports whether it has a weakness and
// whether the list knows its program.
func (l *list) report(w io.Writer, ref string) (found, known bool) {
	repository, tag := splitRef(ref)
	if why, ok := l.Elsewhere[repository]; ok {
		fmt.Fprintf(w, "%s: %s\n", ref, why)
		return false, true
	}
	for _, name := range slices.Sorted(maps.Keys(l.Programs)) {
		if l.Programs[name].Image == repository {
			return l.reportProgram(w, ref, tag, name), true
		}
	}
	fmt.Fprintf(w, "%s: the list does not have this program\n", ref)
	return false, false
}

// reportProgram prints the advisories of a program that apply to a tag.
func (l *list) reportProgram(w io.Writer, ref, tag, name string) (found bool) {
	version, ok := tagVersion(tag, l.Programs[name].Parts)
	if !ok {
		// It may be old or new; a scan must not let it pass.
		fmt.Fprintf(w, "%s: no exact version, which can't be compared: see %s\n", ref, l.Programs[name].Source)
		return true
	}
	for _, a := range l.Advisories[name] {
		hit, fixed := a.Affected.contains(version)
		if !hit {
			continue
		}
		found = true
		fmt.Fprintf(w, "%s: %s: %s; fixed %s; %s\n", ref, a.ID, a.Effect, fixed, a.Source)
	}
	if !found {
		fmt.Fprintf(w, "%s: none of %d known on %s\n", ref, len(l.Advisories[name]), l.Looked.Format(time.DateOnly))
	}
	return found
}

// splitRef returns the repository of a reference, without the registry of Docker Hub, and
// its tag. A colon before a slash is a port's.
func splitRef(ref string) (repository, tag string) {
	ref, _, _ = strings.Cut(ref, "@")
	repository = ref
	if colon := strings.LastIndex(ref, ":"); colon >= 0 && !strings.Contains(ref[colon:], "/") {
		repository, tag = ref[:colon], ref[colon+1:]
	}
	return strings.TrimPrefix(strings.TrimPrefix(repository, "docker.io/"), "library/"), tag
}

// tagPattern matches the version of a tag. Another rest, such as -alpine or Grafana's
// -security-01, is not compared.
var tagPattern = regexp.MustCompile(`^v?(\d+(?:\.\d+){0,2})(?:-?(rc|beta|alpha|ea)[.-]?(\d+))?(?:-.*)?$`)

// tagVersion returns the version of a tag for semver. ok says that it has all its parts: one
// with fewer moves with each release.
func tagVersion(tag string, parts int) (version string, ok bool) {
	m := tagPattern.FindStringSubmatch(tag)
	if m == nil || strings.Count(m[1], ".")+1 != parts {
		return "", false
	}
	version = semver.Canonical("v" + m[1])
	if m[2] != "" {
		version += "-" + m[2] + "." + m[3]
	}
	return version, semver.IsValid(version)
}
