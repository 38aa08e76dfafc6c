// The part of client.js that knows where each room stands, on one link or on the two of a move. Users import client.js.

import { SwitchyardError } from "./outbox.js";
import { Room } from "./room.js";

// Rooms are those that are joined or to be joined. A position belongs to the room, and moves on with the
// link that brings a message first; what a room has on one link is its seat there. host is the client:
// links() are those that were welcomed, isSecond(link) tells the second one of a move, noted(progress)
// hears that a seat there has changed, emit and nextRef are its own.
export class Rooms {
  echoes; // of the last move
  #all = new Map(); #client; #host;

  constructor(client, host, echoes) {
    this.echoes = echoes;
    this.#client = client;
    this.#host = host;
  }

  get(name) { return this.#all.get(name); }

  [Symbol.iterator]() { return this.#all.values(); }

  join(name, position) {
    const room = new Room(this.#client, name, position);
    this.#all.set(name, room);
    for (const link of this.#host.links()) this.enter(link, room);
    return room;
  }

  leave(name) {
    const room = this.#all.get(name);
    if (!room) return;
    this.#all.delete(name);
    room._reject(new SwitchyardError("left", `${name} was left before it was joined`));
    for (const link of this.#host.links()) {
      const seat = link.seats.get(name);
      if (!seat) continue;
      link.seats.delete(name);
      if (!seat.live) link.unheard.add(seat.ref);
      link.send({ type: "leave", ref: this.#host.nextRef(), room: name });
    }
    this.#host.noted(false);
  }

  /** Joins on a link where the room has no seat yet; on a second one only from a known position. */
  enter(link, room) {
    if (link.seats.has(room.name)) return;
    // Two joins from now would begin at two places.
    if (this.#host.isSecond(link) && !room._position) return;
    link.seats.set(room.name, { ref: null, live: false, epoch: undefined, hole: null });
    this.#sendJoin(link, room);
  }

  /** Joins every room on a link, and asks again who is there where that was asked before. */
  attach(link) {
    for (const room of this) this.enter(link, room);
    for (const { name, _watched } of this) {
      if (!_watched) continue;
      const ref = this.#host.nextRef();
      link.unheard.add(ref);
      link.send({ type: "presence", ref, room: name });
    }
  }

  /** Whether every room is joined on a link. */
  seated(link) { return [...this.#all.keys()].every((name) => link.seats.get(name)?.live); }

  joined(frame, link) {
    link.unheard.delete(frame.ref);
    const [room, seat] = this.#place(frame, link);
    if (!room || seat.ref !== frame.ref) return; // of a join that was left or repeated since
    room._position ??= { seq: frame.seq };
    room._position.epoch ??= frame.epoch;
    const links = this.#host.links();
    const news = !links.some((other) => other !== link && other.seats.get(room.name)?.live);
    Object.assign(seat, { live: true, epoch: room._position.epoch });
    for (const other of links) this.enter(other, room); // now that its position is known
    room._resolve(frame);
    if (news) this.#tell(room, "joined", frame);
    this.#host.noted(true);
  }

  message(frame, link) {
    const [room, seat] = this.#place(frame, link);
    if (!seat?.live || this.#past(room, seat, frame)) return;
    seat.epoch = frame.epoch;
    if (frame.epoch !== room._position.epoch) this.#begin(room, frame);
    const { seq } = room._position;
    if (frame.seq <= seq) return;
    if (frame.seq > seq + 1) return this.#heal(link, room, seat);
    room._position = { seq: frame.seq, epoch: frame.epoch };
    this.#tell(room, "message", frame);
  }

  gap(frame, link) {
    const [room, seat] = this.#place(frame, link);
    if (!seat?.live || this.#past(room, seat, frame)) return;
    const { seq, epoch } = room._position;
    // A new epoch is no news when the other link has told of it.
    const known = frame.epoch === epoch && (frame.reason !== "epoch" || seat.epoch !== frame.epoch);
    seat.epoch = frame.epoch;
    if (known && frame.to <= seq) return;
    room._position = { seq: frame.to, epoch: frame.epoch };
    this.#tell(room, "gap", frame);
  }

  signal(frame, link) {
    const room = this.#all.get(frame.room);
    if (room && !this.echoes.again(link.number, frame)) this.#tell(room, "signal", frame);
  }

  /** Who is there: everybody, or what changed. The second link's word counts later. */
  presence(frame, link) {
    link.unheard.delete(frame.ref);
    const room = this.#all.get(frame.room);
    if (room?._watched && !this.#host.isSecond(link)) this.#tell(room, "presence", frame);
  }

  /** The room whose join on that link bore the ref. */
  joining(ref, link) { return [...this].find(({ name }) => ref && link.seats.get(name)?.ref === ref); }

  /** Repeats a join, unless there was another since. */
  again(ref, link, { name }) {
    if (this.#host.links().includes(link) && link.seats.get(name)?.ref === ref) this.#sendJoin(link, this.#all.get(name));
  }

  /** Forgets a room that the server refuses. */
  drop(room, error) {
    this.#all.delete(room.name);
    for (const link of this.#host.links()) link.seats.delete(room.name);
    room._reject(error);
    this.#host.noted(false);
  }

  rejectAll(error) { for (const room of this) room._reject(error); }

  // A room and its seat on this link; neither where the room was left.
  #place({ room: name }, link) {
    const seat = link.seats.get(name);
    return seat ? [this.#all.get(name), seat] : [];
  }

  // This link goes on in an epoch that the other one has told to be over.
  #past(room, seat, { epoch }) { return epoch !== room._position.epoch && epoch === seat.epoch; }

  #sendJoin(link, room) {
    const position = room._position;
    const seat = Object.assign(link.seats.get(room.name), { ref: this.#host.nextRef(), live: false });
    link.send({ type: "join", ref: seat.ref, room: room.name, after: position?.seq, epoch: position?.epoch });
  }

  // A new life of the log, and this message is the first that is heard of it.
  #begin(room, { epoch, seq }) {
    room._position = { seq: seq - 1, epoch };
    if (seq > 1) this.#tell(room, "gap", { type: "gap", room: room.name, epoch, from: 1, to: seq - 1, reason: "epoch" });
  }

  // The server promises no holes. Should one come all the same, ask again from the last good place;
  // should it come twice, this connection is not to be trusted.
  #heal(link, room, seat) {
    const again = seat.hole?.seq === room._position.seq && seat.hole.epoch === room._position.epoch;
    seat.hole = again ? null : room._position;
    this.#host.emit("error", new SwitchyardError("hole", `${room.name} goes on past ${room._position.seq + 1}; asking again`));
    if (again) link.cut(1006, "the server skipped a message twice");
    else this.#sendJoin(link, room);
  }

  #tell(room, event, frame) {
    room._emit(event, frame);
    this.#host.emit(event, frame);
  }
}
