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
					a := newArena(drawBounds(t), nodes, 2, 3)
					t.Cleanup(a.close)
					t.Repeat(a.actions())
					a.ending(t)
				})
			})
		})
	}
}

// drawBounds may leave the topics of a node next to nothing together.
func drawBounds(t *rapid.T) bounds {
	b := tiny()
	budget := rapid.SampledFrom([]int64{1 << 20, 1 << 20, 300})
	b.earlyBudget = budget.Draw(t, "early")
	b.ringBudget = budget.Draw(t, "rings")
	b.pageBudget = budget.Draw(t, "pages")
	return b
}

// actions is what may happen. Each is one call, after which all that is due at
// that instant has happened; time passes in "time" alone, and is virtual.
func (a *arena) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"":         func(t *rapid.T) { a.rest(t) },
		"commit":   a.drawCommit,
		"resend":   a.drawResend,
		"settle":   func(t *rapid.T) { a.settle(a.drawNode(t)) },
		"deliver":  a.drawDeliver,
		"delivers": func(*rapid.T) { a.deliverAll() },
		"signal":   a.drawSignal,
		"time":     a.drawTime,
		"join":     a.drawJoin,
		"resume":   a.drawResume,
		"leave":    func(t *rapid.T) { a.leave(a.drawPlayer(t), a.drawRoom(t)) },
		"ping":     func(t *rapid.T) { a.ping(a.drawPlayer(t)) },
		"pong":     func(t *rapid.T) { a.pong(a.drawPlayer(t)) },
		"player":   a.drawPlayersFault,
		"node":     a.drawNodesFault,
		"log":      a.drawLogsFault,
		"well":     func(*rapid.T) { a.well() },
	}
}

func (a *arena) drawNode(t *rapid.T) int { return rapid.IntRange(0, len(a.nodes)-1).Draw(t, "node") }
func (a *arena) drawPlayer(t *rapid.T) *player {
	return a.players[rapid.IntRange(0, len(a.players)-1).Draw(t, "player")]
}
func (a *arena) drawRoom(t *rapid.T) message.Room {
	return rapid.SampledFrom([]message.Room{a.rooms[0], a.rooms[0], a.rooms[1]}).Draw(t, "room")
}

// drawCommit stores messages by way of a node, which hears of it now, later, or
// never: it may die between commit and broadcast.
func (a *arena) drawCommit(t *rapid.T) {
	node, room := a.drawNode(t), a.drawRoom(t)
	n := rapid.SampledFrom([]int{1, 1, 1, 2, 3, 5, 9}).Draw(t, "messages")
	batch := a.log.commit(room, n, rapid.SampledFrom([]int{1, 1, 1, 150, 500}).Draw(t, "bytes"))
	switch rapid.SampledFrom([]string{"now", "now", "later", "never"}).Draw(t, "settled") {
	case "now":
		a.pending[node] = append(a.pending[node], batch)
		for len(a.pending[node]) > 0 { // in order, as committed
			a.settle(node)
		}
	case "later":
		a.pending[node] = append(a.pending[node], batch)
	}
}

// drawResend settles a message once more, as for a publisher who lost the ack.
func (a *arena) drawResend(t *rapid.T) {
	node, room := a.drawNode(t), a.drawRoom(t)
	if head, _ := a.log.head(a.log.epoch(), room); head > 0 {
		seq := rapid.Int64Range(1, int64(head)).Draw(t, "seq")
		a.nodes[node].Settled(a.log.again(room, message.Seq(seq)))
	}
}

// drawDeliver delivers, repeats or loses any parcel of the post.
func (a *arena) drawDeliver(t *rapid.T) {
	n := a.post.waiting()
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
		a.post.take(i, false)
	}
}

func (a *arena) deliverAll() {
	for a.post.waiting() > 0 {
		a.deliver(0, false)
	}
}

func (a *arena) drawSignal(t *rapid.T) {
	a.nodes[a.drawNode(t)].Signal(a.drawRoom(t), "", []byte(`1`))
}

func (a *arena) drawTime(t *rapid.T) {
	ms := rapid.SampledFrom([]int{1, 20, 30, 100, 251, 1100, 5300, 21000}).Draw(t, "ms")
	time.Sleep(time.Duration(ms) * time.Millisecond)
}

