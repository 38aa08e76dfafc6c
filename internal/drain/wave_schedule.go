package drain

import "time"

// waveSchedule keeps the clients of two waves apart. A wave's sessions are saved
// before its clients are asked, so one wave may be late and the next on time: both
// at once would exceed what the other nodes accept.
type waveSchedule struct{ end time.Time } // when the last wave ends

// next returns the delay until the next wave begins. A wave lasts for waveInterval.
func (s *waveSchedule) next(now time.Time) time.Duration {
	if s.end.Before(now) {
		s.end = now
	}
	first := s.end.Sub(now)
	s.end = s.end.Add(waveInterval)
	return first
}
