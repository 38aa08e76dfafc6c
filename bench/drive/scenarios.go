package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"switchyard/bench/report"
)

func (d *driver) run() error {
	switch d.opts.scenario {
	case "fanout":
		return d.fanOut()
	case "rooms":
		return d.everyMemberPublishes()
	case "publish":
		return d.publishOnly()
	case "hold":
		return d.hold()
	case "churn":
		return d.churn()
	case "join", "history":
		return d.requestSeries()
	}
	return fmt.Errorf("unknown scenario %q", d.opts.scenario)
}

// fanOut has one publisher and n subscribers of one room.
func (d *driver) fanOut() error {
	clients := make([]*conn, d.opts.n, d.opts.n+1)
	for i := range clients {
		clients[i] = &conn{id: i}
	}
	publisher := &conn{id: d.opts.n, publisher: true}
	if err := d.connect(append(clients, publisher)); err != nil {
		return err
	}
	n := int64(d.opts.n)
	return d.runLoad(n, func(int64) { d.send(publisher, 0) })
}

// everyMemberPublishes has every member of every room publish in turn, rooms mixed.
func (d *driver) everyMemberPublishes() error {
	var clients []*conn
	for publisher := range d.opts.members {
		for room := range d.opts.rooms {
			clients = append(clients, &conn{id: len(clients), room: room, publisherIndex: publisher})
		}
	}
	if err := d.connect(clients); err != nil {
		return err
	}
	const stride = 7919 // a prime, so that each client has a turn before any has a second one
	return d.runLoad(int64(d.opts.members), func(i int64) {
		c := clients[i*stride%int64(len(clients))]
		d.send(c, c.room)
	})
}

// publishOnly has n publishers without a room publish to the rooms in turn, and measures
// their acks.
func (d *driver) publishOnly() error {
	clients := make([]*conn, d.opts.n)
	for i := range clients {
		clients[i] = &conn{id: i, publisher: true}
	}
	if err := d.connect(clients); err != nil {
		return err
	}
	return d.runLoad(0, func(i int64) {
		d.send(clients[i%int64(len(clients))], int(i%int64(d.opts.rooms)))
	})
}

// runLoad publishes, measures after the warm-up, and waits for outstanding deliveries.
// Each publish has fan deliveries; with 0, answers are counted instead.
func (d *driver) runLoad(fan int64, publish func(i int64)) error {
	start := clock()
	from, to := start+int64(d.opts.warmUp), start+int64(d.opts.warmUp+d.opts.duration)
	completed := func() int64 { return d.answers }
	if fan > 0 {
		completed = func() int64 { return d.delivered / fan }
	}
	var before, after usage
	var i int64
	d.engine.run(func(now int64) (int64, bool) {
		if before.at == 0 && now >= from {
			before, d.measuring = d.readUsage(), true
		}
		if now >= to {
			d.measuring = false
			after = d.readUsage()
			return 0, true
		}
		if d.opts.rate == 0 {
			for i-completed() < int64(d.opts.window) {
				d.engine.now = clock()
				publish(i)
				i++
			}
			return now + int64(5*time.Millisecond), false
		}
		for range 64 { // the engine reads after so many
			due := start + int64(float64(i)/d.opts.rate*1e9)
			if d.engine.now = clock(); d.engine.now < due {
				return due, false
			}
			if d.measuring {
				d.publishDelay.Add(d.engine.now - due)
			}
			publish(i)
			i++
		}
		return 0, false
	})
	d.recordUsage(before, after)
	d.waitOutstanding(fan)
	d.setTotals(fan)
	return nil
}

// waitOutstanding waits for the outstanding deliveries or answers, until none has come
// for five seconds.
func (d *driver) waitOutstanding(fan int64) {
	want := d.published * max(fan, 1)
	got := func() int64 {
		if fan > 0 {
			return d.delivered
		}
		return d.answers
	}
	last, since := got(), clock()
	d.engine.run(func(now int64) (int64, bool) {
		if g := got(); g != last {
			last, since = g, now
		}
		return now + int64(5*time.Millisecond), got() >= want || now-since > int64(5*time.Second)
	})
	d.result.Lost = want - got()
}

func (d *driver) setTotals(fan int64) {
	r, w := &d.result, &d.measured
	r.Published, r.Delivered, r.Answered = w.published, w.delivered, w.answers
	n := float64(w.answers)
	if fan > 0 {
		n = float64(w.delivered)
	}
	r.Rate = report.Round(n / r.Seconds)
	if r.ServerCPU > 0 {
		r.PerCore = report.Round(n / r.ServerCPU)
	}
}

