// What the client's tests stand on: a clock that moves when told, and sockets whose other end is the test.

export class FakeClock {
  #now = 0; #timers = new Map(); #last = 0;

  now() { return this.#now; }

  setTimeout(callback, ms) {
    this.#timers.set(++this.#last, { at: this.#now + ms, callback });
    return this.#last;
  }

  clearTimeout(timer) { this.#timers.delete(timer); }

  get idle() { return this.#timers.size === 0; }

  /** Lets so many milliseconds pass, and what is due happen in order. */
  async pass(ms) {
    const end = this.#now + ms;
    for (;;) {
      const due = [...this.#timers].filter(([, t]) => t.at <= end).sort((a, b) => a[1].at - b[1].at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#now = Math.max(this.#now, due[1].at);
      due[1].callback();
      await settled();
    }
    this.#now = end;
    await settled();
  }
}

/** Returns once every promise that could go on has gone on. A browser's setTimeout would wait 4 ms each time. */
export function settled() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/** A WebSocket class whose sockets are kept in its own `all`. */
export function fakeSockets() {
  return class FakeSocket {
    static all = [];
    static get last() { return this.all.at(-1); }

    sent = []; bufferedAmount = 0; closed = false;

    constructor(url, protocols) {
      Object.assign(this, { url, protocols });
      this.constructor.all.push(this);
    }

    send(text) { this.sent.push(JSON.parse(text)); }

    close(code) { Object.assign(this, { closed: true, farewell: code }); }

    hear(text) { this.onmessage?.({ data: text }); }

    say(frame) { this.onmessage?.({ data: JSON.stringify(frame) }); }

    end(code, reason = "") { this.onclose?.({ code, reason }); }

    welcome(more = {}) {
      this.say({
        type: "welcome", session: "s", resumed: false, user: null, node: "n1", color: "blue",
        deployment: "d1", version: "1", heartbeat_ms: 25_000, max_frame: 65_536, ...more,
      });
    }

    sentOf(type) { return this.sent.filter((frame) => frame.type === type); }

    joined(room, seq, epoch = "e1") {
      const { ref } = this.sentOf("join").findLast((frame) => frame.room === room);
      this.say({ type: "joined", ref, room, epoch, seq, first: 1 });
    }

    message(room, seq, more = {}) {
      this.say({ type: "message", room, epoch: "e1", seq, id: `id${seq}`, from: null, at: "2026-01-02T15:04:05.000000Z", data: seq, ...more });
    }

    ack({ ref, room, id }, seq, more = {}) { this.say({ type: "ack", ref, room, id, epoch: "e1", seq, ...more }); }
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
  throw new Error(`resolved, and should have been rejected with ${code}`);
}

/** The names and texts of the JSON files in a folder beside this one, on disk or over HTTP. */
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

/** Runs the tests by name, an object or a function that promises one, and says what failed. */
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
