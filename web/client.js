// Switchyard's client for browsers: nothing to install, nothing to build, no dependencies.
//
//   import { Switchyard } from "/client.js";
//   const client = Switchyard.connect("wss://host/ws");
//   const room = client.join("lobby", { after: 0 });
//   room.on("message", (m) => console.log(m.seq, m.data));
//   const { seq } = await room.publish({ text: "hello" });
//
// It comes back by itself when the socket dies, resumes each room after the last seq it saw, shows no
// message twice, and keeps what you publish until the server says that it is stored. client.d.ts has
// the types and the meaning of each call.

import { Link } from "./link.js";
import { Outbox, SwitchyardError } from "./outbox.js";

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

class Emitter {
  #listeners = new Map();

  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(listener);
    return () => this.#listeners.get(event).delete(listener);
  }

  // A listener that throws must not stop the others, nor leave the client half way.
  _emit(event, value) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(value);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}

// A Room is what join returns. Fields that begin with _ belong to the client.
class Room extends Emitter {
  _ref = null; _position;
  _live = false; // the join was answered on this link; what comes before belongs to an earlier one
  _hole = null; // the position after which a message was missing, and was asked for again
  #client;

  constructor(client, name, position) {
    super();
    this.#client = client;
    this.name = name;
    this._position = position;
    this.joined = new Promise((resolve, reject) => { this._resolve = resolve; this._reject = reject; });
    this.joined.catch(() => {}); // told by "error" as well: not everybody awaits it
  }

  get position() { return this._position && { ...this._position }; }

