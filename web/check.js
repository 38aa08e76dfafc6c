// An independent check of what the service delivers. It reads raw frames and shares nothing with client.js,
// so that it would also report a fault of the client's own bookkeeping.

const MAX_REMEMBERED = 100; // faults, and missing seqs of a socket, that are remembered by number; more are only counted
const MAX_STREAMS = 4; // sockets whose position in a room is remembered: two of a move, and some that failed

// The messages of one room on one socket. firstAllowed is the first seq that it may start with: messages that had
// arrived before its welcome must not come again. last is the newest seq it delivered, null before the first.
class SocketStream {
  missing = new Set();

  constructor(epoch, firstAllowed) { Object.assign(this, { epoch, firstAllowed, last: null }); }
}

/** Checks one room: each seq once and in order, from where it was joined; during a move, on either socket. */
export class RoomCheck {
  epoch = null;
  from = null; // the first seq that must arrive
  last = null; // the newest seq on any socket
  received = 0; // without the second copies of a move
  lost = 0; doubled = 0; reordered = 0;
  faults = []; // the first MAX_REMEMBERED, as {kind, seq}
  #streams = new Map(); // by number of the socket, the most recently used at the end

  get clean() { return this.lost + this.doubled + this.reordered === 0; }

  /** A socket was welcomed: it will be asked for the messages after the newest one. */
  welcome(_, socket) {
    if (this.epoch !== null) this.#remember(socket, new SocketStream(this.epoch, this.last + 1));
  }

  /** A join was answered: the first answer says where the check starts. */
  joined({ epoch, seq }, socket) {
    if (this.epoch === null) this.#startEpoch(epoch, seq + 1);
    this.#stream(socket);
  }

  /** The service reported a gap: those seqs are not lost silently. */
  gap({ epoch, from, to }, socket) {
    const stream = this.#streamIn(epoch, to + 1, socket);
    if (!stream) return;
    if (stream.epoch === epoch) this.#countSkipped(stream, from);
    stream.epoch = epoch;
    stream.last = Math.max(stream.last ?? 0, to);
    this.last = Math.max(this.last, to);
  }

  message({ epoch, seq }, socket) {
    const stream = this.#streamIn(epoch, seq, socket);
    if (!stream) return;
    if (stream.epoch !== epoch) Object.assign(stream, new SocketStream(epoch, 1));
    const inOrder = this.#checkSeq(stream, seq);
    if (!inOrder || seq > this.last) this.received += 1;
    stream.last = Math.max(stream.last ?? 0, seq);
    this.last = Math.max(this.last, seq);
  }

  /** One line for people: what was checked, or the first fault. */
  summary() {
    const fault = this.faults[0];
    if (fault) return `seq ${fault.seq} ${fault.kind}`;
    if (this.from === null) return "not joined yet";
    if (this.last < this.from) return `waiting for seq ${this.from}`;
    return `every seq from ${this.from} to ${this.last}, once, in order`;
  }

  // Whether a seq is the next one of its socket. A socket that has delivered nothing yet may start anywhere from
  // firstAllowed to the seq after the newest one: only the join that requested it knows where exactly.
  #checkSeq(stream, seq) {
    if (this.#countSkipped(stream, seq)) return false;
    if (seq > (stream.last ?? stream.firstAllowed - 1)) return true;
    if (stream.missing.delete(seq)) {
      this.lost -= 1; // it did arrive, but late
      this.reordered += 1;
      this.#addFault("reordered", seq);
    } else {
      this.doubled += 1;
      this.#addFault("doubled", seq);
    }
    return false;
  }

  // Counts the seqs that a socket skips when it continues with seq. Returns false if it skips none.
  #countSkipped(stream, seq) {
    const next = (stream.last ?? this.last) + 1;
    if (seq <= next) return false;
    for (let n = next; n < seq && stream.missing.size < MAX_REMEMBERED; n++) stream.missing.add(n);
    this.lost += seq - next;
    this.#addFault("lost", next);
    return true;
  }

  // The stream of a socket; null if it is still in an epoch that has ended on another socket.
  #streamIn(epoch, next, socket) {
    const stream = this.#stream(socket);
    if (epoch === this.epoch) return stream;
    if (epoch === stream.epoch) return null;
    this.#startEpoch(epoch, next);
    return stream;
  }

  #stream(socket) {
    const stream = this.#streams.get(socket) ?? new SocketStream(this.epoch, this.from);
    this.#remember(socket, stream);
    return stream;
  }

  #remember(socket, stream) {
    this.#streams.delete(socket);
    this.#streams.set(socket, stream);
    if (this.#streams.size > MAX_STREAMS) this.#streams.delete(this.#streams.keys().next().value);
  }

  #startEpoch(epoch, from) { Object.assign(this, { epoch, from, last: from - 1 }); }

  #addFault(kind, seq) {
    if (this.faults.length < MAX_REMEMBERED) this.faults.push({ kind, seq });
  }
}

/** The checks of the observed rooms. It is given every frame of a connection. */
export class Observer {
  #checks = new Map(); // by room

  /** Returns the check of a room, which is observed from the first call on. */
  room(name) {
    if (!this.#checks.has(name)) this.#checks.set(name, new RoomCheck());
    return this.#checks.get(name);
  }

  forget(name) { this.#checks.delete(name); }

  /** Checks a frame. socket is the number of its socket: during a move two deliver the same messages. */
  observe(frame, socket = 0) {
    if (frame.type === "welcome") for (const check of this.#checks.values()) check.welcome(frame, socket);
    if (!["joined", "gap", "message"].includes(frame.type) || !this.#checks.has(frame.room)) return;
    this.#checks.get(frame.room)[frame.type](frame, socket);
  }
}
