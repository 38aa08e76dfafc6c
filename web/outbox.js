// The part of client.js that keeps requests until they are answered. Applications import client.js.

import { encodedLength } from "./pace.js";

/** Every failure that the client reports: `code` is the service's, or one of those listed in client.d.ts. */
export class SwitchyardError extends Error {
  constructor(code, message, more = {}) {
    super(`${code}: ${message}`);
    this.name = "SwitchyardError";
    this.code = code;
    this.outcomeUnknown = false;
    Object.assign(this, more);
  }
}

const DEFAULT_RESEND_MS = 300_000; // half of the service's default ID_WINDOW, for older nodes that do not report theirs

const FOLLOWS = ',"follows":true'; // in a publish: it must not be stored before the one that was sent before it

// The frame of a request. A publish has a head and a body, between which FOLLOWS may stand.
function textOf({ text, head, body }, follows) {
  return body === undefined ? text : `${head.slice(0, -1)}${follows ? FOLLOWS : ""},"data":${body}}`;
}

// Whether one of these requests was made before that one. Most often the first one was.
function hasEarlier(requests, { order }) {
  for (const other of requests) if (other.order < order) return true;
  return false;
}

// The Outbox keeps each request until it is answered, and sends it again on every new connection. Requests are sent in
// the order of the calls, when the rates of the service allow it. After a temporary refusal of its own, a queue (the
// publishes of a room, its history) is probing: it sends only its first request, and the rest once that one is
// answered.
export class Outbox {
  maxFrame = Infinity; // bytes
  #byRef = new Map(); #byKey = new Map(); #queues = new Map(); #count = 0; #bytes = 0; #connection = null;
  #waiting = { history: [], publish: [] }; // what is to be sent on this connection, in order
  #options; #clock; #resendWindow = DEFAULT_RESEND_MS; #timer = null; #order = 0;
  #user; // as which the service knows the client, null for an anonymous one; undefined before the first welcome

  constructor(options, clock) {
    this.#options = options;
    this.#clock = clock;
  }

