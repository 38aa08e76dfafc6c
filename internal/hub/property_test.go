package hub

import (
	"cmp"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"switchyard/internal/message"
)

// Whatever happens to the nodes, the log, the broker and the clients, in any
// order: each member gets exactly the messages after its position, and all of
// them once the faults are over. `-rapid.checks=100000` runs for longer.
func TestPropertyEachMemberGetsExactlyItsSequence(t *testing.T) {
	for nodes := 1; nodes <= 3; nodes++ {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				rapid.SyncTest(t, func(t *rapid.T) {
					sim := newSimulation(drawBounds(t), nodes, 2, 3)
					t.Cleanup(sim.close)
					t.Repeat(sim.actions())
					sim.finish(t)
				})
			})
		})
	}
}

// drawBounds returns bounds whose budgets may be nearly nothing.
func drawBounds(t *rapid.T) bounds {
	b := tinyBounds()
	budget := rapid.SampledFrom([]int64{1 << 20, 1 << 20, 300})
	b.undeliveredBudget = budget.Draw(t, "undelivered")
	b.ringBudget = budget.Draw(t, "rings")
	b.pageBudget = budget.Draw(t, "pages")
	return b
}

// actions returns the events that may happen. Each is one call, and everything
// that is due at that instant happens before the next. Only "time" passes time,
// which is virtual.
func (sim *simulation) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":             func(t *rapid.T) { sim.runDue(t) },
		"commit":       sim.drawCommit,
		"resend":       sim.drawResend,
		"complete":     func(t *rapid.T) { sim.completeNext(sim.drawNode(t)) },
		"deliver":      sim.drawDeliver,
		"deliver all":  func(*rapid.T) { sim.deliverAll() },
		"signal":       sim.drawSignal,
		"time":         sim.drawTime,
		"join":         sim.drawJoin,
		"resume":       sim.drawResume,
		"leave":        func(t *rapid.T) { sim.leave(sim.drawClient(t), sim.drawRoom(t)) },
		"ping":         func(t *rapid.T) { sim.ping(sim.drawClient(t)) },
		"pong":         func(t *rapid.T) { sim.pong(sim.drawClient(t)) },
		"client fault": sim.drawClientFault,
		"node fault":   sim.drawNodeFault,
		"log fault":    sim.drawLogFault,
		"clear faults": func(*rapid.T) { sim.clearFaults() },
	}
}

func (sim *simulation) drawNode(t *rapid.T) int {
	return rapid.IntRange(0, len(sim.nodes)-1).Draw(t, "node")
}
func (sim *simulation) drawClient(t *rapid.T) *simClient {
	return sim.clients[rapid.IntRange(0, len(sim.clients)-1).Draw(t, "client")]
}
func (sim *simulation) drawRoom(t *rapid.T) message.Room {
	return rapid.SampledFrom([]message.Room{sim.rooms[0], sim.rooms[0], sim.rooms[1]}).Draw(t, "room")
}

// drawCommit commits messages on a node, whose hub learns of it now, later or
// never: the node may die between commit and broadcast.
func (sim *simulation) drawCommit(t *rapid.T) {
	node, room := sim.drawNode(t), sim.drawRoom(t)
	n := rapid.SampledFrom([]int{1, 1, 1, 2, 3, 5, 9}).Draw(t, "messages")
	batch := sim.log.commit(room, n, rapid.SampledFrom([]int{1, 1, 1, 150, 500}).Draw(t, "bytes"))
	switch rapid.SampledFrom([]string{"now", "now", "later", "never"}).Draw(t, "completed") {
	case "now":
		sim.pending[node] = append(sim.pending[node], batch)
		for len(sim.pending[node]) > 0 { // in the order of the commits
			sim.completeNext(node)
		}
	case "later":
		sim.pending[node] = append(sim.pending[node], batch)
	}
}

// drawResend completes a message again, as for a publisher that lost the ack.
func (sim *simulation) drawResend(t *rapid.T) {
	node, room := sim.drawNode(t), sim.drawRoom(t)
	if head, _ := sim.log.head(sim.log.epoch(), room); head > 0 {
		seq := rapid.Int64Range(1, int64(head)).Draw(t, "seq")
		sim.nodes[node].Completed(sim.log.resend(room, message.Seq(seq)))
	}
}

// drawDeliver delivers, repeats or loses any payload of the broker.
func (sim *simulation) drawDeliver(t *rapid.T) {
	n := sim.broker.queued()
	if n == 0 {
		return
	}
	i := rapid.IntRange(0, n-1).Draw(t, "payload")
	switch rapid.SampledFrom([]string{"deliver", "deliver", "repeat", "lose"}).Draw(t, "how") {
	case "deliver":
		sim.deliver(i, false)
	case "repeat":
		sim.deliver(i, true)
	case "lose":
		sim.broker.dequeue(i, false)
	}
}

func (sim *simulation) deliverAll() {
	for sim.broker.queued() > 0 {
		sim.deliver(0, false)
	}
}

func (sim *simulation) drawSignal(t *rapid.T) {
	sim.nodes[sim.drawNode(t)].Signal(sim.drawRoom(t), "", []byte(`1`))
}

func (sim *simulation) drawTime(t *rapid.T) {
	ms := rapid.SampledFrom([]int{1, 20, 30, 100, 251, 1100, 5300, 21000}).Draw(t, "ms")
	time.Sleep(time.Duration(ms) * time.Millisecond)
}

