// Switchyard's client for browsers: nothing to install, nothing to build, no dependencies.
//
//   import { Switchyard } from "/client.js";
//   const client = Switchyard.connect("wss://host/ws");
//   const room = client.join("lobby", { after: 0 });
//   room.on("message", (m) => console.log(m.seq, m.data));
//   const { seq } = await room.publish({ text: "hello" });
//
// It reconnects by itself when the socket ends, resumes each room after the last seq it saw, delivers no
// message twice, and keeps each publish until the service has stored it. When the service asks it to move, it
// opens the next socket before it closes the current one. client.d.ts has the types and documents each call.

import { Connection, afterClose, unansweredMessage } from "./link.js";
import { Move, SignalDedup } from "./move.js";
import { checkedOptions, checkedStart, checkedURL, encoded, newID, newSocket, optional, required, textOf, tokenEntry } from "./options.js";
import { Outbox, SwitchyardError } from "./outbox.js";
import { encodedLength } from "./pace.js";
import { Reachability } from "./reach.js";
import { Emitter } from "./room.js";
import { Rooms } from "./rooms.js";
import { Tokens } from "./tokens.js";
import { Call, reportUncaught } from "./unhandled.js";
import { KeptSession, watchPage } from "./wake.js";

export { SwitchyardError, afterClose };

const SUBPROTOCOL = "switchyard.v1";
const STABLE_AFTER = 10_000; // ms live after which the count of failures is reset
const SLOW_WITHIN = 10_000; // ms between two closes with 4208 for which the second one backs off
const RECONNECT_WITHIN = 1_000; // ms within which the client reconnects after a restart of the server
const AFTER_SILENCE = { after_ms: 0, deadline_ms: Infinity, avoid: {}, reason: "silence" }; // a move that the client itself decides on
const ASK_AFTER = 2; // failures, after which the client asks whether the service is there before it opens a socket
const ASK_WITHIN = 3_000; // ms within which it asks again
const MAX_RETRY_AFTER = 60_000; // ms; a longer retry_after is cut to this

/** A client, which outlives its sockets. Switchyard.connect makes one. */
export class Switchyard extends Emitter {
  state = { name: "connecting" };
  welcome = null;
  #url; #options; #clock; #random; #rooms; #outbox; #tokens; #move; #reachability; #kept; #session;
  #current = null; // the current connection; #move has the next one
  #timer = null; #connectionCount = 0; #pacer = null; #refs = 0; #failures = 0; #slowAt = -Infinity; #unanswered = 0; #stopWatching = null;

  static connect(url, options) { return new Switchyard(url, options); }

  constructor(url, options) {
    super();
    this.#url = checkedURL(url);
    this.#options = checkedOptions(options);
    this.#clock = this.#options.clock;
    this.#random = this.#options.random;
    const { session, keepSession, fetch } = this.#options;
    this.#kept = new KeptSession(keepSession);
    this.#session = session ?? this.#kept.take();
    this.#reachability = new Reachability(this.#url, fetch, this.#clock);
    this.#rooms = new Rooms(this, this.#roomsHost, new SignalDedup(this.#clock));
    this.#outbox = new Outbox(this.#options, this.#clock);
    this.#tokens = new Tokens(this.#options.getToken, this.#clock, this.#random, () => this.#nextRef(), (e) => this._emit("error", e), () => this.#connectionCount);
    this.#move = new Move(this.#moveHost, this.#clock, (n) => this.#backoffDelay(n));
    this.#open();
  }

