// What the listeners of client.js get, and when, in addition to what every client does (test/behaviors).

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, rejects, runAll, settlePromises } from "./fakes.mjs";

function startLive({ welcome, ...options } = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0, ...options });
  const errors = [];
  client.on("error", (e) => errors.push(e.code));
  Sockets.last.welcome(welcome);
  const reconnect = async (more) => {
    Sockets.last.closeWith(1012);
    await clock.advance(0);
    Sockets.last.welcome(more);
    return Sockets.last;
  };
  return { client, clock, Sockets, errors, reconnect, socket: Sockets.last };
}

// The service's answer to the last join of the room r: so many messages are stored.
function serve(socket, head) {
  const { after = head } = socket.sentOf("join").at(-1);
  socket.joined("r", head);
  for (let seq = after + 1; seq <= head; seq++) socket.message("r", seq);
}

function collect(emitter) {
  const got = [];
  emitter.on("message", ({ seq }) => got.push(seq));
  return got;
}

const upTo = (n) => Array.from({ length: n }, (_, i) => i + 1);

export const tests = {
  async "a listener that is added late gets every message"() {
    const { client, socket } = startLive();
    const room = client.join("r", { after: 0 });
    serve(socket, 20);
    await room.joined;
    equal(room.position, { seq: 0, epoch: "e1" }, "the position: nothing was delivered");
    const got = collect(room);
    equal([got, socket.sentOf("join").length, socket.sent.at(-1).after], [[], 2, 0], "messages, joins, and where the second one starts");
    serve(socket, 21);
    socket.message("r", 22);
    equal([got, room.position.seq], [upTo(22), 22], "messages and the position");
    collect(room);
    equal(socket.sentOf("join").length, 2, "joins after another listener");
  },

  async "a listener of the client that is added late gets every message once"() {
    const { client, socket } = startLive();
    const [a, b] = [client.join("r", { after: 0 }), client.join("r", { after: 0 })];
    serve(socket, 5);
    const got = collect(client);
    serve(socket, 6);
    equal([got, a.position.seq, b.position.seq, socket.sentOf("join").length], [upTo(6), 6, 6, 3], "messages, positions and joins");
  },

  async "of two joins each listener gets what came before it, and nothing twice"() {
    const { client, socket } = startLive();
    const [early, late] = [client.join("r", { after: 0 }), client.join("r", { after: 0 })];
    const first = collect(early);
    serve(socket, 3);
    const joined = [];
    early.on("joined", () => joined.push("early"));
    const second = collect(late);
    serve(socket, 4);
    equal([first, second, joined], [upTo(4), upTo(4), []], "messages of both, and further events of the first");
  },

  async "a late listener also gets what came before a break, and without one at the end of a break"() {
    const { client, socket, Sockets, clock, reconnect } = startLive();
    const room = client.join("r", { after: 0 });
    serve(socket, 3);
    const next = await reconnect();
    equal(next.sentOf("join")[0].after, 3, "a room without a listener resumes where the client is");
    serve(next, 5);
    next.closeWith(1012);
    const got = collect(room);
    await clock.advance(0);
    Sockets.last.welcome();
    serve(Sockets.last, 6);
    equal(got, upTo(6), "messages");
  },

  async "a late listener gets the gap that hides messages, too"() {
    const { client, socket } = startLive();
    const room = client.join("r", { after: 0 });
    socket.joined("r", 4);
    const gap = { type: "gap", room: "r", epoch: "e1", from: 1, to: 3, reason: "trimmed" };
    socket.receive(gap);
    socket.message("r", 4);
    const gaps = [];
    room.on("gap", ({ from, to }) => gaps.push([from, to]));
    const got = collect(room);
    equal(socket.sent.at(-1).after, 0, "where the second join starts");
    socket.joined("r", 4);
    socket.receive(gap);
    socket.message("r", 4);
    equal([gaps, got], [[[1, 3]], [4]], "gaps and messages");
  },

  async "a listener that is added in time costs no second join, and one that is removed holds nothing up"() {
    const { client, socket } = startLive();
    const room = client.join("r", { after: 0 });
    const remove = room.on("message", () => {});
    serve(socket, 2);
    remove();
    socket.message("r", 3);
    const got = collect(room);
    socket.message("r", 4);
    equal([got, socket.sentOf("join").length], [[4], 1], "messages and joins");
    client.join("q");
    client.on("message", () => {});
    equal(socket.sentOf("join").length, 2, "joins");
  },

  async "a room that was left delivers nothing to a late listener"() {
    const { client, socket } = startLive();
    const room = client.join("r", { after: 0 });
    serve(socket, 2);
    room.leave();
    const got = collect(room);
    equal([got, socket.sentOf("join").length], [[], 1], "messages and joins");
  },

  async "each part of a page learns that its room was taken away, once, and that it is back"() {
    const { client, socket, errors } = startLive();
    const rooms = [client.join("r"), client.join("r")];
    const seen = [];
    for (const [i, room] of rooms.entries()) {
      room.on("removed", ({ code, room: name }) => seen.push(`${i} ${code} ${name}`));
      room.on("joined", () => seen.push(`${i} joined`));
    }
    client.on("removed", ({ code }) => seen.push(`client ${code}`));
    serve(socket, 3);
    const takeAway = () => {
      socket.receive({ type: "error", room: "r", code: "forbidden", message: "no" });
      socket.receive({ type: "left", room: "r", epoch: "e1", seq: 3, first: 1 });
      socket.receive({ type: "authenticated", ref: "x", user: "ann" });
    };
    takeAway();
    takeAway();
    socket.message("r", 4);
    equal(seen, ["0 joined", "1 joined", "0 forbidden r", "1 forbidden r", "client forbidden"], "events");
    equal(errors, ["forbidden", "forbidden"], "errors, one for each frame");
    socket.receive({ type: "authenticated", ref: "y", user: "ann" });
    const got = collect(rooms[0]);
    serve(socket, 5);
    equal([seen.slice(5), got, rooms[1].position.seq], [["0 joined", "1 joined"], [4, 5], 3], "events, messages, and the position without a listener");
  },

  async "the client reports that the connection is another user's, once"() {
    const { client, errors, reconnect } = startLive({ welcome: { user: "ann" } });
    const pending = rejects(client.publish("r", 1), "user_changed");
    await reconnect({ user: "bob" });
    equal((await pending).outcomeUnknown, true, "outcomeUnknown");
    equal(errors, ["user_changed"], "errors");
    await reconnect({ user: "bob" });
    client.close();
    client.reconnect();
    equal(errors, ["user_changed"], "errors after a second connection of bob");
  },

  async "a client that was closed may be another user's"() {
    const { client, Sockets, errors } = startLive({ welcome: { user: "ann" } });
    client.close();
    client.reconnect();
    const publish = client.publish("r", 1);
    Sockets.last.welcome({ user: "bob" });
    Sockets.last.ack(Sockets.last.sent[0], 1);
    equal([(await publish).seq, errors], [1, []], "the ack and the errors");
  },

  async "nothing runs on after close, whatever the client waits for"() {
    const refuse = (socket, frame) => socket.receive({ type: "error", ref: frame.ref, room: frame.room, code: "unavailable", message: "no", retry_after_ms: 60_000 });
    const waits = {
      join: ({ client, socket }) => { client.join("r"); refuse(socket, socket.sent[0]); },
      publish: ({ client, socket }) => { client.publish("r", 1).catch(() => {}); refuse(socket, socket.sent[0]); },
      history: ({ client, socket }) => { client.history("r").catch(() => {}); refuse(socket, socket.sent[0]); },
      presence: ({ client, socket }) => { client.presence("r").catch(() => {}); refuse(socket, socket.sent[0]); },
      reconnect: ({ client }) => client.reconnect(),
      move: ({ socket }) => socket.receive({ type: "move", after_ms: 5_000, deadline_ms: 30_000, avoid: { node: "n1" }, reason: "deploy" }),
      rates: ({ client, socket }) => {
        for (let i = 0; i < 5; i++) client.join(`r${i}`);
        socket.receive({ type: "error", ref: socket.sent[0].ref, code: "rate_limited", message: "no", retry_after_ms: 60_000 });
      },
      end: ({ socket }) => socket.closeWith(1006),
    };
    for (const [what, begin] of Object.entries(waits)) {
      for (const breaks of [false, true]) {
        const env = startLive({ welcome: { limits: { join: { per_second: 1, burst: 2, left: 2 } } } });
        begin(env);
        if (breaks) env.Sockets.last.closeWith(1006); // an attempt to reconnect is due, too
        env.client.close();
        await settlePromises();
        equal(env.clock.idle, true, `no timers after a wait of ${what}`);
      }
    }
  },

  async "nothing runs on after close during a refresh"() {
    const clock = new FakeClock();
    const Sockets = fakeSockets();
    let resolveToken;
    const getToken = () => (Sockets.all.length === 0 ? "t" : new Promise((resolve) => { resolveToken = resolve; }));
    const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, getToken });
    await settlePromises();
    Sockets.last.welcome({ auth_expires_ms: 100_000 });
    const refresh = rejects(client.refreshToken(), "closed");
    client.close();
    await refresh;
    resolveToken("late");
    await settlePromises();
    equal([clock.idle, Sockets.last.sent], [true, []], "no timers, and the frames sent");
  },

  async "a time that no timer can hold does not end at once"() {
    const set = globalThis.setTimeout;
    const times = [];
    globalThis.setTimeout = (callback, ms) => { times.push(ms); return 0; };
    try {
      const Sockets = fakeSockets();
      const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, resendFor: 2 ** 31 - 1 });
      Sockets.last.welcome({ id_window_ms: 2 ** 33, heartbeat_ms: 2 ** 31 });
      client.publish("r", 1).catch(() => {});
      client.close();
    } finally {
      globalThis.setTimeout = set;
    }
    equal([times.length > 3, times.filter((ms) => !(ms >= 0 && ms < 2 ** 31))], [true, []], "timers, and those that fire at once");
  },
};

export const run = () => runAll(tests);
