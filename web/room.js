// The part of client.js that is one room, and the listeners of events. Applications import client.js.

import { required } from "./options.js";

export class Emitter {
  #listeners = new Map();

  on(event, listener) {
    required("event", "string", event);
    required("listener", "function", listener);
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(listener);
    this._listenerAdded?.(event);
    return () => this.#listeners.get(event).delete(listener);
  }

  /** Whether the event has, or once had, a listener. */
  _hadListener(event) { return this.#listeners.has(event); }

  // Returns whether anybody listens. A listener that throws, at once or in its promise, must neither stop the others nor
  // interrupt the client.
  _emit(event, ...values) {
    const failed = (error) => this._listenerFailed(event, error);
    const listeners = [...(this.#listeners.get(event) ?? [])];
    for (const listener of listeners) {
      try {
        const result = listener(...values);
        if (typeof result?.then === "function") result.then(undefined, failed);
      } catch (error) {
        failed(error);
      }
    }
    return listeners.length > 0;
  }
}

// A Room is what join returns: one reader of a room, which has a position and an end of its own. Fields that begin
// with _ belong to the client, which has one RoomState for all the readers of a room.
export class Room extends Emitter {
  _position = null; // how far it has come, with or without a listener
  _heldFrom = null; // the position before the first message that had no listener
  _last; // how many of the messages before the join are to be delivered, until the position is known
  _isJoined = false; // the first join was answered
  #client; #rooms;

  constructor(client, rooms, name, { after, epoch, last }) {
    super();
    this.#client = client;
    this.#rooms = rooms;
    this.name = name;
    if (after !== undefined) this._position = { seq: after, epoch };
    this._last = last ?? 0;
    this.joined = new Promise((resolve, reject) => { this._resolve = resolve; this._reject = reject; });
    this.joined.catch(() => {}); // "error" reports it as well: an application need not await it
  }

  get position() {
    const position = this._heldFrom ?? this._position;
    return position && { ...position };
  }

  _listenerAdded(event) { if (event === "message") this.#rooms.deliverHeld([this]); }

  _listenerFailed(event, error) { this.#client._listenerFailed(event, error); }

  publish(data, options) { return this.#client.publish(this.name, data, options); }

  signal(data) { return this.#client.signal(this.name, data); }

  history(range) { return this.#client.history(this.name, range); }

  presence() { return this.#client.presence(this.name); }

  leave() { this.#rooms.leaveReader(this); }
}

// A RoomState is a room that the client has joined or will join: its readers, and how far the client's own events have
// come, of which there is one for each message. The state of a room on one connection is its membership: see Connection.
export class RoomState {
  readers = new Set();
  epoch; // the last that the service has named; undefined before
  isRemoved = false; // the service has taken it away, and its readers know
  _watchesPresence = false; // presence() was called
  #emitted = null; // the newest position of the client's own events

  constructor(name) { this.name = name; }

  /** The position of the reader that lags most, of those in the newest epoch if there is one; null before the first. */
  get position() {
    const known = [...this.readers].map((reader) => reader._position).filter(Boolean);
    if (known.length === 0) return null;
    const isIn = (wanted) => ({ epoch }) => !wanted || !epoch || epoch === wanted;
    const newest = known.some(isIn(this.epoch)) ? this.epoch : known[0].epoch;
    return known.filter(isIn(newest)).reduce((lowest, position) => (position.seq < lowest.seq ? position : lowest));
  }

  /**
   * Whether the client's own listeners have not come to that position, to which they then have. isVoid: the log has ended
   * there, so that what they know of later ones is void.
   */
  advance({ seq, epoch }, isVoid = false) {
    if (!isVoid && this.#emitted?.epoch === epoch && seq <= this.#emitted.seq) return false;
    this.#emitted = { seq, epoch };
    return true;
  }
}
