// The part of client.js that refreshes the token of an open connection. Applications import client.js.

import { fetchToken } from "./options.js";
import { SwitchyardError } from "./outbox.js";

const REFRESH_FRACTION = 0.8; // of a token's lifetime, after which the next one is fetched,
const REFRESH_JITTER = 0.1; // and how much earlier at most, so that clients do not refresh together
const MIN_REFRESH_MS = 1_000; // a token with less time left is not refreshed
const REFRESH_TIMEOUT = 30_000; // ms for getToken and the service's answer
const MAX_TIMEOUT = 86_400_000; // ms: one day, far below the 24.8 days that setTimeout can hold

// Tokens sends a fresh token on the current connection before the old one expires. When a token has expired,
// the service closes with 4001, and the client reconnects with a fresh one.
export class Tokens {
  #getToken; #clock; #random; #nextRef; #onError; #connection = null; #expires = Infinity; #timer = null; #pending = new Map();

  /** onError gets the error of a refresh that the client started by itself. */
  constructor(getToken, clock, random, nextRef, onError) {
    this.#getToken = getToken;
    this.#clock = clock;
    this.#random = random;
    this.#nextRef = nextRef;
    this.#onError = onError;
  }

  /** Sets the current connection, or none. A pending refresh completes: a new connection has a fresh token. */
  attach(connection) {
    this.#connection = connection;
    for (const { resolve } of this.#pending.values()) resolve();
    this.#pending.clear();
    this.#setExpiry(connection?.welcome.auth_expires_ms, connection?.welcomedAt);
  }

  /** Fetches a token and sends it to the service. */
  async refresh() {
    if (!this.#getToken) throw new SwitchyardError("unauthorized", "the option getToken is not set");
    const ref = this.#nextRef();
    let timer;
    const timeout = new Promise((_, reject) => {
      timer = this.#clock.setTimeout(() => reject(new SwitchyardError("timeout", "no fresh token in time")), REFRESH_TIMEOUT);
    });
    try {
      await Promise.race([this.#sendToken(ref, this.#connection), timeout]);
    } finally {
      this.#clock.clearTimeout(timer);
      this.#pending.delete(ref);
    }
  }

  async #sendToken(ref, connection) {
    const token = await fetchToken(this.#getToken);
    if (!connection || connection !== this.#connection) return; // the next connection gets a token of its own
    if (!token) throw new SwitchyardError("unauthorized", "getToken has returned no token");
    connection.send({ type: "auth", ref, token });
    await new Promise((resolve, reject) => { this.#pending.set(ref, { resolve, reject }); });
  }

  authenticated({ ref, auth_expires_ms: left }) {
    this.#pending.get(ref)?.resolve();
    this.#pending.delete(ref);
    this.#setExpiry(left, this.#clock.now());
  }

  /** Returns whether the error was the answer to a token. */
  handleError(ref, error) {
    this.#pending.get(ref)?.reject(error);
    return this.#pending.delete(ref);
  }

  #setExpiry(left, since) {
    this.#expires = left > 0 ? since + Math.min(left, MAX_TIMEOUT) : Infinity;
    this.#schedule();
  }

  #schedule() {
    this.#clock.clearTimeout(this.#timer);
    const connection = this.#connection;
    const left = this.#expires - this.#clock.now();
    if (!this.#getToken || left === Infinity || left < MIN_REFRESH_MS) return;
    this.#timer = this.#clock.setTimeout(() => {
      this.refresh().catch((error) => {
        if (connection !== this.#connection) return;
        this.#onError(error);
        this.#schedule();
      });
    }, left * (REFRESH_FRACTION - REFRESH_JITTER * this.#random()));
  }
}
