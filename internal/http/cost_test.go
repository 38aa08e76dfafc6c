package http

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"switchyard/internal/protocol"
)

// Sending a frame to a client that reads allocates nothing.
func TestASendAllocatesNothing(t *testing.T) {
	c, client, _ := tcpPair(t, 1<<20)
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(io.Discard, client)
	}()
	f := protocol.Signal("r", "", []byte(`"some words"`))
	if n := testing.AllocsPerRun(2000, func() { c.Send(f) }); n > 0 {
		t.Errorf("a send allocates %.2f objects", n)
	}
	_ = c.Conn.Close()
	<-read
}

// memoryInUse returns the heap and stacks of this process after a collection.
func memoryInUse() int64 {
	var m runtime.MemStats
	for range 3 { // what finalizers release is collected in the next round
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// settledMemory waits until memory no longer falls, and returns it.
func settledMemory() int64 {
	least := memoryInUse()
	for range 10 {
		<-time.After(20 * time.Millisecond) // net/http's goroutines are ending
		now := memoryInUse()
		if now >= least {
			break
		}
		least = now
	}
	return least
}

// joinMany opens n connections by plain sockets, whose client side costs little.
// Each joins a room of ten.
func joinMany(t *testing.T, addr string, n int) {
	t.Helper()
	all := make([]net.Conn, n)
	for i := range all {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		all[i] = c
		join := fmt.Sprintf(`{"type":"join","room":"r%d"}`, i/10)
		// The mask is zero; clients must mask their frames.
		_, err = fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"+
			"\x81%s\x00\x00\x00\x00%s", addr, string([]byte{0x80 | byte(len(join))}), join)
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range all {
		awaitText(t, c, `"joined"`)
	}
}

// awaitText reads until text has come.
func awaitText(t *testing.T, c net.Conn, word string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	var seen []byte
	buf := make([]byte, 1024)
	for {
		n, err := c.Read(buf)
		if seen = append(seen, buf[:n]...); bytes.Contains(seen, []byte(word)) {
			return
		}
		if err != nil {
			t.Fatalf("%v after %q", err, seen)
		}
	}
}

// An idle connection in a room stays within its budget, which includes both ends.
// The resident size is measured by the benchmark.
func TestAnIdleConnectionIsSmall(t *testing.T) {
	connections := many(1000, 2000)
	n := startNode(t, func(c *Config) { c.MaxHandshakeRate = 100000 })
	joinMany(t, n.addr, 20) // allocate what is allocated once
	before := settledMemory()
	joinMany(t, n.addr, connections)
	each := (settledMemory() - before) / int64(connections)
	t.Logf("%d bytes a connection", each)
	if each > maxIdleBytes {
		t.Errorf("an idle connection uses %d bytes with its client, want at most %d", each, maxIdleBytes)
	}
}
