// The golden frames of the wire: client.js handles the server's frames and sends those of clients.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, jsonFiles, runAll, settlePromises } from "./fakes.mjs";

function start(options) {
  const Sockets = fakeSockets();
  const clock = new FakeClock();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0, ...options });
  const events = [];
  for (const event of ["message", "gap", "signal", "joined", "presence", "error"]) client.on(event, (value) => events.push([event, value]));
  return { client, clock, Sockets, events, get socket() { return Sockets.all[0]; } };
}

function startLive(options) {
  const env = start(options);
  env.Sockets.last.welcome();
  return env;
}

async function expectNothing({ client, socket, events }, frame, text) {
  socket.receiveText(text);
  equal([client.state.name, events], ["live", []], "state and events");
}

// For each type of the server's frames: prepares a client, receives the frame, and checks the effect.
const expectations = {
  welcome: async ({ client, socket }, frame, text) => {
    socket.receiveText(text);
    equal(client.welcome, frame, "welcome");
  },
  heartbeat: expectNothing,
  joined: async ({ client, socket, events }, frame, text) => {
    const room = client.join(frame.room);
    socket.receiveText(withRef(text, socket.sent[0].ref));
    const answer = { ...frame, ref: socket.sent[0].ref };
    equal([sorted(await room.joined), sorted(events[0][1])], [sorted(answer), sorted(answer)], "joined");
    equal(room.position, { seq: frame.seq, epoch: frame.epoch }, "position");
  },
  left: async ({ client, socket, events }, frame, text) => {
    client.join(frame.room).leave();
    socket.receiveText(withRef(text, socket.sent[1].ref));
    equal([client.state.name, events], ["live", []], "state and events");
  },
  message: async ({ client, socket, events }, frame, text) => {
    client.join(frame.room);
    socket.joined(frame.room, frame.seq - 1, frame.epoch);
    socket.receiveText(text);
    equal(events[1], ["message", frame], "event");
  },
  gap: async ({ client, socket, events }, frame, text) => {
    client.join(frame.room, { after: frame.from - 1, epoch: frame.epoch });
    socket.joined(frame.room, frame.to, frame.epoch);
    socket.receiveText(text);
    equal(events[1], ["gap", frame], "event");
  },
  signal: async ({ client, socket, events }, frame, text) => {
    client.join(frame.room);
    socket.receiveText(text);
    equal(events, [["signal", frame]], "event");
  },
  ack: async ({ client, socket }, frame, text) => {
    const ack = client.publish(frame.room, 1, { id: frame.id });
    socket.receiveText(withRef(text, socket.sent[0].ref));
    const { seq, epoch, id, duplicate = false } = frame;
    equal(await ack, { seq, epoch, id, duplicate }, "ack");
  },
  history: async ({ client, socket }, frame, text) => {
    const page = client.history(frame.room);
    socket.receiveText(withRef(text, socket.sent[0].ref));
    equal(sorted(await page), sorted({ ...frame, ref: socket.sent[0].ref }), "page");
  },
  presence: async ({ client, socket, events }, frame, text) => {
    client.join(frame.room);
    socket.joined(frame.room, 0);
    const answer = client.presence(frame.room);
    const { ref } = socket.sentOf("presence")[0];
    socket.receiveText(withRef(text, ref));
    equal([sorted(await answer), events.length], [sorted({ ...frame, ref }), 1], "the answer, and no event beside joined");
    socket.receiveText(text); // this time there is no request
    equal(events[1], ["presence", frame], "event");
  },
  move: async ({ client, clock, socket, Sockets }, frame, text) => {
    socket.receiveText(text);
    await clock.advance(Math.max(0, frame.after_ms - 1));
    equal(Sockets.all.length, frame.after_ms > 0 ? 1 : 2, "sockets before the start of the move");
    await clock.advance(1);
    Sockets.last.welcome({ node: "n2", deployment: "d2", ...frame.avoid });
    equal([Sockets.last.closed, socket.closed], [true, false], "closed: the socket to what is to be avoided, and the first");
    await clock.advance(0);
    const moved = new Promise((resolve) => { client.on("moved", resolve); });
    Sockets.last.welcome({ node: "n2", deployment: "d2" });
    equal([(await moved).reason, socket.closed], [frame.reason, true], "the reason, and whether the first is closed");
  },
  pong: async ({ client, clock, socket, Sockets }, frame, text) => {
    client.reconnect();
    socket.receiveText(withRef(text, socket.sentOf("ping")[0].ref));
    await clock.advance(10_000);
    equal([Sockets.all.length, client.state.name], [1, "live"], "sockets and state");
  },
  authenticated: async (_, frame, text) => {
    const env = start({ getToken: () => "t" });
    await settlePromises();
    env.socket.welcome();
    const done = env.client.refreshToken();
    await settlePromises();
    env.socket.receiveText(withRef(text, env.socket.sent[0].ref));
    await done;
    equal(env.events, [], "event");
  },
  error: async ({ socket, events }, frame, text) => {
    socket.receiveText(text);
    const [[event, { code, message, room, ref, retryAfter }]] = events;
    equal([event, code, `${code}: ${frame.message}`, room, ref, retryAfter],
      ["error", frame.code, message, frame.room, frame.ref, frame.retry_after_ms], "event");
  },
};

