// The golden frames of the wire: client.js understands the server's, and makes those of clients.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, jsonFiles, runAll, settled } from "./kit.mjs";

function start(options) {
  const Sockets = fakeSockets();
  const clock = new FakeClock();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0, ...options });
  const told = [];
  for (const event of ["message", "gap", "signal", "joined", "presence", "error"]) client.on(event, (value) => told.push([event, value]));
  return { client, clock, Sockets, told, get socket() { return Sockets.all[0]; } };
}

function live(options) {
  const kit = start(options);
  kit.Sockets.last.welcome();
  return kit;
}

async function quiet({ client, socket, told }, frame, text) {
  socket.hear(text);
  equal([client.state.name, told], ["live", []], "state, and what was told");
}

// How each type of the server's frames is brought about, and what it must have come to.
const heard = {
  welcome: async ({ client, socket }, frame, text) => {
    socket.hear(text);
    equal(client.welcome, frame, "welcome");
  },
  heartbeat: quiet,
  joined: async ({ client, socket, told }, frame, text) => {
    const room = client.join(frame.room);
    socket.hear(withRef(text, socket.sent[0].ref));
    const answer = { ...frame, ref: socket.sent[0].ref };
    equal([sorted(await room.joined), sorted(told[0][1])], [sorted(answer), sorted(answer)], "joined");
    equal(room.position, { seq: frame.seq, epoch: frame.epoch }, "position");
  },
  left: async ({ client, socket, told }, frame, text) => {
    client.join(frame.room).leave();
    socket.hear(withRef(text, socket.sent[1].ref));
    equal([client.state.name, told], ["live", []], "state, and what was told");
  },
  message: async ({ client, socket, told }, frame, text) => {
    client.join(frame.room);
    socket.joined(frame.room, frame.seq - 1, frame.epoch);
    socket.hear(text);
    equal(told[1], ["message", frame], "told");
  },
  gap: async ({ client, socket, told }, frame, text) => {
    client.join(frame.room, { after: frame.from - 1, epoch: frame.epoch });
    socket.joined(frame.room, frame.to, frame.epoch);
    socket.hear(text);
    equal(told[1], ["gap", frame], "told");
  },
  signal: async ({ client, socket, told }, frame, text) => {
    client.join(frame.room);
    socket.hear(text);
    equal(told, [["signal", frame]], "told");
  },
  ack: async ({ client, socket }, frame, text) => {
    const ack = client.publish(frame.room, 1, { id: frame.id });
    socket.hear(withRef(text, socket.sent[0].ref));
    const { seq, epoch, id, duplicate = false } = frame;
    equal(await ack, { seq, epoch, id, duplicate }, "ack");
  },
  history: async ({ client, socket }, frame, text) => {
    const page = client.history(frame.room);
    socket.hear(withRef(text, socket.sent[0].ref));
    equal(sorted(await page), sorted({ ...frame, ref: socket.sent[0].ref }), "page");
  },
  presence: async ({ client, socket, told }, frame, text) => {
    client.join(frame.room);
    socket.joined(frame.room, 0);
    const answer = client.presence(frame.room);
    const { ref } = socket.sentOf("presence")[0];
    socket.hear(withRef(text, ref));
    equal([sorted(await answer), told.length], [sorted({ ...frame, ref }), 1], "the answer, and nothing told beside joined");
    socket.hear(text); // this time nobody has asked
    equal(told[1], ["presence", frame], "told");
  },
  move: async ({ client, clock, socket, Sockets }, frame, text) => {
    socket.hear(text);
    await clock.pass(Math.max(0, frame.after_ms - 1));
    equal(Sockets.all.length, frame.after_ms > 0 ? 1 : 2, "sockets before the slot");
    await clock.pass(1);
    Sockets.last.welcome({ node: "n2", deployment: "d2", ...frame.avoid });
    equal([Sockets.last.closed, socket.closed], [true, false], "closed, of what is to be avoided and the first");
    await clock.pass(0);
    const moved = new Promise((resolve) => { client.on("moved", resolve); });
    Sockets.last.welcome({ node: "n2", deployment: "d2" });
    equal([(await moved).reason, socket.closed], [frame.reason, true], "the reason, and whether the first is closed");
  },
  authenticated: async (_, frame, text) => {
    const kit = start({ getToken: () => "t" });
    await settled();
    kit.socket.welcome();
    const done = kit.client.refreshToken();
    await settled();
    kit.socket.hear(withRef(text, kit.socket.sent[0].ref));
    await done;
    equal(kit.told, [], "told");
  },
  error: async ({ socket, told }, frame, text) => {
    socket.hear(text);
    const [[event, { code, message, room, ref, retryAfter }]] = told;
    equal([event, code, `${code}: ${frame.message}`, room, ref, retryAfter],
      ["error", frame.code, message, frame.room, frame.ref, frame.retry_after_ms], "told");
  },
};

const sorted = (object) => Object.fromEntries(Object.entries(object).sort());

// An answer bears the ref of its request, whatever that was in the file.
function withRef(text, ref) {
  return /"ref":/.test(text) ? text.replace(/"ref":"[^"]*"/, `"ref":"${ref}"`) : text.replace("{", `{"ref":"${ref}",`);
}

const calls = {
  join: (client, { room, after, epoch }) => { client.join(room, { after, epoch }); },
  leave: (client, { room }) => client.join(room).leave(),
  publish: (client, { room, id, data }) => { client.publish(room, JSON.parse(data), { id }).catch(() => {}); },
  signal: (client, { room, data }) => { client.signal(room, JSON.parse(data)); },
  history: (client, { room, before, after, limit }) => { client.history(room, { before, after, limit }).catch(() => {}); },
  presence: (client, { room }) => { client.presence(room).catch(() => {}); },
  auth: (client) => { client.refreshToken(); },
  // Said on the second socket of a move.
  moved: async (_, { handshake_ms: took }, { socket, clock, Sockets }) => {
    socket.say({ type: "move", after_ms: 0, deadline_ms: 1_000, avoid: { node: "n9" }, reason: "deploy" });
    await clock.pass(0);
    await clock.pass(took);
    Sockets.last.welcome();
    return Sockets.last;
  },
};

// Requests that client.js never makes.
const others = {
  "client-publish-without-id": "every publish has an id, or it could not be resent",
  "client-unknown-fields": "a later version's",
};

async function made({ frame, request }) {
  const kit = start(request.token && { getToken: () => request.token });
  await settled();
  kit.socket.welcome({ node: request.from });
  const { sent } = (await calls[request.type](kit.client, request, kit)) ?? kit.socket;
  await settled();
  const { ref, ...want } = JSON.parse(frame);
  const { ref: mine, ...got } = sent.at(-1);
  equal(JSON.stringify(sorted(got)), JSON.stringify(sorted(want)), "the frame but for its ref");
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
        if (!heard[frame.type]) throw new Error(`nothing says what ${frame.type} comes to`);
        await heard[frame.type](live(), frame, golden.frame);
      };
    } else if (golden.request && !others[name]) {
      all[`golden ${name}`] = () => made(golden);
    }
  }
  return all;
}

export const run = () => runAll(tests);
