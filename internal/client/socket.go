package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"nhooyr.io/websocket"
)

const (
	subprotocol = "switchyard.v1"
	// sessionHeader carries the secret of the session to resume.
	sessionHeader = "Switchyard-Session"
	// dialTimeout bounds the time from the start of a handshake to its welcome.
	dialTimeout = 10 * time.Second
	// readLimit bounds one frame of the service, in bytes. The largest that the
	// service sends is a history page of 256 KiB plus one message.
	readLimit = 8 << 20
	// maxQueued is the number of frames in the send queue from which on signals
	// are refused. MaxPending bounds publishes.
	maxQueued = 4096
	// closeTimeout is how long closing waits for the queue to be written and for
	// the service's close frame.
	closeTimeout = time.Second
)

// A socket is one WebSocket. Only this file uses the WebSocket library. One
// goroutine at a time reads; any goroutine may send and close.
type socket struct {
	conn   *websocket.Conn
	ctx    context.Context // its end breaks the connection
	cancel context.CancelFunc

	// Owned by the reader.
	buf   bytes.Buffer
	parts partReader

	// mu protects the fields below.
	mu      sync.Mutex
	queue   [][]byte      // frames to write
	writing bool          // a writeLoop runs
	broken  bool          // frames are dropped
	flushed chan struct{} // nil unless closeGracefully waits; closed when the writeLoop ends
}

// dialSocket makes a connection. When the handshake fails, code is the close code
// that stands for the failure.
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

// handshakeCloseCode returns the close code that stands for a failed handshake.
// resp is nil when there was no response. What a proxy answers says nothing of the
// token or the user: only the service's own document does.
func handshakeCloseCode(resp *http.Response) int {
	if resp == nil {
		return codeAbnormal
	}
	switch status := resp.StatusCode; {
	case status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests:
		return codeTryLater
	case status == http.StatusUnauthorized && problemCode(resp) == "unauthorized":
		return codeToken
	case status == http.StatusForbidden && problemCode(resp) == "forbidden":
		return codeRemoved
	}
	return codeAbnormal
}

// problemCode returns the code in the service's problem document (RFC 9457), "" if the
// response is none.
func problemCode(resp *http.Response) string {
	var problem struct{ Code string }
	if resp.Header.Get("Content-Type") != "application/problem+json" || json.NewDecoder(resp.Body).Decode(&problem) != nil {
		return ""
	}
	return problem.Code
}

// read returns the next frame. The bytes are valid until the next call.
func (s *socket) read(ctx context.Context) ([]byte, error) {
	_, r, err := s.conn.Reader(ctx)
	if err != nil {
		return nil, err
	}
	s.buf.Reset()
	s.parts.Reader = r
	if _, err := s.buf.ReadFrom(&s.parts); err != nil {
		return nil, err
	}
	return s.buf.Bytes(), nil
}

// A partReader reports each part of a frame that it reads.
type partReader struct {
	io.Reader
	onBytes func() // is called for each part that was read; may be nil
}

// Read implements io.Reader.
func (p *partReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if n > 0 && p.onBytes != nil {
		p.onBytes()
	}
	return n, err
}

// closeCode returns the close code in err, codeAbnormal if it has none.
func closeCode(err error) int {
	if code := websocket.CloseStatus(err); code >= 0 {
		return int(code)
	}
	return codeAbnormal
}

// send queues a frame. It never blocks. Frames are written in the order of the
// calls, and dropped when the connection breaks.
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

// full reports whether the send queue has reached maxQueued.
func (s *socket) full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue) >= maxQueued
}

// writeLoop writes the queue and returns when it is empty, so that an idle
// connection has no writer goroutine. A blocked write ends with the connection,
// which the reader ends when no frame arrives for two heartbeats.
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
			s.broken = true // the reader gets the reason
			s.mu.Unlock()
		}
	}
}

// closeGracefully writes the queue, sends a close frame with code, and waits for
// the service's close frame. After closeTimeout it breaks the connection. Another
// goroutine must be reading: it receives the close frame.
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

// closeUnread closes a next connection that is not used, and that no goroutine
// reads yet.
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

// abort ends the connection without a close frame.
func (s *socket) abort() {
	s.mu.Lock()
	s.broken = true
	s.mu.Unlock()
	s.cancel()
	_ = s.conn.CloseNow()
}
