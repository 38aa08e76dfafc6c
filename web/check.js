// An independent witness of what the server delivers. It reads raw frames and shares nothing with
// client.js, so that a fault of the client's own bookkeeping would show here, too.

const MAX_KEPT = 100; // faults and missing seqs that are remembered by number; more are only counted

/** What one room owes: each seq once, in order, from where it was joined. */
export class Ledger {
  epoch = null;
  from = null; // the first seq that must come
  last = null;
  received = 0;
  lost = 0; doubled = 0; reordered = 0;
  faults = []; // [{kind, seq}], the oldest MAX_KEPT
  #missing = new Set();

  get clean() { return this.lost + this.doubled + this.reordered === 0; }

  /** A join answered: the first one says where the count begins. */
  joined({ epoch, seq }) {
    if (this.epoch === null) this.#begin(epoch, seq + 1);
  }

  /** A declared gap: those seqs are told to be gone, which is not a loss in silence. */
  gap({ epoch, to }) {
    if (epoch !== this.epoch) this.#begin(epoch, to + 1);
    this.last = Math.max(this.last, to);
  }

  message({ epoch, seq }) {
    if (epoch !== this.epoch) this.#begin(epoch, seq);
    this.received += 1;
    if (seq === this.last + 1) {
      this.last = seq;
    } else if (seq > this.last) {
      for (let n = this.last + 1; n < seq && this.#missing.size < MAX_KEPT; n++) this.#missing.add(n);
      this.lost += seq - this.last - 1;
      this.#fault("lost", this.last + 1);
      this.last = seq;
    } else if (this.#missing.delete(seq)) {
      this.lost -= 1; // it did come, but late
      this.reordered += 1;
      this.#fault("reordered", seq);
    } else {
      this.doubled += 1;
      this.#fault("doubled", seq);
    }
  }

  /** One line for people: what is proved, or the first thing that is wrong. */
  verdict() {
    const fault = this.faults[0];
    if (fault) return `seq ${fault.seq} ${fault.kind}`;
    if (this.from === null) return "not joined yet";
    if (this.last < this.from) return `waiting for seq ${this.from}`;
    return `every seq from ${this.from} to ${this.last}, once, in order`;
  }

  #begin(epoch, from) {
    Object.assign(this, { epoch, from, last: from - 1 });
    this.#missing.clear();
  }

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

  hear(frame) {
    if (!["joined", "gap", "message"].includes(frame.type) || !this.#ledgers.has(frame.room)) return;
    this.#ledgers.get(frame.room)[frame.type](frame);
  }
}
