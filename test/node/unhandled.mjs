// What an application leaves unhandled, a listener that throws and a call that nobody awaits, does not end its process, and
// is told.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, rejects, runAll, settlePromises } from "./fakes.mjs";

function startLive(options = {}) {
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock: new FakeClock(), random: () => 0, ...options });
  Sockets.last.welcome();
  const errors = [];
  const stop = client.on("error", (error) => errors.push(error));
  return { client, errors, stop, socket: Sockets.last };
}

// Returns what is reported as uncaught meanwhile: in browsers as an error of a microtask, elsewhere on the console.
async function uncaughtDuring(run) {
  const uncaught = [];
  const { queueMicrotask, console: { error: print } } = globalThis;
  globalThis.queueMicrotask = (callback) => {
    try {
      callback();
    } catch (error) {
      uncaught.push(error);
    }
  };
  console.error = (error) => uncaught.push(error);
  try {
    await run();
    await settlePromises();
  } finally {
    globalThis.queueMicrotask = queueMicrotask;
    console.error = print;
  }
  return uncaught;
}

const LISTENERS = {
  "throws": () => { throw new Error("mine"); },
  "rejects": async () => { throw new Error("mine"); },
  "is a thenable that rejects": () => ({ then: (_, reject) => reject(new Error("mine")) }),
  "throws nothing": () => { throw undefined; }, // eslint-disable-line no-throw-literal
  "rejects with a text": () => Promise.reject("mine"), // eslint-disable-line prefer-promise-reject-errors
};

const codes = (errors) => errors.map(({ code }) => code);

export const tests = {};

for (const [name, listener] of Object.entries(LISTENERS)) {
  tests[`a listener that ${name} stops neither the others nor the client, and is told`] = async () => {
    const { client, socket, errors } = startLive();
    const seen = [];
    const uncaught = await uncaughtDuring(() => {
      const room = client.join("r", { after: 0 });
      room.on("message", listener);
      room.on("message", ({ seq }) => seen.push(seq));
      client.on("message", listener);
      socket.joined("r", 0);
      [1, 2].forEach((seq) => socket.message("r", seq));
    });
    equal([seen, socket.closed, uncaught.length], [[1, 2], false, 4], "messages, closed, and how many are reported as uncaught");
    equal([codes(errors), errors.every(({ cause }, i) => cause === uncaught[i])], [Array(4).fill("listener_failed"), true], "errors, and their causes");
    client.close();
  };
}

tests["a listener of errors that throws is reported, and not told to itself"] = async () => {
  const { client, errors } = startLive();
  client.on("error", () => { throw new Error("at once"); });
  client.on("error", async () => { throw new Error("later"); });
  client.on("state", () => { throw new Error("state"); });
  const uncaught = await uncaughtDuring(() => client.close());
  equal([uncaught.map(({ message }) => message).sort(), codes(errors)], [["at once", "later", "state"], ["listener_failed"]], "uncaught, and errors");
};

// A call of each kind that fails, and the code of its error.
const CALLS = {
  closed: (client) => { client.publish("r", 1); client.close(); },
  buffer_full: (client) => [1, 2, 3].forEach((n) => client.publish("r", n)),
  too_large: (client) => client.publish("r", "x".repeat(70_000)),
  conflict: (client) => [1, 2].forEach((n) => client.publish("r", n, { id: "k" })),
  unauthorized: (client) => client.refreshToken(),
  forbidden: (client, socket) => {
    client.history("r");
    socket.receive({ type: "error", ref: socket.sentOf("history")[0].ref, code: "forbidden", message: "no" });
  },
  internal: (client, socket) => {
    client.presence("r");
    socket.receive({ type: "error", ref: socket.sentOf("presence")[0].ref, code: "internal", message: "no" });
  },
  undefined: (client) => client.publish("r"), // an error of another class
};

for (const [code, call] of Object.entries(CALLS)) {
  tests[`a call that nobody awaits is told when it fails: ${code}`] = async () => {
    const { client, errors, stop, socket } = startLive({ maxPending: 2 });
    const uncaught = await uncaughtDuring(() => { call(client, socket); });
    equal([errors.map((error) => String(error.code)), uncaught], [[code], []], "errors, and uncaught");
    client.close();
    await settlePromises();
    stop();

    const silent = startLive({ maxPending: 2 });
    silent.stop();
    const reported = await uncaughtDuring(() => { call(silent.client, silent.socket); });
    equal(reported.map((error) => String(error.code)), [code], "uncaught when nobody listens for errors");
    await uncaughtDuring(() => silent.client.close());
  };
}

tests["a call that somebody awaits is told to nobody else"] = async () => {
  const { client, errors } = startLive();
  const [awaited, caught, all, settled] = [1, 2, 3, 4].map((n) => client.publish("r", n));
  const results = [rejects(awaited, "closed"), caught.catch(({ code }) => code), Promise.allSettled([settled]), rejects(Promise.all([all]), "closed")];
  client.close();
  await Promise.all(results);
  await settlePromises();
  equal([errors, awaited instanceof Promise], [[], true], "errors");
};

export const run = () => runAll(tests);
