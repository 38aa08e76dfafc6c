// Rooms and pending requests of client.js, in addition to what every client does (test/behaviors).

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, rejects, runAll } from "./fakes.mjs";

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
  const reconnect = async (code = 1012) => {
    Sockets.last.closeWith(code);
    await clock.advance(0);
    Sockets.last.welcome();
    return Sockets.last;
  };
  return { client, clock, Sockets, seen, errors, reconnect };
}

function startLive(options) {
  const env = start(options);
  env.Sockets.last.welcome();
  return { ...env, socket: env.Sockets.last };
}

const refuse = (socket, frame, code, more = {}) => socket.receive({ type: "error", ref: frame.ref, room: frame.room, code, message: "no", ...more });

// A service with the default rate of publishes, 20 ms away. It refuses what follows a refused publish, and closes after a
// thousand refusals without a pause of a second.
function limitedSockets(clock, tells) {
  const service = { stored: [], refusals: 0, due: 0, closes: 0 };
  let [refusedAt, inARow] = [-Infinity, 0];
  const [cost, burst] = [5, 400]; // ms of a publish, and how many at once
  const refusedRooms = new Set();
  service.Sockets = class extends fakeSockets() {
    send(text) { clock.setTimeout(() => this.#handle(JSON.parse(text)), 10); }

    #handle({ ref, room, id, follows, data }) {
      const due = Math.max(service.due, clock.now()) + cost;
      const wait = due - clock.now() - burst * cost;
      const refused = wait > 0 || (follows && refusedRooms.has(room));
      if (refused) {
        service.refusals += 1;
        refusedRooms.add(room);
        inARow = clock.now() - refusedAt < 1_000 ? inARow + 1 : 1;
        refusedAt = clock.now();
        if (inARow > 1_000) {
          service.closes += 1;
          return this.closeWith(4129);
        }
      } else {
        service.due = due;
        service.stored.push(data);
        refusedRooms.delete(room);
      }
      const answer = refused
        ? { type: "error", ref, room, code: "rate_limited", message: "no", retry_after_ms: Math.max(1, Math.ceil(wait)) }
        : { type: "ack", ref, room, id, epoch: "e1", seq: service.stored.length };
      return clock.setTimeout(() => this.receive(answer), 10);
    }
  };
  service.limits = tells ? { publish: { per_second: 200, burst: 400, left: 400 } } : undefined;
  return service;
}

// Publishes so many messages at once and checks that they are stored in the order of the calls, in the time that the
// limit allows.
async function publishAtOnce(publishes, tells) {
  const clock = new FakeClock();
  const service = limitedSockets(clock, tells);
  const client = Switchyard.connect("ws://host/ws", { WebSocket: service.Sockets, clock, random: () => 0, maxPending: publishes });
  service.Sockets.last.welcome({ heartbeat_ms: 600_000, limits: service.limits });
  let took = 0;
  const all = Promise.all(Array.from({ length: publishes }, (_, n) => client.publish("r", n))).then(() => { took = clock.now(); });
  const allowed = (publishes - 400) * 5;
  for (let i = 0; i < 130 && !took; i++) await clock.advance(allowed / 100);
  equal(took > allowed * 0.8 && took < allowed * 1.2, true, `all are stored after ${took} ms, the limit allows ${allowed}`);
  await all;
  equal(service.stored, Array.from({ length: publishes }, (_, n) => n), "stored");
  equal(service.closes, 0, "closes with 4129");
  client.close();
  return service.refusals;
}

export const tests = {
  async "publishes at once are stored in order, in the time that the limit allows, and none is refused"() {
    equal(await publishAtOnce(5_000, true), 0, "refusals");
  },

  async "a service that tells no limits does not close the client for its refusals"() {
    const refusals = await publishAtOnce(2_000, false);
    equal(refusals < 1_000, true, `${refusals} refusals`);
  },

  async "missing messages are requested again from the last position"() {
    const { client, socket, seen, errors } = startLive();
    client.join("r", { after: 0 });
    socket.joined("r", 4);
    for (const seq of [1, 3, 4]) socket.message("r", seq);
    equal([socket.sentOf("join").length, socket.sentOf("join")[1].after], [2, 1], "joins, and after which seq");
    socket.joined("r", 4);
    for (const seq of [2, 3, 4]) socket.message("r", seq);
    equal([seen, errors], [[1, 2, 3, 4], ["hole"]], "messages and errors");
  },

  async "a room that was left delivers nothing, and a late answer to its join does not count for a new join"() {
    const { client, socket, seen } = startLive();
    client.join("r").leave();
    const early = socket.sentOf("join")[0];
    equal(socket.sent.at(-1), { type: "leave", ref: "r2", room: "r" }, "the last frame");
    const room = client.join("r");
    socket.receive({ type: "joined", ref: early.ref, room: "r", epoch: "e1", seq: 1, first: 1 });
    socket.message("r", 2);
    equal([room.position, seen], [null, []], "before the new join's answer");
  },

  async "leaving before the join's answer rejects the join, and emits no error"() {
    const { client, socket, errors } = startLive();
    const room = client.join("r");
    const code = room.joined.catch((error) => error.code);
    room.leave();
    equal(await code, "left", "the code of the rejection");
    refuse(socket, socket.sentOf("join")[0], "invalid");
    equal(errors, [], "errors after a refusal of the join");
    refuse(socket, { ref: "other" }, "invalid");
    equal(errors, ["invalid"], "errors after a refusal of another request");
  },

  async "a refused join is reported and not repeated, one that is refused for now is repeated"() {
    const { client, clock, socket, errors } = startLive();
    const room = client.join("secret");
    refuse(socket, socket.sent[0], "forbidden");
    await rejects(room.joined, "forbidden");
    equal(errors, ["forbidden"], "errors");
    const later = client.join("later");
    refuse(socket, socket.sent[1], "unavailable", { retry_after_ms: 700 });
    await clock.advance(700);
    equal(socket.sentOf("join").length, 3, "joins");
    socket.joined("later", 0);
    equal(later.position, { seq: 0, epoch: "e1" }, "the position after the repeated join");
  },

  async "after five minutes the outcome of a sent publish is unknown, and that of an unsent one is known"() {
    const { client, clock, socket } = startLive();
    const sent = client.publish("r", 1);
    const unknown = rejects(sent, "outcome_unknown");
    for (let i = 0; i < 299; i++) {
      socket.receive({ type: "heartbeat", at: "" });
      await clock.advance(1_000);
    }
    socket.closeWith(1006);
    await clock.advance(1_000);
    equal((await unknown).outcomeUnknown, true, "outcomeUnknown");

    const other = start();
    const never = rejects(other.client.publish("r", 1), "timeout");
    await other.clock.advance(FIVE_MINUTES);
    equal((await never).outcomeUnknown, false, "outcomeUnknown of a publish that was never sent");
  },

  async "the order holds after several refusals, and on a new socket"() {
    const { client, clock, socket, reconnect } = startLive();
    [1, 2].forEach((n) => client.publish("r", n));
    refuse(socket, socket.sent[0], "unavailable");
    refuse(socket, socket.sent[1], "unavailable");
    client.publish("r", 3);
    const next = await reconnect();
    equal(next.sent.map((f) => f.data), [1], "sent on the new socket at first");
    refuse(next, next.sent[0], "rate_limited", { retry_after_ms: 100 });
    await clock.advance(100);
    next.ack(next.sent[1], 1);
    equal(next.sent.map((f) => f.data), [1, 1, 2, 3], "sent after the first was acked");
  },

  async "a frame over max_frame is refused before it is sent"() {
    const { client, Sockets } = start();
    const early = rejects(client.publish("r", "é".repeat(500)), "too_large");
    Sockets.last.welcome({ max_frame: 1_000 });
    await early;
    await rejects(client.publish("r", "é".repeat(500)), "too_large");
    equal(Sockets.last.sent, [], "sent");
  },

  async "1009 rejects the publish that must have caused it, and backs off"() {
    const { client, clock, socket, Sockets } = startLive();
    client.publish("r", "small");
    const large = rejects(client.publish("r", "x".repeat(2_000)), "too_large");
    socket.closeWith(1009);
    await large;
    await clock.advance(0);
    Sockets.last.welcome();
    equal(Sockets.last.sent.map((f) => f.data), ["small"], "resent");
  },

  async "pending requests are bounded, and the error names the bound"() {
    const { client } = start({ maxPending: 2 });
    client.publish("r", 1).catch(() => {});
    client.publish("r", 2).catch(() => {});
    const error = await rejects(client.publish("r", 3), "buffer_full");
    equal(/maxPending\)/.test(error.message), true, error.message);
    const bytes = start({ maxPendingBytes: 500 });
    const over = await rejects(bytes.client.publish("r", "x".repeat(500)), "buffer_full");
    equal(/500 bytes.*maxPendingBytes/.test(over.message), true, over.message);
  },

  async "a publish with a pending id is the same publish, or a conflict"() {
    const { client, socket } = startLive();
    const [a, b] = [client.publish("r", 1, { id: "k" }), client.publish("r", 1, { id: "k" })];
    await rejects(client.publish("r", 2, { id: "k" }), "conflict");
    equal(socket.sent.length, 1, "sent");
    socket.ack(socket.sent[0], 1);
    equal([(await a).seq, (await b).seq], [1, 1], "the seqs of both acks");
  },

  async "signals are sent only while connected"() {
    const { client, Sockets } = start();
    equal(client.signal("r", 1), false, "before the welcome");
    Sockets.last.welcome();
    equal(client.signal("r", { typing: true }), true, "live");
    Sockets.last.bufferedAmount = 8 << 20;
    equal(client.signal("r", 1), false, "while the socket's buffer is full");
  },

  async "a final close rejects pending requests"() {
    const { client, socket } = startLive();
    const room = client.join("r");
    const publish = rejects(client.publish("r", 1), "closed");
    socket.closeWith(1008, "policy");
    equal((await publish).outcomeUnknown, true, "outcomeUnknown");
    await rejects(room.joined, "closed");
  },

  async "an origin without randomUUID gets random ids, too"() {
    Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true });
    try {
      const { client, socket } = startLive();
      client.publish("r", 1);
      const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
      equal(uuid.test(socket.sent[0].id), true, socket.sent[0].id);
    } finally {
      delete crypto.randomUUID;
    }
  },

  async "without a crypto, as in React Native, each publish has a random id all the same"() {
    const real = Object.getOwnPropertyDescriptor(globalThis, "crypto");
    for (const crypto of [undefined, null, {}]) {
      Object.defineProperty(globalThis, "crypto", { value: crypto, configurable: true });
      try {
        const { client, socket } = startLive();
        for (let n = 0; n < 100; n++) client.publish("r", n);
        const ids = new Set(socket.sentOf("publish").map(({ id }) => id));
        const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
        equal([ids.size, [...ids].filter((id) => !uuid.test(id))], [100, []], "ids, and those that are no UUIDs");
      } finally {
        if (real) Object.defineProperty(globalThis, "crypto", real);
        else delete globalThis.crypto; // Firefox has it on the prototype of window
      }
    }
  },

  async "a number above 2^53 is rounded as JavaScript rounds it, and its digits in a text are kept"() {
    const { client, socket } = startLive();
    const got = [];
    client.join("r", { after: 0 }).on("message", ({ data }) => got.push(data));
    socket.joined("r", 0);
    socket.receiveText('{"type":"message","room":"r","epoch":"e1","seq":1,"id":"i","from":null,"at":"","data":[9007199254740993,"9007199254740993"]}');
    equal(got, [[9007199254740992, "9007199254740993"]], "data");
  },
};

export const run = () => runAll(tests);
