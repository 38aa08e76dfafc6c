package http

import (
	"net/netip"
	"sync"
	"time"

	"switchyard/internal/ratelimit"
)

// How many tokens a second may have a wrong signature. The check of one takes from some
// microseconds to half a millisecond of a processor, by the keys.
var (
	failuresPerAddress = ratelimit.Limit{PerSecond: 5, Burst: 50}
	failuresInAll      = ratelimit.Limit{PerSecond: 100, Burst: 1000}
)

// A failureLimit bounds the tokens that are checked in vain. An address with too many is
// not checked for a while. With too many in all, no address is checked that still owes
// for some; others are not affected. It is safe for concurrent use.
type failureLimit struct {
	now       func() time.Duration
	byAddress *ratelimit.Keyed // by network; all that are not counted by address share one key

	// mu protects inAll.
	mu    sync.Mutex
	inAll ratelimit.State
}

func newFailureLimit(now func() time.Duration) *failureLimit {
	return &failureLimit{now: now, byAddress: ratelimit.NewKeyed(failuresPerAddress)}
}

// wait returns how long a client of this network must wait until its token is checked.
// An invalid network is that of clients that are not counted by address.
func (f *failureLimit) wait(network netip.Prefix) time.Duration {
	now := f.now()
	own := f.byAddress.Used(network.String())
	if wait := own.Wait(failuresPerAddress, now); wait > 0 && network.IsValid() {
		return wait
	}
	if own.IsZero(now) {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.inAll.Wait(failuresInAll, now)
}

// record counts a token whose signature is wrong.
func (f *failureLimit) record(network netip.Prefix) {
	now := f.now()
	f.byAddress.Take(network.String(), now, 1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inAll.Take(failuresInAll, now, 1)
}
