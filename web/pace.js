// The part of client.js that keeps to the rates of the service. Applications import client.js.

const REFUSALS_APART = 1_000; // ms at least between two refusals of a kind, after the first

// Publishes in flight at a service that reports no limits, so that it refuses no more at once. It closes after a thousand.
const MAX_WITHOUT_LIMITS = 256;

/** The bytes of a JSON text, also where there is no TextEncoder, as in older versions of React Native. */
export function encodedLength(text) {
  return globalThis.TextEncoder ? new TextEncoder().encode(text).length : encodeURIComponent(text).replace(/%../g, "_").length;
}

// An Allowance is one limit of the service, as strict as the service may count: what was sent counts in full until its
// answer arrives, because the service has counted it by then at the latest. From then on it is paid back by time.
class Allowance {
  #perSecond; #burst; #paidAt; #unanswered = 0;

  constructor({ per_second: perSecond, burst, left = burst }, now) {
    this.#perSecond = perSecond;
    this.#burst = burst;
    this.#paidAt = now + this.#time(burst - left);
  }

  /** Returns the ms after which n more may be sent, Infinity if an answer must arrive first. */
  wait(n, now) {
    const unused = this.#burst - this.#unanswered - this.#size(n);
    if (unused < 0) return Infinity;
    this.#paidAt = Math.min(this.#paidAt, now + this.#time(this.#burst)); // a clock was set back
    const ms = this.#paidAt - now - this.#time(unused);
    return ms < 0.001 ? 0 : Math.ceil(ms);
  }

  sent(n) { this.#unanswered += this.#size(n); }

  answered(n, now) {
    this.#unanswered -= this.#size(n);
    this.#paidAt = Math.max(this.#paidAt, now) + this.#time(this.#size(n));
  }

  // More than the burst counts as the burst: it could never be sent otherwise.
  #size(n) { return Math.min(n, this.#burst); }

  #time(n) { return n / this.#perSecond * 1_000; }
}

// A Gate closes when the service refuses a request with rate_limited all the same, because other clients of the same
// user use up a limit, or because an older service reports none. It opens for one request, and then for one more with each
// round of answers.
class Gate {
  #opensAt = -Infinity; #refusedAt = -Infinity; #again = false; #width; #round = 0; #sentInRound = 0;

