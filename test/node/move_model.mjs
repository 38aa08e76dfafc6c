// client.js against three nodes over one log that keep their promises, while connections are moved, broken
// and closed at any moment, and every frame is delayed. internal/client has the same model for the Go client.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, runAll } from "./fakes.mjs";

const ROOMS = ["r", "q"];
const EACH = 60; // messages of a publisher, half of them in each room

// Returns a random source that gives the same numbers for the same seed (mulberry32).
function seededRandom(seed) {
  let a = seed;
  return () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// A Peer is a node's end of a connection. Frames keep their order in each direction, and arrive late.
class Peer {
  rooms = new Set(); open = true;
  #nodes; #socket; #nextAt = 0;

  constructor(nodes, socket) {
    this.#nodes = nodes;
    this.#socket = socket;
    this.client = socket.url;
    this.node = `n${nodes.roll(3)}`;
    this.delay = nodes.roll(15);
    this.send({ type: "welcome", session: "s", user: null, node: this.node, deployment: "d", heartbeat_ms: 600_000, max_frame: 1_000 });
  }

  send(frame) { this.#delayed(() => this.#socket.onmessage?.({ data: JSON.stringify(frame) })); }

  closeWith(code) {
    this.#delayed(() => {
      this.closed();
      this.#socket.ended();
      this.#socket.onclose?.({ code, reason: "random" });
    });
  }

  closed() {
    this.open = false;
    this.#nodes.peers.delete(this);
  }

  #delayed(action) {
    const { clock } = this.#nodes;
    this.#nextAt = Math.max(this.#nextAt, clock.now()) + this.delay; // in order
    clock.setTimeout(() => { if (this.open) action(); }, this.#nextAt - clock.now());
  }
}

class ModelNodes {
  clock = new FakeClock(); peers = new Set(); log = { r: [], q: [] }; moves = 0; signals = 0; maxOpen = 0;
  #random; #open = new Map();

  constructor(seed) { this.#random = seededRandom(seed); }

  roll(n) { return Math.floor(this.#random() * n); }

  connect(name) {
    const nodes = this;
    class Socket {
      #peer; #counted = true;

      constructor(url) {
        this.url = url;
        nodes.#count(url, 1);
        nodes.clock.setTimeout(() => {
          if (!this.#counted) return;
          this.#peer = new Peer(nodes, this);
          nodes.peers.add(this.#peer);
        }, nodes.roll(30));
      }

      send(text) { nodes.clock.setTimeout(() => { if (this.#peer.open) nodes.#handle(this.#peer, JSON.parse(text)); }, this.#peer.delay); }

      close() {
        this.ended();
        const peer = this.#peer;
        if (peer) nodes.clock.setTimeout(() => peer.closed(), peer.delay);
      }

      ended() {
        if (this.#counted) nodes.#count(this.url, -1);
        this.#counted = false;
      }
    }
    return Switchyard.connect(`ws://${name}/ws`, { WebSocket: Socket, clock: this.clock, random: this.#random });
  }

  #count(url, by) {
    const open = (this.#open.get(url) ?? 0) + by;
    this.#open.set(url, open);
    this.maxOpen = Math.max(this.maxOpen, open);
  }

  #handle(peer, { type, ref, room, id, after, data }) {
    const log = this.log[room];
    if (type === "moved") this.moves += 1;
    if (type === "join") {
      peer.send({ type: "joined", ref, room, epoch: "e", seq: log.length, first: 1 });
      for (const message of log.slice(after ?? log.length)) peer.send(message);
      peer.rooms.add(room);
    }
    if (type === "publish") {
      const before = log.find((m) => m.id === id);
      const message = before ?? { type: "message", room, epoch: "e", seq: log.length + 1, id, from: null, at: "", data };
      if (!before) {
        log.push(message);
        this.deliver(message);
      }
      peer.send({ type: "ack", ref, room, epoch: "e", seq: message.seq, id });
    }
    if (this.roll(200) === 0) peer.closeWith(1006);
  }

  deliver(frame) { for (const peer of this.peers) if (peer.rooms.has(frame.room)) peer.send(frame); }

  // Sends a signal, and moves or ends a random connection, as a service may do.
  injectFault() {
    this.deliver({ type: "signal", room: "r", from: null, data: ++this.signals });
    const peers = [...this.peers];
    const peer = peers[this.roll(peers.length)];
    if (!peer) return;
    const fault = this.roll(10);
    const newer = peers.slice(peers.indexOf(peer) + 1).some((p) => p.client === peer.client);
    if (fault === 0) peer.closeWith(1006);
    else if (fault === 1) peer.closeWith(1012);
    else if (fault === 2 && newer) peer.closeWith(4009);
    else if (fault > 2) this.#move(peer);
  }

  #move(peer) {
    const avoid = this.roll(8) === 0 ? { deployment: "d" } : { node: peer.node };
    const deadline = this.roll(4_000);
    peer.send({ type: "move", after_ms: this.roll(400), deadline_ms: deadline, avoid, reason: "random" });
    if (this.roll(3) === 0) this.clock.setTimeout(() => { if (peer.open) peer.closeWith(1012); }, deadline);
  }
}

// Publishes through faults, checks that nothing was lost, doubled or reordered, and returns the number of moves.
async function runModel(seed) {
  const nodes = new ModelNodes(seed);
  const errors = [];
  const subscribers = [0, 1].map((i) => subscribe(nodes.connect(`s${i}`), errors));
  const publishers = [0, 1].map((i) => nodes.connect(`p${i}`));
  const acks = publishers.map(() => []);
  for (let n = 0; n < EACH; n++) {
    publishers.forEach((client, i) => {
      client.publish(ROOMS[n % 2], `${i}-${n}`).then(({ seq }) => { acks[i][n] = seq; }, (error) => errors.push(`${i}-${n}: ${error}`));
    });
    nodes.injectFault();
    await nodes.clock.advance(nodes.roll(300));
  }
  await nodes.clock.advance(200_000); // long enough for the last reconnect
  equal([errors, nodes.maxOpen <= 2], [[], true], "errors, and at most two sockets");
  for (const room of ROOMS) {
    const want = nodes.log[room].map((m) => m.data);
    for (const received of subscribers) equal(received[room], want, `received in ${room}`);
    publishers.forEach((_, i) => {
      const own = want.filter((data) => data.startsWith(`${i}-`));
      const sent = Array.from({ length: EACH }, (__, n) => n).filter((n) => ROOMS[n % 2] === room);
      equal(own, sent.map((n) => `${i}-${n}`), `stored of publisher ${i} in ${room}`);
      for (const n of sent) equal(want[acks[i][n] - 1], `${i}-${n}`, "stored at the seq of its ack");
    });
  }
  return nodes.moves;
}

// Joins the rooms and returns what it receives, by room.
function subscribe(client, errors) {
  const received = { r: [], q: [] };
  const signals = new Set();
  for (const room of ROOMS) client.join(room, { after: 0 });
  client.on("message", ({ room, data }) => received[room].push(data));
  client.on("gap", (gap) => errors.push(JSON.stringify(gap)));
  client.on("error", (error) => errors.push(error.message));
  client.on("signal", ({ data }) => {
    if (signals.has(data)) errors.push(`signal ${data} arrived twice`);
    signals.add(data);
  });
  return received;
}

export const tests = Object.fromEntries([1, 2, 3, 4, 5].map((seed) => [
  `moves lose, duplicate and reorder nothing, seed ${seed}`, async () => equal((await runModel(seed)) > 3, true, "more than 3 moves"),
]));

export const run = () => runAll(tests);
