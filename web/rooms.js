// The part of client.js that knows the position of each room, on one connection or on the two of a move. Applications import client.js.

import { SwitchyardError } from "./outbox.js";
import { Room, RoomState } from "./room.js";

// Rooms holds the rooms that the client has joined or will join. A position belongs to a reader, and advances with the
// connection that delivers a message first: a room is joined from the position of the reader that lags most, and the
// others drop what they have. The state of a room on one connection is its membership. host is
// the client: connections() are the welcomed ones, isNext(connection) recognizes the next connection of a
// move, membershipChanged(progress) is called when a membership of the next connection has changed,
// requestPresence(request) sends a request in its turn, awaitsPresence(name) says that one waits for it, and emit, hadListener and nextRef are the client's own.
export class Rooms {
  signalDedup; // of the last move
  #all = new Map(); #client; #host;

  constructor(client, host, signalDedup) {
    this.signalDedup = signalDedup;
    this.#client = client;
    this.#host = host;
  }

  [Symbol.iterator]() { return this.#all.values(); }

  /** Adds a reader. The room is joined again if it is joined already: the answer has its bounds for the new reader. */
  join(name, start) {
    const reader = new Room(this.#client, this, name, start);
    if (!this.#all.has(name)) this.#all.set(name, new RoomState(name));
    const room = this.#all.get(name);
    room.readers.add(reader);
    this.#joinFor(room);
    return reader;
  }

  /** Readers have their first listener of messages: what came before it is requested again. */
  deliverHeld(readers = [...this].flatMap((room) => [...room.readers])) {
    const rooms = new Set();
    for (const reader of readers.filter(({ _heldFrom }) => _heldFrom)) {
      Object.assign(reader, { _position: reader._heldFrom, _heldFrom: null });
      const room = this.#all.get(reader.name);
      if (room?.readers.has(reader)) rooms.add(room);
    }
    for (const room of rooms) this.#joinFor(room);
  }

  /** All readers leave. */
  leave(name) { for (const reader of this.#all.get(name)?.readers ?? []) this.leaveReader(reader); }

  /** One reader leaves, and the client leaves the room with the last one. */
  leaveReader(reader) {
    const { name } = reader;
    const room = this.#all.get(name);
    if (!room?.readers.delete(reader)) return;
    reader._reject(new SwitchyardError("left", `${name} was left before it was joined`));
    if (room.readers.size > 0) return;
    this.#all.delete(name);
    for (const connection of this.#host.connections()) {
      const membership = connection.memberships.get(name);
      if (!membership) continue;
      connection.memberships.delete(name);
      if (!membership.joined) connection.ignoredRefs.add(membership.ref);
      if (membership.sent) this.#sendLeave(connection, name);
    }
    this.#host.membershipChanged(false);
  }

  /** From now on the readers of a room are notified of the changes of its presence. */
  watchPresence(name) {
    const room = this.#all.get(name);
    if (room) room._watchesPresence = true;
  }

  /** Joins on a connection where the room has no membership yet; on a next one only from a known position. */
  joinOn(connection, room) {
    if (connection.memberships.has(room.name)) return;
    // Two joins from now would start at two positions.
    if (this.#host.isNext(connection) && !room.position) return;
    connection.memberships.set(room.name, {
      ref: null, sent: false, joined: false, epoch: undefined, missingAfter: null, presence: false, from: null, forNewReader: false, removedFor: 0,
    });
    this.#sendJoin(connection, room);
  }

  /** Joins every room on a connection, and requests presence again where the application has requested it. */
  joinAllOn(connection) {
    for (const room of this) this.joinOn(connection, room);
    for (const room of this) if (room._watchesPresence) this.#requestPresence(room);
  }

  /** Presence of a room was requested on a connection. */
  presenceRequested(name, connection) {
    const membership = connection.memberships.get(name);
    if (membership?.sent) membership.presence = true;
  }

  /** Whether every room is joined on a connection, or was refused there. */
  allJoined({ memberships }) { return [...this.#all.keys()].every((name) => memberships.get(name)?.joined || memberships.get(name)?.removedFor > 0); }

  joined(frame, connection) {
    connection.ignoredRefs.delete(frame.ref);
    const [room, membership] = this.#find(frame, connection);
    if (!room || membership.ref !== frame.ref) return; // of a join that was left or repeated since
    Object.assign(room, { epoch: frame.epoch, isRemoved: false });
    for (const reader of room.readers) startReader(reader, frame);
    // A reader may start before this join, and one in another epoch may have been taken for the last.
    if (!covers(membership.from ?? frame, room.position)) return this.#sendJoin(connection, room, membership.forNewReader);
    const connections = this.#host.connections();
    const firstJoin = !connections.some((other) => other !== connection && other.memberships.get(room.name)?.joined);
    Object.assign(membership, { joined: true, epoch: room.position.epoch });
    for (const other of connections) this.joinOn(other, room); // now that its position is known
    const { forNewReader } = membership;
    const added = [...room.readers].filter(({ _isJoined }) => !_isJoined);
    const notified = firstJoin && !forNewReader ? [...room.readers] : added;
    for (const reader of notified) reader._isJoined = true;
    for (const reader of notified) reader._resolve(frame);
    if (notified.length > 0) this.#emit(room, "joined", frame, notified);
    this.#voidPositions(room, frame, added);
    // The service sends changes to the membership that was there when presence was requested.
    const watched = room._watchesPresence && !this.#host.isNext(connection);
    if (watched && !membership.presence && !this.#host.awaitsPresence(room.name)) this.#requestPresence(room);
    this.#host.membershipChanged(true);
  }

  message(frame, connection) {
    const [room, membership] = this.#find(frame, connection);
    if (!membership?.joined || isStaleEpoch(room, membership, frame)) return;
    membership.epoch = frame.epoch;
    this.#startEpoch(room, frame);
    const readers = [...room.readers].filter(({ _position }) => _position);
    const missing = readers.some(({ _position }) => frame.seq > _position.seq + 1);
    const takers = readers.filter(({ _position }) => frame.seq === _position.seq + 1);
    this.#advance(takers, { seq: frame.seq, epoch: frame.epoch });
    this.#emit(room, "message", frame, takers, this.#isNews(room, takers, frame));
    if (missing && connection.memberships.get(room.name) === membership) this.#requestMissing(connection, room, membership);
  }

  gap(frame, connection) {
    const [room, membership] = this.#find(frame, connection);
    if (!membership?.joined || isStaleEpoch(room, membership, frame)) return;
    // A new epoch was already reported when it came on the other connection.
    const isVoid = frame.reason === "epoch" && membership.epoch === frame.epoch;
    membership.epoch = frame.epoch;
    room.epoch = frame.epoch;
    const end = { seq: frame.to, epoch: frame.epoch };
    const takers = [...room.readers].filter(({ _position: p }) => p && (p.epoch !== frame.epoch || isVoid || frame.to > p.seq));
    this.#advance(takers, end);
    this.#emit(room, "gap", frame, takers, this.#isNews(room, takers, end, frame.reason === "epoch"));
  }

  signal(frame, connection) {
    const room = this.#all.get(frame.room);
    if (room && !this.signalDedup.seenBefore(connection.number, frame)) this.#emit(room, "signal", frame, [...room.readers]);
  }

  /** A change of presence, or the full list; those on the next connection of a move are ignored. */
  presence(frame, connection) {
    const room = this.#all.get(frame.room);
    if (room?._watchesPresence && !this.#host.isNext(connection)) this.#emit(room, "presence", frame, [...room.readers]);
  }

  /** The room whose last join on that connection has the ref. */
  roomOfJoin(ref, connection) { return [...this].find(({ name }) => ref && connection.memberships.get(name)?.ref === ref); }

  /** Repeats the join with that ref, unless there was another since. */
  retryJoin(ref, connection, { name }) {
    if (this.#host.connections().includes(connection) && connection.memberships.get(name)?.ref === ref) {
      this.#sendJoin(connection, this.#all.get(name));
    }
  }

  /** The service has taken a room away, because a new token does not open it; or it answers a leave. */
  left(frame, connection) {
    const [room, membership] = this.#find(frame, connection);
    if (frame.ref || !(membership?.joined || membership?.removedFor)) return; // the answer to a join decides
    const error = new SwitchyardError("forbidden", `the new token does not open ${room.name}`, { room: room.name });
    this.#remove(room, [connection], 2, error); // the answer to that token is still to come
  }

  /** A token was accepted: rooms that the one before did not open are joined again. */
  authenticated(connection) {
    for (const room of this) {
      const membership = connection.memberships.get(room.name);
      if (membership?.removedFor > 0 && --membership.removedFor === 0) this.#sendJoin(connection, room);
    }
  }

  /**
   * The service refuses a join. Readers that were joined before wait for a token that opens the room, if that is the reason;
   * the others end. Returns whether this is news to the application.
   */
  refuse(room, error) {
    const ended = [...room.readers].filter(({ _isJoined }) => !_isJoined || error.code !== "forbidden");
    const isNews = ended.length > 0 || !room.isRemoved;
    const connections = this.#host.connections();
    for (const reader of ended) room.readers.delete(reader);
    if (room.readers.size > 0) {
      this.#remove(room, connections, 1, error);
    } else {
      this.#all.delete(room.name);
      for (const { memberships } of connections) memberships.delete(room.name);
    }
    for (const reader of ended) reader._reject(error);
    this.#host.membershipChanged(false);
    return isNews;
  }

  rejectAll(error) { for (const { readers } of this) for (const reader of readers) reader._reject(error); }

  // Joins a room on all connections for one of its readers, which may start before the others.
  #joinFor(room) {
    for (const connection of this.#host.connections()) {
      const membership = connection.memberships.get(room.name);
      if (membership) this.#sendJoin(connection, room, membership.joined || membership.forNewReader);
      else this.joinOn(connection, room);
    }
  }

  // Moves readers to a position. One without a listener of messages yet, of its own or of the client, will want to have what
  // comes: where that begins is remembered, and not the messages, which may be many.
  #advance(readers, position) {
    for (const reader of readers) {
      if (!reader._hadListener("message") && !this.#host.hadListener("message")) reader._heldFrom ??= reader._position;
      reader._position = { ...position };
    }
  }

  // Whether what readers take is new to the client's own listeners. Without one of messages, the client has come nowhere.
  #isNews(room, takers, position, isVoid) {
    return takers.length > 0 && (!this.#host.hadListener("message") || room.advance(position, isVoid));
  }

  // A room and its membership on this connection; neither if the room was left.
  #find({ room: name }, connection) {
    const membership = connection.memberships.get(name);
    return membership ? [this.#all.get(name), membership] : [];
  }

  // From now on nothing of the room is delivered on these connections, where it is joined again after so many tokens. Its
  // readers keep their positions, and are notified unless another connection delivers.
  #remove(room, connections, tokens, error) {
    for (const { memberships } of connections) {
      const removed = { ref: null, sent: false, joined: false, presence: false, forNewReader: false, removedFor: tokens };
      memberships.set(room.name, { ...memberships.get(room.name), ...removed });
    }
    const isDelivered = this.#host.connections().some(({ memberships }) => memberships.get(room.name)?.joined);
    if (room.isRemoved || isDelivered) return;
    room.isRemoved = true;
    this.#emit(room, "removed", error, [...room.readers]);
  }

  // forNewReader: the others are not notified of the answer.
  #sendJoin(connection, room, forNewReader = false) {
    const ref = this.#host.nextRef();
    Object.assign(connection.memberships.get(room.name), { ref, sent: false, joined: false, presence: false, forNewReader, removedFor: 0 });
    connection.joins.add(ref, () => {
      const membership = connection.memberships.get(room.name);
      if (membership?.ref !== ref) return null; // left, or joined again since
      const from = room.position;
      membership.from = from;
      return { type: "join", ref, room: room.name, after: from?.seq, epoch: from?.epoch };
    }, () => { connection.memberships.get(room.name).sent = true; });
  }

  #sendLeave(connection, name) {
    const ref = this.#host.nextRef();
    connection.joins.add(ref, () => (connection.memberships.has(name) ? null : { type: "leave", ref, room: name }));
  }

  // Presence is requested again by the client itself, and the list delivered as an event.
  #requestPresence(room) {
    const ref = this.#host.nextRef();
    this.#host.requestPresence({
      ref, key: ref, kind: "history", queue: `presence ${room.name}`, text: JSON.stringify({ type: "presence", ref, room: room.name }),
      onSent: (connection) => this.presenceRequested(room.name, connection),
      resolve: (frame) => { if (this.#all.get(room.name) === room) this.#emit(room, "presence", frame, [...room.readers]); },
      reject: (error) => { if (this.#all.get(room.name) === room && !room.isRemoved) this.#host.emit("error", error); },
    });
  }

  // The log is in a new epoch, and this message is the first frame that says so.
  #startEpoch(room, { epoch, seq }) {
    room.epoch = epoch;
    const old = [...room.readers].filter(({ _position }) => _position && _position.epoch !== epoch);
    if (old.length === 0) return;
    this.#advance(old, { seq: seq - 1, epoch });
    if (seq > 1) this.#emit(room, "gap", { type: "gap", room: room.name, epoch, from: 1, to: seq - 1, reason: "epoch" }, old);
  }

  // The service says what is wrong with the position that the room was joined from. This is for the other readers: those
  // in another epoch, and those of the added ones that are above the newest message.
  #voidPositions(room, { epoch, seq }, added) {
    const { position } = room;
    if (position.epoch !== epoch || position.seq > seq) return; // a gap follows, for all of them
    const readers = [...room.readers].filter((reader) => reader._position.epoch !== epoch || (added.includes(reader) && reader._position.seq > seq));
    this.#advance(readers, position);
    const gap = { type: "gap", room: room.name, epoch, from: 1, to: position.seq, reason: "epoch" };
    if (readers.length > 0 && position.seq > 0) this.#emit(room, "gap", gap, readers, false);
  }

  // The service promises not to skip messages. If it does, the client joins again from the last position; if
  // it skips the same message again, the client ends the connection.
  #requestMissing(connection, room, membership) {
    const { missingAfter } = membership;
    const { position } = room;
    const repeated = missingAfter?.seq === position.seq && missingAfter.epoch === position.epoch;
    membership.missingAfter = repeated ? null : position;
    this.#host.emit("error", new SwitchyardError("hole", `the service skipped seq ${position.seq + 1} of ${room.name}; joining again`));
    if (repeated) connection.abort(1006, "the service skipped a message twice");
    else this.#sendJoin(connection, room);
  }

  // Emits to these readers, and to the client's own listeners if it is news to them.
  #emit(room, event, frame, readers, isNews = true) {
    for (const reader of readers) if (room.readers.has(reader)) reader._emit(event, frame);
    if (isNews) this.#host.emit(event, frame);
  }
}

// Gives a reader its position once the bounds of the room are known.
function startReader(reader, { epoch, seq, first }) {
  reader._position ??= { seq: Math.max(Math.min(first - 1, seq), seq - reader._last), epoch };
  reader._position.epoch ??= epoch;
}

// Whether a join from one position delivers what follows the other.
function covers(from, position) {
  return from.seq <= position.seq && (from.epoch === position.epoch || from.epoch === undefined);
}

// Whether this connection is still in an epoch that has ended on the other one.
function isStaleEpoch(room, membership, { epoch }) { return epoch !== room.position.epoch && epoch === membership.epoch; }
