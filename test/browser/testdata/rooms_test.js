// What the client keeps: positions in rooms, and publishes until they are answered.

import { Switchyard } from "/client.js";
import { FakeClock, equal, fakeSockets, rejects, runAll, settled } from "./kit.js";

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

const tests = {
  async "a room resumes after the last seq it saw, and shows nothing twice"() {
    const { client, socket, seen, again } = live();
    const room = client.join("r", { after: 0 });
    equal(socket.sent[0].after, 0, "first join");
    socket.joined("r", 3);
    for (const seq of [1, 2, 2, 1, 3]) socket.message("r", seq);
    const next = await again();
    const [join] = next.sentOf("join");
    equal([join.after, join.epoch], [3, "e1"], "the join on the new socket");
    next.joined("r", 4);
    for (const seq of [3, 4]) next.message("r", seq);
    equal(seen, [1, 2, 3, 4], "messages");
    equal(room.position, { seq: 4, epoch: "e1" }, "position");
  },

  async "a room joined from now resumes at its head although nothing came"() {
    const { client, socket, again } = live();
    client.join("r");
    equal("after" in socket.sent[0], false, "after in the first join");
    socket.joined("r", 7);
    const next = await again();
    equal(next.sent[0].after, 7, "after in the second");
  },

  async "another epoch forgets the position"() {
    const { client, socket, seen, again } = live();
    client.join("r", { after: 0 });
    socket.joined("r", 9);
    for (let seq = 1; seq <= 9; seq++) socket.message("r", seq);
    const next = await again();
    next.joined("r", 2, "e2");
    const third = await again(); // cut between joined and gap: nothing may be taken for granted
    equal([third.sent[0].after, third.sent[0].epoch], [9, "e1"], "the join before the gap was told");
    third.joined("r", 2, "e2");
    third.say({ type: "gap", room: "r", epoch: "e2", from: 1, to: 2, reason: "epoch" });
    third.message("r", 3, { epoch: "e2" });
    equal(seen.slice(9), ["epoch 1-2", 3], "after the change");
  },

  async "a trimmed range moves the position"() {
    const { client, socket, seen } = live();
    client.join("r", { after: 2, epoch: "e1" });
    socket.joined("r", 6);
    socket.say({ type: "gap", room: "r", epoch: "e1", from: 3, to: 5, reason: "trimmed" });
    socket.message("r", 6);
    equal(seen, ["trimmed 3-5", 6], "shown");
  },

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
    equal(socket.sent.at(-1), { type: "leave", room: "r" }, "the last frame");
    const room = client.join("r");
    socket.say({ type: "joined", ref: early.ref, room: "r", epoch: "e1", seq: 1, first: 1 });
    socket.message("r", 2);
    equal([room.position, seen], [null, []], "before its own answer");
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

  async "a publish without an answer goes out again with the same id"() {
    const { client, socket, again } = live();
    const ack = client.publish("r", { a: 1 });
    const next = await again();
    equal(next.sent, socket.sent, "the same frame");
    next.ack(next.sent[0], 5, { duplicate: true });
    const { id } = next.sent[0];
    equal(await ack, { seq: 5, epoch: "e1", id, duplicate: true }, "ack");
    equal((await again()).sent, [], "nothing more to send");
  },

  async "publishes made while away go out in order on return"() {
    const { client, Sockets } = start();
    const acks = [1, 2, 3].map((n) => client.publish("r", n));
    equal(Sockets.last.sent, [], "before welcome");
    Sockets.last.welcome();
    equal(Sockets.last.sent.map((f) => f.data), [1, 2, 3], "sent");
    Sockets.last.sent.forEach((f, i) => Sockets.last.ack(f, i + 1));
    equal((await Promise.all(acks)).map((a) => a.seq), [1, 2, 3], "seqs");
  },

  async "a message with one's own id counts as its ack, somebody else's does not"() {
    const { client, socket } = live();
    client.join("r", { after: 0 });
    socket.joined("r", 0);
    const ack = client.publish("r", "x", { id: "mine" });
    socket.message("r", 1, { id: "mine", from: "api:other" });
    let done = false;
    ack.then(() => { done = true; });
    await settled();
    equal(done, false, "another user's message with that id");
    socket.message("r", 2, { id: "mine" });
    equal((await ack).seq, 2, "seq");
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

  async "after unavailable, later publishes to that room wait until the resend is answered"() {
    const { client, clock, socket } = live();
    const first = client.publish("r", 1);
    refuse(socket, socket.sent[0], "unavailable", { retry_after_ms: 500 });
    client.publish("r", 2);
    client.publish("r", 3);
    client.publish("elsewhere", 4);
    equal(socket.sent.map((f) => f.data), [1, 4], "sent before the time");
    await clock.pass(500);
    equal(socket.sent.map((f) => f.data), [1, 4, 1], "the resend alone");
    socket.ack(socket.sent[2], 1);
    await first;
    equal(socket.sent.map((f) => f.data), [1, 4, 1, 2, 3], "the others after its answer");
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

  async "a refusal rejects; of a resend it leaves the outcome open"() {
    const { client, socket, again } = live();
    const once = rejects(client.publish("r", 1), "conflict");
    refuse(socket, socket.sent[0], "conflict");
    equal((await once).outcomeUnknown, false, "of the first attempt");
    const twice = rejects(client.publish("r", 2), "forbidden");
    const next = await again();
    refuse(next, next.sent[0], "forbidden");
    equal((await twice).outcomeUnknown, true, "of a resend");
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

  async "history survives the socket it was asked on"() {
    const { client, again } = live();
    const page = client.history("r", { before: 10, limit: 5 });
    const next = await again();
    const [{ ref, before, limit }] = next.sentOf("history");
    next.say({ type: "history", ref, room: "r", epoch: "e1", messages: [], more: false });
    equal([before, limit, (await page).more], [10, 5, false], "asked and answered");
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
    const told = new Promise((resolve) => {
      addEventListener("error", (event) => {
        window.faults.pop(); // this one is meant
        resolve(event.message);
      }, { once: true });
    });
    const room = client.join("r", { after: 0 });
    room.on("message", () => { throw new Error("mine"); });
    socket.joined("r", 0);
    socket.message("r", 1);
    equal([seen, /mine/.test(await told)], [[1], true], "seen, and the error is not swallowed");
  },

  async "what is not JSON and what is unknown harms nothing"() {
    const { client, socket, errors } = live();
    socket.onmessage({ data: "{" });
    socket.say({ type: "constructor" });
    socket.say({ type: "presence", room: "r" });
    equal([client.state.name, errors], ["live", ["malformed"]], "state and errors");
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
