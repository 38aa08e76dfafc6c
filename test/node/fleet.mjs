// client.js against three nodes over one log that keep their promises, while connections are moved, cut and
// closed at any moment, and every frame takes its time. internal/client plays the same against the Go client.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, runAll } from "./kit.mjs";

const ROOMS = ["r", "q"];
const EACH = 60; // messages of a publisher, half of them in each room

// Dice that fall the same way for each seed (mulberry32).
function dice(seed) {
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
  #fleet; #socket; #due = 0;

  constructor(fleet, socket) {
    this.#fleet = fleet;
    this.#socket = socket;
    this.client = socket.url;
    this.node = `n${fleet.roll(3)}`;
    this.slow = fleet.roll(15);
    this.say({ type: "welcome", session: "s", user: null, node: this.node, deployment: "d", heartbeat_ms: 600_000, max_frame: 1_000 });
  }

  say(frame) { this.#later(() => this.#socket.onmessage?.({ data: JSON.stringify(frame) })); }

  end(code) {
    this.#later(() => {
      this.gone();
      this.#socket.over();
      this.#socket.onclose?.({ code, reason: "dice" });
    });
  }

  gone() {
    this.open = false;
    this.#fleet.peers.delete(this);
  }

  #later(what) {
    const { clock } = this.#fleet;
    this.#due = Math.max(this.#due, clock.now()) + this.slow; // one after the other
    clock.setTimeout(() => { if (this.open) what(); }, this.#due - clock.now());
  }
}

class Fleet {
  clock = new FakeClock(); peers = new Set(); log = { r: [], q: [] }; moves = 0; signals = 0; most = 0;
  #random; #open = new Map();

  constructor(seed) { this.#random = dice(seed); }

  roll(n) { return Math.floor(this.#random() * n); }

  connect(name) {
    const fleet = this;
    class Socket {
      #peer; #counted = true;

      constructor(url) {
        this.url = url;
        fleet.#count(url, 1);
        fleet.clock.setTimeout(() => {
          if (!this.#counted) return;
          this.#peer = new Peer(fleet, this);
          fleet.peers.add(this.#peer);
        }, fleet.roll(30));
      }

      send(text) { fleet.clock.setTimeout(() => { if (this.#peer.open) fleet.#handle(this.#peer, JSON.parse(text)); }, this.#peer.slow); }

      close() {
        this.over();
        const peer = this.#peer;
        if (peer) fleet.clock.setTimeout(() => peer.gone(), peer.slow);
      }

      over() {
        if (this.#counted) fleet.#count(this.url, -1);
        this.#counted = false;
      }
    }
    return Switchyard.connect(`ws://${name}/ws`, { WebSocket: Socket, clock: this.clock, random: this.#random });
  }

  #count(url, by) {
    const open = (this.#open.get(url) ?? 0) + by;
    this.#open.set(url, open);
    this.most = Math.max(this.most, open);
  }

  #handle(peer, { type, ref, room, id, after, data }) {
    const log = this.log[room];
    if (type === "moved") this.moves += 1;
    if (type === "join") {
      peer.say({ type: "joined", ref, room, epoch: "e", seq: log.length, first: 1 });
      for (const message of log.slice(after ?? log.length)) peer.say(message);
      peer.rooms.add(room);
    }
    if (type === "publish") {
      const before = log.find((m) => m.id === id);
      const message = before ?? { type: "message", room, epoch: "e", seq: log.length + 1, id, from: null, at: "", data };
      if (!before) {
        log.push(message);
        this.deliver(message);
      }
      peer.say({ type: "ack", ref, room, epoch: "e", seq: message.seq, id });
    }
    if (this.roll(200) === 0) peer.end(1006);
  }

  deliver(frame) { for (const peer of this.peers) if (peer.rooms.has(frame.room)) peer.say(frame); }

  // Does to some connection what a service may do.
  trouble() {
    this.deliver({ type: "signal", room: "r", from: null, data: ++this.signals });
    const peers = [...this.peers];
    const peer = peers[this.roll(peers.length)];
    if (!peer) return;
    const fate = this.roll(10);
    const newer = peers.slice(peers.indexOf(peer) + 1).some((p) => p.client === peer.client);
    if (fate === 0) peer.end(1006);
    else if (fate === 1) peer.end(1012);
    else if (fate === 2 && newer) peer.end(4009);
    else if (fate > 2) this.#move(peer);
  }

  #move(peer) {
    const avoid = this.roll(8) === 0 ? { deployment: "d" } : { node: peer.node };
    const deadline = this.roll(4_000);
    peer.say({ type: "move", after_ms: this.roll(400), deadline_ms: deadline, avoid, reason: "dice" });
    if (this.roll(3) === 0) this.clock.setTimeout(() => { if (peer.open) peer.end(1012); }, deadline);
  }
}

async function play(seed) {
  const fleet = new Fleet(seed);
  const faults = [];
  const ears = [0, 1].map((i) => listen(fleet, fleet.connect(`s${i}`), faults));
  const publishers = [0, 1].map((i) => fleet.connect(`p${i}`));
  const acks = publishers.map(() => []);
  for (let n = 0; n < EACH; n++) {
    publishers.forEach((client, i) => {
      client.publish(ROOMS[n % 2], `${i}-${n}`).then(({ seq }) => { acks[i][n] = seq; }, (error) => faults.push(`${i}-${n}: ${error}`));
    });
    fleet.trouble();
    await fleet.clock.pass(fleet.roll(300));
  }
  await fleet.clock.pass(200_000); // the last return is long done
  equal([faults, fleet.most <= 2], [[], true], "faults, and at most two sockets");
  for (const room of ROOMS) {
    const want = fleet.log[room].map((m) => m.data);
    for (const ear of ears) equal(ear[room], want, `heard in ${room}`);
    publishers.forEach((_, i) => {
      const own = want.filter((data) => data.startsWith(`${i}-`));
      const sent = Array.from({ length: EACH }, (__, n) => n).filter((n) => ROOMS[n % 2] === room);
      equal(own, sent.map((n) => `${i}-${n}`), `stored of ${i} in ${room}`);
      for (const n of sent) equal(want[acks[i][n] - 1], `${i}-${n}`, "stored where it was acked");
    });
  }
  return fleet.moves;
}

function listen(fleet, client, faults) {
  const heard = { r: [], q: [] };
  const signals = new Set();
  for (const room of ROOMS) client.join(room, { after: 0 });
  client.on("message", ({ room, data }) => heard[room].push(data));
  client.on("gap", (gap) => faults.push(JSON.stringify(gap)));
  client.on("error", (error) => faults.push(error.message));
  client.on("signal", ({ data }) => {
    if (signals.has(data)) faults.push(`signal ${data} came twice`);
    signals.add(data);
  });
  return heard;
}

export const tests = Object.fromEntries([1, 2, 3, 4, 5].map((seed) => [
  `moves lose, double and swap nothing, dice ${seed}`, async () => equal((await play(seed)) > 3, true, "moves"),
]));

export const run = () => runAll(tests);
