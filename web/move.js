// The part of client.js that moves: it opens the next connection before it closes the current one. Applications import client.js.

const JOIN_TIMEOUT = 10_000; // ms for one more room to be joined on the next connection
const SIGNAL_DEDUP_WINDOW = 5_000; // ms after a move in which the second copy of a signal may still arrive
const MAX_DEDUP_CHARS = 1 << 20; // characters of signals that are remembered; beyond it one may be delivered twice
const CODE_DISCARDED = 4_000; // closes a next connection that is not used; 1000 would end the session
const MAX_TIMEOUT = 86_400_000; // ms: one day, far below the 24.8 days that setTimeout can hold

const clampTimeout = (ms) => Math.min(Math.max(ms || 0, 0), MAX_TIMEOUT);

/** Whether a welcome names the node or the deployment to avoid. */
function avoids({ node, deployment } = {}, welcome) {
  return (node && node === welcome.node) || (deployment && deployment === welcome.deployment);
}

function sameTarget(a, b) { return a?.node === b?.node && a?.deployment === b?.deployment; }

// A Move opens next connections, one after the other, until all rooms are joined on one of them, or until
// its deadline while the current connection is open. host is the client: create() makes a connection and
// start(connection) opens it; joinRooms(connection) joins the rooms there; allJoined(connection) says
// whether all are joined; promoteNext() makes it the current one.
export class Move {
  next = null; // the next connection, set when it begins to open
  #host; #clock; #backoff; #request = null; #timer = null;

  /** backoff(n) returns how long to wait after n failed attempts. */
  constructor(host, clock, backoff) {
    this.#host = host;
    this.#clock = clock;
    this.#backoff = backoff;
  }

  /** The reason of the move in force; undefined without one. */
  get reason() { return this.#request?.reason; }

  /** Returns the request in a move frame that has just arrived, with absolute times. */
  parseRequest({ after_ms: after, deadline_ms: deadline, avoid, reason = "" }) {
    const now = this.#clock.now();
    return { notBefore: now + clampTimeout(after), deadline: now + clampTimeout(deadline), avoid, reason, failures: 0 };
  }

  /**
   * Starts a move, which replaces the previous move. An attempt in progress continues if it avoids the same node
   * or deployment.
   */
  start(request) {
    if (this.next && sameTarget(request.avoid, this.#request.avoid)) {
      this.#request = { ...request, failures: this.#request.failures };
      return;
    }
    this.cancel();
    this.#request = request;
    this.#scheduleConnect();
  }

  /** Ends the move and closes the next connection; the code 1000 ends the session as well. */
  cancel(code = CODE_DISCARDED) {
    this.#clock.clearTimeout(this.#timer);
    this.#request = null;
    this.#closeNext(code);
  }

  /** Returns the next connection and the reason of the move, and ends the move. */
  takeNext() {
    const { next } = this;
    const { reason } = this.#request;
    this.next = null;
    this.cancel();
    return [next, reason];
  }

  /** The next connection has received its welcome frame. */
  nextWelcomed(connection) {
    if (avoids(this.#request.avoid, connection.welcome)) return this.#retry();
    this.#restartJoinTimer();
    this.#host.joinRooms(connection);
    return this.checkJoined();
  }

  /** The next connection has ended by itself. */
  nextEnded() {
    this.next = null;
    this.#retry();
  }

  /** Completes the move if all rooms are joined on the next connection; progress says that one more room is joined. */
  checkJoined(progress) {
    if (!this.next?.welcome) return;
    if (this.#host.allJoined(this.next)) this.#host.promoteNext();
    else if (progress) this.#restartJoinTimer();
  }

  #scheduleConnect() {
    const { notBefore, deadline } = this.#request;
    this.#timer = this.#clock.setTimeout(() => {
      if (notBefore > deadline) return this.cancel(); // the deadline has passed, and the current connection is open
      this.next = this.#host.create();
      this.#host.start(this.next);
    }, Math.min(notBefore, deadline) - this.#clock.now());
  }

  #retry() {
    this.#clock.clearTimeout(this.#timer);
    this.#closeNext(CODE_DISCARDED);
    const request = this.#request;
    request.notBefore = Math.max(request.notBefore, this.#clock.now() + this.#backoff(request.failures++));
    this.#scheduleConnect();
  }

  #closeNext(code) {
    const connection = this.next;
    this.next = null;
    connection?.abort(code, "this connection is not used", code);
  }

  #restartJoinTimer() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(() => this.#retry(), JOIN_TIMEOUT);
  }
}

// A SignalDedup recognizes the second copy of a signal. During a move each signal arrives on both
// connections, in any order, and signals have neither seq nor id. So signals with the same room, user and
// data count as equal, and are delivered as often as they arrived on one connection, the one with the most
// copies.
export class SignalDedup {
  #clock; #counts = new Map(); #size = 0; #expires = -Infinity;

  constructor(clock) { this.#clock = clock; }

  /** A move begins. Signals that are still remembered from an earlier move stay. */
  start() {
    if (this.#expired) {
      this.#counts.clear();
      this.#size = 0;
    }
    this.#expires = Infinity;
  }

  /** One of the two connections has ended: second copies stop arriving after a while. */
  expireSoon() { this.#expires = Math.min(this.#expires, this.#clock.now() + SIGNAL_DEDUP_WINDOW); }

  /** Counts a signal of the connection with that number, and returns whether it was delivered before. */
  seenBefore(number, { room, from, data }) {
    if (this.#expired) return false;
    const key = JSON.stringify([room, from, data]);
    let count = this.#counts.get(key);
    if (!count) {
      if (this.#size + key.length > MAX_DEDUP_CHARS) return false;
      this.#size += key.length;
      count = { delivered: 0, received: new Map() };
      this.#counts.set(key, count);
    }
    const received = (count.received.get(number) ?? 0) + 1;
    count.received.set(number, received);
    if (received <= count.delivered) return true;
    count.delivered += 1;
    return false;
  }

  get #expired() { return this.#clock.now() > this.#expires; }
}
