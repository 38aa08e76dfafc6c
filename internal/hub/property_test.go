package hub

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// Whatever happens in whatever order, to the nodes, the log, the broker and the
// members: each member gets exactly what its position is owed, and once all
// faults are over, all of it. `-rapid.checks=100000` looks longer.
func TestPropertyEachMemberGetsExactlyItsSequence(t *testing.T) {
	for nodes := 1; nodes <= 3; nodes++ {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				rapid.SyncTest(t, func(t *rapid.T) {
					a := newSimulation(drawBounds(t), nodes, 2, 3)
					t.Cleanup(a.close)
					t.Repeat(a.actions())
					a.finish(t)
				})
			})
		})
	}
}

// drawBounds may leave the topics of a node next to nothing together.
func drawBounds(t *rapid.T) bounds {
	b := tinyBounds()
	budget := rapid.SampledFrom([]int64{1 << 20, 1 << 20, 300})
	b.undeliveredBudget = budget.Draw(t, "early")
	b.ringBudget = budget.Draw(t, "rings")
	b.pageBudget = budget.Draw(t, "pages")
	return b
}

// actions is what may happen. Each is one call, after which all that is due at
// that instant has happened; time passes in "time" alone, and is virtual.
func (a *simulation) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":         func(t *rapid.T) { a.runDue(t) },
		"commit":   a.drawCommit,
		"resend":   a.drawResend,
		"settle":   func(t *rapid.T) { a.completeNext(a.drawNode(t)) },
		"deliver":  a.drawDeliver,
		"delivers": func(*rapid.T) { a.deliverAll() },
		"signal":   a.drawSignal,
		"time":     a.drawTime,
		"join":     a.drawJoin,
		"resume":   a.drawResume,
		"leave":    func(t *rapid.T) { a.leave(a.drawClient(t), a.drawRoom(t)) },
		"ping":     func(t *rapid.T) { a.ping(a.drawClient(t)) },
		"pong":     func(t *rapid.T) { a.pong(a.drawClient(t)) },
		"player":   a.drawClientFault,
		"node":     a.drawNodeFault,
		"log":      a.drawLogFault,
		"well":     func(*rapid.T) { a.clearFaults() },
	}
}

func (a *simulation) drawNode(t *rapid.T) int {
	return rapid.IntRange(0, len(a.nodes)-1).Draw(t, "node")
}
func (a *simulation) drawClient(t *rapid.T) *simClient {
	return a.clients[rapid.IntRange(0, len(a.clients)-1).Draw(t, "player")]
}
func (a *simulation) drawRoom(t *rapid.T) message.Room {
	return rapid.SampledFrom([]message.Room{a.rooms[0], a.rooms[0], a.rooms[1]}).Draw(t, "room")
}

// drawCommit stores messages by way of a node, which hears of it now, later, or
// never: it may die between commit and broadcast.
func (a *simulation) drawCommit(t *rapid.T) {
	node, room := a.drawNode(t), a.drawRoom(t)
	n := rapid.SampledFrom([]int{1, 1, 1, 2, 3, 5, 9}).Draw(t, "messages")
	batch := a.log.commit(room, n, rapid.SampledFrom([]int{1, 1, 1, 150, 500}).Draw(t, "bytes"))
	switch rapid.SampledFrom([]string{"now", "now", "later", "never"}).Draw(t, "settled") {
	case "now":
		a.pending[node] = append(a.pending[node], batch)
		for len(a.pending[node]) > 0 { // in order, as committed
			a.completeNext(node)
		}
	case "later":
		a.pending[node] = append(a.pending[node], batch)
	}
}

// drawResend settles a message once more, as for a publisher who lost the ack.
func (a *simulation) drawResend(t *rapid.T) {
	node, room := a.drawNode(t), a.drawRoom(t)
	if head, _ := a.log.head(a.log.epoch(), room); head > 0 {
		seq := rapid.Int64Range(1, int64(head)).Draw(t, "seq")
		a.nodes[node].Completed(a.log.resend(room, message.Seq(seq)))
	}
}

// drawDeliver delivers, repeats or loses any parcel of the post.
func (a *simulation) drawDeliver(t *rapid.T) {
	n := a.broker.queued()
	if n == 0 {
		return
	}
	i := rapid.IntRange(0, n-1).Draw(t, "parcel")
	switch rapid.SampledFrom([]string{"take", "take", "keep", "lose"}).Draw(t, "how") {
	case "take":
		a.deliver(i, false)
	case "keep":
		a.deliver(i, true)
	case "lose":
		a.broker.dequeue(i, false)
	}
}

func (a *simulation) deliverAll() {
	for a.broker.queued() > 0 {
		a.deliver(0, false)
	}
}

func (a *simulation) drawSignal(t *rapid.T) {
	a.nodes[a.drawNode(t)].Signal(a.drawRoom(t), "", []byte(`1`))
}

func (a *simulation) drawTime(t *rapid.T) {
	ms := rapid.SampledFrom([]int{1, 20, 30, 100, 251, 1100, 5300, 21000}).Draw(t, "ms")
	time.Sleep(time.Duration(ms) * time.Millisecond)
}

