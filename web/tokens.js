// The part of client.js that keeps the token of a living connection fresh. Users import client.js.

import { SwitchyardError } from "./outbox.js";

const AT = 0.8; // the part of a token's time after which the next one is fetched,
const SPREAD = 0.1; // and how much earlier it may be, so that those who came together do not ask together
const TOO_LATE = 1_000; // ms; for less there is no use in trying
const WITHIN = 30_000; // ms for getToken and the service's answer
const LONGEST = 86_400_000; // ms; no timer of a browser takes more than 24 days

// Tokens brings the link that counts a fresh token before the old one ends. After its end the service
// closes with 4001, and the client comes back with a fresh one anyway.
export class Tokens {
  #getToken; #clock; #random; #nextRef; #report; #link = null; #ends = Infinity; #timer = null; #waiting = new Map();

  /** report is told why a token was not refreshed. */
  constructor(getToken, clock, random, nextRef, report) {
    this.#getToken = getToken;
    this.#clock = clock;
    this.#random = random;
    this.#nextRef = nextRef;
    this.#report = report;
  }

  /** Begins with a link that was welcomed, or with none. What waited has a fresh token by that. */
  attach(link) {
    this.#link = link;
    for (const { resolve } of this.#waiting.values()) resolve();
    this.#waiting.clear();
    this.#begin(link?.welcome.auth_expires_ms, link?.liveSince);
  }

  /** Fetches a token and brings it to the service. */
  async refresh() {
    if (!this.#getToken) throw new SwitchyardError("unauthorized", "there is no getToken to ask");
    const ref = this.#nextRef();
    let timer;
    const late = new Promise((_, reject) => {
      timer = this.#clock.setTimeout(() => reject(new SwitchyardError("timeout", "no fresh token in time")), WITHIN);
    });
    try {
      await Promise.race([this.#bring(ref, this.#link), late]);
    } finally {
      this.#clock.clearTimeout(timer);
      this.#waiting.delete(ref);
    }
  }

  async #bring(ref, link) {
    const token = await this.#getToken();
    if (!link || link !== this.#link) return; // the next connection takes a token of its own
    link.send({ type: "auth", ref, token });
    await new Promise((resolve, reject) => { this.#waiting.set(ref, { resolve, reject }); });
  }

  answered({ ref, auth_expires_ms: left }) {
    this.#waiting.get(ref)?.resolve();
    this.#waiting.delete(ref);
    this.#begin(left, this.#clock.now());
  }

  /** Says whether the error was the answer to a token. */
  refused(ref, error) {
    this.#waiting.get(ref)?.reject(error);
    return this.#waiting.delete(ref);
  }

  #begin(left, since) {
    this.#ends = left > 0 ? since + Math.min(left, LONGEST) : Infinity;
    this.#schedule();
  }

  #schedule() {
    this.#clock.clearTimeout(this.#timer);
    const link = this.#link;
    const left = this.#ends - this.#clock.now();
    if (!this.#getToken || left === Infinity || left < TOO_LATE) return;
    this.#timer = this.#clock.setTimeout(() => {
      this.refresh().catch((error) => {
        if (link !== this.#link) return;
        this.#report(error);
        this.#schedule();
      });
    }, left * (AT - SPREAD * this.#random()));
  }
}
