package monitoring

import (
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A selector is a metric in an expression, and the labels by which it is selected.
type selector struct {
	metric string
	labels []string
}

var (
	// token matches a string, a range, a number, a name, or one other character.
	token    = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\[[^\]]*\]|[0-9][0-9a-zA-Z_.]*|[a-zA-Z_:][a-zA-Z0-9_:]*|\S`)
	name     = regexp.MustCompile(`^[a-zA-Z_:]`)
	keywords = []string{"and", "or", "unless", "bool", "offset", "inf", "nan", "start", "end"}
	// These are followed by labels in parentheses.
	grouping = []string{"by", "without", "on", "ignoring", "group_left", "group_right"}
)

// selectors returns the metrics of an expression of PromQL. It knows as much of the
// language as rules and panels use: a name followed by a parenthesis is a function,
// or a grouping by labels.
func selectors(expr string) (all []selector) {
	tokens := token.FindAllString(expr, -1)
	next := func(i int) string {
		if i+1 < len(tokens) {
			return strings.ToLower(tokens[i+1])
		}
		return ""
	}
	skip := func(i int, until string) int {
		for ; i < len(tokens) && tokens[i] != until; i++ {
		}
		return i
	}
	for i := 0; i < len(tokens); i++ {
		word := tokens[i]
		switch {
		case !name.MatchString(word), slices.Contains(keywords, strings.ToLower(word)):
		case slices.Contains(grouping, strings.ToLower(word)):
			if next(i) == "(" {
				i = skip(i, ")")
			}
		case next(i) == "(", next(i) == "by", next(i) == "without": // a function
		case next(i) == "{":
			s := selector{metric: word}
			for i += 2; i < len(tokens) && tokens[i] != "}"; i++ {
				if name.MatchString(tokens[i]) {
					s.labels = append(s.labels, tokens[i])
				}
			}
			all = append(all, s)
		default:
			all = append(all, selector{metric: word})
		}
	}
	return all
}

func TestSelectors(t *testing.T) {
	t.Parallel()
	for expr, want := range map[string][]selector{
		`up == 0`: {{metric: "up"}},
		`sum by (le, route) (rate(a_bucket{color=~"x|y{", route!="/ws"}[$__rate_interval])) or vector(0)`: {{"a_bucket", []string{"color", "route"}}},
		`histogram_quantile(0.99, sum(rate(b[5m])) without (le)) > 14.4 * 1e3`:                            {{metric: "b"}},
		`a:b:c1 / on (instance) group_left (version) d{} unless e offset 5m`:                              {{metric: "a:b:c1"}, {metric: "d"}, {metric: "e"}},
		`topk(10, sum by (cmd) (f)) and time() - g{x='1'} > bool 3`:                                       {{metric: "f"}, {"g", []string{"x"}}},
		`absent(up{job="a"}) or absent(h)`:                                                                {{"up", []string{"job"}}, {metric: "h"}},
	} {
		if got := selectors(expr); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", expr, got, want)
		}
	}
}
