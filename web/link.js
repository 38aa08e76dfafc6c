// The part of client.js that is one socket. Applications import client.js.

import { JoinQueue, Pacer, encodedLength } from "./pace.js";

const TOKEN_TIMEOUT = 30_000; // ms that getToken may take
const WELCOME_TIMEOUT = 10_000; // ms from opening to welcome

// A Connection is one WebSocket from its opening to its end, which it reports exactly once. Two are open
// during a move, so the state that belongs to one of them is kept here.
export class Connection {
  welcome = null;
  welcomedAt = 0;
  handshakeMs = 0; // from opening to welcome, without the time of getToken
  pacer = null; // set with welcome
  joins; // the joins and leaves that wait for their turn
  // The rooms by name: {ref, sent, joined, epoch, missingAfter, presence}. sent and joined say that the join with that
  // ref was sent and was answered; frames before the answer belong to an earlier join. epoch is the last one seen on
  // this connection. missingAfter is the position after which a message was missing and requested again. presence
  // says that presence was requested after the join.
  memberships = new Map();
  ignoredRefs = new Set(); // refs of requests whose error is ignored
  pendingMove = null; // a move that the service asked for while this was the next connection
  movedFrom = null; // the node to name in "moved", if a move led here
  #clock; #onFrame; #onEnd; #socket = null; #ended = false; #lastFrameAt; #timer;

  /** number counts the connections of a client; onFrame and onEnd get the frames and the end. */
  constructor(number, clock, onFrame, onEnd) {
    this.number = number;
    this.#clock = clock;
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
    this.joins = new JoinQueue(this, clock);
  }

  /** Opens a socket with dial(token), at once unless there is a getToken. An error of either one is an end, too. */
  async open(getToken, dial) {
    try {
      this.#timer = this.#clock.setTimeout(() => this.abort(1006, "no token in time"), TOKEN_TIMEOUT);
      const token = getToken ? await getToken() : undefined;
      if (this.#ended) return; // closed while the token was fetched
      this.#clock.clearTimeout(this.#timer);
      this.#socket = dial(token);
    } catch (error) {
      if (!this.#ended) this.#end(1006, error.message, error);
      return;
    }
    this.#lastFrameAt = this.#clock.now();
    this.#socket.onmessage = (event) => this.#receive(event.data);
    this.#socket.onclose = (event) => this.#end(event.code, event.reason);
    this.#checkTimeout();
  }

  get backlog() { return this.#socket?.bufferedAmount ?? 0; }

  /** Sends a frame that has no answer, or one of which there are few. */
  send(frame, kind = "join") {
    const text = JSON.stringify(frame);
    this.pacer?.spent(kind, encodedLength(text));
    this.#socket.send(text);
  }

  /** Sends a request that will be answered. */
  request(text, ref, kind, bytes) {
    this.pacer.sent(ref, kind, bytes);
    this.#socket.send(text);
  }

  /** A request has its answer, whatever it is: it does not wait any more. */
  answered(ref) {
    this.pacer?.answered(ref);
    this.joins.answered(ref);
  }

  /** Ends now: on a dead network the browser would wait long for the other side's close frame. closeCode is sent. */
  abort(code, reason, closeCode) {
    if (this.#ended) return;
    const socket = this.#socket;
    this.#end(code, reason);
    socket?.close(closeCode);
  }

  #receive(text) {
    const now = this.#clock.now();
    let frame = null;
    try {
      frame = JSON.parse(text);
    } catch {
      // Handled below, like JSON that is not a frame.
    }
    // The frame is lost, whatever it was: the next connection resumes before it.
    if (typeof frame?.type !== "string") return this.abort(1006, "the service sent an invalid frame");
    if (frame.type === "welcome") {
      this.welcome = frame;
      this.handshakeMs = now - this.#lastFrameAt;
      this.welcomedAt = now;
      this.pacer = new Pacer(frame.limits, this.#clock);
      this.#clock.clearTimeout(this.#timer);
    }
    this.#lastFrameAt = now;
    if (frame.type === "welcome") this.#checkTimeout();
    this.#onFrame(this, frame);
  }

  // One timer that compares with the time of the last frame is cheaper than one that every frame sets again.
  #checkTimeout() {
    const limit = this.welcome ? 2 * this.welcome.heartbeat_ms : WELCOME_TIMEOUT;
    const silentFor = this.#clock.now() - this.#lastFrameAt;
    if (silentFor >= limit) {
      this.abort(1006, this.welcome ? "no frame for two heartbeats" : "no welcome in time");
      return;
    }
    this.#timer = this.#clock.setTimeout(() => this.#checkTimeout(), limit - silentFor);
  }

  #end(code, reason, error) {
    this.#ended = true;
    this.#clock.clearTimeout(this.#timer);
    this.joins.stop();
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null;
    this.#onEnd(this, code, reason, error);
  }
}
