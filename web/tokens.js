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
  #getToken; #clock; #random; #nextRef; #onError; #connectionCount; #connection = null; #expires = Infinity; #timer = null; #pending = new Map();

  /**
   * onError gets the error of a refresh that the client started by itself. connectionCount returns how many connections the
   * client has begun to open, each of which gets a token then.
   */
  constructor(getToken, clock, random, nextRef, onError, connectionCount) {
    this.#getToken = getToken;
    this.#clock = clock;
    this.#random = random;
    this.#nextRef = nextRef;
    this.#onError = onError;
    this.#connectionCount = connectionCount;
  }

  /** Sets the current connection, or none. A pending refresh completes if the connection was opened after its call. */
  attach(connection) {
    this.#connection = connection;
    for (const request of this.#pending.values()) this.#send(request);
    this.#setExpiry(connection?.welcome.auth_expires_ms, connection?.welcomedAt);
  }

  /** The client has ended. */
  rejectAll(code, message) {
    this.attach(null);
    for (const { reject } of this.#pending.values()) reject(new SwitchyardError(code, message));
  }

  /** Fetches a token and sends it to the service, on the next connection if there is none. */
  async refresh() {
    if (!this.#getToken) throw new SwitchyardError("unauthorized", "the option getToken is not set");
    const request = { ref: this.#nextRef(), connectionCount: this.#connectionCount() };
    const answer = new Promise((resolve, reject) => Object.assign(request, { resolve, reject }));
    const timer = this.#clock.setTimeout(() => request.reject(new SwitchyardError("timeout", "no fresh token in time")), REFRESH_TIMEOUT);
    this.#pending.set(request.ref, request);
    this.#fetch(request).catch(request.reject);
    try {
      await answer;
    } finally {
      this.#clock.clearTimeout(timer);
      this.#pending.delete(request.ref);
    }
  }

  async #fetch(request) {
    request.token = (await fetchToken(this.#getToken)) ?? "";
    if (this.#pending.has(request.ref)) this.#send(request);
  }

  // The token of a connection that was opened after the call is as fresh. That of an earlier one may lack the new rights.
  #send({ ref, token, connectionCount, resolve, reject }) {
    const connection = this.#connection;
    if (!connection || token === undefined) return;
    if (connection.number > connectionCount) resolve();
    else if (token) connection.send({ type: "auth", ref, token });
    else reject(new SwitchyardError("unauthorized", "getToken has returned no token"));
  }

  authenticated({ ref, auth_expires_ms: left }, connection) {
    if (connection !== this.#connection) return;
    this.#pending.get(ref)?.resolve();
    this.#setExpiry(left, this.#clock.now());
  }

  /** Returns whether the error was the answer to a token. */
  handleError(ref, error) {
    this.#pending.get(ref)?.reject(error);
    return this.#pending.has(ref);
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
