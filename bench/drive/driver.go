package main

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"switchyard/bench/report"
)

// d is the one driver of this process.
var d *driver

// A driver is a run: its clients, what it counts, and what is due.
type driver struct {
	opts     options
	engine   *engine
	protocol protocol
	result   report.Run

	clients         []*conn
	opening         int
	readied, failed int

	published, delivered, answers int64 // since the start
	measuring                     bool
	inWindow                      counts
	delivery, ack, joining, late  report.Histogram
	payload                       []byte
	epoch                         string // as the first joined told it
	onEnd                         func(*conn)
}

type counts struct{ published, delivered, answers int64 }

func newDriver(o options) (*driver, error) {
	p, err := protocolOf(o.protocol, o.token)
	if err != nil {
		return nil, err
	}
	e, err := newEngine(o.addr, o.sources)
	if err != nil {
		return nil, err
	}
	d := &driver{opts: o, engine: e, protocol: p, payload: make([]byte, o.size)}
	d.result = report.Run{Scenario: o.scenario, Protocol: o.protocol, Errors: map[string]int{}}
	for i := range d.payload {
		d.payload[i] = 'a' + byte(i%26)
	}
	e.upgraded = func(c *conn) {
		if c.phase == connecting {
			c.upgrade(p.dial(c))
			return
		}
		p.opened(c)
	}
	e.message = func(c *conn, b []byte) { p.message(d, c, b) }
	e.ended = d.ended
	return d, nil
}

func (d *driver) roomName(i int) string { return d.opts.prefix + strconv.Itoa(i) }

// ready says that a connection is in its room.
func (d *driver) ready(c *conn) {
	if !c.ready {
		c.ready = true
		d.opening--
		d.readied++
		d.joining.Add(clock() - c.began)
	}
}

func (d *driver) ended(c *conn, err error) {
	switch {
	case c.leaves:
	case c.ready:
		d.result.Cut++
		d.trouble(err.Error())
	default:
		d.failed++
		d.opening--
		d.trouble(err.Error())
	}
	if d.onEnd != nil {
		d.onEnd(c)
	}
}

// trouble notes what went wrong, the first few words of it.
func (d *driver) trouble(what string) {
	if len(d.result.Errors) < 20 {
		d.result.Errors[fmt.Sprintf("%.100s", what)]++
	}
}

// A stamp is "@#", 16 hex digits of time, 8 of seq, 4 of the publisher: it is
// found in whatever a protocol wraps around it.
const stampSize = 2 + 16 + 8 + 4

var stampMark = []byte("@#")

// stamp writes the next one of a publisher into the payload.
func (d *driver) stamp(c *conn) []byte {
	c.seq++
	b := append(d.payload[:0], stampMark...)
	b = hex(b, uint64(d.engine.now), 16)
	b = hex(b, uint64(c.seq), 8)
	hex(b, uint64(c.slot), 4)
	return d.payload
}

func hex(b []byte, v uint64, digits int) []byte {
	for i := digits - 1; i >= 0; i-- {
		b = append(b, "0123456789abcdef"[v>>(4*i)&0xf])
	}
	return b
}

func unhex(b []byte) uint64 {
	var v uint64
	for _, c := range b {
		if c >= 'a' {
			c -= 'a' - 10
		}
		v = v<<4 | uint64(c&0xf)
	}
	return v
}

// stamps counts the publications in a frame.
func (d *driver) stamps(c *conn, p []byte) {
	for {
		i := bytes.Index(p, stampMark)
		if i < 0 || len(p)-i < stampSize {
			return
		}
		p = p[i+2:]
		at, seq, slot := unhex(p[:16]), uint32(unhex(p[16:24])), int(unhex(p[24:28]))
		p = p[28:]
		d.delivered++
		d.result.LastArrival = d.engine.now
		if d.measuring {
			d.inWindow.delivered++
			d.delivery.Add(d.engine.now - int64(at))
		}
		for len(c.last) <= slot {
			c.last = append(c.last, 0)
		}
		switch last := &c.last[slot]; {
		case seq == *last:
			d.result.Doubled++
		case seq < *last:
			d.result.Disordered++
		default:
			*last = seq
		}
	}
}

// answered takes the answer to a connection's oldest request.
func (d *driver) answered(c *conn) {
	if len(c.pending) == 0 {
		return
	}
	d.answers++
	if d.measuring {
		d.inWindow.answers++
		d.ack.Add(d.engine.now - c.pending[0])
	}
	c.pending = c.pending[:copy(c.pending, c.pending[1:])]
}

// send publishes one payload.
func (d *driver) send(c *conn, room int) {
	if d.protocol.answers() {
		c.pending = append(c.pending, d.engine.now)
	}
	d.published++
	d.result.LastPublish = d.engine.now
	if d.measuring {
		d.inWindow.published++
	}
	d.protocol.publish(c, room, d.stamp(c))
}

// connect opens clients, so many at once, and waits until each is ready or has
// failed.
func (d *driver) connect(clients []*conn) error {
	d.clients = append(d.clients, clients...)
	goal := d.readied + d.failed + len(clients)
	next := 0
	deadline := clock() + int64(d.opts.patience)
	d.engine.run(func(now int64) (int64, bool) {
		for next < len(clients) && d.opening < d.opts.abreast {
			d.opening++
			d.engine.dial(clients[next])
			next++
		}
		return now + int64(time.Millisecond), d.readied+d.failed >= goal || now > deadline
	})
	if d.readied+d.failed < goal {
		return fmt.Errorf("%d connections are not ready after %v: %v", goal-d.readied-d.failed, d.opts.patience, d.result.Errors)
	}
	return nil
}

// rest keeps the connections alive for a while.
func (d *driver) rest(t time.Duration) {
	end := clock() + int64(t)
	d.engine.run(func(now int64) (int64, bool) { return end, now >= end })
}

// A meter measures what everybody used.
type meter struct {
	at                   int64
	server, beside, self float64
	machine              report.Machine
}

func (d *driver) meter() meter {
	return meter{clock(), report.CPU(d.opts.pids), report.CPU(d.opts.beside), ownCPU(), report.Now()}
}

// settle writes down what was used between two meters.
func (d *driver) settle(a, b meter) {
	r := &d.result
	r.Seconds = report.Round(float64(b.at-a.at) / 1e9)
	r.ServerCPU, r.BesideCPU = report.Round(b.server-a.server), report.Round(b.beside-a.beside)
	r.DriverBusy = report.Round((b.self - a.self) / r.Seconds)
	if total := b.machine.Total - a.machine.Total; total > 0 {
		r.Steal = report.Round((b.machine.Steal - a.machine.Steal) / total)
		used := total - (b.machine.Idle - a.machine.Idle) - (b.machine.Steal - a.machine.Steal)
		r.Foreign = report.Round(max(0, used-(b.server-a.server)-(b.beside-a.beside)-(b.self-a.self)) / total)
	}
}
