// What an application passes to client.js: null counts as absent, and what is wrong is refused by name.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll, settlePromises } from "./fakes.mjs";

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, ...options });
  const errors = [];
  client.on("error", (error) => errors.push(`${error.code}: ${error.message}`));
  return { client, clock, Sockets, errors, get socket() { return Sockets.last; } };
}

function startLive(options) {
  const env = start(options);
  env.socket.welcome();
  return env;
}

// Checks that a call is refused with a TypeError whose text has the words.
async function refuses(call, ...words) {
  try {
    await call();
  } catch (error) {
    equal([error.name, words.filter((word) => !error.message.includes(word))], ["TypeError", []], `the error ${error.message}, and the words that it lacks`);
    return;
  }
  throw new Error(`nothing was refused, want an error with ${words}`);
}

const WRONG_OPTIONS = {
  getToken: ["token", 5, {}],
  session: [5, {}, "with space", "x".repeat(129)],
  WebSocket: [{}, "WebSocket", 1],
  backoff: [500, "500", []],
  "backoff.base": ["500", -1, NaN, Infinity],
  "backoff.cap": ["20", -1, NaN, 2 ** 31],
  random: [0.5, "random"],
  clock: [Date.now, 5],
  "clock.now": [5],
  "clock.wall": [5],
  "clock.setTimeout": [null, "f"],
  "clock.clearTimeout": [undefined],
  maxPending: ["10", 0, -1, NaN],
  maxPendingBytes: ["10", 0, -1, {}],
  resendFor: ["10", -1, NaN, Infinity, 2 ** 31],
};

