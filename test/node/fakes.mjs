// Helpers for the tests of client.js: a clock that the test advances, and sockets whose other end is the test.

/** A clock for client.js. Time stands still until advance is called. */
export class FakeClock {
  wallOffset = 0; // ms that the wall clock is ahead
  #now = 0; #timers = new Set();

  now() { return this.#now; }

  wall() { return this.#now + this.wallOffset; }

  setTimeout(callback, ms) {
    const timer = { at: this.#now + ms, callback };
    this.#timers.add(timer);
    return timer;
  }

  clearTimeout(timer) { this.#timers.delete(timer); }

  get idle() { return this.#timers.size === 0; }

  /** Advances the clock by ms, and calls the timers that fire until then in order. */
  async advance(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = this.#firstUntil(end);
      if (!due) break;
      this.#timers.delete(due);
      this.#now = Math.max(this.#now, due.at);
      due.callback();
      await settlePromises();
    }
    this.#now = end;
    await settlePromises();
  }

  // The timer that fires first, if one does until then. Of two at one time it is the older one.
  #firstUntil(end) {
    let first = null;
    for (const timer of this.#timers) if (timer.at <= end && !(timer.at >= first?.at)) first = timer;
    return first;
  }
}

/** Returns once all callbacks of settled promises have run. A browser's setTimeout would wait 4 ms each time. */
export function settlePromises() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** Returns a WebSocket class that keeps its sockets in `all`. */
export function fakeSockets() {
  return class FakeSocket {
    static all = [];
    static get last() { return this.all.at(-1); }

    sent = []; bufferedAmount = 0; closed = false;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols, onerror: null });
      this.constructor.all.push(this);
    }

    send(text) { this.sent.push(JSON.parse(text)); }

    close(code) { Object.assign(this, { closed: true, closeCode: code }); }

    receiveText(text) { this.onmessage?.({ data: text }); }

    receive(frame) { this.onmessage?.({ data: JSON.stringify(frame) }); }

    closeWith(code, reason = "") { this.onclose?.({ code, reason }); }

    welcome(more = {}) {
      this.receive({
        type: "welcome", session: "s", resumed: false, user: null, node: "n1", color: "blue",
        deployment: "d1", version: "1", heartbeat_ms: 25_000, max_frame: 65_536, ...more,
      });
    }

    sentOf(type) { return this.sent.filter((frame) => frame.type === type); }

    joined(room, seq, epoch = "e1") {
      const { ref } = this.sentOf("join").findLast((frame) => frame.room === room);
      this.receive({ type: "joined", ref, room, epoch, seq, first: 1 });
    }

    message(room, seq, more = {}) {
      this.receive({ type: "message", room, epoch: "e1", seq, id: `id${seq}`, from: null, at: "2026-01-02T15:04:05.000000Z", data: seq, ...more });
    }

    ack({ ref, room, id }, seq, more = {}) { this.receive({ type: "ack", ref, room, id, epoch: "e1", seq, ...more }); }
  };
}

export function equal(got, want, what) {
  const [a, b] = [JSON.stringify(got), JSON.stringify(want)];
  if (a !== b) throw new Error(`${what}: got ${a}, want ${b}`);
}

export async function rejects(promise, code) {
  try {
    await promise;
  } catch (error) {
    equal(error.code, code, "the code of the rejection");
    return error;
  }
  throw new Error(`the promise was resolved, want a rejection with ${code}`);
}

/** Returns the names and texts of the JSON files in a folder, relative to this file, from disk or over HTTP. */
export async function jsonFiles(folder) {
  const base = new URL(folder, import.meta.url);
  if (base.protocol === "file:") {
    const { readdir, readFile } = await import("node:fs/promises");
    const names = (await readdir(base)).filter((name) => name.endsWith(".json")).sort();
    return Promise.all(names.map(async (name) => [name, await readFile(new URL(name, base), "utf8")]));
  }
  const listing = await (await fetch(base)).text(); // Go's file server lists a folder as links
  const names = [...listing.matchAll(/href="([^"/]+\.json)"/g)].map((match) => match[1]);
  return Promise.all(names.map(async (name) => [name, await (await fetch(new URL(name, base))).text()]));
}

/** Runs tests, an object by name or a function that returns a promise of one, and returns their errors. */
export async function runAll(source) {
  const tests = typeof source === "function" ? await source() : source;
  const results = [];
  for (const [name, test] of Object.entries(tests)) {
    try {
      await test();
      results.push({ name, error: "" });
    } catch (error) {
      results.push({ name, error: String(error.stack ?? error) });
    }
  }
  return results;
}
