// The part of client.js that moves: the second link is opened before the first is let go. Users import client.js.

const JOIN_WITHIN = 10_000; // ms for one more room to be joined on the second link
const ECHO_FOR = 5_000; // ms after a move in which a signal may still come a second time
const MAX_ECHOES = 1 << 20; // characters of such signals that are remembered; beyond it one may be told twice
const NOT_HERE = 4_000; // closes a second link that is not kept; 1000 would end the session
const LONGEST = 86_400_000; // ms; no timer of a browser takes more than 24 days

const within = (ms) => Math.min(Math.max(ms || 0, 0), LONGEST);

/** Whether a welcome names the node or the deployment that is to be avoided. */
function avoids({ node, deployment } = {}, welcome) {
  return (node && node === welcome.node) || (deployment && deployment === welcome.deployment);
}

function same(a, b) { return a?.node === b?.node && a?.deployment === b?.deployment; }

// A Move tries to get a second link until it has one where all rooms are joined, or its deadline comes
// while the first one lives still. host is the client: create() makes a link and start(link) opens it;
// welcomed(link) joins the rooms there; seated(link) says whether all are; promote() makes it the first.
export class Move {
  next = null; // the second link, from its opening on
  #host; #clock; #backoff; #order = null; #timer = null;

  /** backoff(n) is how long to wait after n failed tries. */
  constructor(host, clock, backoff) {
    this.#host = host;
    this.#clock = clock;
    this.#backoff = backoff;
  }

  /** When a move that has just come wants what. */
  order({ after_ms: after, deadline_ms: deadline, avoid, reason = "" }) {
    const now = this.#clock.now();
    return { slot: now + within(after), ends: now + within(deadline), avoid, reason, failures: 0 };
  }

  /** Follows an order; only the last one counts. A try goes on where the same is to be avoided. */
  plan(order) {
    if (this.next && same(order.avoid, this.#order.avoid)) {
      this.#order = { ...order, failures: this.#order.failures };
      return;
    }
    this.off();
    this.#order = order;
    this.#await();
  }

  /** Ends the move, and the second link with it: the session, too, with the code 1000. */
  off(code = NOT_HERE) {
    this.#clock.clearTimeout(this.#timer);
    this.#order = null;
    this.#dismiss(code);
  }

  /** Gives the second link away, and why it was made; that ends the move, too. */
  take() {
    const { next } = this;
    const { reason } = this.#order;
    this.next = null;
    this.off();
    return [next, reason];
  }

  /** The second link was welcomed. */
  welcomed(link) {
    if (avoids(this.#order.avoid, link.welcome)) return this.#again();
    this.#patience();
    this.#host.welcomed(link);
    return this.check();
  }

  /** The second link has ended by itself. */
  ended() {
    this.next = null;
    this.#again();
  }

  /** One more room was joined on the second link, or left: is that all? */
  check(progress) {
    if (!this.next?.welcome) return;
    if (this.#host.seated(this.next)) this.#host.promote();
    else if (progress) this.#patience();
  }

  #await() {
    const { slot, ends } = this.#order;
    this.#timer = this.#clock.setTimeout(() => {
      if (slot > ends) return this.off(); // the first link has outlived it
      this.next = this.#host.create();
      this.#host.start(this.next);
    }, Math.min(slot, ends) - this.#clock.now());
  }

  #again() {
    this.#clock.clearTimeout(this.#timer);
    this.#dismiss(NOT_HERE);
    const order = this.#order;
    order.slot = Math.max(order.slot, this.#clock.now() + this.#backoff(order.failures++));
    this.#await();
  }

  #dismiss(code) {
    const link = this.next;
    this.next = null;
    link?.cut(code, "not the place to move to", code);
  }

  #patience() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(() => this.#again(), JOIN_WITHIN);
  }
}

// Echoes tells which signals of a move were told before. Both links bring each, in any order, and signals
// have neither seq nor id: what is the same in room, user and data is taken for the same, and told as often
// as that link brings it which brings it most.
export class Echoes {
  #clock; #heard = new Map(); #size = 0; #until = -Infinity;

  constructor(clock) { this.#clock = clock; }

  /** Begins what fade ends. What is still remembered of a move before counts on. */
  expect() {
    if (this.#over) {
      this.#heard.clear();
      this.#size = 0;
    }
    this.#until = Infinity;
  }

  /** One of the links is gone: after a while nothing comes twice. */
  fade() { this.#until = Math.min(this.#until, this.#clock.now() + ECHO_FOR); }

  /** Whether a signal of link number was told before. */
  again(number, { room, from, data }) {
    if (this.#over) return false;
    const key = JSON.stringify([room, from, data]);
    let heard = this.#heard.get(key);
    if (!heard) {
      if (this.#size + key.length > MAX_ECHOES) return false;
      this.#size += key.length;
      heard = { told: 0, by: new Map() };
      this.#heard.set(key, heard);
    }
    const times = (heard.by.get(number) ?? 0) + 1;
    heard.by.set(number, times);
    if (times <= heard.told) return true;
    heard.told += 1;
    return false;
  }

  get #over() { return this.#clock.now() > this.#until; }
}
