package client

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"nhooyr.io/websocket"
)

const (
	subprotocol = "switchyard.v1"
	// sessionHeader carries the secret of the session that is to go on.
	sessionHeader = "Switchyard-Session"
	// dialTimeout bounds a handshake with its welcome.
	dialTimeout = 10 * time.Second
	// readLimit bounds one frame of the service; a history answer of 256 KiB
	// and one message is the largest it sends.
	readLimit = 8 << 20
	// maxQueued bounds the frames that wait to be written, beside publishes.
	maxQueued = 4096
	// closeTimeout is how long Close waits for the service's close frame.
	closeTimeout = time.Second
)

// A socket is one connection: all that this package knows of the websocket
// library. One goroutine reads; any may send.
type socket struct {
	conn   *websocket.Conn
	ctx    context.Context // ends the connection, abruptly
	cancel context.CancelFunc
	buf    bytes.Buffer // owned by the reader

	mu      sync.Mutex // Protects following.
	queue   [][]byte
	writing bool // a writeLoop runs
	broken  bool
	flushed chan struct{} // if somebody waits: closed when no writeLoop runs
}

// dialSocket makes a connection; code is the close code that a refused
// handshake amounts to.
func dialSocket(ctx context.Context, client *http.Client, url string, header http.Header) (s *socket, code int, err error) {
	conn, resp, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: header,
		Subprotocols: []string{subprotocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return nil, handshakeCloseCode(resp), fmt.Errorf("connect: %w", err)
	}
	conn.SetReadLimit(readLimit)
	s = &socket{conn: conn}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, 0, nil
}

func handshakeCloseCode(resp *http.Response) int {
	if resp == nil {
		return codeAbnormal
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		return codeToken
	case http.StatusForbidden:
		return codeRemoved
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return codeTryLater
	}
	return codeAbnormal
}

// read returns the next frame; the bytes are good until the next call.
func (s *socket) read(ctx context.Context) ([]byte, error) {
	_, r, err := s.conn.Reader(ctx)
	if err != nil {
		return nil, err
	}
	s.buf.Reset()
	if _, err := s.buf.ReadFrom(r); err != nil {
		return nil, err
	}
	return s.buf.Bytes(), nil
}

// closeCode returns the code that ended the connection, as err tells.
func closeCode(err error) int {
	if code := websocket.CloseStatus(err); code >= 0 {
		return int(code)
	}
	return codeAbnormal
}

// send queues a frame. It never blocks; frames leave in the order queued, or
// not at all when the connection breaks.
func (s *socket) send(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken {
		return
	}
	s.queue = append(s.queue, frame)
	if !s.writing {
		s.writing = true
		go s.writeLoop()
	}
}

// full says that more should not be queued now.
func (s *socket) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) >= maxQueued
}

// writeLoop lives while there is something to write, so that an idle
// connection has no writer. A write ends with the connection at the latest,
// and that ends when nothing was heard for two heartbeats.
func (s *socket) writeLoop() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 || s.broken {
			s.writing, s.queue = false, nil
			if s.flushed != nil {
				close(s.flushed)
				s.flushed = nil
			}
			s.mu.Unlock()
			return
		}
		frame := s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.mu.Unlock()
		if err := s.conn.Write(s.ctx, websocket.MessageText, frame); err != nil {
			s.mu.Lock()
			s.broken = true // the reader will learn why
			s.mu.Unlock()
		}
	}
}

// closeGracefully closes with code once everything queued is written, and waits for the
// answer, but not for long. Somebody else reads: who does ends the wait.
func (s *socket) closeGracefully(code int) {
	timer := time.AfterFunc(closeTimeout, s.cancel)
	defer timer.Stop()
	s.mu.Lock()
	if s.writing && s.flushed == nil {
		s.flushed = make(chan struct{})
	}
	flushed := s.flushed
	s.mu.Unlock()
	if flushed != nil {
		select {
		case <-flushed:
		case <-s.ctx.Done():
		}
	}
	_ = s.conn.Close(websocket.StatusCode(code), "")
}

// closeUnread is goodbye to a second connection that nobody reads yet.
func (s *socket) closeUnread() {
	go func() {
		for {
			if _, err := s.read(s.ctx); err != nil {
				return
			}
		}
	}()
	s.closeGracefully(codeDiscarded)
	s.abort()
}

// abort ends the connection without a word.
func (s *socket) abort() {
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	s.cancel()
	_ = s.conn.CloseNow()
}
