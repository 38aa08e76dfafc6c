// Switchyard's client for browsers: nothing to install, nothing to build, no dependencies.
//
//   import { Switchyard } from "/client.js";
//   const client = Switchyard.connect("wss://host/ws");
//   const room = client.join("lobby", { after: 0 });
//   room.on("message", (m) => console.log(m.seq, m.data));
//   const { seq } = await room.publish({ text: "hello" });
//
// It comes back by itself when the socket dies, resumes each room after the last seq it saw, shows no
// message twice, and keeps what you publish until the server says that it is stored. When the server asks
// it to move it opens the second socket before it lets go of the first. client.d.ts has the types and the
// meaning of each call.

import { Link } from "./link.js";
import { Echoes, Move } from "./move.js";
import { Outbox, SwitchyardError } from "./outbox.js";
import { Emitter } from "./room.js";
import { Rooms } from "./rooms.js";
import { Tokens } from "./tokens.js";

export { SwitchyardError };

const SUBPROTOCOL = "switchyard.v1";
const LIVE_ENOUGH = 10_000; // ms live after which trouble starts to count anew
const SLOW_WITHIN = 10_000; // ms between two 4208 that make the second one back off
const SOON = 1_000; // ms within which a restarted socket comes back
const RETRY_CAP = 60_000; // ms; the longest retry_after that is believed

const DEFAULTS = {
  backoff: { base: 500, cap: 20_000 }, // ms
  maxPending: 1_000, // requests
  maxPendingBytes: 4 << 20,
};

/** What a close code asks of a client: "stay" away, fetch a "token", "shed", come back "soon", or "backoff". */
export function afterClose(code) {
  if ([1000, 1002, 1003, 1007, 1008, 4003, 4009].includes(code)) return "stay";
  if (code === 4001) return "token";
  if (code === 1009) return "shed";
  if (code === 1012 || (code >= 4200 && code <= 4299)) return "soon";
  return "backoff";
}