  /** The request with this key that has no answer yet, such as an earlier publish with the same id. */
  pending(key) { return this.#byKey.get(key); }

  /** Takes a request {ref, queue, key, kind, text or head and body} and returns the promise of its answer. */
  add(request) {
    const { maxPending, maxPendingBytes } = this.#options;
    request.bytes = encodedLength(textOf(request));
    if (request.bytes > this.maxFrame) throw this.#tooLarge(request);
    if (this.#count >= maxPending) {
      throw new SwitchyardError("buffer_full", `${maxPending} requests wait for an answer (maxPending)`);
    }
    if (this.#bytes + request.bytes > maxPendingBytes) {
      throw new SwitchyardError("buffer_full", `${maxPendingBytes} bytes wait for an answer (maxPendingBytes)`);
    }
    this.#count += 1;
    this.#bytes += request.bytes;
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    this.#accept(request);
    return request.promise;
  }

  /**
   * Takes a request of the client itself, one for each room at most. It calls its resolve or reject, and is dropped when
   * the connection ends.
   */
  addOwn(request) {
    request.bytes = encodedLength(textOf(request));
    this.#accept(Object.assign(request, { own: true }));
  }

  /**
   * Sends on a connection from now on. A publish of another user is rejected: it would be stored as the new user's, and
   * twice if an attempt was stored already, because ids are unique for each user only. Returns whether the user is another.
   */
  attach(connection) {
    const before = this.#user;
    this.#connection = connection;
    this.maxFrame = connection.welcome.max_frame ?? Infinity;
    // Resend for half of the ID window only, so that no resend arrives after the id was forgotten.
    this.#resendWindow = connection.welcome.id_window_ms / 2 || DEFAULT_RESEND_MS;
    this.#user = connection.welcome.user ?? null;
    for (const request of [...this.#byRef.values()]) {
      if (request.user === undefined) request.user = this.#user;
      if (request.user === this.#user || request.body === undefined) this.#startTimer(request);
      else this.#fail(request, "user_changed", "the message is not sent as the user that the connection has now");
    }
    this.pump();
    return before !== undefined && before !== this.#user;
  }

  /** The client is closed: the next connection may be any user's. */
  forgetUser() { this.#user = undefined; }

  /** The connection has ended, or is another one from now on: nothing is sent any more. */
  detach() {
    this.#connection = null;
    this.#clock.clearTimeout(this.#timer);
    this.#waiting = { history: [], publish: [] };
    for (const queue of this.#queues.values()) {
      this.#clock.clearTimeout(queue.timer);
      Object.assign(queue, { timer: null, probe: null, sent: new Set() });
    }
    for (const request of [...this.#byRef.values()]) {
      request.sent = false;
      if (request.own) this.#remove(request);
      else this.#waiting[request.kind].push(request); // the map has them in the order of the calls
    }
  }

  resolve(request, value) {
    if (!request) return;
    this.#remove(request);
    request.resolve(value);
    this.pump();
  }

  reject(ref, error) {
    const request = this.#byRef.get(ref);
    // The refusal of a resend does not say whether an earlier attempt was stored, except for conflict: then
    // the id holds other data.
    if (request.uncertainAttempts > 1 && error.code !== "conflict") error.outcomeUnknown = true;
    this.#remove(request);
    request.reject(error);
  }

  /** Whether a request of that queue is still to be sent. */
  awaitsTurn(kind, queue) { return this.#waiting[kind].some((request) => request.queue === queue); }

  byRef(ref) { return this.#byRef.get(ref); }

  /** Sends the request again when its turn comes: the service has refused it because of a rate. */
  retryInTurn(ref) {
    const request = this.#byRef.get(ref);
    if (!request.sent) return;
    if (request.body !== undefined) request.uncertainAttempts -= 1; // refused before the log: not stored
    const queue = this.#unsend(request);
    if (queue.probe === request) queue.probe = null;
    this.pump();
  }

  /** Sends the request again after ms, and what is behind it in its queue once it is answered. */
  retryAfter(ref, ms) {
    const request = this.#byRef.get(ref);
    if (!request.sent) return;
    const queue = this.#unsend(request);
    queue.probing = true;
    if (queue.probe && queue.probe !== request) return; // the answer to the probe decides
    queue.probe = null;
    queue.timer ??= this.#clock.setTimeout(() => {
      queue.timer = null;
      this.pump();
    }, ms);
  }

  /** Rejects the largest request that was sent: the one that must have caused a close with 1009. */
  rejectLargest() {
    const sent = [...this.#byRef.values()].filter((request) => request.sent);
    sent.sort((a, b) => b.bytes - a.bytes);
    if (sent.length > 0) this.reject(sent[0].ref, this.#tooLarge(sent[0]));
  }

  rejectAll(code, message) {
    for (const request of [...this.#byRef.values()]) this.#fail(request, code, message);
  }

  /** Sends what may be sent now. */
  pump() {
    this.#clock.clearTimeout(this.#timer);
    if (!this.#connection) return;
    const wait = Math.min(this.#pumpKind("history"), this.#pumpKind("publish"));
    if (wait < Infinity) this.#timer = this.#clock.setTimeout(() => this.pump(), wait);
  }

  // Sends requests of a kind, and returns the ms after which the next one may be sent.
  #pumpKind(kind) {
    const waiting = this.#waiting[kind];
    const held = new Set(); // queues whose next request can't be sent now
    for (let i = 0; i < waiting.length;) {
      const request = waiting[i];
      const queue = this.#queues.get(request.queue);
      const follows = kind === "publish" && hasEarlier(queue.sent, request);
      const bytes = request.bytes + (follows ? FOLLOWS.length : 0);
      if (queue.timer || queue.probe || held.has(queue)) {
        i += 1;
      } else if (this.#timeLeft(request) <= 0) {
        this.#expire(request); // timers fire late after the computer was suspended
      } else if (request.bytes > this.maxFrame) {
        this.reject(request.ref, this.#tooLarge(request));
      } else if (bytes > this.maxFrame) {
        held.add(queue); // alone it is small enough
      } else {
        const wait = this.#connection.pacer.wait(kind, bytes);
        if (wait > 0) return wait;
        waiting.splice(i, 1);
        this.#send(request, queue, textOf(request, follows), bytes);
      }
    }
    return Infinity;
  }

  #send(request, queue, text, bytes) {
    request.sent = true;
    queue.sent.add(request);
    if (queue.probing) queue.probe = request;
    if (request.body !== undefined) request.uncertainAttempts += 1; // a request without a body stores nothing
    if (request.firstSentAt === null) {
      request.firstSentAt = this.#now();
      this.#startTimer(request);
    }
    this.#connection.request(text, request.ref, request.kind, bytes);
    request.onSent?.(this.#connection);
  }

  // Puts a request that was sent back in its place.
  #unsend(request) {
    const waiting = this.#waiting[request.kind];
    const at = waiting.findIndex(({ order }) => order > request.order);
    waiting.splice(at < 0 ? waiting.length : at, 0, request);
    request.sent = false;
    const queue = this.#queues.get(request.queue);
    queue.sent.delete(request);
    return queue;
  }

  #accept(request) {
    if (!this.#queues.has(request.queue)) {
      this.#queues.set(request.queue, { size: 0, sent: new Set(), probing: false, probe: null, timer: null });
    }
    this.#queues.get(request.queue).size += 1;
    this.#byRef.set(request.ref, request);
    this.#byKey.set(request.key, request);
    // uncertainAttempts counts the attempts that may have been stored; sent: on this connection, and without an answer.
    Object.assign(request, { order: ++this.#order, queuedAt: this.#now(), firstSentAt: null, uncertainAttempts: 0, sent: false, user: this.#user });
    this.#startTimer(request);
    this.#waiting[request.kind].push(request);
    this.pump();
  }

  // The ms until the client gives up. A request that was never sent cannot be stored twice: it is kept as long as the
  // application wants.
  #timeLeft(request) {
    const { resendFor } = this.#options;
    if (request.firstSentAt === null) return (resendFor ?? DEFAULT_RESEND_MS) - this.#since(request.queuedAt);
    return Math.min(resendFor ?? Infinity, this.#resendWindow) - this.#since(request.firstSentAt);
  }

  #now() { return { time: this.#clock.now(), wall: this.#clock.wall() }; }

  // The ms since then, by the clock that says more: the wall clock may have been set back, and the other one may stand
  // still while the computer sleeps. A resend after the service has forgotten the id would be stored twice.
  #since({ time, wall }) { return Math.max(this.#clock.now() - time, this.#clock.wall() - wall); }

  #startTimer(request) {
    this.#clock.clearTimeout(request.timer);
    request.timer = this.#clock.setTimeout(() => {
      this.#expire(request);
      this.pump();
    }, Math.max(0, this.#timeLeft(request)));
  }

  #remove(request) {
    this.#clock.clearTimeout(request.timer);
    this.#byRef.delete(request.ref);
    this.#byKey.delete(request.key);
    if (!request.own) {
      this.#count -= 1;
      this.#bytes -= request.bytes;
    }
    const queue = this.#queues.get(request.queue);
    queue.size -= 1;
    const waiting = this.#waiting[request.kind];
    const at = waiting.indexOf(request);
    if (at >= 0) waiting.splice(at, 1);
    if (request.sent) {
      queue.sent.delete(request);
      this.#connection.pacer.answered(request.ref); // by its own message, or it will not be any more
    }
    if (queue.size === 0) {
      this.#clock.clearTimeout(queue.timer);
      this.#queues.delete(request.queue);
    } else if (queue.probe === request) {
      Object.assign(queue, { probe: null, probing: false });
    }
  }

  #expire(request) {
    if (request.uncertainAttempts > 0) this.#fail(request, "outcome_unknown", "no answer arrived in time: it may have been stored");
    else this.#fail(request, "timeout", "no answer arrived in time, and nothing was stored");
  }

  // Rejects a request that has no answer.
  #fail({ ref, uncertainAttempts }, code, message) {
    this.reject(ref, new SwitchyardError(code, message, { outcomeUnknown: uncertainAttempts > 0 }));
  }

  #tooLarge(request) {
    return new SwitchyardError("too_large", `the frame has ${request.bytes} bytes, the service accepts ${this.maxFrame}`);
  }
}
