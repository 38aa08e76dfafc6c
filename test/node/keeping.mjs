// What client.js keeps, beside what every client does (test/behaviors): rooms, and requests until they are answered.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, rejects, runAll } from "./kit.mjs";

const FIVE_MINUTES = 300_000;

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0, ...options });
  const seen = [];
  client.on("message", (m) => seen.push(m.seq));
  client.on("gap", (g) => seen.push(`${g.reason} ${g.from}-${g.to}`));
  const errors = [];
  client.on("error", (e) => errors.push(e.code));
  const again = async (code = 1012) => {
    Sockets.last.end(code);
    await clock.pass(0);
    Sockets.last.welcome();
    return Sockets.last;
  };
  return { client, clock, Sockets, seen, errors, again };
}

function live(options) {
  const kit = start(options);
  kit.Sockets.last.welcome();
  return { ...kit, socket: kit.Sockets.last };
}

const refuse = (socket, frame, code, more = {}) => socket.say({ type: "error", ref: frame.ref, room: frame.room, code, message: "no", ...more });

export const tests = {
  async "a hole asks again from the last good place"() {
    const { client, socket, seen, errors } = live();
    client.join("r", { after: 0 });
    socket.joined("r", 4);
    for (const seq of [1, 3, 4]) socket.message("r", seq);
    equal([socket.sentOf("join").length, socket.sentOf("join")[1].after], [2, 1], "joins, and after what");
    socket.joined("r", 4);
    for (const seq of [2, 3, 4]) socket.message("r", seq);
    equal([seen, errors], [[1, 2, 3, 4], ["hole"]], "shown, and told");
  },

  async "a room left is quiet, and a late answer to its join is not the new one's"() {
    const { client, socket, seen } = live();
    client.join("r").leave();
    const early = socket.sentOf("join")[0];
    equal(socket.sent.at(-1), { type: "leave", ref: "r2", room: "r" }, "the last frame");
    const room = client.join("r");
    socket.say({ type: "joined", ref: early.ref, room: "r", epoch: "e1", seq: 1, first: 1 });
    socket.message("r", 2);
    equal([room.position, seen], [null, []], "before its own answer");
  },

  async "a room left before it was joined says so, and no error comes of it"() {
    const { client, socket, errors } = live();
    const room = client.join("r");
    const why = room.joined.catch((error) => error.code);
    room.leave();
    equal(await why, "left", "why it was not joined");
    refuse(socket, socket.sentOf("join")[0], "invalid");
    equal(errors, [], "what the service said of the join");
    refuse(socket, { ref: "other" }, "invalid");
    equal(errors, ["invalid"], "what it said of another");
  },

  async "a refused join is told and forgotten, one that will pass is repeated"() {
    const { client, clock, socket, errors } = live();
    const room = client.join("secret");
    refuse(socket, socket.sent[0], "forbidden");
    await rejects(room.joined, "forbidden");
    equal(errors, ["forbidden"], "errors");
    client.join("later");
    refuse(socket, socket.sent[1], "unavailable", { retry_after_ms: 700 });
    await clock.pass(700);
    equal(socket.sentOf("join").length, 3, "joins");
    socket.joined("later", 0);
    equal(client.join("later").position, { seq: 0, epoch: "e1" }, "joined after all");
  },

  async "after five minutes the outcome is unknown, or known to be none"() {
    const { client, clock, socket } = live();
    const sent = client.publish("r", 1);
    const unknown = rejects(sent, "outcome_unknown");
    for (let i = 0; i < 299; i++) {
      socket.say({ type: "heartbeat", at: "" });
      await clock.pass(1_000);
    }
    socket.end(1006);
    await clock.pass(1_000);
    equal((await unknown).outcomeUnknown, true, "outcomeUnknown");

    const other = start();
    const never = rejects(other.client.publish("r", 1), "timeout");
    await other.clock.pass(FIVE_MINUTES);
    equal((await never).outcomeUnknown, false, "of one that never went out");
  },

  async "the order holds when several were under way, and over a new socket"() {
    const { client, clock, socket, again } = live();
    [1, 2].forEach((n) => client.publish("r", n));
    refuse(socket, socket.sent[0], "unavailable");
    refuse(socket, socket.sent[1], "unavailable");
    client.publish("r", 3);
    const next = await again();
    equal(next.sent.map((f) => f.data), [1], "on the new socket, the first alone");
    refuse(next, next.sent[0], "rate_limited", { retry_after_ms: 100 });
    await clock.pass(100);
    next.ack(next.sent[1], 1);
    equal(next.sent.map((f) => f.data), [1, 1, 2, 3], "then the rest");
  },

  async "a frame over max_frame is refused before it is sent"() {
    const { client, Sockets } = start();
    const early = rejects(client.publish("r", "é".repeat(500)), "too_large");
    Sockets.last.welcome({ max_frame: 1_000 });
    await early;
    await rejects(client.publish("r", "é".repeat(500)), "too_large");
    equal(Sockets.last.sent, [], "sent");
  },

  async "1009 drops the publish that must have caused it, and backs off"() {
    const { client, clock, socket, Sockets } = live();
    client.publish("r", "small");
    const large = rejects(client.publish("r", "x".repeat(2_000)), "too_large");
    socket.end(1009);
    await large;
    await clock.pass(0);
    Sockets.last.welcome();
    equal(Sockets.last.sent.map((f) => f.data), ["small"], "sent again");
  },

  async "the outgoing buffer is bounded, and names its bound"() {
    const { client } = start({ maxPending: 2 });
    client.publish("r", 1).catch(() => {});
    client.publish("r", 2).catch(() => {});
    const error = await rejects(client.publish("r", 3), "buffer_full");
    equal(/maxPending\)/.test(error.message), true, error.message);
    const bytes = start({ maxPendingBytes: 500 });
    const over = await rejects(bytes.client.publish("r", "x".repeat(500)), "buffer_full");
    equal(/500 bytes.*maxPendingBytes/.test(over.message), true, over.message);
  },

  async "the same id again is the same publish, or a conflict"() {
    const { client, socket } = live();
    const [a, b] = [client.publish("r", 1, { id: "k" }), client.publish("r", 1, { id: "k" })];
    await rejects(client.publish("r", 2, { id: "k" }), "conflict");
    equal(socket.sent.length, 1, "sent");
    socket.ack(socket.sent[0], 1);
    equal([(await a).seq, (await b).seq], [1, 1], "both are answered");
  },

  async "signals go out only when somebody can hear them now"() {
    const { client, Sockets } = start();
    equal(client.signal("r", 1), false, "before welcome");
    Sockets.last.welcome();
    equal(client.signal("r", { typing: true }), true, "live");
    Sockets.last.bufferedAmount = 8 << 20;
    equal(client.signal("r", 1), false, "with a socket that takes no more");
  },

  async "the end for good rejects what waits"() {
    const { client, socket } = live();
    const room = client.join("r");
    const publish = rejects(client.publish("r", 1), "closed");
    socket.end(1008, "policy");
    equal((await publish).outcomeUnknown, true, "outcomeUnknown");
    await rejects(room.joined, "closed");
  },

  async "a listener that throws stops nothing"() {
    const { client, socket, seen } = live();
    // The error is thrown anew where the page, or Node, is told of it: this one is caught on its way.
    const thrown = [];
    const real = globalThis.queueMicrotask;
    globalThis.queueMicrotask = (callback) => {
      try {
        callback();
      } catch (error) {
        thrown.push(error.message);
      }
    };
    const room = client.join("r", { after: 0 });
    room.on("message", () => { throw new Error("mine"); });
    socket.joined("r", 0);
    socket.message("r", 1);
    globalThis.queueMicrotask = real;
    equal([seen, thrown], [[1], ["mine"]], "seen, and the error is not swallowed");
  },

  async "an origin without randomUUID has ids all the same"() {
    Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true });
    try {
      const { client, socket } = live();
      client.publish("r", 1);
      const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
      equal(uuid.test(socket.sent[0].id), true, socket.sent[0].id);
    } finally {
      delete crypto.randomUUID;
    }
  },
};

export const run = () => runAll(tests);