  join(name, start) { return this.#rooms.join(required("room", "string", name), checkedStart(start)); }

  leave(name) { this.#rooms.leave(required("room", "string", name)); }

  publish(room, data, options) { return this.#call(async () => this.#publish(required("room", "string", room), data, options)); }

  #publish(room, data, options) {
    const id = optional("id", "string", optional("options", "object", options)?.id) ?? newID();
    const ref = this.#nextRef();
    const body = encoded(data);
    const key = `${room} ${id}`;
    const pending = this.#outbox.pending(key);
    if (pending?.body === body) return pending.promise;
    if (pending) throw new SwitchyardError("conflict", "a publish with this id and other data is pending");
    const head = JSON.stringify({ type: "publish", ref, room, id });
    return this.#outbox.add({ ref, key, kind: "publish", head, body, queue: `publish ${room}` });
  }

  signal(room, data) {
    required("room", "string", room);
    encoded(data);
    const connection = this.#current;
    if (!connection?.welcome || connection.isSilent || connection.backlog >= this.#options.maxPendingBytes) return false;
    const frame = { type: "signal", ref: this.#nextRef(), room, data };
    if (!connection.pacer.maySpend("publish", encodedLength(JSON.stringify(frame)))) return false;
    connection.send(frame, "publish");
    return true;
  }

  history(room, range) {
    return this.#call(async () => {
      required("room", "string", room);
      const fields = optional("range", "object", range) ?? {};
      const [before, after, limit] = ["before", "after", "limit"].map((field) => optional(field, "seq", fields[field]));
      return this.#request({ type: "history", room, before, after, limit });
    });
  }

  presence(room) {
    return this.#call(async () => {
      this.#rooms.watchPresence(required("room", "string", room));
      return this.#request({ type: "presence", room });
    });
  }

