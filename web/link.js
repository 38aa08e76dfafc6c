// The part of client.js that is one socket. Users import client.js.

const WELCOME_WITHIN = 10_000; // ms from opening to welcome

// A Link is one WebSocket from its opening to its end, which it tells exactly once.
export class Link {
  welcome = null;
  liveSince = 0;
  #socket; #clock; #onFrame; #onEnd; #heard; #timer;

  constructor(socket, clock, onFrame, onEnd) {
    this.#socket = socket;
    this.#clock = clock;
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
    this.#heard = clock.now();
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#end(event.code, event.reason);
    this.#watch();
  }

  get backlog() { return this.#socket.bufferedAmount ?? 0; }

  send(text) { this.#socket.send(text); }

  /** Ends now: on a dead network the browser would wait long for the other side's farewell. */
  cut(code, reason, farewell) {
    const socket = this.#socket;
    this.#end(code, reason);
    socket.close(farewell);
  }

  #receive(text) {
    this.#heard = this.#clock.now();
    let frame = null;
    try {
      frame = JSON.parse(text);
    } catch {
      // Told below, with what is JSON and no frame either.
    }
    // Whatever it was is lost: the next link resumes before it.
    if (typeof frame?.type !== "string") return this.cut(1006, "the server sent what is no frame");
    if (frame.type === "welcome") {
      this.welcome = frame;
      this.liveSince = this.#heard;
      this.#clock.clearTimeout(this.#timer);
      this.#watch();
    }
    this.#onFrame(this, frame);
  }

  // One timer that asks when the last frame came, rather than one that every frame sets anew.
  #watch() {
    const limit = this.welcome ? 2 * this.welcome.heartbeat_ms : WELCOME_WITHIN;
    const quiet = this.#clock.now() - this.#heard;
    if (quiet >= limit) {
      this.cut(1006, this.welcome ? "nothing heard for two heartbeats" : "no welcome in time");
      return;
    }
    this.#timer = this.#clock.setTimeout(() => this.#watch(), limit - quiet);
  }

  #end(code, reason) {
    this.#clock.clearTimeout(this.#timer);
    this.#socket.onmessage = this.#socket.onclose = null;
    this.#onEnd(this, code, reason);
  }
}
