package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A TimeWindow is a span of the day in which deploys may begin, in the host's
// time zone.
type TimeWindow struct {
	// Days are names from mon to sun, on which the window begins; none means every day.
	Days []string `yaml:"days"`
	// From and To are times such as 09:00 and 16:30. To is not in the window. If it is
	// before From, it is of the next day.
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// validate returns an error if a day or a time is not valid.
func (w TimeWindow) validate() error {
	for _, d := range w.Days {
		if !slices.Contains(weekdays, d) {
			return fmt.Errorf("windows: a day is one of %v, not %q", weekdays, d)
		}
	}
	from, errFrom := time.Parse("15:04", w.From)
	to, errTo := time.Parse("15:04", w.To)
	if errFrom != nil || errTo != nil || from.Equal(to) {
		return fmt.Errorf("windows: from and to must be two times such as 09:00 and 16:30, not %q and %q", w.From, w.To)
	}
	return nil
}

// contains reports whether a time lies in the window.
func (w TimeWindow) contains(t time.Time) bool {
	now := t.Format("15:04") // these strings sort as their times do
	began := t.Weekday()
	switch {
	case w.From <= w.To:
		if now < w.From || now >= w.To {
			return false
		}
	case now < w.To: // since midnight, in the window of the day before
		began = (began + 6) % 7
	case now < w.From:
		return false
	}
	return len(w.Days) == 0 || slices.Contains(w.Days, weekdays[began])
}

func (w TimeWindow) String() string {
	days := "every day"
	if len(w.Days) > 0 {
		days = strings.Join(w.Days, ",")
	}
	return days + " " + w.From + "-" + w.To
}