const sorted = (object) => Object.fromEntries(Object.entries(object).sort());

// Replaces the ref in the file by that of the request.
function withRef(text, ref) {
  return /"ref":/.test(text) ? text.replace(/"ref":"[^"]*"/, `"ref":"${ref}"`) : text.replace("{", `{"ref":"${ref}",`);
}

const requests = {
  join: (client, { room, after, epoch }) => { client.join(room, { after, epoch }); },
  leave: (client, { room }) => client.join(room).leave(),
  publish: (client, { room, id, data }) => { client.publish(room, JSON.parse(data), { id }).catch(() => {}); },
  signal: (client, { room, data }) => { client.signal(room, JSON.parse(data)); },
  history: (client, { room, before, after, limit }) => { client.history(room, { before, after, limit }).catch(() => {}); },
  presence: (client, { room }) => { client.presence(room).catch(() => {}); },
  auth: (client) => { client.refreshToken(); },
  ping: (client) => client.reconnect(),
  // Sent on the second socket of a move.
  moved: async (_, { handshake_ms: took }, { socket, clock, Sockets }) => {
    socket.receive({ type: "move", after_ms: 0, deadline_ms: 1_000, avoid: { node: "n9" }, reason: "deploy" });
    await clock.advance(0);
    await clock.advance(took);
    Sockets.last.welcome();
    return Sockets.last;
  },
};

// Requests that client.js never sends, and why.
const neverSent = {
  "client-publish-without-id": "every publish has an id, or it could not be resent",
  "client-unknown-fields": "only a later version has them",
};

async function expectRequest({ frame, request }) {
  const env = start(request.token && { getToken: () => request.token });
  await settlePromises();
  env.socket.welcome({ node: request.from });
  const { sent } = (await requests[request.type](env.client, request, env)) ?? env.socket;
  await settlePromises();
  const { ref, ...want } = JSON.parse(frame);
  const { ref: mine, ...got } = sent.at(-1);
  equal(JSON.stringify(sorted(got)), JSON.stringify(sorted(want)), "the frame without its ref");
  equal(typeof mine, "string", "the type of ref");
}

export async function tests() {
  const all = {};
  for (const [file, text] of await jsonFiles("../../internal/protocol/testdata/v1/")) {
    const name = file.replace(".json", "");
    const golden = JSON.parse(text);
    if (golden.from === "server") {
      const frame = JSON.parse(golden.frame);
      all[`golden ${name}`] = async () => {
        if (!expectations[frame.type]) throw new Error(`no expectation for ${frame.type}`);
        await expectations[frame.type](startLive(), frame, golden.frame);
      };
    } else if (golden.request && !neverSent[name]) {
      all[`golden ${name}`] = () => expectRequest(golden);
    }
  }
  return all;
}

export const run = () => runAll(tests);
