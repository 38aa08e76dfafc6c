package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"

	"switchyard/bench/report"
)

// Sizes of a plot, in pixels.
const plotWidth, plotHeight, plotMarginLeft, plotMarginBottom, plotMarginTop = 760, 280, 70, 50, 30

// plotColors can be distinguished with most kinds of color blindness.
var plotColors = []string{"#1b6ca8", "#d1495b", "#2e8b57"}

type point struct{ x, y float64 }

// drawPlot makes an SVG of a scaling's curves: x is logarithmic, y begins at 0.
func drawPlot(s *scaling, lines []report.Run) string {
	curves := make([][]point, len(s.plots))
	low, high, top := math.Inf(1), 0.0, 0.0
	for i, c := range s.plots {
		for j := range lines {
			x := numberIn(lines[j].Test)
			if x == 0 || !strings.Contains(lines[j].Test, c.word) {
				continue
			}
			y := c.value(&lines[j])
			curves[i] = append(curves[i], point{x, y})
			low, high, top = min(low, x), max(high, x), max(top, y)
		}
	}
	if high <= low || top == 0 {
		return ""
	}
	top *= 1.1
	at := func(p point) (x, y float64) {
		return plotMarginLeft + math.Log(p.x/low)/math.Log(high/low)*(plotWidth-plotMarginLeft-30),
			plotHeight - plotMarginBottom - p.y/top*(plotHeight-plotMarginBottom-plotMarginTop)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="18" font-size="13">%s (%s)</text>`+"\n", plotMarginLeft, html.EscapeString(s.title), s.plots[0].unit)
	for i := range 5 {
		v := top * float64(i) / 4
		_, y := at(point{low, v})
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n",
			plotMarginLeft, plotWidth-30, y, y, plotMarginLeft-6, y+4, strconv.FormatFloat(v, 'g', 3, 64))
	}
	for i, points := range curves {
		var line strings.Builder
		for _, p := range points {
			x, y := at(p)
			fmt.Fprintf(&line, "%.1f,%.1f ", x, y)
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x, y, plotColors[i])
			if i == 0 {
				fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`, x, plotHeight-plotMarginBottom+16, strconv.FormatFloat(p.x, 'f', -1, 64))
			}
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="%s"/><text x="%d" y="%d" fill="%[1]s">%s</text>`+"\n",
			plotColors[i], strings.TrimSpace(line.String()), plotMarginLeft+i*180, plotHeight-10, html.EscapeString(s.plots[i].name))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// numberIn returns the number that is the first or the last word of a run's name, 0 if
// there is none.
func numberIn(name string) float64 {
	words := strings.FieldsFunc(name, func(r rune) bool { return r == ' ' || r == ',' })
	for _, w := range []string{words[0], words[len(words)-1]} {
		if v, err := strconv.ParseFloat(w, 64); err == nil {
			return v
		}
	}
	return 0
}