export const tests = {
  async "each option of a wrong type or out of bounds is refused by its name"() {
    for (const [name, values] of Object.entries(WRONG_OPTIONS)) {
      for (const value of values) {
        const [outer, inner] = name.split(".");
        const clock = new FakeClock();
        const whole = { now: () => clock.now(), setTimeout: () => 0, clearTimeout: () => {} };
        const options = { WebSocket: fakeSockets(), [outer]: inner ? { ...(outer === "clock" && whole), [inner]: value } : value };
        await refuses(() => Switchyard.connect("ws://host/ws", options), name);
      }
    }
    for (const options of [5, "options", []]) await refuses(() => Switchyard.connect("ws://host/ws", options), "options");
    for (const url of [5, {}, "ftp://host/ws", "ws://"]) await refuses(() => Switchyard.connect(url, { WebSocket: fakeSockets() }), "url");
  },

  async "an option that is null is as one that is absent"() {
    const nothing = Object.fromEntries(Object.keys(WRONG_OPTIONS).map((name) => [name.split(".")[0], null]));
    const Sockets = fakeSockets();
    const client = Switchyard.connect(null, { ...nothing, WebSocket: Sockets, backoff: { base: null } });
    equal([Sockets.last.url, Sockets.last.protocols], [`ws://${location.host}/ws`, ["switchyard.v1"]], "the address and the protocols");
    client.close();
  },

  async "without a WebSocket, connect says what is missing"() {
    const { WebSocket } = globalThis;
    globalThis.WebSocket = undefined;
    try {
      await refuses(() => Switchyard.connect("ws://host/ws"), "WebSocket", "ws");
      await refuses(() => Switchyard.connect("ws://host/ws", { WebSocket: null }), "WebSocket", "ws");
    } finally {
      globalThis.WebSocket = WebSocket;
    }
  },

  async "a fragment of the address is not sent"() {
    const Sockets = fakeSockets();
    Switchyard.connect("ws://host/ws#top", { WebSocket: Sockets, clock: new FakeClock() });
    equal(Sockets.last.url, "ws://host/ws", "the address");
  },

  async "a join from null is one from now, and delivers"() {
    const { client, socket } = startLive();
    for (const from of [null, undefined, {}, { after: null, epoch: null, last: null }]) {
      const got = [];
      const room = client.join("r", from);
      room.on("message", ({ seq }) => got.push(seq));
      equal("after" in socket.sentOf("join").at(-1), false, "the join has a position");
      socket.joined("r", 4);
      socket.message("r", 5);
      equal([got, socket.closed], [[5], false], "the messages, and whether the socket is closed");
      room.leave();
    }
  },

  async "a join from nowhere is refused by the name of the field"() {
    const { client, socket } = startLive();
    for (const after of ["5", -1, 1.5, NaN, Infinity, true, {}, 2n, 2 ** 53]) await refuses(() => client.join("r", { after, epoch: "e" }), "after");
    for (const epoch of [5, {}, true]) await refuses(() => client.join("r", { after: 1, epoch }), "epoch");
    for (const last of ["5", -1, 1.5, NaN, {}]) await refuses(() => client.join("r", { last }), "last");
    await refuses(() => client.join("r", { after: 5 }), "epoch");
    await refuses(() => client.join("r", { after: 5, epoch: "e", last: 5 }), "after", "last");
    for (const from of [5, "5", []]) await refuses(() => client.join("r", from), "start");
    for (const name of [undefined, null, 5, {}]) await refuses(() => client.join(name), "room");
    equal(socket.sent, [], "sent");
  },

  async "each other argument of a wrong type is refused by its name"() {
    const { client, socket } = startLive();
    const room = client.join("r");
    socket.sent.length = 0;
    const circle = {};
    circle.circle = circle;
    for (const name of [undefined, null, 5]) {
      for (const call of ["leave", "publish", "signal", "history", "presence"]) await refuses(() => client[call](name, 1), "room");
    }
    for (const id of [5, {}, true]) await refuses(() => room.publish(1, { id }), "id");
    await refuses(() => room.publish(1, "id"), "options");
    for (const data of [undefined, () => {}, Symbol("s")]) {
      await refuses(() => room.publish(data), "data");
      await refuses(() => room.signal(data), "data");
    }
    await refuses(() => room.publish(5n));
    await refuses(() => room.signal(circle));
    for (const field of ["before", "after", "limit"]) {
      for (const value of ["5", -1, 1.5, NaN, {}]) await refuses(() => room.history({ [field]: value }), field);
    }
    await refuses(() => room.history(5), "range");
    for (const on of [client, room]) {
      await refuses(() => on.on("message"), "listener");
      await refuses(() => on.on("message", {}), "listener");
      await refuses(() => on.on(5, () => {}), "event");
    }
    equal(socket.sent, [], "sent");
  },

  async "null stands for an absent id and range"() {
    const { client, socket } = startLive();
    client.publish("r", null, { id: null }).catch(() => {});
    client.publish("r", null, null).catch(() => {});
    client.history("r", null).catch(() => {});
    client.history("r", { before: null, after: null, limit: null }).catch(() => {});
    const ids = socket.sentOf("publish").map(({ id }) => typeof id);
    equal([ids, socket.sentOf("history").map((f) => Object.keys(f).length)], [["string", "string"], [3, 3]], "ids, and the fields of the requests");
  },

  async "a getToken that fails in any way is told, and asked again"() {
    const failures = {
      "throws": () => { throw new Error("boom"); },
      "throws a string": () => { throw "boom"; }, // eslint-disable-line no-throw-literal
      "rejects": () => Promise.reject(new Error("boom")),
      "rejects with nothing": () => Promise.reject(), // eslint-disable-line prefer-promise-reject-errors
      "rejects with null": () => Promise.reject(null), // eslint-disable-line prefer-promise-reject-errors
      "rejects with an empty text": () => Promise.reject(""), // eslint-disable-line prefer-promise-reject-errors
      "throws zero": () => { throw 0; }, // eslint-disable-line no-throw-literal
      "throws a symbol": () => { throw Symbol("boom"); }, // eslint-disable-line no-throw-literal
      "throws an object without a text": () => { throw Object.create(null); },
      "throws an object whose message is one": () => { throw { message: {} }; }, // eslint-disable-line no-throw-literal
      "is a thenable that rejects": () => ({ then: (_, reject) => reject() }),
      "is a thenable that throws": () => ({ then: () => { throw null; } }), // eslint-disable-line no-throw-literal
      "returns a number": () => 5,
      "returns an object": async () => ({ token: "t" }),
      "returns a boolean": () => false,
      "returns what a handshake cannot carry": () => "with space",
      "returns a line": () => "token\n",
    };
    for (const [name, fail] of Object.entries(failures)) {
      let getToken = fail;
      const { client, clock, errors, Sockets } = start({ getToken: () => getToken() });
      const causes = [];
      client.on("error", ({ cause }) => causes.push(cause instanceof Error && cause.message !== ""));
      await settlePromises();
      equal(causes, [true], `${name}: whether the cause is an error with a text`);
      equal([errors.map((e) => e.split(":")[0]), Sockets.all.length, client.state.name], [["connect_failed"], 0, "waiting"], name);
      getToken = () => "t";
      await clock.advance(500);
      equal(Sockets.last?.protocols, ["switchyard.v1", "bearer.t"], `${name}: the protocols after that`);
      client.close();
    }
  },

  async "a getToken that fails ten times is asked again until it works"() {
    let calls = 0;
    const { client, clock, errors, Sockets } = start({ getToken: async () => { if (++calls <= 10) throw new Error("no net"); return "t"; } });
    await settlePromises();
    for (let i = 0; i < 10; i++) await clock.advance(Math.min(20_000, 500 * 2 ** i) / 2);
    equal([calls, errors.length, Sockets.last?.protocols], [11, 10, ["switchyard.v1", "bearer.t"]], "calls, errors and the protocols of the socket");
    client.close();
  },

  async "a token that a handshake cannot carry is told by what is wrong, and never by its value"() {
    const secret = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0";
    const wrong = { [`Bearer ${secret}`]: "Bearer", [`${secret}==`]: '"="', [`${secret}\n`]: '"\\n"', [`é${secret}`]: '"é"', [`${secret}/😀`]: '"/"' };
    for (const [token, word] of Object.entries(wrong)) {
      const { client, clock, Sockets } = start({ getToken: () => token });
      const told = [];
      client.on("error", (error) => told.push(error.message, error.stack, String(error.cause?.stack)));
      await settlePromises();
      await clock.advance(60_000);
      equal([told.length > 3, told[0].includes(word), Sockets.all.length], [true, true, 0], `told ${told[0]}; sockets`);
      equal(told.filter((text) => text.includes(secret)), [], "texts with the token");
      client.close();
    }
  },

  async "what the class WebSocket throws is told without the token and the session in it"() {
    for (const kind of ["Error", "text"]) {
      const told = [];
      const WebSocket = class {
        constructor(url, protocols) {
          const text = `invalid or duplicated: ${protocols}`;
          throw kind === "text" ? text : new SyntaxError(text);
        }
      };
      const { client } = start({ WebSocket, getToken: () => "eyJ.token", session: "abc.secret" });
      client.on("error", (error) => told.push(error.message, error.stack, String(error.cause?.stack), String(error.cause?.cause)));
      await settlePromises();
      equal([told.length, told.filter((text) => /eyJ|abc/.test(text))], [4, []], "told, and texts with a secret");
      client.close();
    }
  },

  async "an address needs no part of the class URL that React Native lacks"() {
    const real = globalThis.URL;
    const lacks = () => { throw new Error("URL: not implemented"); };
    globalThis.URL = class { // as in React Native, with the slash that it appends
      constructor(text) { this.text = text; }
      get href() { return this.text.endsWith("/") ? this.text : `${this.text}/`; }
      get protocol() { return lacks(); }
      get host() { return lacks(); }
      get origin() { return lacks(); }
      get pathname() { return lacks(); }
      get hash() { return lacks(); }
    };
    try {
      const { client, clock, errors, Sockets } = start();
      for (let i = 0; i < 2; i++) {
        Sockets.last.closeWith(1006);
        await clock.advance(20_000);
      }
      equal([Sockets.last.url, errors.length, errors[0].includes("http://host/no-connection.html")], ["ws://host/ws", 1, true], "address and errors");
      client.close();
    } finally {
      globalThis.URL = real;
    }
  },

  async "an address is taken as it is, but for its scheme and its fragment"() {
    const wanted = {
      "https://host/ws?a=b#top": "wss://host/ws?a=b", "HTTP://host:1/chat/ws": "ws://host:1/chat/ws", " wss://host/ws ": "wss://host/ws",
      "ws://[::1]:8000/ws": "ws://[::1]:8000/ws", "wss://host": "wss://host", "ws?x=y": `ws://${location.host}/ws?x=y`, "//other/ws": "ws://other/ws",
    };
    for (const [url, want] of Object.entries(wanted)) {
      const Sockets = fakeSockets();
      Switchyard.connect(url, { WebSocket: Sockets, clock: new FakeClock() }).close();
      equal(Sockets.last.url, want, url);
    }
    const whole = new URL("https://host/ws#top");
    const Sockets = fakeSockets();
    Switchyard.connect(whole, { WebSocket: Sockets, clock: new FakeClock() }).close();
    equal([Sockets.last.url, whole.href], ["wss://host/ws", "https://host/ws#top"], "of a URL, which stays as it is");
  },

  async "the user and password of an address are in no error"() {
    const Sockets = fakeSockets();
    const clock = new FakeClock();
    const client = Switchyard.connect("ws://ada:pass@host/chat/ws?key=secret", { WebSocket: Sockets, clock, random: () => 0.5 });
    const errors = [];
    client.on("error", ({ message }) => errors.push(message));
    for (let i = 0; i < 2; i++) {
      Sockets.last.closeWith(1006);
      await clock.advance(20_000);
    }
    const words = ["ada", "pass@", "key=", "secret"];
    equal([errors.length, errors[0].includes("http://host/chat/no-connection.html"), words.filter((w) => errors[0].includes(w))], [1, true, []], errors[0]);
    client.close();
  },

  async "a getToken that does not return is told after half a minute"() {
    const { client, clock, errors, Sockets } = start({ getToken: () => new Promise(() => {}) });
    await clock.advance(30_000);
    equal([errors.map((e) => e.split(":")[0]), Sockets.all.length, client.state.name], [["connect_failed"], 0, "waiting"], "errors, sockets and state");
  },

  async "without a token none is offered, and what the service says to that is told"() {
    for (const none of [null, undefined, ""]) {
      const { client, clock, errors, socket, Sockets } = start({ getToken: async () => none });
      await settlePromises();
      equal(Sockets.last.protocols, ["switchyard.v1"], `${none}: protocols`);
      Sockets.last.closeWith(4001, "unauthorized");
      equal([errors.map((e) => e.split(":")[0]), client.state.name], [["unauthorized"], "waiting"], "errors and state");
      await clock.advance(500);
      Sockets.last.welcome();
      equal(client.state.name, "live", "the state where nobody needs a token");
      client.close();
      equal(socket, undefined, "sockets before the token");
    }
  },

  async "a token that the service refuses is told"() {
    const { errors, Sockets } = start({ getToken: () => "old" });
    await settlePromises();
    Sockets.last.closeWith(4001, "unauthorized");
    equal(errors.map((e) => e.split(":")[0]), ["unauthorized"], "errors");
  },

  async "a refresh that fails with anything leaves the client live"() {
    let getToken = () => "t";
    const { client, clock, errors, Sockets } = start({ getToken: () => getToken() });
    await settlePromises();
    Sockets.last.welcome({ auth_expires_ms: 100_000, heartbeat_ms: 100_000 });
    getToken = () => Promise.reject(); // eslint-disable-line prefer-promise-reject-errors
    await clock.advance(80_000);
    equal([errors.length > 0, client.state.name, Sockets.last.sentOf("auth")], [true, "live", []], "told, state and sent");
    for (const wrong of [undefined, null, 0, "text", Object.create(null)]) {
      getToken = () => Promise.reject(wrong); // eslint-disable-line prefer-promise-reject-errors
      const thrown = await client.refreshToken().then(() => "nothing", (error) => error);
      equal([thrown instanceof Error, thrown.message !== ""], [true, true], "whether a refresh rejects with an error that has a text");
    }
  },
};

export const run = () => runAll(tests);
