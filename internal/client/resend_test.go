package client

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// The id of a publish may be forgotten after its window, whichever clock says that it is
// over: the monotonic clock stands still while a computer sleeps, and the wall clock may
// be set back.
func TestNothingIsResentAfterTheWindowByEitherClock(t *testing.T) {
	for _, test := range []struct {
		name         string
		wall, passes time.Duration
	}{
		{"the computer slept", 6 * time.Minute, time.Second},
		{"the wall clock was set back", -20 * time.Minute, 6 * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			withService(t, func(t *testing.T, s *fakeService) {
				var offset atomic.Int64
				c := s.newClient(Options{random: func() float64 { return 0.99 }, wallNow: func() time.Time {
					return time.Now().Round(0).Add(time.Duration(offset.Load()))
				}})
				p := s.accept()
				result := publish(c, "r", "a")
				p.expect("publish")
				s.refuseNext(slices.Repeat([]int{http.StatusServiceUnavailable}, 1000)...)
				offset.Store(int64(test.wall))
				p.closeWith(0)
				time.Sleep(test.passes) // of the bubble
				s.refuseNext()
				p = s.accept()
				synctest.Wait()
				if r := <-result; !errors.Is(r.err, ErrOutcomeUnknown) {
					t.Errorf("the publish ended with %+v, want an unknown outcome", r)
				}
				if err := c.Signal("r", json.RawMessage("1")); err != nil {
					t.Fatal(err)
				}
				p.expect("signal") // and no publish before it
			})
		})
	}
}

// A publish whose window is not over is resent, although the wall clock was set.
func TestAPublishIsResentAlthoughTheWallClockWasSetBack(t *testing.T) {
	withService(t, func(t *testing.T, s *fakeService) {
		var offset atomic.Int64
		c := s.newClient(Options{random: zeroRandom, wallNow: func() time.Time {
			return time.Now().Round(0).Add(time.Duration(offset.Load()))
		}})
		p := s.accept()
		_ = publish(c, "r", "a")
		p.expect("publish")
		offset.Store(int64(-20 * time.Minute))
		p.closeWith(0)
		s.accept().expect("publish")
	})
}