// hold opens n connections, spread over rooms, and executes the commands on standard
// input: publish, report (one line of JSON) and quit.
func (d *driver) hold() error {
	clients := make([]*conn, d.opts.n)
	for i := range clients {
		clients[i] = &conn{id: i, room: i % d.opts.rooms}
	}
	before := d.readUsage()
	if err := d.connect(clients); err != nil {
		return err
	}
	d.recordUsage(before, d.readUsage())
	d.result.Connects = report.Round(float64(d.readyCount) / d.result.Seconds)
	if d.result.ServerCPU > 0 {
		d.result.PerCore = report.Round(float64(d.readyCount) / d.result.ServerCPU)
	}
	d.measuring = true
	d.printResult()
	commands := make(chan string)
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			commands <- strings.TrimSpace(in.Text())
		}
		commands <- "quit"
	}()
	d.engine.run(func(now int64) (int64, bool) {
		select {
		case command := <-commands:
			switch command {
			case "publish":
				d.send(clients[0], clients[0].room)
			case "report":
				d.result.Delivered = d.delivered
				d.printResult()
			case "quit":
				return 0, true
			}
		default:
		}
		return now + int64(2*time.Millisecond), false
	})
	return nil
}

// churn opens count connections, maxHandshakes at once, and closes each with a close
// handshake once it is in its room.
func (d *driver) churn() error {
	opened, ended := 0, 0
	d.onEnd = func(*conn) { ended++ }
	before := d.readUsage()
	deadline := clock() + int64(d.opts.connectTimeout)
	openConns := make(map[*conn]bool, d.opts.maxHandshakes)
	d.engine.run(func(now int64) (int64, bool) {
		for c := range openConns {
			if c.ready && !c.closing {
				c.startClose()
			}
			if c.phase == closed {
				delete(openConns, c)
			}
		}
		for opened < d.opts.count && opened-ended < d.opts.maxHandshakes {
			c := &conn{id: opened, room: opened % d.opts.rooms}
			openConns[c] = true
			d.opening++
			d.engine.dial(c)
			opened++
		}
		return now + int64(time.Millisecond), ended >= d.opts.count || now > deadline
	})
	d.recordUsage(before, d.readUsage())
	d.result.Answered = int64(ended)
	d.result.Connects = report.Round(float64(ended) / d.result.Seconds)
	if d.result.ServerCPU > 0 {
		d.result.PerCore = report.Round(float64(ended) / d.result.ServerCPU)
	}
	if ended < d.opts.count {
		return fmt.Errorf("%d of %d connections ended within %v: %v", ended, d.opts.count, d.opts.connectTimeout, d.result.Errors)
	}
	return nil
}

// requestSeries sends count requests, one after the other: joins of one room from a
// position, each after the leave of the one before, or pages of history.
func (d *driver) requestSeries() error {
	c := &conn{} // it joins first, and receives the epoch
	if err := d.connect([]*conn{c}); err != nil {
		return err
	}
	request := fmt.Appendf(nil, `{"type":"history","room":"%s","before":%d,"limit":50}`, d.roomName(0), d.opts.seq)
	if d.opts.scenario == "join" {
		request = fmt.Appendf(nil, `{"type":"join","room":"%s","after":%d,"epoch":%q}`, d.roomName(0), d.opts.seq, d.epoch)
	}
	before := d.readUsage()
	d.measuring = true
	var sent int64
	deadline := clock() + int64(d.opts.connectTimeout)
	d.engine.run(func(now int64) (int64, bool) {
		if d.answers == sent && sent < int64(d.opts.count) {
			if d.opts.scenario == "join" {
				c.sendText(fmt.Appendf(nil, `{"type":"leave","room":"%s"}`, d.roomName(0)))
			}
			c.pending = append(c.pending, clock())
			c.sendText(request)
			sent++
		}
		return now + int64(time.Millisecond), d.answers >= int64(d.opts.count) || now > deadline || c.phase == closed
	})
	d.recordUsage(before, d.readUsage())
	d.result.Answered = d.answers
	if d.answers < int64(d.opts.count) {
		return fmt.Errorf("%d of %d answers: %v", d.answers, d.opts.count, d.result.Errors)
	}
	return nil
}
