// The part of client.js that asks whether the service is there. Applications import client.js.

const ANSWER_TIMEOUT = 3_000; // ms
const FILE = "icon.svg"; // the smallest that the service has beside its socket
const TRY_EVERY = 64; // questions without an answer in a row, after which a socket is opened all the same

// The addresses of FILE that the Content-Security-Policy of this page keeps from fetch.
const forbidden = new Set();
globalThis.addEventListener?.("securitypolicyviolation", ({ blockedURI }) => { if (blockedURI.endsWith(`/${FILE}`)) forbidden.add(blockedURI); });

// A failed WebSocket costs more than an unanswered fetch: Firefox holds each later one to the same address back, of any
// tab, for up to a minute. So a client whose sockets have failed asks before it opens another one.
export class Reachability {
  #url; #fetch; #clock; #unanswered = 0;

  /** url is that of the socket. Without a fetch there is never an answer, and nothing to wait for. */
  constructor(url, fetch, clock) {
    this.#url = new URL(FILE, url.href.replace(/^ws/, "http")).href;
    this.#fetch = fetch;
    this.#clock = clock;
  }

  get #canAsk() { return Boolean(this.#fetch) && !forbidden.has(this.#url); }

  /** Asks, and returns whether a socket should be opened: after an answer, and now and then without one. */
  async shouldOpen() {
    if (!this.#canAsk) return true;
    if (await this.answers()) {
      this.#unanswered = 0;
      return true;
    }
    this.#unanswered += 1;
    return this.#unanswered % TRY_EVERY === 0;
  }

  /** Asks, and returns whether the service has answered in time. A proxy answers 5xx for one that is away. */
  async answers() {
    if (!this.#canAsk) return false;
    const abort = new AbortController();
    const timer = this.#clock.setTimeout(() => abort.abort(), ANSWER_TIMEOUT);
    try {
      const { status, body } = await this.#fetch.call(globalThis, this.#url, { cache: "no-store", credentials: "omit", redirect: "manual", signal: abort.signal });
      body?.cancel().catch(() => {});
      return status < 500;
    } catch {
      return false;
    } finally {
      this.#clock.clearTimeout(timer);
    }
  }

  /** A socket was welcomed. If the last question had no answer, something else keeps it from this page: it asks no more. */
  welcomed() { if (this.#unanswered > 0) this.#fetch = undefined; }
}
