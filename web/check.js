// An independent witness of what the server delivers. It reads raw frames and shares nothing with
// client.js, so that a fault of the client's own bookkeeping would show here, too.

const MAX_KEPT = 100; // faults, and missing seqs of a socket, that are remembered by number; more are only counted
const MAX_STREAMS = 4; // sockets whose place in a room is remembered: two of a move, and some that failed

// What one socket brings of one room. low is the first seq that it may begin with: what had come when it was
// welcomed must not come again. last is the newest it brought, null before the first.
class Stream {
  missing = new Set();

  constructor(epoch, low) { Object.assign(this, { epoch, low, last: null }); }
}

/** What one room owes: each seq once, in order, from where it was joined; during a move, by either socket. */
export class Ledger {
  epoch = null;
  from = null; // the first seq that must come
  last = null; // the newest that any socket brought
  received = 0; // what the other socket had brought before is not counted again
  lost = 0; doubled = 0; reordered = 0;
  faults = []; // [{kind, seq}], the oldest MAX_KEPT
  #streams = new Map(); // by number of the socket, the one heard last at the end

  get clean() { return this.lost + this.doubled + this.reordered === 0; }

  /** A socket was welcomed: it will be asked for what follows. */
  welcome(_, socket) {
    if (this.epoch !== null) this.#keep(socket, new Stream(this.epoch, this.last + 1));
  }

  /** A join answered: the first one says where the count begins. */
  joined({ epoch, seq }, socket) {
    if (this.epoch === null) this.#begin(epoch, seq + 1);
    this.#stream(socket);
  }

  /** A declared gap: those seqs are told to be gone, which is not a loss in silence. */
  gap({ epoch, from, to }, socket) {
    const stream = this.#enter(epoch, to + 1, socket);
    if (!stream) return;
    if (stream.epoch === epoch) this.#skip(stream, from);
    stream.epoch = epoch;
    stream.last = Math.max(stream.last ?? 0, to);
    this.last = Math.max(this.last, to);
  }

  message({ epoch, seq }, socket) {
    const stream = this.#enter(epoch, seq, socket);
    if (!stream) return;
    if (stream.epoch !== epoch) Object.assign(stream, new Stream(epoch, 1));
    const sound = this.#judge(stream, seq);
    if (!sound || seq > this.last) this.received += 1;
    stream.last = Math.max(stream.last ?? 0, seq);
    this.last = Math.max(this.last, seq);
  }

  /** One line for people: what is proved, or the first thing that is wrong. */
  verdict() {
    const fault = this.faults[0];
    if (fault) return `seq ${fault.seq} ${fault.kind}`;
    if (this.from === null) return "not joined yet";
    if (this.last < this.from) return `waiting for seq ${this.from}`;
    return `every seq from ${this.from} to ${this.last}, once, in order`;
  }

  // Whether a seq is the next one of its socket. One that has brought nothing yet may begin anywhere from
  // low to what follows the newest of all: where exactly, only the join that asked for it knows.
  #judge(stream, seq) {
    if (this.#skip(stream, seq)) return false;
    if (seq > (stream.last ?? stream.low - 1)) return true;
    if (stream.missing.delete(seq)) {
      this.lost -= 1; // it did come, but late
      this.reordered += 1;
      this.#fault("reordered", seq);
    } else {
      this.doubled += 1;
      this.#fault("doubled", seq);
    }
    return false;
  }

  // Counts what a socket has passed over when it goes on with seq; false: nothing.
  #skip(stream, seq) {
    const next = (stream.last ?? this.last) + 1;
    if (seq <= next) return false;
    for (let n = next; n < seq && stream.missing.size < MAX_KEPT; n++) stream.missing.add(n);
    this.lost += seq - next;
    this.#fault("lost", next);
    return true;
  }

  // The place of a socket; none where it goes on in an epoch that another one has told to be over.
  #enter(epoch, next, socket) {
    const stream = this.#stream(socket);
    if (epoch === this.epoch) return stream;
    if (epoch === stream.epoch) return null;
    this.#begin(epoch, next);
    return stream;
  }

  #stream(socket) {
    const stream = this.#streams.get(socket) ?? new Stream(this.epoch, this.from);
    this.#keep(socket, stream);
    return stream;
  }

  #keep(socket, stream) {
    this.#streams.delete(socket);
    this.#streams.set(socket, stream);
    if (this.#streams.size > MAX_STREAMS) this.#streams.delete(this.#streams.keys().next().value);
  }

  #begin(epoch, from) { Object.assign(this, { epoch, from, last: from - 1 }); }

  #fault(kind, seq) {
    if (this.faults.length < MAX_KEPT) this.faults.push({ kind, seq });
  }
}

/** Ledgers by room, fed with every frame of a connection. */
export class Witness {
  #ledgers = new Map();

  of(room) {
    if (!this.#ledgers.has(room)) this.#ledgers.set(room, new Ledger());
    return this.#ledgers.get(room);
  }

  forget(room) { this.#ledgers.delete(room); }

  /** A frame, and the number of the socket that brought it: during a move two bring the same. */
  hear(frame, socket = 0) {
    if (frame.type === "welcome") for (const ledger of this.#ledgers.values()) ledger.welcome(frame, socket);
    if (!["joined", "gap", "message"].includes(frame.type) || !this.#ledgers.has(frame.room)) return;
    this.#ledgers.get(frame.room)[frame.type](frame, socket);
  }
}
