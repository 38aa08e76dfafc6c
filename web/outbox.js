// The part of client.js that keeps requests until they are answered. Users import client.js.

/** Every failure the client reports: `code` is the server's, or one of those listed in client.d.ts. */
export class SwitchyardError extends Error {
  constructor(code, message, more = {}) {
    super(`${code}: ${message}`);
    this.name = "SwitchyardError";
    this.code = code;
    this.outcomeUnknown = false;
    Object.assign(this, more);
  }
}

const KEEP = 300_000; // ms; half of the server's ID_WINDOW where nobody tells it

// The Outbox holds each request until it is answered, and sends it again on every new link. Requests
// of one lane (the publishes of a room, its history) go out in order; after a refusal that will pass,
// a lane is careful: it sends its first request alone and the rest once that one is answered.
export class Outbox {
  maxFrame = Infinity;
  #byRef = new Map(); #byKey = new Map(); #lanes = new Map(); #bytes = 0; #link = null;
  #options; #clock; #window = KEEP;

  constructor(options, clock) {
    this.#options = options;
    this.#clock = clock;
  }

  /** The request with this key that still waits, such as an earlier publish with the same id. */
  waiting(key) { return this.#byKey.get(key); }

  /** Takes in {ref, lane, key, text} and promises its answer. */
  add(request) {
    const { maxPending, maxPendingBytes } = this.#options;
    request.bytes = new TextEncoder().encode(request.text).length;
    if (request.bytes > this.maxFrame) throw this.#tooLarge(request);
    if (this.#byRef.size >= maxPending) {
      throw new SwitchyardError("buffer_full", `${maxPending} requests wait for an answer (maxPending)`);
    }
    if (this.#bytes + request.bytes > maxPendingBytes) {
      throw new SwitchyardError("buffer_full", `${maxPendingBytes} bytes wait for an answer (maxPendingBytes)`);
    }
    if (!this.#lanes.has(request.lane)) {
      this.#lanes.set(request.lane, { list: [], careful: false, probe: null, timer: null });
    }
    const lane = this.#lanes.get(request.lane);
    lane.list.push(request);
    this.#byRef.set(request.ref, request);
    this.#byKey.set(request.key, request);
    this.#bytes += request.bytes;
    // Attempts are those that may have been stored; first is when the first one went out.
    Object.assign(request, { since: this.#clock.now(), first: null, attempts: 0, sent: false });
    this.#arm(request);
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    this.#pump(lane);
    return request.promise;
  }

  attach(link) {
    this.#link = link;
    this.maxFrame = link.welcome.max_frame ?? Infinity;
    // Past half of the time that ids are remembered, a resend could be stored twice.
    this.#window = link.welcome.id_window_ms / 2 || KEEP;
    for (const lane of [...this.#lanes.values()]) {
      this.#clock.clearTimeout(lane.timer);
      lane.timer = lane.probe = null;
      for (const request of lane.list) {
        request.sent = false;
        this.#arm(request);
      }
      this.#pump(lane);
    }
  }

  detach() { this.#link = null; }

  resolve(request, value) {
    if (!request) return;
    request.resolve(value);
    this.#forget(request);
  }

  reject(ref, error) {
    const request = this.#byRef.get(ref);
    // A refused resend says nothing of the first attempt, which may have been stored unheard.
    // That the id holds other data (conflict) does say it: the first attempt's data is not there.
    if (request.attempts > 1 && error.code !== "conflict") error.outcomeUnknown = true;
    request.reject(error);
    this.#forget(request);
  }

  byRef(ref) { return this.#byRef.get(ref); }

  /** Sends the request again after so many ms; notStored says that this attempt surely came to nothing. */
  retry(ref, ms, notStored) {
    const request = this.#byRef.get(ref);
    if (notStored) request.attempts -= 1;
    const lane = this.#lanes.get(request.lane);
    request.sent = false;
    lane.careful = true;
    if (lane.probe && lane.probe !== request) return; // the probe's answer decides
    lane.probe = null;
    lane.timer ??= this.#clock.setTimeout(() => {
      lane.timer = null;
      this.#pump(lane);
    }, ms);
  }

  /** Drops the largest request under way: the one that a close for size (1009) must mean. */
  shed() {
    const sent = [...this.#byRef.values()].filter((request) => request.sent);
    sent.sort((a, b) => b.bytes - a.bytes);
    if (sent.length > 0) this.reject(sent[0].ref, this.#tooLarge(sent[0]));
  }

  rejectAll(code, message) {
    for (const { ref, attempts } of [...this.#byRef.values()]) {
      this.reject(ref, new SwitchyardError(code, message, { outcomeUnknown: attempts > 0 }));
    }
  }

  #pump(lane) {
    if (!this.#link || lane.timer || lane.probe) return;
    for (const request of [...lane.list]) {
      if (request.sent) continue;
      if (this.#clock.now() >= this.#end(request)) {
        this.#expire(request); // a machine that slept wakes with its timers late
        continue;
      }
      if (request.bytes > this.maxFrame) {
        this.reject(request.ref, this.#tooLarge(request));
        continue;
      }
      request.sent = true;
      if (request.body !== undefined) request.attempts += 1; // reading leaves no outcome open
      if (request.first === null) {
        request.first = this.#clock.now();
        this.#arm(request);
      }
      this.#link.send(request.text);
      if (lane.careful) {
        lane.probe = request;
        return;
      }
    }
  }

  // When to give up: what never went out cannot be stored twice, and is kept as long as its user wants.
  #end(request) {
    const { resendFor } = this.#options;
    if (request.first === null) return request.since + (resendFor ?? KEEP);
    return request.first + Math.min(resendFor ?? Infinity, this.#window);
  }

  #arm(request) {
    this.#clock.clearTimeout(request.timer);
    request.timer = this.#clock.setTimeout(() => this.#expire(request), Math.max(0, this.#end(request) - this.#clock.now()));
  }

  #forget(request) {
    this.#clock.clearTimeout(request.timer);
    this.#byRef.delete(request.ref);
    this.#byKey.delete(request.key);
    this.#bytes -= request.bytes;
    const lane = this.#lanes.get(request.lane);
    lane.list.splice(lane.list.indexOf(request), 1);
    if (lane.list.length === 0) {
      this.#clock.clearTimeout(lane.timer);
      this.#lanes.delete(request.lane);
    } else if (lane.probe === request) {
      lane.probe = null;
      lane.careful = false;
      this.#pump(lane);
    }
  }

  #expire(request) {
    const unknown = request.attempts > 0;
    this.reject(request.ref, new SwitchyardError(
      unknown ? "outcome_unknown" : "timeout",
      unknown ? "sent, and no answer came in time" : "no answer came in time, and nothing was stored",
      { outcomeUnknown: unknown },
    ));
  }

  #tooLarge(request) {
    return new SwitchyardError("too_large", `the frame has ${request.bytes} bytes, the server takes ${this.maxFrame}`);
  }
}
