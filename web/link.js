// The part of client.js that is one socket. Users import client.js.

const TOKEN_WITHIN = 30_000; // ms that getToken may take
const WELCOME_WITHIN = 10_000; // ms from opening to welcome

// A Link is one WebSocket from its opening to its end, which it tells exactly once. Two are open during
// a move, so what belongs to one of them is kept here.
export class Link {
  welcome = null;
  liveSince = 0;
  took = 0; // ms from opening to welcome, once the token was there
  // Rooms by name: {ref, live, epoch, hole}. live says that the join with that ref was answered; what
  // comes before belongs to an earlier one. epoch is the one that this link told of last, and hole the
  // position after which a message was missing, and was asked for again.
  seats = new Map();
  unheard = new Set(); // refs whose refusal nobody waits for
  asked = null; // the move that it asked for while it was the second link
  movedFrom = null; // the node to name in "moved", if a move led here
  #clock; #onFrame; #onEnd; #socket = null; #over = false; #heard; #timer;

  /** number counts the links of a client; frames and the end are told to onFrame and onEnd. */
  constructor(number, clock, onFrame, onEnd) {
    this.number = number;
    this.#clock = clock;
    this.#onFrame = onFrame;
    this.#onEnd = onEnd;
  }

  /** Opens a socket by dial(token), at once unless there is a getToken. What either throws is an end, too. */
  async start(getToken, dial) {
    try {
      this.#timer = this.#clock.setTimeout(() => this.cut(1006, "no token in time"), TOKEN_WITHIN);
      const token = getToken ? await getToken() : undefined;
      if (this.#over) return; // nobody wants it any more
      this.#clock.clearTimeout(this.#timer);
      this.#socket = dial(token);
    } catch (error) {
      if (!this.#over) this.#end(1006, error.message, error);
      return;
    }
    this.#heard = this.#clock.now();
    this.#socket.onmessage = (event) => this.#receive(event.data);
    this.#socket.onclose = (event) => this.#end(event.code, event.reason);
    this.#watch();
  }

  get backlog() { return this.#socket?.bufferedAmount ?? 0; }

  send(frame) { this.#socket.send(typeof frame === "string" ? frame : JSON.stringify(frame)); }

  /** Ends now: on a dead network the browser would wait long for the other side's farewell. */
  cut(code, reason, farewell) {
    if (this.#over) return;
    const socket = this.#socket;
    this.#end(code, reason);
    socket?.close(farewell);
  }

  #receive(text) {
    const now = this.#clock.now();
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
      this.took = now - this.#heard;
      this.liveSince = now;
      this.#clock.clearTimeout(this.#timer);
    }
    this.#heard = now;
    if (frame.type === "welcome") this.#watch();
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

  #end(code, reason, error) {
    this.#over = true;
    this.#clock.clearTimeout(this.#timer);
    if (this.#socket) this.#socket.onmessage = this.#socket.onclose = null;
    this.#onEnd(this, code, reason, error);
  }
}