  publish(data, options) { return this.#client.publish(this.name, data, options); }

  signal(data) { return this.#client.signal(this.name, data); }

  history(range) { return this.#client.history(this.name, range); }

  leave() { this.#client.leave(this.name); }
}

/** A connection that lasts longer than its sockets. Made by Switchyard.connect. */
export class Switchyard extends Emitter {
  state = { name: "connecting" };
  welcome = null;
  #url; #options; #clock; #random; #outbox;
  #link = null; #rooms = new Map(); #timer = null; #refs = 0; #abandoned = new Set(); #failures = 0; #slowAt = -Infinity;

  static connect(url = "/ws", options = {}) { return new Switchyard(url, options); }

  constructor(url, options) {
    super();
    this.#url = new URL(url, globalThis.location?.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.#options = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options };
    this.#clock = options.clock ?? systemClock;
    this.#random = options.random ?? Math.random;
    this.#outbox = new Outbox(this.#options, this.#clock);
    this.#open();
  }

  join(name, { after, epoch } = {}) {
    const already = this.#rooms.get(name);
    if (already) return already;
    const room = new Room(this, name, after === undefined ? null : { seq: after, epoch });
    this.#rooms.set(name, room);
    this.#sendJoin(room);
    return room;
  }

  leave(name) {
    const room = this.#rooms.get(name);
    if (!room) return;
    this.#rooms.delete(name);
    room._reject(new SwitchyardError("left", `${name} was left before it was joined`));
    if (!room._live) this.#abandoned.add(room._ref);
    this.#send({ type: "leave", ref: this.#nextRef(), room: name });
  }

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
    const roomLeft = (this.#link?.backlog ?? 0) < this.#options.maxPendingBytes;
    return roomLeft && this.#send({ type: "signal", ref: this.#nextRef(), room, data });
  }

  async history(room, { before, after, limit } = {}) {
    const ref = this.#nextRef();
    const text = JSON.stringify({ type: "history", ref, room, before, after, limit });
    return this.#outbox.add({ ref, key: ref, text, lane: `history ${room}` });
  }

  /** Tries again at once instead of waiting, and also after the end. */
  reconnect() {
    if (this.state.name === "waiting" || this.state.name === "closed") this.#open();
  }

  close() {
    if (this.state.name === "closed") return;
    this.#clock.clearTimeout(this.#timer);
    const link = this.#link;
    this.#link = null;
    link?.cut(1000, "closed by the page", 1000);
    this.#stop(1000, "closed by the page");
  }

  async #open() {
    this.#clock.clearTimeout(this.#timer);
    const mine = this.#become({ name: "connecting" });
    try {
      const { getToken, WebSocket } = this.#options;
      const protocols = [SUBPROTOCOL];
      if (getToken) protocols.push(`bearer.${await getToken()}`);
      if (this.state !== mine) return; // closed while the token was fetched
      const socket = new WebSocket(this.#url.href, protocols);
      this.#link = new Link(socket, this.#clock, (l, f) => this.#receive(l, f), (l, c, r) => this.#ended(l, c, r));
    } catch (error) {
      if (this.state !== mine) return;
      this._emit("error", new SwitchyardError("connect_failed", error.message, { cause: error }));
      this.#wait(1006, error.message);
    }
  }

  // An older link that still speaks is not heard: only #link counts.
  #ended(link, code, reason) {
    if (link !== this.#link) return;
    this.#link = null;
    this.#outbox.detach();
    const now = this.#clock.now();
    if (link.welcome && now - link.liveSince >= LIVE_ENOUGH) this.#failures = 0;
    const verdict = afterClose(code);
    if (verdict === "stay" || (verdict === "token" && !this.#options.getToken)) return this.#stop(code, reason);
    if (verdict === "shed") this.#outbox.shed();
    const again = code === 4208 && now - this.#slowAt < SLOW_WITHIN;
    if (code === 4208) this.#slowAt = now;
    if (verdict === "soon" && !again) this.#wait(code, reason, this.#random() * SOON);
    else this.#wait(code, reason);
  }

  // Full jitter: anywhere below a bound that doubles, so that a crowd spreads out.
  #wait(code, reason, ms) {
    const { base, cap } = this.#options.backoff;
    ms ??= this.#random() * Math.min(cap, base * 2 ** this.#failures++);
    this.#timer = this.#clock.setTimeout(() => this.#open(), ms);
    this.#become({ name: "waiting", in: ms, code, reason });
  }

  #stop(code, reason) {
    this.#outbox.rejectAll("closed", `the connection ended for good: ${code} ${reason}`);
    for (const room of this.#rooms.values()) room._reject(new SwitchyardError("closed", reason));
    this.#become({ name: "closed", code, reason });
  }

  #become(state) {
    this.state = state;
    this._emit("state", state);
    return state;
  }

  #nextRef() { return `r${++this.#refs}`; }

  #send(frame) {
    if (!this.#link?.welcome) return false;
    this.#link.send(JSON.stringify(frame));
    return true;
  }

  #sendJoin(room) {
    const position = room._position;
    room._ref = this.#nextRef();
    room._live = false;
    this.#send({ type: "join", ref: room._ref, room: room.name, after: position?.seq, epoch: position?.epoch });
  }

  #receive(link, frame) {
    if (link !== this.#link) return;
    this._emit("frame", frame);
    // Types that a newer server may send are no concern of this version.
    if (Object.hasOwn(this.#handlers, frame.type)) this.#handlers[frame.type](frame);
  }

  #handlers = {
    welcome: (frame) => {
      this.welcome = frame;
      this.#abandoned.clear();
      for (const room of this.#rooms.values()) this.#sendJoin(room);
      this.#outbox.attach(this.#link);
      this.#become({ name: "live", welcome: frame });
    },
    joined: (frame) => {
      const room = this.#rooms.get(frame.room);
      if (room?._ref !== frame.ref) return; // of a join that was left or repeated since
      room._live = true;
      room._position ??= { seq: frame.seq };
      room._position.epoch ??= frame.epoch;
      room._resolve(frame);
      this.#tell(room, "joined", frame);
    },
    message: (frame) => {
      if (this.#isOwn(frame)) this.#ack(this.#outbox.waiting(`${frame.room} ${frame.id}`), frame);
      const room = this.#rooms.get(frame.room);
      if (!room?._live) return;
      if (frame.epoch !== room._position.epoch) this.#begin(room, frame);
      const { seq } = room._position;
      if (frame.seq <= seq) return;
      if (frame.seq > seq + 1) return this.#heal(room);
      room._position = { seq: frame.seq, epoch: frame.epoch };
      this.#tell(room, "message", frame);
    },
    gap: (frame) => {
      const room = this.#rooms.get(frame.room);
      if (!room?._live) return;
      const { seq, epoch } = room._position;
      if (frame.epoch === epoch && frame.reason !== "epoch" && frame.to <= seq) return;
      room._position = { seq: frame.to, epoch: frame.epoch };
      this.#tell(room, "gap", frame);
    },
    signal: (frame) => {
      const room = this.#rooms.get(frame.room);
      if (room) this.#tell(room, "signal", frame);
    },
    ack: (frame) => this.#ack(this.#outbox.byRef(frame.ref), frame),
    history: (frame) => this.#outbox.resolve(this.#outbox.byRef(frame.ref), frame),
    error: (frame) => this.#refused(frame),
  };

  #ack(request, { seq, epoch, id, duplicate = false }) {
    this.#outbox.resolve(request, { seq, epoch, id, duplicate });
  }

  // Others may use the same id, and so may an earlier publish of one's own: only with the same data is it this one.
  #isOwn({ room, id, from, data }) {
    const own = this.#outbox.waiting(`${room} ${id}`);
    return own?.attempts > 0 && from === (this.welcome.user ?? null) && JSON.stringify(data) === own.body;
  }

  // A new life of the log, and this message is the first that is heard of it.
  #begin(room, { epoch, seq }) {
    room._position = { seq: seq - 1, epoch };
    if (seq > 1) this.#tell(room, "gap", { type: "gap", room: room.name, epoch, from: 1, to: seq - 1, reason: "epoch" });
  }

  // The server promises no holes. Should one come all the same, ask again from the last good place;
  // should it come twice, this connection is not to be trusted.
  #heal(room) {
    const again = room._hole?.seq === room._position.seq && room._hole.epoch === room._position.epoch;
    room._hole = again ? null : room._position;
    this._emit("error", new SwitchyardError("hole", `${room.name} goes on past ${room._position.seq + 1}; asking again`));
    if (again) this.#link.cut(1006, "the server skipped a message twice");
    else this.#sendJoin(room);
  }

  #refused(frame) {
    const { code, message, ref, room: name, retry_after_ms: retryAfter } = frame;
    if (this.#abandoned.delete(ref)) return; // of a join that was left: nobody waits for it
    const passes = code === "unavailable" || code === "rate_limited";
    const delay = Math.min(retryAfter || 1_000, RETRY_CAP) * (1 + this.#random() / 2);
    const error = new SwitchyardError(code, message, { ref, room: name, retryAfter });
    const room = [...this.#rooms.values()].find((r) => ref && r._ref === ref);
    if (this.#outbox.byRef(ref)) {
      if (passes) this.#outbox.retry(ref, delay, code === "rate_limited");
      else this.#outbox.reject(ref, error);
    } else if (room && (passes || code === "internal")) {
      this.#clock.setTimeout(() => { if (this.#rooms.get(room.name) === room && room._ref === ref) this.#sendJoin(room); }, delay);
    } else {
      if (room) this.#rooms.delete(room.name);
      room?._reject(error);
      this._emit("error", error);
    }
  }

  #tell(room, event, frame) {
    room._emit(event, frame);
    this._emit(event, frame);
  }
}