  constructor(width = Infinity) { this.#width = width; }

  /** Returns the same gate for a new connection; null if it was never closed. */
  renewed() {
    if (this.#refusedAt === -Infinity) return null;
    this.#sentInRound = 0;
    this.#round += 1; // what the old connection still answers does not count
    return this;
  }

  wait(now) {
    return this.#sentInRound + 1 <= this.#width ? this.opensIn(now) : Infinity;
  }

  opensIn(now) { return Math.max(0, this.#opensAt - now); }

  /** Counts a request and returns its round: a refusal counts once for all that were sent before it. */
  sent() {
    this.#sentInRound += 1;
    return this.#round;
  }

  answered(round) {
    if (round !== this.#round) return;
    this.#sentInRound -= 1;
    this.#width += 1 / this.#width;
  }

  /** ms is how long the service asks to wait; spread is added to a second wait of our own. */
  refused(round, ms, spread, now) {
    if (round === this.#round) {
      this.#again = now - this.#refusedAt < REFUSALS_APART;
      this.#refusedAt = now;
      this.#opensAt = now + ms;
      this.#width = 1;
      this.#sentInRound = 0;
      this.#round += 1;
    }
    if (this.#again) this.#opensAt = Math.max(this.#opensAt, now + REFUSALS_APART * spread);
  }
}

// A Pacer says when a connection may send its next request of a kind: publish, history (which includes presence) or join
// (which includes leave).
export class Pacer {
  #clock; #allowances = {}; #gates; #unanswered = new Map();

  /** limits are those of the welcome; an older service reports none. */
  constructor(limits, clock) {
    this.#clock = clock;
    this.#gates = { publish: new Gate(limits ? Infinity : MAX_WITHOUT_LIMITS), history: new Gate(), join: new Gate() };
    for (const [name, limit] of Object.entries(limits ?? {})) {
      if (limit?.per_second > 0) this.#allowances[name] = new Allowance(limit, clock.now());
    }
  }

  /**
   * Goes on as carefully as the pacer of the connection before: the limits of a user are the same there. Nothing but joins
   * was sent on this connection yet.
   */
  adopt(before) {
    for (const kind of ["publish", "history"]) this.#gates[kind] = before.#gates[kind].renewed() ?? this.#gates[kind];
  }

  /** Returns the ms to wait before a request of that many bytes, Infinity if an answer must arrive first. */
  wait(kind, bytes) {
    const now = this.#clock.now();
    return Math.max(this.#gates[kind].wait(now), this.#allowances[kind]?.wait(1, now) ?? 0, this.#allowances.bytes?.wait(bytes, now) ?? 0);
  }

  /** Whether a frame that has no answer may be sent now. */
  maySpend(kind, bytes) {
    const now = this.#clock.now();
    const wait = Math.max(this.#allowances[kind]?.wait(1, now) ?? 0, this.#allowances.bytes?.wait(bytes, now) ?? 0);
    return Math.max(wait, this.#gates[kind].opensIn(now)) === 0;
  }

  /** Counts a request that will be answered with its ref. */
  sent(ref, kind, bytes) {
    this.#unanswered.set(ref, { kind, bytes, round: this.#gates[kind].sent() });
    this.#allowances[kind]?.sent(1);
    this.#allowances.bytes?.sent(bytes);
  }

  /** Counts a frame that has no answer. */
  spent(kind, bytes) {
    for (const [name, n] of [[kind, 1], ["bytes", bytes]]) {
      this.#allowances[name]?.sent(n);
      this.#allowances[name]?.answered(n, this.#clock.now());
    }
  }

  answered(ref) {
    const request = this.#count(ref);
    if (request) this.#gates[request.kind].answered(request.round);
  }

  /** The service has refused the request with rate_limited. It may be sent again after ms. */
  refused(ref, ms, spread) {
    const request = this.#count(ref);
    if (request) this.#gates[request.kind].refused(request.round, ms, spread, this.#clock.now());
  }

  #count(ref) {
    const request = this.#unanswered.get(ref);
    if (!request) return null;
    this.#unanswered.delete(ref);
    this.#allowances[request.kind]?.answered(1, this.#clock.now());
    this.#allowances.bytes?.answered(request.bytes, this.#clock.now());
    return request;
  }
}

// A JoinQueue sends the joins and leaves of one connection in order, each when its turn comes.
export class JoinQueue {
  #connection; #clock; #waiting = []; #sent = new Map(); #count = 0; #timer = null; #retries = new Set();

  constructor(connection, clock) {
    this.#connection = connection;
    this.#clock = clock;
  }

  /** Takes a request; build returns its frame, or null if it is not needed any more; onSent is called once it is sent. */
  add(ref, build, onSent) {
    this.#waiting.push({ ref, build, onSent, order: ++this.#count });
    this.pump();
  }

  /** Forgets a request that has its answer. */
  answered(ref) { this.#sent.delete(ref); }

  /** Returns whether a request is there to be sent again. It keeps its turn. */
  retry(ref) {
    const request = this.#sent.get(ref);
    if (!request) return false;
    this.#sent.delete(ref);
    const at = this.#waiting.findIndex(({ order }) => order > request.order);
    this.#waiting.splice(at < 0 ? this.#waiting.length : at, 0, request);
    return true;
  }

  /** Sends what may be sent now. */
  pump() {
    this.stop();
    while (this.#waiting.length > 0) {
      const request = this.#waiting[0];
      const frame = request.build();
      if (frame) {
        const text = JSON.stringify(frame);
        const wait = this.#connection.pacer.wait("join", text.length);
        if (wait > 0) {
          if (wait < Infinity) this.#timer = this.#clock.setTimeout(() => this.pump(), wait);
          return;
        }
        this.#sent.set(request.ref, request);
        this.#connection.request(text, request.ref, "join", text.length);
        request.onSent?.();
      }
      this.#waiting.shift();
    }
  }

  /** Calls back after ms, unless the connection has ended. */
  after(ms, callback) {
    const timer = this.#clock.setTimeout(() => {
      this.#retries.delete(timer);
      callback();
    }, ms);
    this.#retries.add(timer);
  }

  stop() { this.#clock.clearTimeout(this.#timer); }

  /** The connection has ended. */
  end() {
    this.stop();
    for (const timer of this.#retries) this.#clock.clearTimeout(timer);
  }
}
