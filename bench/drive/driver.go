package main

import (
	"bytes"
	"fmt"
	"strconv"
	"time"

	"switchyard/bench/report"
)

// A driver does one run: it has the clients and counts what they do. It belongs to the
// one goroutine of the engine.
type driver struct {
	opts     options
	engine   *engine
	protocol protocol
	result   report.Run

	clients            []*conn
	opening            int
	readyCount, failed int

	published, delivered, answers                          int64 // since the start
	measuring                                              bool
	measured                                               counts
	deliveryLatency, ackLatency, joinLatency, publishDelay report.Histogram
	payload                                                []byte
	epoch                                                  string // of the first joined frame
	onEnd                                                  func(*conn)
}

type counts struct{ published, delivered, answers int64 }

func newDriver(o options) (*driver, error) {
	p, err := protocolByName(o.protocol, o.token)
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
	e.onReady = func(c *conn) {
		if c.phase == connecting {
			c.upgrade(p.dial(c))
			return
		}
		p.onOpen(d, c)
	}
	e.onMessage = func(c *conn, b []byte) { p.onMessage(d, c, b) }
	e.onEnd = d.connEnded
	return d, nil
}

func (d *driver) roomName(i int) string { return d.opts.prefix + strconv.Itoa(i) }

// onReady counts a connection that is in its room.
func (d *driver) onReady(c *conn) {
	if !c.ready {
		c.ready = true
		d.opening--
		d.readyCount++
		d.joinLatency.Add(clock() - c.startedAt)
	}
}

func (d *driver) connEnded(c *conn, err error) {
	switch {
	case c.closing:
	case c.ready:
		d.result.ClosedByServer++
		d.recordError(err.Error())
	default:
		d.failed++
		d.opening--
		d.recordError(err.Error())
	}
	if d.onEnd != nil {
		d.onEnd(c)
	}
}

// recordError counts an error by the beginning of its text.
func (d *driver) recordError(message string) {
	if len(d.result.Errors) < 20 {
		d.result.Errors[fmt.Sprintf("%.100s", message)]++
	}
}

// A stamp is "@#", 16 hex digits of time, 8 of seq, and 4 of the publisher. It can be
// found in any protocol's frames.
const stampSize = 2 + 16 + 8 + 4

var stampMark = []byte("@#")

// stamp writes a publisher's next stamp into the payload.
func (d *driver) stamp(c *conn) []byte {
	c.seq++
	b := append(d.payload[:0], stampMark...)
	b = hex(b, uint64(d.engine.now), 16)
	b = hex(b, uint64(c.seq), 8)
	hex(b, uint64(c.publisherIndex), 4)
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

// recordDeliveries counts the stamps in a frame.
func (d *driver) recordDeliveries(c *conn, p []byte) {
	for {
		i := bytes.Index(p, stampMark)
		if i < 0 || len(p)-i < stampSize {
			return
		}
		p = p[i+2:]
		at, seq, publisher := unhex(p[:16]), uint32(unhex(p[16:24])), int(unhex(p[24:28]))
		p = p[28:]
		d.delivered++
		d.result.LastArrival = d.engine.now
		if d.measuring {
			d.measured.delivered++
			d.deliveryLatency.Add(d.engine.now - int64(at))
		}
		for len(c.lastSeqs) <= publisher {
			c.lastSeqs = append(c.lastSeqs, 0)
		}
		switch last := &c.lastSeqs[publisher]; {
		case seq == *last:
			d.result.Duplicated++
		case seq < *last:
			d.result.OutOfOrder++
		default:
			*last = seq
		}
	}
}

// recordAnswer counts the answer to a connection's oldest request.
func (d *driver) recordAnswer(c *conn) {
	if len(c.pending) == 0 {
		return
	}
	d.answers++
	if d.measuring {
		d.measured.answers++
		d.ackLatency.Add(d.engine.now - c.pending[0])
	}
	c.pending = c.pending[:copy(c.pending, c.pending[1:])]
}

// send publishes one payload.
func (d *driver) send(c *conn, room int) {
	if d.protocol.acksPublishes() {
		c.pending = append(c.pending, d.engine.now)
	}
	d.published++
	d.result.LastPublish = d.engine.now
	if d.measuring {
		d.measured.published++
	}
	d.protocol.publish(d, c, room, d.stamp(c))
}

// connect opens clients, maxHandshakes at once, and waits until each is ready or has
// failed.
func (d *driver) connect(clients []*conn) error {
	d.clients = append(d.clients, clients...)
	goal := d.readyCount + d.failed + len(clients)
	next := 0
	deadline := clock() + int64(d.opts.connectTimeout)
	d.engine.run(func(now int64) (int64, bool) {
		for next < len(clients) && d.opening < d.opts.maxHandshakes {
			d.opening++
			d.engine.dial(clients[next])
			next++
		}
		return now + int64(time.Millisecond), d.readyCount+d.failed >= goal || now > deadline
	})
	if d.readyCount+d.failed < goal {
		return fmt.Errorf("%d connections are not ready after %v: %v", goal-d.readyCount-d.failed, d.opts.connectTimeout, d.result.Errors)
	}
	return nil
}

// A usage is the processor time that everything has used, at one moment.
type usage struct {
	at                    int64
	server, backing, self float64
	machine               report.Machine
}

func (d *driver) readUsage() usage {
	return usage{clock(), report.CPU(d.opts.pids), report.CPU(d.opts.backingPids), selfCPU(), report.ReadMachine()}
}

// recordUsage sets the result's processor times between two moments.
func (d *driver) recordUsage(a, b usage) {
	r := &d.result
	r.Seconds = report.Round(float64(b.at-a.at) / 1e9)
	r.ServerCPU, r.BackingCPU = report.Round(b.server-a.server), report.Round(b.backing-a.backing)
	r.DriverBusy = report.Round((b.self - a.self) / r.Seconds)
	if total := b.machine.Total - a.machine.Total; total > 0 {
		r.Steal = report.Round((b.machine.Steal - a.machine.Steal) / total)
		used := total - (b.machine.Idle - a.machine.Idle) - (b.machine.Steal - a.machine.Steal)
		r.OtherLoad = report.Round(max(0, used-(b.server-a.server)-(b.backing-a.backing)-(b.self-a.self)) / total)
	}
}
