package client

// The parts are what a client does on its connections. Their methods are called
// with mu held, but for those that wait for an answer.
type parts struct {
	*shared
	rooms  *rooms
	outbox *outbox
	calls  *calls
	tokens *tokens
}

// handleFrame passes a frame to the part that it is about. An error ends the
// connection.
func (p *parts) handleFrame(conn *connection, f *serverFrame) error {
	if f.Ref != "" && (f.Type != "error" || f.Code != "rate_limited") {
		conn.pacer.answered(f.Ref)
		delete(conn.joins.sent, f.Ref)
	}
	err := p.dispatch(conn, f)
	if f.Ref != "" { // the answer may have made room for more
		p.rooms.pumpJoins(p.current)
		p.rooms.pumpJoins(p.next)
		p.calls.pump()
		p.outbox.pump()
	}
	return err
}

func (p *parts) dispatch(conn *connection, f *serverFrame) error {
	switch f.Type {
	case "message":
		msg := f.message()
		p.outbox.completeFromOwnMessage(msg)
		return p.rooms.handleMessage(conn, msg)
	case "ack":
		p.outbox.handleAck(f)
	case "joined":
		p.rooms.handleJoined(conn, f)
	case "left":
		p.rooms.handleLeft(conn, f)
	case "gap":
		return p.rooms.handleGap(conn, f)
	case "signal":
		p.rooms.handleSignal(conn, f)
	case "presence":
		if f.Ref == "" || !p.calls.complete(f.Ref, f, nil) {
			p.rooms.handlePresence(conn, f)
		}
	case "history":
		p.calls.complete(f.Ref, f, nil)
	case "authenticated":
		p.tokens.handleAuthenticated(conn, f)
		p.rooms.handleAuthenticated(conn)
	case "error":
		p.handleError(conn, f)
	}
	return nil // heartbeat, and types that later versions add
}

// handleError passes an error to the request with its ref. An error of no request
// is only logged.
func (p *parts) handleError(conn *connection, f *serverFrame) {
	err := f.err()
	if err.Code == "rate_limited" {
		random := p.opts.random()
		conn.pacer.refused(f.Ref, err.retryDelay(func() float64 { return random }), 1+random/2)
		if conn.joins.retry(f.Ref) {
			return
		}
	}
	if p.calls.handleError(conn, f.Ref, err) || p.rooms.handleJoinError(conn, f.Ref, err) || p.outbox.handleError(conn, f.Ref, err) {
		return
	}
	p.opts.Logger.Warn("the service reported an error", "code", f.Code, "message", f.Message, "room", f.Room)
}

// observeFrame passes a frame about a room's order to Options.OnFrame. The caller
// holds handlerMu only.
func (p *parts) observeFrame(conn *connection, f *serverFrame) {
	if p.opts.OnFrame == nil {
		return
	}
	switch f.Type {
	case "joined", "left", "message", "gap", "ack":
		p.opts.OnFrame(Frame{
			Connection: conn.number, Type: f.Type, Room: f.Room, Epoch: f.Epoch, Seq: f.Seq, To: f.To, ID: f.ID,
		})
	}
}
