// The part of client.js that is one room, and the listeners of events. Applications import client.js.

export class Emitter {
  #listeners = new Map();

  on(event, listener) {
    if (!this.#listeners.has(event)) this.#listeners.set(event, new Set());
    this.#listeners.get(event).add(listener);
    return () => this.#listeners.get(event).delete(listener);
  }

  // A listener that throws must neither stop the others nor interrupt the client.
  _emit(event, ...values) {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) {
      try {
        listener(...values);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}

// A Room is what join returns. Fields that begin with _ belong to the client. The state of a room on one
// connection is its membership: see Connection.
export class Room extends Emitter {
  _position;
  _watchesPresence = false; // presence() was called
  #client;

  constructor(client, name, position) {
    super();
    this.#client = client;
    this.name = name;
    this._position = position;
    this.joined = new Promise((resolve, reject) => { this._resolve = resolve; this._reject = reject; });
    this.joined.catch(() => {}); // "error" reports it as well: an application need not await it
  }

  get position() { return this._position && { ...this._position }; }

  publish(data, options) { return this.#client.publish(this.name, data, options); }

  signal(data) { return this.#client.signal(this.name, data); }

  history(range) { return this.#client.history(this.name, range); }

  presence() { return this.#client.presence(this.name); }

  leave() { this.#client.leave(this.name); }
}
