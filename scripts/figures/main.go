// Command figures prints the sizes of Go code by package.
//
//	go run ./scripts/figures [FOLDER...]
//
// Without a folder it measures this repository. With several it prints a table for
// each, so that this code can be compared with that of other projects.
//
// The columns are the lines of files and of functions, the share of comments in the
// lines that are not blank, and the lines of tests for each line of code, both
// without blank lines and comments. Only the last column counts tests. Generated and
// vendored code, testdata and license headers are left out.
package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
)

func main() {
	folders := os.Args[1:]
	if len(folders) == 0 {
		folders = []string{"."}
	}
	for i, folder := range folders {
		if i > 0 {
			fmt.Println()
		}
		if err := printFolder(os.Stdout, folder); err != nil {
			fmt.Fprintln(os.Stderr, "figures:", err)
			os.Exit(1)
		}
	}
}

// printFolder prints the table of one folder: a row for each package and one for
// all of them.
func printFolder(w io.Writer, folder string) error {
	byPackage, err := measure(os.DirFS(folder))
	if err != nil {
		return fmt.Errorf("%s: %w", folder, err)
	}
	packages := make([]string, 0, len(byPackage))
	all := new(figures)
	for name, f := range byPackage {
		packages = append(packages, name)
		all.add(f)
	}
	slices.Sort(packages)
	fmt.Fprintln(w, folder)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "files\tlines: median\tp90\tmax\tfunctions\tlines: median\tp90\tmax\tcomments\ttest:code\tpackage\t")
	for _, name := range packages {
		fmt.Fprintf(t, "%v%s\t\n", byPackage[name], name)
	}
	fmt.Fprintf(t, "%vall\t\n", all)
	return t.Flush()
}

// String returns the cells of a row, each followed by a tab.
func (f *figures) String() string {
	comments, ratio := "–", "–"
	if text := f.codeLines + f.commentLines; text > 0 {
		comments = fmt.Sprintf("%.0f%%", 100*float64(f.commentLines)/float64(text))
	}
	if f.codeLines > 0 {
		ratio = fmt.Sprintf("%.2f", float64(f.testLines)/float64(f.codeLines))
	}
	return fmt.Sprintf("%d\t%s\t%d\t%s\t%s\t%s\t", len(f.fileLines), quantiles(f.fileLines), len(f.funcLines), quantiles(f.funcLines), comments, ratio)
}

// quantiles returns the median, the 90th percentile and the maximum, with tabs
// between them.
func quantiles(values []int) string {
	if len(values) == 0 {
		return "–\t–\t–"
	}
	sorted := slices.Sorted(slices.Values(values))
	return fmt.Sprintf("%.0f\t%.0f\t%d", quantile(sorted, 0.5), quantile(sorted, 0.9), sorted[len(sorted)-1])
}

// quantile interpolates between the two values of a sorted list that are nearest.
func quantile(sorted []int, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(at)
	high := min(low+1, len(sorted)-1)
	return float64(sorted[low]) + (at-float64(low))*float64(sorted[high]-sorted[low])
}