  /** Sends a fresh token now, as the client does by itself before the old one expires. */
  refreshToken() { return this.#call(() => this.#tokens.refresh()); }

  reconnect() {
    if (this.state.name === "waiting" || this.state.name === "closed") this.#open();
    else this.#probe();
  }

  close() {
    if (this.state.name === "closed") return;
    this.#clock.clearTimeout(this.#timer);
    const connection = this.#current;
    this.#current = null;
    this.#move.cancel(1000);
    connection?.abort(1000, "closed by the page", 1000);
    this.#finish(1000, "closed by the page");
  }

  // The error of a call that nobody awaits is an event.
  #call(run) { return Call.of(run(), (error) => { if (!this._emit("error", error)) reportUncaught(error); }); }

  _listenerFailed(event, cause) {
    reportUncaught(cause);
    if (event !== "error") this._emit("error", new SwitchyardError("listener_failed", `a listener of ${event}: ${textOf(cause)}`, { cause }));
  }

  // A read changes nothing, so it is repeated on the next connection.
  #request({ type, room, ...more }) {
    const ref = this.#nextRef();
    const text = JSON.stringify({ type, ref, room, ...more });
    return this.#outbox.add({ ref, key: ref, kind: "history", text, queue: `${type} ${room}`, onSent: (connection) => {
      if (type === "presence") this.#rooms.presenceRequested(room, connection);
    } });
  }

  #probe() {
    const connection = this.#current;
    if (!connection.welcome || this.#move.reason !== undefined) return;
    connection.probe(this.#nextRef(), () => this.#move.start(this.#move.parseRequest(AFTER_SILENCE)));
  }

  #open() {
    this.#clock.clearTimeout(this.#timer);
    this.#stopWatching ??= watchPage(this.#pageEvents);
    const connection = this.#newConnection();
    this.#current = connection;
    this.#setState({ name: "connecting" });
    if (this.#current === connection) this.#openSocket(connection); // no listener has closed it
  }

  #newConnection() {
    const onFrame = (connection, frame) => this.#handleFrame(connection, frame);
    const onEnd = (connection, code, reason, error) => this.#ended(connection, code, reason, error);
    return new Connection(++this.#connectionCount, this.#clock, this.#reachability, onFrame, onEnd);
  }

  #openSocket(connection) {
    const { getToken, WebSocket } = this.#options;
    connection.open(getToken, (token) => {
      const protocols = [SUBPROTOCOL];
      if (token) protocols.push(tokenEntry(token));
      if (this.#session) protocols.push(`session.${this.#session}`);
      return newSocket(WebSocket, this.#url.href, protocols);
    }, this.#failures >= ASK_AFTER);
  }

  // Events of a connection that was replaced are ignored.
  #ended(connection, code, reason, error) {
    const isNext = connection === this.#move.next;
    if (!isNext && connection !== this.#current) return;
    if (error) this._emit("error", new SwitchyardError("connect_failed", reason, { cause: error }));
    else if (!connection.welcome) this.#reportRefusal(connection, code, reason);
    if (isNext) {
      this.#rooms.signalDedup.expireSoon();
      if (connection !== this.#move.next) return; // a listener has closed it
      if (connection.welcome || !this.#current.isSilent) return this.#move.nextEnded();
      this.#move.cancel();
      return this.#current.abort(1006, "no answer to a ping, and no second connection");
    }
    if (connection !== this.#current) return; // a listener has closed it
    const action = afterClose(code);
    if (action === "shed") this.#outbox.rejectLargest();
    if (this.#move.next?.welcome) return this.#promoteNext();
    this.#outbox.detach();
    this.#tokens.attach(null);
    if (this.#move.next) return this.#continueWithNext();
    this.#move.cancel();
    this.#current = null;
    const now = this.#clock.now();
    if (connection.welcome && now - connection.welcomedAt >= STABLE_AFTER) this.#failures = 0;
    // 4009: a later connection of this client has replaced this one, or a copy of the page has taken the session.
    const isCopied = code === 4009 && connection.number === this.#connectionCount && Boolean(this.#options.keepSession);
    if (isCopied) this.#session = undefined;
    const soon = action === "soon" || isCopied || (code === 4009 && connection.number < this.#connectionCount);
    if (!soon && (action === "stay" || (action === "token" && !this.#options.getToken))) return this.#finish(code, reason);
    const repeated = code === 4208 && now - this.#slowAt < SLOW_WITHIN;
    if (code === 4208) this.#slowAt = now;
    this.#scheduleReconnect(code, reason, this.#reconnectDelay(connection, soon && !repeated));
  }

  #reconnectDelay({ isUnanswered }, soon) {
    if (isUnanswered) return this.#random() * Math.min(this.#options.backoff.cap, ASK_WITHIN);
    return soon ? this.#random() * RECONNECT_WITHIN : this.#backoffDelay(this.#failures++);
  }

  // Reports what a page cannot see: why no welcome came.
  #reportRefusal({ withoutToken }, code, reason) {
    if (code === 4001 && this.#options.getToken) {
      const message = withoutToken ? "the service requires a token, and getToken has returned none" : `the service refuses the token of getToken (${reason})`;
      this._emit("error", new SwitchyardError("unauthorized", message));
    } else if (code === 1006 && !this.welcome && ++this.#unanswered === 2) {
      this._emit("error", new SwitchyardError("connect_failed", unansweredMessage(this.#url)));
    }
  }

  // The current connection has ended while the next one is being opened, which is now the only one.
  #continueWithNext() {
    [this.#current] = this.#move.takeNext();
    this.#current.movedFrom = this.welcome.node;
    this.#setState({ name: "connecting" });
  }

  // Full jitter: a random delay below a bound that doubles, so that many clients spread out.
  #backoffDelay(failures) {
    const { base, cap } = this.#options.backoff;
    return this.#random() * Math.min(cap, base * 2 ** failures);
  }

  #scheduleReconnect(code, reason, ms) {
    this.#timer = this.#clock.setTimeout(() => this.#open(), ms);
    this.#setState({ name: "waiting", in: ms, code, reason });
  }

  #finish(code, reason) {
    this.#stopWatching();
    this.#stopWatching = null;
    this.#tokens.rejectAll("closed", `the client has ended: ${code} ${reason}`);
    this.#outbox.detach();
    this.#outbox.rejectAll("closed", `the client has ended: ${code} ${reason}`);
    this.#outbox.forgetUser();
    this.#rooms.rejectAll(new SwitchyardError("closed", reason));
    this.#setState({ name: "closed", code, reason });
  }

  #setState(state) {
    this.state = state;
    this._emit("state", state);
  }

  #nextRef() { return `r${++this.#refs}`; }

  _listenerAdded(event) { if (event === "message") this.#rooms.deliverHeld(); }

  // Makes a connection the current one.
  #makeCurrent(connection) {
    this.#current = connection;
    this.welcome = connection.welcome;
    this.#reachability.welcomed();
    this.#session = connection.welcome.session || this.#session;
    if (connection.movedFrom) this.#sendMoved(connection);
    if (this.#pacer) connection.pacer.adopt(this.#pacer);
    this.#pacer = connection.pacer;
    this.#outbox.detach();
    this.#rooms.joinAllOn(connection);
    if (this.#outbox.attach(connection)) this.#reportUser(connection.welcome.user);
    this.#tokens.attach(connection);
    if (connection.pendingMove) this.#move.start(connection.pendingMove);
  }

  // A client is for one user. The listeners are called once the connection is in use: one of them may close the client.
  async #reportUser(user) {
    await null;
    this._emit("error", new SwitchyardError("user_changed", `the token is another user's: the connection is ${user ?? "anonymous"} now`));
  }

  // Reports the time of the handshake, by which the service paces the rest of the drain.
  #sendMoved(connection) {
    const ref = this.#nextRef();
    connection.ignoredRefs.add(ref); // an older server answers that it does not know the type
    connection.send({ type: "moved", ref, from: connection.movedFrom, handshake_ms: Math.round(connection.handshakeMs) });
    connection.movedFrom = null;
  }

  #pageEvents = {
    onWake: () => this.reconnect(),
    onOffline: () => { if (this.state.name === "live") this.#probe(); },
    onGone: () => this.#kept.keep(this.#session),
    onBack: () => this.#kept.take(),
  };

  // The methods of the client that Rooms calls.
  #roomsHost = {
    connections: () => [this.#current, this.#move.next].filter((connection) => connection?.welcome), // two during a move
    isNext: (connection) => connection === this.#move.next,
    membershipChanged: (progress) => this.#move.checkJoined(progress),
    nextRef: () => this.#nextRef(),
    requestPresence: (request) => this.#outbox.addOwn(request),
    awaitsPresence: (name) => this.#outbox.awaitsTurn("history", `presence ${name}`),
    emit: (event, value) => this._emit(event, value),
    hadListener: (event) => this._hadListener(event),
  };

  // The methods of the client that Move calls.
  #moveHost = {
    create: () => this.#newConnection(),
    start: (connection) => this.#openSocket(connection),
    joinRooms: (connection) => {
      if (!this.#current.isSilent) connection.movedFrom = this.welcome.node; // otherwise the service has not asked for it
      if (connection.movedFrom) this.#sendMoved(connection);
      this.#rooms.signalDedup.start();
      for (const room of this.#rooms) this.#rooms.joinOn(connection, room);
    },
    allJoined: (connection) => this.#rooms.allJoined(connection),
    promoteNext: () => this.#promoteNext(),
  };

  // Makes the next connection the current one. The state stays live, and only "moved" reports it.
  #promoteNext() {
    const first = this.#current;
    const from = this.welcome;
    const [connection, reason] = this.#move.takeNext();
    this.#rooms.signalDedup.expireSoon();
    this.#makeCurrent(connection);
    first.abort(1000, "moved", 1000);
    this.state = { name: "live", welcome: connection.welcome };
    this._emit("moved", { from, to: connection.welcome, reason, took: this.#clock.now() - connection.welcomedAt + connection.handshakeMs });
  }

  #handleFrame(connection, frame) {
    if (connection !== this.#current && connection !== this.#move.next) return;
    this._emit("frame", frame, connection.number);
    if (connection !== this.#current && connection !== this.#move.next) return; // a listener has closed it
    if (connection.isAnswer(frame)) return this.#answered(connection);
    // Types that only a newer server sends are ignored.
    const isRefusal = frame.type === "error" && frame.code === "rate_limited";
    if (frame.ref && !isRefusal) connection.answered(frame.ref);
    if (Object.hasOwn(this.#handlers, frame.type)) this.#handlers[frame.type](frame, connection);
    if (!frame.ref) return;
    connection.joins.pump(); // the answer may have made room for more
    this.#outbox.pump();
  }

  // The current connection is not silent any more: a second one is not needed, unless it is welcomed already.
  #answered(connection) {
    if (connection === this.#current && this.#move.reason === AFTER_SILENCE.reason && !this.#move.next?.welcome) this.#move.cancel();
  }

  #handlers = {
    welcome: (frame, connection) => {
      if (connection !== this.#current) return this.#move.nextWelcomed(connection);
      this.#makeCurrent(connection);
      this.#setState({ name: "live", welcome: frame });
    },
    joined: (frame, connection) => this.#rooms.joined(frame, connection),
    left: (frame, connection) => this.#rooms.left(frame, connection),
    message: (frame, connection) => {
      if (this.#isOwn(frame)) this.#completePublish(this.#outbox.pending(`${frame.room} ${frame.id}`), frame);
      this.#rooms.message(frame, connection);
    },
    gap: (frame, connection) => this.#rooms.gap(frame, connection),
    signal: (frame, connection) => this.#rooms.signal(frame, connection),
    presence: (frame, connection) => {
      const request = this.#outbox.byRef(frame.ref);
      if (request) this.#outbox.resolve(request, frame);
      else this.#rooms.presence(frame, connection);
    },
    ack: (frame) => this.#completePublish(this.#outbox.byRef(frame.ref), frame),
    history: (frame) => this.#outbox.resolve(this.#outbox.byRef(frame.ref), frame),
    move: (frame, connection) => {
      const request = this.#move.parseRequest(frame);
      if (connection === this.#current) this.#move.start(request);
      else connection.pendingMove = request; // started once this is the current connection
    },
    authenticated: (frame, connection) => {
      this.#tokens.authenticated(frame, connection);
      this.#rooms.authenticated(connection);
    },
    error: (frame, connection) => this.#handleError(frame, connection),
  };

  #completePublish(request, { seq, epoch, id, duplicate = false }) {
    this.#outbox.resolve(request, { seq, epoch, id, duplicate });
  }

  // Another user or an earlier publish may have used the same id: the user and the data must be the same, too.
  #isOwn({ room, id, from, data }) {
    const own = this.#outbox.pending(`${room} ${id}`);
    return own?.uncertainAttempts > 0 && from === own.user && JSON.stringify(data) === own.body;
  }

  #handleError(frame, connection) {
    const { code, message, ref, room: name, retry_after_ms: retryAfter } = frame;
    const spread = 1 + this.#random() / 2;
    const delay = Math.min(retryAfter || 1_000, MAX_RETRY_AFTER) * spread;
    if (code === "rate_limited") {
      connection.pacer?.refused(ref, delay, spread);
      if (connection.joins.retry(ref)) return;
    }
    if (connection.ignoredRefs.delete(ref)) return;
    const error = new SwitchyardError(code, message, { ref, room: name, retryAfter });
    if (this.#tokens.handleError(ref, error)) return;
    const room = this.#rooms.roomOfJoin(ref, connection);
    if (this.#outbox.byRef(ref)) {
      if (code === "rate_limited") this.#outbox.retryInTurn(ref);
      else if (code === "unavailable") this.#outbox.retryAfter(ref, delay);
      else this.#outbox.reject(ref, error);
    } else if (room && (code === "unavailable" || code === "internal")) {
      connection.joins.after(delay, () => this.#rooms.retryJoin(ref, connection, room));
    } else if (!room || this.#rooms.refuse(room, error)) {
      this._emit("error", error);
    }
  }
}
