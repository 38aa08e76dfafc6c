// The part of client.js that knows the position of each room, on one connection or on the two of a move. Applications import client.js.

import { SwitchyardError } from "./outbox.js";
import { Room } from "./room.js";

// Rooms holds the rooms that the client has joined or will join. A position belongs to the room, and advances with the
// connection that delivers a message first. The state of a room on one connection is its membership. host is
// the client: connections() are the welcomed ones, isNext(connection) recognizes the next connection of a
// move, membershipChanged(progress) is called when a membership of the next connection has changed,
// requestPresence(request) sends a request in its turn, awaitsPresence(name) says that one waits for it, and emit and nextRef are the client's own.
export class Rooms {
  signalDedup; // of the last move
  #all = new Map(); #client; #host;

  constructor(client, host, signalDedup) {
    this.signalDedup = signalDedup;
    this.#client = client;
    this.#host = host;
  }

  get(name) { return this.#all.get(name); }

  [Symbol.iterator]() { return this.#all.values(); }

  join(name, position) {
    const room = new Room(this.#client, name, position);
    this.#all.set(name, room);
    for (const connection of this.#host.connections()) this.joinOn(connection, room);
    return room;
  }

  leave(name) {
    const room = this.#all.get(name);
    if (!room) return;
    this.#all.delete(name);
    room._reject(new SwitchyardError("left", `${name} was left before it was joined`));
    for (const connection of this.#host.connections()) {
      const membership = connection.memberships.get(name);
      if (!membership) continue;
      connection.memberships.delete(name);
      if (!membership.joined) connection.ignoredRefs.add(membership.ref);
      if (membership.sent) this.#sendLeave(connection, name);
    }
    this.#host.membershipChanged(false);
  }

  /** Joins on a connection where the room has no membership yet; on a next one only from a known position. */
  joinOn(connection, room) {
    if (connection.memberships.has(room.name)) return;
    // Two joins from now would start at two positions.
    if (this.#host.isNext(connection) && !room._position) return;
    connection.memberships.set(room.name, { ref: null, sent: false, joined: false, epoch: undefined, missingAfter: null, presence: false });
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

  /** Whether every room is joined on a connection. */
  allJoined(connection) { return [...this.#all.keys()].every((name) => connection.memberships.get(name)?.joined); }

  joined(frame, connection) {
    connection.ignoredRefs.delete(frame.ref);
    const [room, membership] = this.#find(frame, connection);
    if (!room || membership.ref !== frame.ref) return; // of a join that was left or repeated since
    room._position ??= { seq: frame.seq };
    room._position.epoch ??= frame.epoch;
    const connections = this.#host.connections();
    const firstJoin = !connections.some((other) => other !== connection && other.memberships.get(room.name)?.joined);
    Object.assign(membership, { joined: true, epoch: room._position.epoch });
    for (const other of connections) this.joinOn(other, room); // now that its position is known
    room._resolve(frame);
    if (firstJoin) this.#emit(room, "joined", frame);
    // The service sends changes to the membership that was there when presence was requested.
    const watched = room._watchesPresence && !this.#host.isNext(connection);
    if (watched && !membership.presence && !this.#host.awaitsPresence(room.name)) this.#requestPresence(room);
    this.#host.membershipChanged(true);
  }

  message(frame, connection) {
    const [room, membership] = this.#find(frame, connection);
    if (!membership?.joined || this.#isStaleEpoch(room, membership, frame)) return;
    membership.epoch = frame.epoch;
    if (frame.epoch !== room._position.epoch) this.#startEpoch(room, frame);
    const { seq } = room._position;
    if (frame.seq <= seq) return;
    if (frame.seq > seq + 1) return this.#requestMissing(connection, room, membership);
    room._position = { seq: frame.seq, epoch: frame.epoch };
    this.#emit(room, "message", frame);
  }

  gap(frame, connection) {
    const [room, membership] = this.#find(frame, connection);
    if (!membership?.joined || this.#isStaleEpoch(room, membership, frame)) return;
    const { seq, epoch } = room._position;
    // A new epoch was already reported when it came on the other connection.
    const alreadyReported = frame.epoch === epoch && (frame.reason !== "epoch" || membership.epoch !== frame.epoch);
    membership.epoch = frame.epoch;
    if (alreadyReported && frame.to <= seq) return;
    room._position = { seq: frame.to, epoch: frame.epoch };
    this.#emit(room, "gap", frame);
  }

  signal(frame, connection) {
    const room = this.#all.get(frame.room);
    if (room && !this.signalDedup.seenBefore(connection.number, frame)) this.#emit(room, "signal", frame);
  }

  /** A change of presence, or the full list; those on the next connection of a move are ignored. */
  presence(frame, connection) {
    const room = this.#all.get(frame.room);
    if (room?._watchesPresence && !this.#host.isNext(connection)) this.#emit(room, "presence", frame);
  }

  /** The room whose last join on that connection has the ref. */
  roomOfJoin(ref, connection) { return [...this].find(({ name }) => ref && connection.memberships.get(name)?.ref === ref); }

  /** Repeats the join with that ref, unless there was another since. */
  retryJoin(ref, connection, { name }) {
    if (this.#host.connections().includes(connection) && connection.memberships.get(name)?.ref === ref) {
      this.#sendJoin(connection, this.#all.get(name));
    }
  }

  /** Removes a room whose join the service refuses. */
  refuse(room, error) {
    this.#all.delete(room.name);
    for (const connection of this.#host.connections()) connection.memberships.delete(room.name);
    room._reject(error);
    this.#host.membershipChanged(false);
  }

  rejectAll(error) { for (const room of this) room._reject(error); }

  // A room and its membership on this connection; neither if the room was left.
  #find({ room: name }, connection) {
    const membership = connection.memberships.get(name);
    return membership ? [this.#all.get(name), membership] : [];
  }

  // Whether this connection is still in an epoch that has ended on the other one.
  #isStaleEpoch(room, membership, { epoch }) { return epoch !== room._position.epoch && epoch === membership.epoch; }

  #sendJoin(connection, room) {
    const ref = this.#host.nextRef();
    Object.assign(connection.memberships.get(room.name), { ref, sent: false, joined: false, presence: false });
    connection.joins.add(ref, () => {
      const membership = connection.memberships.get(room.name);
      if (membership?.ref !== ref) return null; // left, or joined again since
      const position = room._position;
      return { type: "join", ref, room: room.name, after: position?.seq, epoch: position?.epoch };
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
      resolve: (frame) => { if (this.#all.get(room.name) === room) this.#emit(room, "presence", frame); },
      reject: (error) => { if (this.#all.get(room.name) === room) this.#host.emit("error", error); },
    });
  }

  // The log is in a new epoch, and this message is the first frame that says so.
  #startEpoch(room, { epoch, seq }) {
    room._position = { seq: seq - 1, epoch };
    if (seq > 1) this.#emit(room, "gap", { type: "gap", room: room.name, epoch, from: 1, to: seq - 1, reason: "epoch" });
  }

  // The service promises not to skip messages. If it does, the client joins again from the last position; if
  // it skips the same message again, the client ends the connection.
  #requestMissing(connection, room, membership) {
    const { missingAfter } = membership;
    const repeated = missingAfter?.seq === room._position.seq && missingAfter.epoch === room._position.epoch;
    membership.missingAfter = repeated ? null : room._position;
    this.#host.emit("error", new SwitchyardError("hole", `the service skipped seq ${room._position.seq + 1} of ${room.name}; joining again`));
    if (repeated) connection.abort(1006, "the service skipped a message twice");
    else this.#sendJoin(connection, room);
  }

  #emit(room, event, frame) {
    room._emit(event, frame);
    this.#host.emit(event, frame);
  }
}