// drawJoin joins from anywhere: also where the log never was.
func (a *simulation) drawJoin(t *rapid.T) {
	p, node, room := a.drawClient(t), a.drawNode(t), a.drawRoom(t)
	k := pendingJoin{}
	switch rapid.SampledFrom([]string{"now", "zero", "here", "elsewhere"}).Draw(t, "from") {
	case "now":
		k.fromNow = true
	case "here":
		k.from.epoch = a.log.epoch()
		head, _ := a.log.head(k.from.epoch, room)
		k.from.seq = message.Seq(rapid.Int64Range(1, int64(head)+3).Draw(t, "after"))
	case "elsewhere":
		k.from.epoch = rapid.SampledFrom(append([]message.Epoch{"e0"}, a.log.epochs...)).Draw(t, "epoch")
		k.from.seq = message.Seq(rapid.Int64Range(1, 12).Draw(t, "after"))
	}
	a.dial(p, node)
	a.join(p, room, k)
}

// drawResume joins from where the player is, on any node, as clients do that
// come back.
func (a *simulation) drawResume(t *rapid.T) {
	p, node, room := a.drawClient(t), a.drawNode(t), a.drawRoom(t)
	a.dial(p, node)
	p.mu.Lock()
	k := pendingJoin{from: p.rooms[room].at}
	p.mu.Unlock()
	if k.from.seq == 0 {
		k.from.epoch = ""
	}
	a.join(p, room, k)
}

func (a *simulation) drawClientFault(t *rapid.T) {
	p := a.drawClient(t)
	switch rapid.SampledFrom([]string{"slow", "fast", "gone"}).Draw(t, "fault") {
	case "slow":
		p.makeSlow()
	case "fast":
		p.makeFast()
	case "gone":
		a.disconnect(p)
	}
}

func (a *simulation) drawNodeFault(t *rapid.T) {
	node := a.drawNode(t)
	v, o := a.logViews[node], a.broker.nodes[node]
	fault := rapid.SampledFrom([]string{"log away", "feed away", "log slow", "no subscriptions", "killed"}).Draw(t, "fault")
	switch fault {
	case "log away":
		v.set(func() { v.down = true })
	case "feed away":
		v.set(func() { v.feedDown = true })
	case "log slow":
		ms := rapid.SampledFrom([]int{1, 40, 300, 2000, 6000}).Draw(t, "ms")
		v.set(func() { v.delay = time.Duration(ms) * time.Millisecond })
	case "no subscriptions":
		o.mu.Lock()
		o.subscribeBlocked = true
		o.mu.Unlock()
	case "killed":
		for _, p := range a.clients {
			if p.node == node {
				a.disconnect(p)
			}
		}
		a.stop(node)
		a.pending[node] = nil
		a.start(node)
	}
}

func (a *simulation) drawLogFault(t *rapid.T) {
	switch rapid.SampledFrom([]string{"trimmed", "trimmed", "pruned", "restored"}).Draw(t, "fault") {
	case "trimmed":
		room := a.drawRoom(t)
		head, _ := a.log.head(a.log.epoch(), room)
		a.log.trim(room, message.Seq(rapid.Int64Range(1, int64(head)+1).Draw(t, "first")))
	case "pruned":
		a.log.pruneFeed(rapid.IntRange(0, 2).Draw(t, "rows"))
	case "restored":
		heads := map[message.Room]int{}
		for _, room := range a.rooms {
			head, _ := a.log.head(a.log.epoch(), room)
			heads[room] = rapid.IntRange(0, int(head)).Draw(t, "keeps")
		}
		a.log.restore(heads)
	}
}

// clearFaults ends what is wrong with the nodes' ways to the log and the broker.
func (a *simulation) clearFaults() {
	a.extendGrace() // for what is under way
	for i, v := range a.logViews {
		v.set(func() { v.down, v.feedDown, v.delay = false, false, 0 })
		var live []message.Room
		for _, r := range a.nodes[i].Rooms() {
			live = append(live, r.Room)
		}
		a.broker.nodes[i].resubscribe(live)
	}
}

// finish ends all faults, gives the nodes some seconds, and judges. The broker
// may have died for good.
func (a *simulation) finish(t *rapid.T) {
	a.clearFaults()
	for _, p := range a.clients {
		p.makeFast()
	}
	if rapid.Bool().Draw(t, "broker lives") {
		for i := range a.nodes {
			for len(a.pending[i]) > 0 {
				a.completeNext(i)
			}
		}
		a.deliverAll()
	}
	a.waitComplete(t, 8*time.Second)
	for _, p := range a.clients {
		a.disconnect(p)
	}
	time.Sleep(15 * time.Second) // TopicIdle, and a sweep
	a.checkIdle()
	a.runDue(t)
}

// waitComplete waits until everybody has everything, so long at most.
func (a *simulation) waitComplete(t rapid.TB, most time.Duration) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		a.runDue(t)
		missing := ""
		for _, p := range a.clients {
			missing = cmp.Or(missing, p.missing())
		}
		missing = cmp.Or(missing, a.busyTopic())
		if missing == "" {
			return
		}
		if time.Since(began) > most {
			t.Fatalf("after %v without a fault %s\n%s", most, missing, a.describeTopics())
		}
	}
}