// drawJoin joins from any position, also from a position that the log never
// reached.
func (sim *simulation) drawJoin(t *rapid.T) {
	c, node, room := sim.drawClient(t), sim.drawNode(t), sim.drawRoom(t)
	j := pendingJoin{}
	switch rapid.SampledFrom([]string{"now", "zero", "here", "elsewhere"}).Draw(t, "from") {
	case "now":
		j.fromNow = true
	case "here":
		j.from.epoch = sim.log.epoch()
		head, _ := sim.log.head(j.from.epoch, room)
		j.from.seq = message.Seq(rapid.Int64Range(1, int64(head)+3).Draw(t, "after"))
	case "elsewhere":
		j.from.epoch = rapid.SampledFrom(append([]message.Epoch{"e0"}, sim.log.epochs...)).Draw(t, "epoch")
		j.from.seq = message.Seq(rapid.Int64Range(1, 12).Draw(t, "after"))
	}
	sim.dial(c, node)
	sim.join(c, room, j)
}

// drawResume joins from where the client is, on any node, as a client does
// after a reconnect.
func (sim *simulation) drawResume(t *rapid.T) {
	c, node, room := sim.drawClient(t), sim.drawNode(t), sim.drawRoom(t)
	sim.dial(c, node)
	c.mu.Lock()
	j := pendingJoin{from: c.rooms[room].at}
	c.mu.Unlock()
	if j.from.seq == 0 {
		j.from.epoch = ""
	}
	sim.join(c, room, j)
}

func (sim *simulation) drawClientFault(t *rapid.T) {
	c := sim.drawClient(t)
	switch rapid.SampledFrom([]string{"slow", "fast", "gone"}).Draw(t, "fault") {
	case "slow":
		c.makeSlow()
	case "fast":
		c.makeFast()
	case "gone":
		sim.disconnect(c)
	}
}

func (sim *simulation) drawNodeFault(t *rapid.T) {
	node := sim.drawNode(t)
	v, o := sim.logViews[node], sim.broker.nodes[node]
	fault := rapid.SampledFrom([]string{"log down", "feed down", "heads down", "log slow", "no subscriptions", "killed"}).Draw(t, "fault")
	switch fault {
	case "log down":
		v.set(func() { v.down = true })
	case "feed down":
		v.set(func() { v.feedDown = true })
	case "heads down":
		v.set(func() { v.headsDown = true })
	case "log slow":
		ms := rapid.SampledFrom([]int{1, 40, 300, 2000, 6000}).Draw(t, "ms")
		v.set(func() { v.delay = time.Duration(ms) * time.Millisecond })
	case "no subscriptions":
		o.mu.Lock()
		o.subscribeBlocked = true
		o.mu.Unlock()
	case "killed":
		for _, c := range sim.clients {
			if c.node == node {
				sim.disconnect(c)
			}
		}
		sim.stop(node)
		sim.pending[node] = nil
		sim.start(node)
	}
}

func (sim *simulation) drawLogFault(t *rapid.T) {
	switch rapid.SampledFrom([]string{"trimmed", "trimmed", "pruned", "restored"}).Draw(t, "fault") {
	case "trimmed":
		room := sim.drawRoom(t)
		head, _ := sim.log.head(sim.log.epoch(), room)
		sim.log.trim(room, message.Seq(rapid.Int64Range(1, int64(head)+1).Draw(t, "first")))
	case "pruned":
		sim.log.pruneFeed(rapid.IntRange(0, 2).Draw(t, "rows"))
	case "restored":
		heads := map[message.Room]int{}
		for _, room := range sim.rooms {
			head, _ := sim.log.head(sim.log.epoch(), room)
			heads[room] = rapid.IntRange(0, int(head)).Draw(t, "keeps")
		}
		sim.log.restore(heads)
	}
}

// clearFaults ends the faults of the nodes' access to the log and the broker.
func (sim *simulation) clearFaults() {
	sim.extendGrace() // for joins that are pending
	for i, v := range sim.logViews {
		v.set(func() { v.down, v.feedDown, v.headsDown, v.delay = false, false, false, 0 })
		var live []message.Room
		for _, r := range sim.nodes[i].Rooms() {
			live = append(live, r.Room)
		}
		sim.broker.nodes[i].resubscribe(live)
	}
}

// finish ends all faults, gives the nodes some seconds, and checks that nothing
// is missing. The broker may stay broken.
func (sim *simulation) finish(t *rapid.T) {
	sim.clearFaults()
	for _, c := range sim.clients {
		c.makeFast()
	}
	if rapid.Bool().Draw(t, "broker works") {
		for i := range sim.nodes {
			for len(sim.pending[i]) > 0 {
				sim.completeNext(i)
			}
		}
		sim.deliverAll()
	}
	sim.waitComplete(t, 8*time.Second)
	for _, c := range sim.clients {
		sim.disconnect(c)
	}
	time.Sleep(15 * time.Second) // TopicIdle and a sweep
	sim.checkIdle()
	sim.runDue(t)
}

// waitComplete waits until every client has everything, for most at the
// longest.
func (sim *simulation) waitComplete(t rapid.TB, most time.Duration) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		sim.runDue(t)
		missing := ""
		for _, c := range sim.clients {
			missing = cmp.Or(missing, c.missing())
		}
		missing = cmp.Or(missing, sim.busyTopic())
		if missing == "" {
			return
		}
		if time.Since(began) > most {
			t.Fatalf("%v after the last fault %s\n%s", most, missing, sim.describeTopics())
		}
	}
}
