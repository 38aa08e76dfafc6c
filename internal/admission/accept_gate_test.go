package admission

import (
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// A thousand connections that come at once are let in as they are served; those that send
// nothing hold the others off for a moment only.
func TestConnectionsAreLetInAsTheyAreServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const atOnce, perRound = 4, 500 * time.Microsecond // docs/limits.md
		g := NewAcceptGate(atOnce)
		entered := make(chan net.Conn, 1000)
		go func() {
			for range 1000 {
				c := &addressedConn{}
				g.Enter(c)
				entered <- c
			}
		}()
		synctest.Wait()
		if len(entered) != atOnce {
			t.Errorf("%d were let in at once, want %d", len(entered), atOnce)
		}
		for served := 1; served <= 10; served++ {
			c := <-entered
			g.OnStateChange(c, http.StateActive)
			g.OnStateChange(c, http.StateHijacked)
			g.OnStateChange(c, http.StateClosed)
			synctest.Wait()
			if len(entered) != atOnce {
				t.Errorf("%d are in after %d were served", len(entered), served)
			}
		}
		for len(entered) > 0 {
			<-entered
		}
		began := time.Now()
		for i := range 5 * atOnce {
			<-entered
			if waited, most := time.Since(began), time.Duration(i/atOnce+1)*perRound; waited > most {
				t.Errorf("connection %d behind silent ones waited %v, want at most %v", i, waited, most)
			}
		}
		time.Sleep(time.Second) // the others enter
	})
}
