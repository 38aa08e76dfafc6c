package hub

import (
	"testing"
	"testing/synctest"
	"time"
)

// Clocks drift apart: after a while a signal is compared with the later ones only.
func TestDriftDoesNotMakeSignalsStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ages := newSignalAges()
		for minute := range int64(240) {
			sent := time.Now().Add(-time.Duration(minute) * time.Second).UnixMicro() // a clock that loses a second a minute
			if age := ages.age(1, sent); age > 3*time.Second {
				t.Fatalf("after %d minutes a new signal is %v old", minute, age)
			}
			time.Sleep(time.Minute)
		}
	})
}

// A path was cut: what waited in it is old, though nothing arrived meanwhile, also
// the newest of it when the next arrive.
func TestWhatWaitedInACutPathIsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ages := newSignalAges()
		ages.age(1, time.Now().UnixMicro())
		var waiting []int64
		for range 30 {
			waiting = append(waiting, time.Now().UnixMicro())
			time.Sleep(5 * time.Second)
		}
		for i, sent := range waiting {
			want := time.Duration(30-i) * 5 * time.Second
			if age := ages.age(1, sent); age != want {
				t.Errorf("a signal that waited for %v is %v old", want, age)
			}
		}
	})
}

func TestASignalClockIsNotSetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c signalClock
		first := c.now()
		// As if the wall clock had shown an hour more before.
		c.micros += time.Hour.Microseconds()
		time.Sleep(time.Second)
		if got, want := c.now()-first, (time.Hour + time.Second).Microseconds(); got != want {
			t.Errorf("after the clock was set back %d µs have passed, want %d", got, want)
		}
		c.micros = first // and now it is set forward
		time.Sleep(time.Second)
		if got, want := c.now(), time.Now().UnixMicro(); got != want {
			t.Errorf("after the clock was set forward it is %d, want %d", got, want)
		}
	})
}

func TestTheSendersOfSignalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ages := newSignalAges()
		for origin := range uint64(maxSenders + 10) {
			ages.age(origin, time.Now().UnixMicro())
			ages.age(0, time.Now().UnixMicro())
			time.Sleep(time.Millisecond)
		}
		if n := len(ages.senders); n != maxSenders {
			t.Errorf("%d senders are remembered, want %d", n, maxSenders)
		}
		if ages.senders[0] == nil || ages.senders[1] != nil {
			t.Error("the sender that was silent for longest is not the one forgotten")
		}
	})
}