// drawJoin joins from anywhere: also where the log never was.
func (a *arena) drawJoin(t *rapid.T) {
	p, node, room := a.drawPlayer(t), a.drawNode(t), a.drawRoom(t)
	k := ask{}
	switch rapid.SampledFrom([]string{"now", "zero", "here", "elsewhere"}).Draw(t, "from") {
	case "now":
		k.now = true
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
func (a *arena) drawResume(t *rapid.T) {
	p, node, room := a.drawPlayer(t), a.drawNode(t), a.drawRoom(t)
	a.dial(p, node)
	p.mu.Lock()
	k := ask{from: p.seats[room].at}
	p.mu.Unlock()
	if k.from.seq == 0 {
		k.from.epoch = ""
	}
	a.join(p, room, k)
}

func (a *arena) drawPlayersFault(t *rapid.T) {
	p := a.drawPlayer(t)
	switch rapid.SampledFrom([]string{"slow", "fast", "gone"}).Draw(t, "fault") {
	case "slow":
		p.stick()
	case "fast":
		p.loose()
	case "gone":
		a.hangUp(p)
	}
}

func (a *arena) drawNodesFault(t *rapid.T) {
	node := a.drawNode(t)
	v, o := a.views[node], a.post.offices[node]
	fault := rapid.SampledFrom([]string{"log away", "feed away", "log slow", "no subscriptions", "killed"}).Draw(t, "fault")
	switch fault {
	case "log away":
		v.set(func() { v.down = true })
	case "feed away":
		v.set(func() { v.feedDown = true })
	case "log slow":
		ms := rapid.SampledFrom([]int{1, 40, 300, 2000, 6000}).Draw(t, "ms")
		v.set(func() { v.slow = time.Duration(ms) * time.Millisecond })
	case "no subscriptions":
		o.mu.Lock()
		o.deaf = true
		o.mu.Unlock()
	case "killed":
		for _, p := range a.players {
			if p.node == node {
				a.hangUp(p)
			}
		}
		a.stop(node)
		a.pending[node] = nil
		a.start(node)
	}
}

func (a *arena) drawLogsFault(t *rapid.T) {
	switch rapid.SampledFrom([]string{"trimmed", "trimmed", "pruned", "restored"}).Draw(t, "fault") {
	case "trimmed":
		room := a.drawRoom(t)
		head, _ := a.log.head(a.log.epoch(), room)
		a.log.trim(room, message.Seq(rapid.Int64Range(1, int64(head)+1).Draw(t, "first")))
	case "pruned":
		a.log.prune(rapid.IntRange(0, 2).Draw(t, "rows"))
	case "restored":
		heads := map[message.Room]int{}
		for _, room := range a.rooms {
			head, _ := a.log.head(a.log.epoch(), room)
			heads[room] = rapid.IntRange(0, int(head)).Draw(t, "keeps")
		}
		a.log.restore(heads)
	}
}

// well ends what is wrong with the nodes' ways to the log and the broker.
func (a *arena) well() {
	a.excuse() // for what is under way
	for i, v := range a.views {
		v.set(func() { v.down, v.feedDown, v.slow = false, false, 0 })
		var live []message.Room
		for _, r := range a.nodes[i].Rooms() {
			live = append(live, r.Room)
		}
		a.post.offices[i].hear(live)
	}
}

// ending ends all faults, gives the nodes some seconds, and judges. The broker
// may have died for good.
func (a *arena) ending(t *rapid.T) {
	a.well()
	for _, p := range a.players {
		p.loose()
	}
	if rapid.Bool().Draw(t, "broker lives") {
		for i := range a.nodes {
			for len(a.pending[i]) > 0 {
				a.settle(i)
			}
		}
		a.deliverAll()
	}
	a.settles(t, 8*time.Second)
	for _, p := range a.players {
		a.hangUp(p)
	}
	time.Sleep(15 * time.Second) // TopicIdle, and a sweep
	a.idle()
	a.rest(t)
}

// settles waits until everybody has everything, so long at most.
func (a *arena) settles(t rapid.TB, most time.Duration) {
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		a.rest(t)
		lack := ""
		for _, p := range a.players {
			lack = cmp.Or(lack, p.lacks())
		}
		lack = cmp.Or(lack, a.unrested())
		if lack == "" {
			return
		}
		if time.Since(began) > most {
			t.Fatalf("after %v without a fault %s\n%s", most, lack, a.topics())
		}
	}
}
