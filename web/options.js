// The part of client.js that checks what an application passes to it. Applications import client.js.

const MAX_TIMEOUT = 2 ** 31 - 1; // ms that setTimeout can hold; with more it fires at once

const KINDS = {
  string: [(v) => typeof v === "string", "a string"],
  function: [(v) => typeof v === "function", "a function"],
  object: [(v) => typeof v === "object" && !Array.isArray(v), "an object"],
  class: [(v) => typeof v === "function", "a class"],
  seq: [(v) => Number.isSafeInteger(v) && v >= 0, "an integer, 0 or more"],
  ms: [(v) => typeof v === "number" && v >= 0 && v <= MAX_TIMEOUT, `a number of milliseconds from 0 to ${MAX_TIMEOUT}`],
  limit: [(v) => typeof v === "number" && v > 0, "a number above 0"],
};

/** Returns a value of that kind. Throws a TypeError that names the field if it is of another one. */
export function required(field, kind, value) {
  const [accepts, expected] = KINDS[kind];
  if (!accepts(value)) throw new TypeError(`${field} must be ${expected}, not ${describe(value)}`);
  return value;
}

/** Like required, and undefined for null and undefined. */
export function optional(field, kind, value) { return value == null ? undefined : required(field, kind, value); }

/** Describes a value for a message. Strings may be secrets. */
export function describe(value) {
  if (value === null || typeof value === "number" || typeof value === "boolean") return String(value);
  if (Array.isArray(value)) return "an array";
  return { undefined: "undefined", bigint: "a BigInt", object: "an object" }[typeof value] ?? `a ${typeof value}`;
}

/** Returns the text of what was thrown, which may be anything. */
export function textOf(thrown) {
  const text = typeof thrown === "string" ? thrown : thrown?.message;
  return typeof text === "string" && text ? text : `it has thrown ${describe(thrown)}`;
}

/** Returns what was thrown as an Error. */
function asError(thrown) { return thrown instanceof Error ? thrown : new Error(textOf(thrown), { cause: thrown }); }

/** Returns data as JSON. */
export function encoded(data) {
  const body = JSON.stringify(data);
  if (body === undefined) throw new TypeError("data must be a value that JSON can represent");
  return body;
}

/** Returns an id for a publish: a random UUID. */
export function newID() {
  const { crypto } = globalThis;
  if (crypto?.randomUUID) return crypto.randomUUID();
  // Pages on plain http have no randomUUID, but do have the same source of randomness. React Native and Node 18 have no
  // crypto: an id must be unique, and need not be a secret.
  const bytes = new Uint8Array(16);
  if (crypto?.getRandomValues) crypto.getRandomValues(bytes);
  else bytes.forEach((_, i) => { bytes[i] = Math.random() * 256; });
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  return hex.replace(/(.{8})(.{4})(.{4})(.{4})(.{12})/, "$1-$2-$3-$4-$5");
}

// The clock of the machine. A person or NTP may set the wall clock to any time; the monotonic one may stand still while
// the computer sleeps.
const systemClock = {
  now: () => performance.now(),
  wall: () => Date.now(),
  setTimeout: (f, ms) => setTimeout(f, Math.min(ms, MAX_TIMEOUT)),
  clearTimeout: (t) => clearTimeout(t),
};

function checkedClock(clock) {
  if (!clock) return systemClock;
  for (const method of ["now", "setTimeout", "clearTimeout"]) required(`clock.${method}`, "function", clock[method]);
  if (optional("clock.wall", "function", clock.wall)) return clock;
  return { now: () => clock.now(), wall: () => clock.now(), setTimeout: (f, ms) => clock.setTimeout(f, ms), clearTimeout: (t) => clock.clearTimeout(t) };
}

