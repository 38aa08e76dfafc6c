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
      "returns a number": () => 5,
      "returns an object": async () => ({ token: "t" }),
      "returns a boolean": () => false,
      "returns what a handshake cannot carry": () => "with space",
      "returns a line": () => "token\n",
    };
    for (const [name, fail] of Object.entries(failures)) {
      let getToken = fail;
      const { client, clock, errors, Sockets } = start({ getToken: () => getToken() });
      await settlePromises();
      equal([errors.map((e) => e.split(":")[0]), Sockets.all.length, client.state.name], [["connect_failed"], 0, "waiting"], name);
      getToken = () => "t";
      await clock.advance(500);
      equal(Sockets.last?.protocols, ["switchyard.v1", "bearer.t"], `${name}: the protocols after that`);
      client.close();
    }
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
  },
};

export const run = () => runAll(tests);
