package deploy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// A DeployWindow is when deploys may begin, in the host's time zone.
type DeployWindow struct {
	// Days are mon to sun; none: every day.
	Days []string `yaml:"days"`
	// From and To are hours and minutes, such as 09:00 and 16:30.
	From string `yaml:"from"`
	To   string `yaml:"to"`
}

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

func (w DeployWindow) validate() error {
	for _, d := range w.Days {
		if !slices.Contains(weekdays, d) {
			return fmt.Errorf("windows: a day is one of %v, not %q", weekdays, d)
		}
	}
	from, errFrom := time.Parse("15:04", w.From)
	to, errTo := time.Parse("15:04", w.To)
	if errFrom != nil || errTo != nil || !from.Before(to) {
		return fmt.Errorf("windows: from and to must be times such as 09:00 and 16:30, the earlier first, not %q and %q", w.From, w.To)
	}
	return nil
}

// contains tells whether a time lies in it.
func (w DeployWindow) contains(t time.Time) bool {
	if len(w.Days) > 0 && !slices.Contains(w.Days, weekdays[t.Weekday()]) {
		return false
	}
	now := t.Format("15:04") // which sort as times do
	return w.From <= now && now < w.To
}

func (w DeployWindow) String() string {
	days := "every day"
	if len(w.Days) > 0 {
		days = strings.Join(w.Days, ",")
	}
	return days + " " + w.From + "-" + w.To
}
