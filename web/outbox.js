// The part of client.js that keeps requests until they are answered. Applications import client.js.

/** Every failure that the client reports: `code` is the service's, or one of those listed in client.d.ts. */
export class SwitchyardError extends Error {
  constructor(code, message, more = {}) {
    super(`${code}: ${message}`);
    this.name = "SwitchyardError";
    this.code = code;
    this.outcomeUnknown = false;
    Object.assign(this, more);
  }
}

const DEFAULT_RESEND_MS = 300_000; // half of the service's default ID_WINDOW, for older nodes that do not report theirs

// The Outbox keeps each request until it is answered, and sends it again on every new connection. The
// requests of one queue (the publishes of a room, its history) are sent in order. After a temporary refusal
// a queue is probing: it sends only its first request, and the rest once that one is answered.
export class Outbox {
  maxFrame = Infinity; // bytes
  #byRef = new Map(); #byKey = new Map(); #queues = new Map(); #bytes = 0; #connection = null;
  #options; #clock; #resendWindow = DEFAULT_RESEND_MS;

  constructor(options, clock) {
    this.#options = options;
    this.#clock = clock;
  }

  /** The request with this key that has no answer yet, such as an earlier publish with the same id. */
  pending(key) { return this.#byKey.get(key); }

  /** Takes a request {ref, queue, key, text} and returns the promise of its answer. */
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
    if (!this.#queues.has(request.queue)) {
      this.#queues.set(request.queue, { requests: [], probing: false, probe: null, timer: null });
    }
    const queue = this.#queues.get(request.queue);
    queue.requests.push(request);
    this.#byRef.set(request.ref, request);
    this.#byKey.set(request.key, request);
    this.#bytes += request.bytes;
    // uncertainAttempts counts the attempts that may have been stored; sent: on this connection, and without an answer.
    Object.assign(request, { queuedAt: this.#clock.now(), firstSentAt: null, uncertainAttempts: 0, sent: false });
    this.#startTimer(request);
    request.promise = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    this.#flush(queue);
    return request.promise;
  }

  attach(connection) {
    this.#connection = connection;
    this.maxFrame = connection.welcome.max_frame ?? Infinity;
    // Resend for half of the ID window only, so that no resend arrives after the id was forgotten.
    this.#resendWindow = connection.welcome.id_window_ms / 2 || DEFAULT_RESEND_MS;
    for (const queue of [...this.#queues.values()]) {
      this.#clock.clearTimeout(queue.timer);
      queue.timer = queue.probe = null;
      for (const request of queue.requests) {
        request.sent = false;
        this.#startTimer(request);
      }
      this.#flush(queue);
    }
  }

  detach() { this.#connection = null; }

  resolve(request, value) {
    if (!request) return;
    request.resolve(value);
    this.#remove(request);
  }

  reject(ref, error) {
    const request = this.#byRef.get(ref);
    // The refusal of a resend does not say whether an earlier attempt was stored, except for conflict: then
    // the id holds other data.
    if (request.uncertainAttempts > 1 && error.code !== "conflict") error.outcomeUnknown = true;
    request.reject(error);
    this.#remove(request);
  }

  byRef(ref) { return this.#byRef.get(ref); }

  /** Sends the request again after ms; notStored: the last attempt was certainly not stored. */
  retry(ref, ms, notStored) {
    const request = this.#byRef.get(ref);
    if (notStored) request.uncertainAttempts -= 1;
    const queue = this.#queues.get(request.queue);
    request.sent = false;
    queue.probing = true;
    if (queue.probe && queue.probe !== request) return; // the answer to the probe decides
    queue.probe = null;
    queue.timer ??= this.#clock.setTimeout(() => {
      queue.timer = null;
      this.#flush(queue);
    }, ms);
  }

  /** Rejects the largest request that was sent: the one that must have caused a close with 1009. */
  rejectLargest() {
    const sent = [...this.#byRef.values()].filter((request) => request.sent);
    sent.sort((a, b) => b.bytes - a.bytes);
    if (sent.length > 0) this.reject(sent[0].ref, this.#tooLarge(sent[0]));
  }

  rejectAll(code, message) {
    for (const { ref, uncertainAttempts } of [...this.#byRef.values()]) {
      this.reject(ref, new SwitchyardError(code, message, { outcomeUnknown: uncertainAttempts > 0 }));
    }
  }

  #flush(queue) {
    if (!this.#connection || queue.timer || queue.probe) return;
    for (const request of [...queue.requests]) {
      if (request.sent) continue;
      if (this.#clock.now() >= this.#deadline(request)) {
        this.#expire(request); // timers fire late after the computer was suspended
        continue;
      }
      if (request.bytes > this.maxFrame) {
        this.reject(request.ref, this.#tooLarge(request));
        continue;
      }
      request.sent = true;
      if (request.body !== undefined) request.uncertainAttempts += 1; // a request without a body stores nothing
      if (request.firstSentAt === null) {
        request.firstSentAt = this.#clock.now();
        this.#startTimer(request);
      }
      this.#connection.send(request.text);
      if (queue.probing) {
        queue.probe = request;
        return;
      }
    }
  }

  // When to give up. A request that was never sent cannot be stored twice: it is kept as long as the
  // application wants.
  #deadline(request) {
    const { resendFor } = this.#options;
    if (request.firstSentAt === null) return request.queuedAt + (resendFor ?? DEFAULT_RESEND_MS);
    return request.firstSentAt + Math.min(resendFor ?? Infinity, this.#resendWindow);
  }

  #startTimer(request) {
    this.#clock.clearTimeout(request.timer);
    request.timer = this.#clock.setTimeout(() => this.#expire(request), Math.max(0, this.#deadline(request) - this.#clock.now()));
  }

  #remove(request) {
    this.#clock.clearTimeout(request.timer);
    this.#byRef.delete(request.ref);
    this.#byKey.delete(request.key);
    this.#bytes -= request.bytes;
    const queue = this.#queues.get(request.queue);
    queue.requests.splice(queue.requests.indexOf(request), 1);
    if (queue.requests.length === 0) {
      this.#clock.clearTimeout(queue.timer);
      this.#queues.delete(request.queue);
    } else if (queue.probe === request) {
      queue.probe = null;
      queue.probing = false;
      this.#flush(queue);
    }
  }

  #expire(request) {
    const unknown = request.uncertainAttempts > 0;
    this.reject(request.ref, new SwitchyardError(
      unknown ? "outcome_unknown" : "timeout",
      unknown ? "no answer arrived in time: it may have been stored" : "no answer arrived in time, and nothing was stored",
      { outcomeUnknown: unknown },
    ));
  }

  #tooLarge(request) {
    return new SwitchyardError("too_large", `the frame has ${request.bytes} bytes, the service accepts ${this.maxFrame}`);
  }
}
