// The part of client.js that is one socket. Applications import client.js.

import { fetchToken } from "./options.js";
import { JoinQueue, Pacer, encodedLength } from "./pace.js";

const CONNECTING = 0; // the readyState of a socket that is not open yet
const TOKEN_TIMEOUT = 30_000; // ms that getToken may take
const WELCOME_TIMEOUT = 10_000; // ms until a socket is open, and from then on to welcome
const OPEN_TIMEOUT = 90_000; // ms until a socket is open while the service answers otherwise: Firefox holds one back for 60 s
const END_AFTER_ERROR = 500; // ms that a socket may take from its error to its end
const PROBE_TIMEOUT = 3_000; // ms in which the service answers a ping
const LATE_CLOSE = 5_000; // ms more without a token: a service that requires one waits 10 s for it, and then says so

/**
 * Returns what a close code asks of a client: do not reconnect ("stay"), reconnect with a fresh token ("token"), drop the
 * largest request and back off ("shed"), reconnect within a second ("soon"), or back off ("backoff").
 */
export function afterClose(code) {
  if ([1000, 1002, 1003, 1007, 1008, 4003, 4009].includes(code)) return "stay";
  if (code === 4001) return "token";
  if (code === 1009) return "shed";
  if (code === 1012 || (code >= 4200 && code <= 4299)) return "soon";
  return "backoff";
}

/** Says why no connection to a service may come about, which a browser does not say. */
export function unansweredMessage(url) {
  const from = globalThis.location?.origin;
  return `two connections to ${url.origin}${url.pathname} have failed, and a browser does not say why. Is the service there? ` +
    `${from ? `Is ${from} one of its ALLOWED_ORIGINS? ` : ""}Does it serve ${url.pathname}, or does its address have another path? ` +
    `Does each proxy before it pass WebSockets on? See ${url.origin.replace(/^ws/, "http")}${url.pathname.replace(/[^/]*$/, "")}no-connection.html`;
}

// A Connection is one WebSocket from its opening to its end, which it reports exactly once. Two are open
// during a move, so the state that belongs to one of them is kept here.
export class Connection {
  welcome = null;
  welcomedAt = 0;
  handshakeMs = 0; // from opening to welcome, without the time of getToken
  pacer = null; // set with welcome
  joins; // the joins and leaves that wait for their turn
  // The rooms by name: {ref, sent, joined, epoch, missingAfter, presence, removedFor}. sent and joined say that the join with that
  // ref was sent and was answered; frames before the answer belong to an earlier join. epoch is the last one seen on
  // this connection. missingAfter is the position after which a message was missing and requested again. presence
  // says that presence was requested after the join. removedFor is 0, or after how many more accepted tokens a room that the
  // service has taken away is joined again.
  memberships = new Map();
  ignoredRefs = new Set(); // refs of requests whose error is ignored
  isSilent = false; // the last ping was not answered
  withoutToken = false; // getToken has returned none
  isUnanswered = false; // no socket was opened, because the service did not answer a question
  pendingMove = null; // a move that the service asked for while this was the next connection
  movedFrom = null; // the node to name in "moved", if a move led here
  #clock; #onFrame; #onEnd; #reachability; #socket = null; #ended = false; #dialedAt; #lastFrameAt; #timer; #probe = null;

  /** number counts the connections of a client; onFrame and onEnd get the frames and the end. */
  constructor(number, clock, reachability, onFrame, onEnd) {
    this.number = number;
    this.#clock = clock;
    this.#reachability = reachability;
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
    this.joins = new JoinQueue(this, clock);
  }

  /**
   * Opens a socket with dial(token), at once unless there is a getToken. An error of either one is an end, too. With asksFirst
   * no socket is opened unless the service answers a question.
   */
  async open(getToken, dial, asksFirst) {
    if (asksFirst && !await this.#reachability.shouldOpen()) {
      this.isUnanswered = true;
      if (!this.#ended) this.#end(1006, "the service does not answer");
    }
    if (this.#ended) return;
    try {
      this.#timer = this.#clock.setTimeout(() => this.#fail(new Error("getToken took longer than half a minute")), TOKEN_TIMEOUT);
      const token = getToken ? await fetchToken(getToken) : undefined;
      if (this.#ended) return; // closed while the token was fetched
      this.#clock.clearTimeout(this.#timer);
      this.withoutToken = Boolean(getToken) && !token;
      this.#socket = dial(token);
    } catch (error) {
      await null; // the application has just called connect, and adds its listeners
      this.#fail(error);
      return;
    }
    this.#dialedAt = this.#lastFrameAt = this.#clock.now();
    this.#socket.onopen = () => { this.#lastFrameAt = this.#clock.now(); };
    this.#socket.onmessage = (event) => this.#receive(event.data);
    this.#socket.onclose = (event) => this.#end(event.code, event.reason);
    // The end of the connection follows, but not after a refused handshake with the class of Node. The package ws ends the
    // process unless there is always a listener.
    this.#socket.onerror = () => this.#clock.setTimeout(() => this.abort(1006, "the socket has failed"), END_AFTER_ERROR);
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

  /**
   * Sends a ping, unless one waits for its answer, and calls onSilence if no answer arrives in time. Other frames count for
   * nothing: the browser may have received them long ago.
   */
  probe(ref, onSilence) {
    if (this.#probe || this.isSilent) return;
    this.ignoredRefs.add(ref); // an older service answers that it does not know the type
    this.send({ type: "ping", ref });
    this.#probe = { ref, timer: this.#clock.setTimeout(() => {
      this.isSilent = true;
      onSilence();
    }, PROBE_TIMEOUT) };
  }

  /** Whether this is the answer to a ping. */
  isAnswer({ ref }) {
    if (!this.#probe || ref !== this.#probe.ref) return false;
    this.#clock.clearTimeout(this.#probe.timer);
    this.ignoredRefs.delete(ref);
    this.#probe = null;
    this.isSilent = false;
    return true;
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
      this.handshakeMs = now - this.#dialedAt;
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
    const limit = this.welcome ? 2 * this.welcome.heartbeat_ms : WELCOME_TIMEOUT + (this.withoutToken ? LATE_CLOSE : 0);
    const silentFor = this.#clock.now() - this.#lastFrameAt;
    if (silentFor >= limit) {
      if (this.#isOpening && this.#clock.now() - this.#dialedAt < OPEN_TIMEOUT) return void this.#askWhileOpening();
      this.abort(1006, this.welcome ? "no frame for two heartbeats" : "no welcome in time");
      return;
    }
    this.#timer = this.#clock.setTimeout(() => this.#checkTimeout(), limit - silentFor);
  }

  get #isOpening() { return this.#socket.readyState === CONNECTING; }

  // A browser may hold a socket back, which another one would not change: it is cut if the service does not answer otherwise
  // either.
  async #askWhileOpening() {
    const answers = await this.#reachability.answers();
    if (this.#ended || this.welcome) return;
    if (!answers && this.#isOpening) return this.abort(1006, "no connection in time");
    this.#lastFrameAt = this.#clock.now();
    this.#checkTimeout();
  }

  // There is no socket.
  #fail(error) { if (!this.#ended) this.#end(1006, error.message, error); }

  #end(code, reason, error) {
    this.#ended = true;
    this.#clock.clearTimeout(this.#timer);
    this.joins.end();
    this.#clock.clearTimeout(this.#probe?.timer);
    if (this.#socket) this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#onEnd(this, code, reason, error);
  }
}
