package testkit

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A Proxy is a TCP proxy that simulates faults of networks: connections that break,
// stall or are slow. It is closed when the test ends. All methods may be called
// from any goroutine.
type Proxy struct {
	tb       testing.TB
	target   string
	listener net.Listener
	pumps    sync.WaitGroup // counts the goroutines
	closed   chan struct{}  // closed by close

	mu            sync.Mutex // Protects following.
	pairs         map[*proxyPair]struct{}
	resumed       chan struct{} // closed while bytes flow; replaced by Stall
	delay         time.Duration
	refuse        bool
	truncateAfter int           // bytes until a connection is cut; 0: none is planned
	pendingDrop   *responseDrop // nil: none is planned
	counts        FaultCounts
}

// A proxyPair is one connection through the proxy.
type proxyPair struct {
	client, server *net.TCPConn
	swallows       atomic.Bool // what either side sends is dropped
}

func (p *proxyPair) close() {
	_ = p.client.Close()
	_ = p.server.Close()
}

// NewProxy starts a proxy to target (host:port), which need not be up.
func NewProxy(tb testing.TB, target string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("testkit: start a proxy: %v", err)
	}
	p := &Proxy{
		tb: tb, target: target, listener: l, closed: make(chan struct{}),
		pairs: make(map[*proxyPair]struct{}), resumed: make(chan struct{}),
	}
	close(p.resumed)
	p.pumps.Go(p.acceptLoop)
	tb.Cleanup(p.close)
	return p
}

// Retarget sends new connections to another host:port, as a balancer does after a
// switch. Open connections stay where they are.
func (p *Proxy) Retarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// currentTarget returns the host:port for new connections.
func (p *Proxy) currentTarget() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// Addr returns the proxy's own host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Connections returns how many connections are open.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

func (p *Proxy) close() {
	close(p.closed)
	_ = p.listener.Close()
	p.mu.Lock()
	for pair := range p.pairs {
		pair.close()
	}
	p.mu.Unlock()
	p.pumps.Wait()
}

func (p *Proxy) acceptLoop() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.pumps.Go(func() { p.serve(conn.(*net.TCPConn)) })
	}
}

func (p *Proxy) serve(client *net.TCPConn) {
	p.mu.Lock()
	refuse := p.refuse
	p.mu.Unlock()
	var server net.Conn
	var err error
	if !refuse {
		server, err = net.DialTimeout("tcp", p.currentTarget(), 5*time.Second)
	}
	if refuse || err != nil {
		if refuse {
			p.countFault(func(c *FaultCounts) { c.Refused++ })
		}
		_ = client.SetLinger(0)
		_ = client.Close()
		return
	}
	pair := &proxyPair{client: client, server: server.(*net.TCPConn)}
	p.mu.Lock()
	p.pairs[pair] = struct{}{}
	p.mu.Unlock()
	defer func() {
		pair.close()
		p.mu.Lock()
		delete(p.pairs, pair)
		p.mu.Unlock()
	}()
	select {
	case <-p.closed: // close may have missed this pair
		return
	default:
	}
	var both sync.WaitGroup
	both.Go(func() { p.pump(pair, pair.server, pair.client) })
	both.Go(func() { p.pump(pair, pair.client, pair.server) })
	both.Wait()
}

// pump copies from src to dst until src ends, and then ends dst.
func (p *Proxy) pump(pair *proxyPair, dst, src *net.TCPConn) {
	defer func() { _ = dst.CloseWrite() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if !p.waitToForward(n > 0) {
			return
		}
		if n > 0 && !pair.swallows.Load() {
			forward, keepOpen := p.applyFaults(pair, dst == pair.client, buf[:n])
			if _, werr := dst.Write(forward); werr != nil {
				return
			}
			if !keepOpen {
				pair.close()
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// waitToForward waits as long as Delay and Stall demand. It returns false when the
// proxy is closed. hasData reports whether the wait counts as a fault.
func (p *Proxy) waitToForward(hasData bool) bool {
	p.mu.Lock()
	resumed, delay := p.resumed, p.delay
	if hasData && delay > 0 {
		p.counts.Delayed++
	}
	p.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-p.closed:
			return false
		}
	}
	select {
	case <-resumed:
		return true
	default:
	}
	if hasData {
		p.countFault(func(c *FaultCounts) { c.Stalled++ })
	}
	select {
	case <-resumed:
		return true
	case <-p.closed:
		return false
	}
}