function newID() {
  if (crypto.randomUUID) return crypto.randomUUID();
  // Pages on plain http have no randomUUID, but do have the same source of randomness.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

const systemClock = {
  now: () => Date.now(),
  setTimeout: (f, ms) => setTimeout(f, ms),
  clearTimeout: (t) => clearTimeout(t),
};

/** A connection that lasts longer than its sockets. Made by Switchyard.connect. */
export class Switchyard extends Emitter {
  state = { name: "connecting" };
  welcome = null;
  #url; #options; #clock; #random; #rooms; #outbox; #tokens; #move; #session;
  #link = null; // the one that counts; #move has the second one
  #timer = null; #links = 0; #refs = 0; #failures = 0; #slowAt = -Infinity;

  static connect(url = "/ws", options = {}) { return new Switchyard(url, options); }

  constructor(url, options) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options };
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#session = options.session;
    this.#rooms = new Rooms(this, this.#keeper, new Echoes(this.#clock));
    this.#outbox = new Outbox(this.#options, this.#clock);
    this.#tokens = new Tokens(options.getToken, this.#clock, this.#random, () => this.#nextRef(), (e) => this._emit("error", e));
    this.#move = new Move(this.#mover, this.#clock, (n) => this.#jitter(n));
    this.#open();
  }

  join(name, { after, epoch } = {}) {
    return this.#rooms.get(name) ?? this.#rooms.join(name, after === undefined ? null : { seq: after, epoch });
  }

  leave(name) { this.#rooms.leave(name); }

  async publish(room, data, { id = newID() } = {}) {
    const ref = this.#nextRef();
    const body = JSON.stringify(data);
    if (body === undefined) throw new TypeError("data must be something that JSON can say");
    const key = `${room} ${id}`;
    const earlier = this.#outbox.waiting(key);
    if (earlier?.body === body) return earlier.promise;
    if (earlier) throw new SwitchyardError("conflict", "id waits for its answer with other data");
    const names = JSON.stringify({ type: "publish", ref, room, id });
    const text = `${names.slice(0, -1)},"data":${body}}`;
    return this.#outbox.add({ ref, key, text, body, lane: `publish ${room}` });
  }

  signal(room, data) {
    const link = this.#link;
    if (!link?.welcome || link.backlog >= this.#options.maxPendingBytes) return false;
    link.send({ type: "signal", ref: this.#nextRef(), room, data });
    return true;
  }

  async history(room, { before, after, limit } = {}) { return this.#ask({ type: "history", room, before, after, limit }); }

  async presence(room) {
    const joined = this.#rooms.get(room);
    if (joined) joined._watched = true;
    return this.#ask({ type: "presence", room });
  }

  /** Brings the service a fresh token now, as the client does by itself before the old one ends. */
  refreshToken() { return this.#tokens.refresh(); }

  /** Tries again at once instead of waiting, and also after the end. */
  reconnect() {
    if (this.state.name === "waiting" || this.state.name === "closed") this.#open();
  }

  close() {
    if (this.state.name === "closed") return;
    this.#clock.clearTimeout(this.#timer);
    const link = this.#link;
    this.#link = null;
    this.#move.off(1000);
    link?.cut(1000, "closed by the page", 1000);
    this.#stop(1000, "closed by the page");
  }

  // Reading twice does no harm, so it is asked for again on the next link.
  #ask({ type, room, ...more }) {
    const ref = this.#nextRef();
    return this.#outbox.add({ ref, key: ref, text: JSON.stringify({ type, ref, room, ...more }), lane: `${type} ${room}` });
  }

  #open() {
    this.#clock.clearTimeout(this.#timer);
    const link = this.#create();
    this.#link = link;
    this.#become({ name: "connecting" });
    if (this.#link === link) this.#start(link); // nobody has closed it
  }

  #create() {
    return new Link(++this.#links, this.#clock, (l, f) => this.#receive(l, f), (l, c, r, e) => this.#ended(l, c, r, e));
  }

  #start(link) {
    const { getToken, WebSocket } = this.#options;
    link.start(getToken, (token) => {
      const protocols = [SUBPROTOCOL];
      if (getToken) protocols.push(`bearer.${token}`);
      if (this.#session) protocols.push(`session.${this.#session}`);
      return new WebSocket(this.#url.href, protocols);
    });
  }

  // An older link that still speaks is not heard.
  #ended(link, code, reason, error) {
    const second = link === this.#move.next;
    if (!second && link !== this.#link) return;
    if (error) this._emit("error", new SwitchyardError("connect_failed", reason, { cause: error }));
    if (second) {
      this.#rooms.echoes.fade();
      if (link === this.#move.next) this.#move.ended(); // no listener has closed it
      return;
    }
    if (link !== this.#link) return; // a listener has closed it
    const verdict = afterClose(code);
    if (verdict === "shed") this.#outbox.shed();
    if (this.#move.next?.welcome) return this.#promote();
    this.#outbox.detach();
    this.#tokens.attach(null);
    if (this.#move.next) return this.#follow();
    this.#move.off();
    this.#link = null;
    const now = this.#clock.now();
    if (link.welcome && now - link.liveSince >= LIVE_ENOUGH) this.#failures = 0;
    // Replaced by a later link of our own: this one is forgotten, and no more.
    const soon = verdict === "soon" || (code === 4009 && link.number < this.#links);
    if (!soon && (verdict === "stay" || (verdict === "token" && !this.#options.getToken))) return this.#stop(code, reason);
    const again = code === 4208 && now - this.#slowAt < SLOW_WITHIN;
    if (code === 4208) this.#slowAt = now;
    this.#wait(code, reason, soon && !again ? this.#random() * SOON : this.#jitter(this.#failures++));
  }

  // The first link has ended while the second one was being opened, which now is the only one.
  #follow() {
    [this.#link] = this.#move.take();
    this.#link.movedFrom = this.welcome.node;
    this.#become({ name: "connecting" });
  }

  // Full jitter: anywhere below a bound that doubles, so that a crowd spreads out.
  #jitter(failures) {
    const { base, cap } = this.#options.backoff;
    return this.#random() * Math.min(cap, base * 2 ** failures);
  }

  #wait(code, reason, ms) {
    this.#timer = this.#clock.setTimeout(() => this.#open(), ms);
    this.#become({ name: "waiting", in: ms, code, reason });
  }

  #stop(code, reason) {
    this.#tokens.attach(null);
    this.#outbox.detach();
    this.#outbox.rejectAll("closed", `the connection ended for good: ${code} ${reason}`);
    this.#rooms.rejectAll(new SwitchyardError("closed", reason));
    this.#become({ name: "closed", code, reason });
  }

  #become(state) {
    this.state = state;
    this._emit("state", state);
  }

  #nextRef() { return `r${++this.#refs}`; }

  // Makes a link the one that counts.
  #attach(link) {
    this.#link = link;
    this.welcome = link.welcome;
    this.#session = link.welcome.session || this.#session;
    if (link.movedFrom) this.#report(link);
    this.#rooms.attach(link);
    this.#outbox.attach(link);
    this.#tokens.attach(link);
    if (link.asked) this.#move.plan(link.asked);
  }

  // How long a move took is told for the sake of those who move next.
  #report(link) {
    const ref = this.#nextRef();
    link.unheard.add(ref); // an older service does not know the word
    link.send({ type: "moved", ref, from: link.movedFrom, handshake_ms: Math.round(link.took) });
    link.movedFrom = null;
  }

  // What rooms ask of the client.
  #keeper = {
    links: () => [this.#link, this.#move.next].filter((link) => link?.welcome), // two during a move
    isSecond: (link) => link === this.#move.next,
    noted: (progress) => this.#move.check(progress),
    nextRef: () => this.#nextRef(),
    emit: (event, value) => this._emit(event, value),
  };

  // What a move asks of it.
  #mover = {
    create: () => this.#create(),
    start: (link) => this.#start(link),
    welcomed: (link) => {
      link.movedFrom = this.welcome.node;
      if (link.movedFrom) this.#report(link);
      this.#rooms.echoes.expect();
      for (const room of this.#rooms) this.#rooms.enter(link, room);
    },
    seated: (link) => this.#rooms.seated(link),
    promote: () => this.#promote(),
  };

  // The second link takes the place of the first, and nobody sees but who listens for it.
  #promote() {
    const first = this.#link;
    const from = this.welcome;
    const [link, reason] = this.#move.take();
    this.#rooms.echoes.fade();
    this.#attach(link);
    first.cut(1000, "moved", 1000);
    this.state = { name: "live", welcome: link.welcome };
    this._emit("moved", { from, to: link.welcome, reason, took: this.#clock.now() - link.liveSince + link.took });
  }

  #receive(link, frame) {
    if (link !== this.#link && link !== this.#move.next) return;
    this._emit("frame", frame, link.number);
    if (link !== this.#link && link !== this.#move.next) return; // a listener has closed it
    // Types that a newer server may send are no concern of this version.
    if (Object.hasOwn(this.#handlers, frame.type)) this.#handlers[frame.type](frame, link);
  }

  #handlers = {
    welcome: (frame, link) => {
      if (link !== this.#link) return this.#move.welcomed(link);
      this.#attach(link);
      this.#become({ name: "live", welcome: frame });
    },
    joined: (frame, link) => this.#rooms.joined(frame, link),
    message: (frame, link) => {
      if (this.#isOwn(frame, link)) this.#ack(this.#outbox.waiting(`${frame.room} ${frame.id}`), frame);
      this.#rooms.message(frame, link);
    },
    gap: (frame, link) => this.#rooms.gap(frame, link),
    signal: (frame, link) => this.#rooms.signal(frame, link),
    presence: (frame, link) => {
      const request = this.#outbox.byRef(frame.ref);
      if (request) this.#outbox.resolve(request, frame);
      else this.#rooms.presence(frame, link);
    },
    ack: (frame) => this.#ack(this.#outbox.byRef(frame.ref), frame),
    history: (frame) => this.#outbox.resolve(this.#outbox.byRef(frame.ref), frame),
    move: (frame, link) => {
      const order = this.#move.order(frame);
      if (link === this.#link) this.#move.plan(order);
      else link.asked = order; // heeded once it counts
    },
    authenticated: (frame, link) => { if (link === this.#link) this.#tokens.answered(frame); },
    error: (frame, link) => this.#refused(frame, link),
  };

  #ack(request, { seq, epoch, id, duplicate = false }) {
    this.#outbox.resolve(request, { seq, epoch, id, duplicate });
  }

  // Others may use the same id, and so may an earlier publish of one's own: only with the same data is it this one.
  #isOwn({ room, id, from, data }, link) {
    const own = this.#outbox.waiting(`${room} ${id}`);
    return own?.attempts > 0 && from === (link.welcome.user ?? null) && JSON.stringify(data) === own.body;
  }

  #refused(frame, link) {
    const { code, message, ref, room: name, retry_after_ms: retryAfter } = frame;
    if (link.unheard.delete(ref)) return;
    const passes = code === "unavailable" || code === "rate_limited";
    const delay = Math.min(retryAfter || 1_000, RETRY_CAP) * (1 + this.#random() / 2);
    const error = new SwitchyardError(code, message, { ref, room: name, retryAfter });
    if (this.#tokens.refused(ref, error)) return;
    const room = this.#rooms.joining(ref, link);
    if (this.#outbox.byRef(ref)) {
      if (passes) this.#outbox.retry(ref, delay, code === "rate_limited");
      else this.#outbox.reject(ref, error);
    } else if (room && (passes || code === "internal")) {
      this.#clock.setTimeout(() => this.#rooms.again(ref, link, room), delay);
    } else {
      if (room) this.#rooms.drop(room, error);
      this._emit("error", error);
    }
  }
}
