package inspect

import (
	"fmt"
	"html"
	"math"
	"strings"
	"time"

	"switchyard/internal/checks"
	"switchyard/internal/stack"
)

// Sizes of a plot, in pixels.
const (
	plotWidth, plotHeight                    = 860, 240
	plotLeft, plotRight, plotTop, plotBottom = 80, 10, 30, 45
)

// plotColors are colors that most people can distinguish, also in grayscale.
var plotColors = []string{"#1b6ca8", "#d1495b", "#2e8b57", "#e0a030", "#6a4c93", "#555555", "#00a6a6", "#a0522d"}

// A Marker is a moment that plots show as a vertical line.
type Marker struct {
	At    time.Time
	Label string
}

// plot draws series over a span as SVG.
func plot(title, unit string, series []stack.Series, from, to time.Time, markers []Marker) string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`, plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="18" font-size="13">%s</text>`, plotLeft, html.EscapeString(title))
	top := axisMax(series)
	x := func(t time.Time) float64 {
		return plotLeft + float64(t.Sub(from))/float64(to.Sub(from))*(plotWidth-plotLeft-plotRight)
	}
	y := func(v float64) float64 {
		return plotHeight - plotBottom - v/top*(plotHeight-plotBottom-plotTop)
	}
	for i := range 5 {
		v := top * float64(i) / 4
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
			plotLeft, plotWidth-plotRight, y(v), y(v), plotLeft-6, y(v)+4, checks.FormatValue(v, unit))
		at := from.Add(time.Duration(float64(to.Sub(from)) * float64(i) / 4))
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, min(x(at), plotWidth-40), plotHeight-plotBottom+15, at.UTC().Format("01-02 15:04"))
	}
	for _, m := range markers {
		if m.At.Before(from) || m.At.After(to) {
			continue
		}
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%[1]f" y1="%d" y2="%d" stroke="#888" stroke-dasharray="3 3"><title>%s</title></line>`,
			x(m.At), plotTop, plotHeight-plotBottom, html.EscapeString(m.Label))
	}
	for i, s := range series[:min(len(series), len(plotColors))] {
		points := make([]string, len(s.Values))
		for j, v := range s.Values {
			points[j] = fmt.Sprintf("%.1f,%.1f", x(s.Times[j]), y(v))
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/>`, plotColors[i], strings.Join(points, " "))
		if name := seriesName(s); name != "" {
			fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`, plotLeft+i*100, plotHeight-10, plotColors[i], html.EscapeString(truncate(name, 16)))
		}
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// seriesName returns the labels that distinguish a series within its plot.
func seriesName(s stack.Series) string {
	var parts []string
	for _, k := range []string{"color", "reason", "type", "result", "leg"} {
		if s.Labels[k] != "" {
			parts = append(parts, s.Labels[k])
		}
	}
	return strings.Join(parts, " ")
}

// axisMax returns a round number that no value exceeds.
func axisMax(series []stack.Series) float64 {
	highest := 0.0
	for _, s := range series {
		for _, v := range s.Values {
			highest = max(highest, v)
		}
	}
	if highest <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(highest)))
	for _, f := range []float64{1, 2, 2.5, 5, 10} {
		if f*unit >= highest {
			return f * unit
		}
	}
	return highest
}
