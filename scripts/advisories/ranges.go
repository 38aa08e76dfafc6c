package main

import (
	"fmt"
	"strings"

	"golang.org/x/mod/semver"
)

// affected are the affected versions of a program, in text "< 7.2.11, >= 8.0 < 8.0.6":
// parts between commas, each with a lower bound, an upper one or both.
type affected []versionRange

// A versionRange has an inclusive lower bound, unless it is empty, and an upper one, which
// is inclusive for <=.
type versionRange struct {
	from, below, through string
	// text is the upper bound as it is written.
	text string
}

// UnmarshalText parses ranges.
func (a *affected) UnmarshalText(text []byte) error {
	for part := range strings.SplitSeq(string(text), ",") {
		r, err := parseRange(strings.Fields(part))
		if err != nil {
			return fmt.Errorf("affected %q: %w", text, err)
		}
		*a = append(*a, r)
	}
	return nil
}

// parseRange parses an operator and a version, or two of each.
func parseRange(words []string) (r versionRange, err error) {
	if len(words) != 2 && len(words) != 4 {
		return r, fmt.Errorf("want an operator and a version, once or twice, in %q", words)
	}
	for i := 0; i < len(words); i += 2 {
		version := semver.Canonical("v" + words[i+1])
		if version == "" {
			return r, fmt.Errorf("%q is not a version", words[i+1])
		}
		upper := r.below != "" || r.through != ""
		switch {
		case words[i] == ">=" && i == 0:
			r.from = version
		case words[i] == "<" && !upper:
			r.below, r.text = version, words[i+1]
		case words[i] == "<=" && !upper:
			r.through, r.text = version, words[i+1]
		default:
			return r, fmt.Errorf("%s is at the wrong place", words[i])
		}
	}
	if top := r.below + r.through; top != "" && r.from != "" && semver.Compare(r.from, top) > 0 {
		return r, fmt.Errorf("%s is above %s", r.from, top)
	}
	return r, nil
}

// contains reports whether a version is affected, and in words where that ends.
func (a affected) contains(version string) (hit bool, fixed string) {
	for _, r := range a {
		switch {
		case r.from != "" && semver.Compare(version, r.from) < 0:
		case r.below != "" && semver.Compare(version, r.below) >= 0:
		case r.through != "" && semver.Compare(version, r.through) > 0:
		case r.below != "":
			return true, "in " + r.text
		case r.through != "":
			return true, "after " + r.text
		default:
			return true, "in no version"
		}
	}
	return false, ""
}
