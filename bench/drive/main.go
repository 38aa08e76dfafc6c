// Command drive is the load generator of the benchmarks: one thread on one core, with
// plain sockets. It speaks wire v1, centrifuge's JSON protocol and the floor's, and prints
// its result as one line of JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	scenario, protocol, addr, token, prefix string

	n, rooms, members, window, maxHandshakes, sources, size, count int
	rate                                                           float64
	warmUp, duration, connectTimeout                               time.Duration
	pids, backingPids                                              []int
	seq                                                            int64
}

func main() {
	runtime.LockOSThread()
	debug.SetGCPercent(400)
	o := flags()
	d, err := newDriver(o)
	if err == nil {
		err = d.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "drive:", err)
		os.Exit(1)
	}
	d.printResult()
}

func (d *driver) printResult() {
	r := &d.result
	r.Connections, r.Failed = d.readyCount, d.failed
	r.Delivery, r.Ack, r.Ready, r.Late = d.deliveryLatency.Latency(), d.ackLatency.Latency(), d.joinLatency.Latency(), d.publishDelay.Latency()
	_ = json.NewEncoder(os.Stdout).Encode(r)
}

func flags() options {
	var o options
	var pids, backing string
	flag.StringVar(&o.scenario, "scenario", "fanout", "fanout, rooms, publish, hold, churn, join or history")
	flag.StringVar(&o.protocol, "protocol", "switchyard", "switchyard, signal, centrifuge or raw")
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8000", "the server, or several separated by commas, which connections use in turn")
	flag.StringVar(&o.token, "secret", "", "secret of HS256 tokens; empty: anonymous")
	flag.StringVar(&o.prefix, "prefix", "room", "the prefix of room names")
	flag.IntVar(&o.n, "n", 1000, "connections: subscribers, publishers, or idle ones")
	flag.IntVar(&o.rooms, "rooms", 1000, "rooms")
	flag.IntVar(&o.members, "members", 10, "rooms: members of each")
	flag.IntVar(&o.window, "window", 1, "publishes under way at once, where there is no rate")
	flag.Float64Var(&o.rate, "rate", 0, "publishes a second, whatever comes back; 0: as many as -window allows")
	flag.IntVar(&o.maxHandshakes, "abreast", 64, "handshakes under way at once")
	flag.IntVar(&o.sources, "sources", 64, "source addresses of 127.1/16")
	flag.IntVar(&o.size, "size", 126, "bytes of a payload, without its two quotes")
	flag.IntVar(&o.count, "count", 1000, "churn, join, history: how many in all")
	flag.DurationVar(&o.warmUp, "warm", time.Second, "load before the measured time")
	flag.DurationVar(&o.duration, "for", 4*time.Second, "the measured time")
	flag.DurationVar(&o.connectTimeout, "patience", 2*time.Minute, "longest wait for connections")
	flag.StringVar(&pids, "pid", "", "the server's processes, with their children")
	flag.StringVar(&backing, "beside", "", "the database's and the broker's")
	flag.Int64Var(&o.seq, "seq", 0, "join, history: the position of requests")
	flag.Parse()
	o.pids, o.backingPids = parseInts(pids), parseInts(backing)
	return o
}

func parseInts(list string) []int {
	var all []int
	for s := range strings.SplitSeq(list, ",") {
		if n, err := strconv.Atoi(s); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// selfCPU returns the processor time of this process in seconds.
func selfCPU() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