/** Returns the options of a client with their defaults. */
export function checkedOptions(given) {
  const options = optional("options", "object", given) ?? {};
  const backoff = optional("backoff", "object", options.backoff) ?? {};
  const WebSocket = optional("WebSocket", "class", options.WebSocket) ?? globalThis.WebSocket;
  if (!WebSocket) {
    throw new TypeError("there is no global WebSocket, as in Node before version 22: pass the class of the package ws as the option WebSocket");
  }
  return {
    WebSocket,
    getToken: optional("getToken", "function", options.getToken),
    session: checkedSession(options.session),
    keepSession: optional("keepSession", "string", options.keepSession),
    // A socket of another class may take another way than fetch does.
    fetch: optional("fetch", "function", options.fetch) ?? (WebSocket === globalThis.WebSocket ? globalThis.fetch : undefined),
    backoff: { base: optional("backoff.base", "ms", backoff.base) ?? 500, cap: optional("backoff.cap", "ms", backoff.cap) ?? 20_000 },
    random: optional("random", "function", options.random) ?? Math.random,
    clock: checkedClock(optional("clock", "object", options.clock)),
    maxPending: optional("maxPending", "limit", options.maxPending) ?? 1_000, // requests
    maxPendingBytes: optional("maxPendingBytes", "limit", options.maxPendingBytes) ?? 4 << 20,
    resendFor: optional("resendFor", "ms", options.resendFor),
  };
}

/** Whether a text can be the secret of a session. A handshake cannot carry other ones, and would fail at each attempt. */
export function isSession(text) { return /^[A-Za-z0-9._-]{1,128}$/.test(text); }

function checkedSession(given) {
  const session = optional("session", "string", given) || undefined;
  if (session && !isSession(session)) throw new TypeError("session must be 1 to 128 of A-Z a-z 0-9 . _ -");
  return session;
}

/** Returns the address of the socket. It may be relative to the page, and begin with http. */
export function checkedURL(given) {
  const text = given instanceof URL ? given.href : (optional("url", "string", given) ?? "/ws").trim();
  let address;
  try {
    address = new URL(text, globalThis.location?.href).href;
  } catch {
    throw new TypeError(globalThis.location ? "url is not an address" : "url must be a whole address where there is no page, such as wss://chat.example.com/ws");
  }
  // The class URL of React Native has no parts, and appends a slash: a whole address is taken as it is, without the fragment
  // of a page's address, which the class WebSocket may refuse.
  const isWhole = /^[a-z][a-z0-9+.-]*:\/\//i.test(text);
  const href = (isWhole ? text : address).replace(/^http/i, "ws").replace(/#.*/s, "");
  const [, scheme, host, path] = /^(wss?:\/\/)(?:[^/?]*@)?([^/?]+)([^?]*)/i.exec(href) ?? [];
  if (!host) throw new TypeError(`url must begin with ws:, wss:, http: or https:, not ${address.slice(0, address.indexOf(":") + 1)}`);
  return { href, origin: scheme + host, pathname: path || "/" };
}

/** Returns where a join starts: a position, none, or before the last messages. */
export function checkedStart(given) {
  const { after, epoch, last } = optional("start", "object", given) ?? {};
  const start = { after: optional("after", "seq", after), epoch: optional("epoch", "string", epoch), last: optional("last", "seq", last) };
  if (start.after !== undefined && start.last !== undefined) throw new TypeError("after and last exclude each other");
  if (start.after > 0 && !start.epoch) throw new TypeError(`epoch must be that of the position: after is ${start.after}`);
  return start;
}

/** Returns what getToken returns, and undefined if there is no token. Whatever getToken throws, this throws an Error. */
export async function fetchToken(getToken) {
  try {
    const given = await getToken();
    if (given == null || given === "") return undefined;
    if (typeof given !== "string") throw new TypeError(`getToken must return a string, or nothing, not ${describe(given)}`);
    return given;
  } catch (thrown) {
    throw asError(thrown);
  }
}

/** Returns a token as an entry of a handshake's protocols. */
export function tokenEntry(token) {
  const [sign] = /[^A-Za-z0-9!#$%&'*+.^_`|~-]/u.exec(token) ?? [];
  if (sign !== undefined) {
    throw new TypeError(`the token of getToken has ${JSON.stringify(sign)}, which a handshake of a browser cannot carry: ` +
      `${/^bearer /i.test(token) ? "it must be without Bearer" : "only letters, digits and !#$%&'*+-.^_`|~"}`);
  }
  return `bearer.${token}`;
}

/**
 * Opens a socket. Throws an Error whatever its class throws, and without its text if that has one of the protocols after the
 * first: they are secrets.
 */
export function newSocket(WebSocket, url, protocols) {
  try {
    return new WebSocket(url, protocols);
  } catch (thrown) {
    const error = asError(thrown);
    const hasSecret = protocols.slice(1).some((entry) => error.message.includes(entry.slice(entry.indexOf(".") + 1)));
    throw hasSecret ? new TypeError("the class WebSocket refuses the token or the session") : error;
  }
}
