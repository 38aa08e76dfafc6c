// Plays test/behaviours, the list of what every client does, with client.js. The Go client plays it in
// internal/client; test/behaviours/README.md says what the words mean.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, jsonFiles, runAll, settled } from "./kit.mjs";

const HOUR = 3_600_000;

// A Stage is where one behaviour is played.
class Stage {
  #script; #clock = new FakeClock(); #Sockets = fakeSockets(); #client; #socket;
  #opened = 0; #frames = {}; #outcomes = {}; #told = [];

  constructor(script) { this.#script = script; }

  async play() {
    const { random = 0, resendFor, tokens, begin, steps } = this.#script;
    const options = { WebSocket: this.#Sockets, clock: this.#clock, random: () => random, resendFor };
    const left = [...(tokens ?? [])];
    if (tokens) {
      options.getToken = async () => {
        const token = left.shift();
        if (token == null) throw new Error("no token to be had");
        return token;
      };
    }
    this.#client = Switchyard.connect("ws://host/ws", options);
    this.#listen();
    await this.#connects(0);
    if (begin !== "silent") this.#welcomes();
    for (const [i, step] of steps.entries()) {
      await settled();
      try {
        await this.#take(step);
      } catch (error) {
        throw new Error(`step ${i + 1}, ${JSON.stringify(step)}: ${error.message}`);
      }
    }
    this.#client.close();
  }

  #listen() {
    const tell = (event, line) => this.#client.on(event, (value) => this.#told.push(`${event} ${line(value)}`));
    tell("message", (m) => `${m.room} ${m.epoch}/${m.seq}`);
    tell("gap", (g) => `${g.room} ${g.epoch} ${g.from}-${g.to} ${g.reason}`);
    tell("joined", (j) => `${j.room} ${j.seq}`);
    tell("signal", (s) => `${s.room} ${s.from ?? "-"} ${JSON.stringify(s.data)}`);
    this.#client.on("error", (e) => { if (e.room) this.#told.push(`refused ${e.room} ${e.code}`); });
  }

  async #take(step) {
    for (const actor of ["server", "user", "client", "time"]) {
      const word = step[actor];
      if (!word) continue;
      const act = this.#words[`${actor} ${word}`];
      if (!act) throw new Error(`what is "${actor} ${word}"?`);
      return act(step);
    }
    throw new Error("nobody acts");
  }

  #welcomes(more) { this.#socket.welcome({ ...this.#script.welcome, ...more }); }

  async #connects(ms) {
    if (ms > 0) {
      await this.#clock.pass(ms - 1);
      equal(this.#Sockets.all.length, this.#opened, "sockets a millisecond before");
      await this.#clock.pass(1);
    } else {
      await this.#clock.pass(0);
    }
    this.#opened += 1;
    equal(this.#Sockets.all.length, this.#opened, "sockets then");
    this.#socket = this.#Sockets.last;
  }

  #keep(name, promise) {
    const outcome = { done: false };
    this.#outcomes[name] = outcome;
    promise.then((value) => Object.assign(outcome, { done: true, value }), (error) => Object.assign(outcome, { done: true, error }));
  }

  // The next frame of that type and room: an order holds in a room.
  #sends({ frame, without = [], as }, first) {
    const { sent } = this.#socket;
    const at = first ? 0 : sent.findIndex((f) => f.type === frame.type && f.room === frame.room);
    const [got] = at < 0 ? [] : sent.splice(at, 1);
    if (!got) throw new Error(`it did not; it sent ${JSON.stringify(sent)}`);
    for (const [field, want] of Object.entries(frame)) equal(got[field], want, field);
    for (const field of without) equal(field in got, false, `${field} is there`);
    this.#frames[as] = got;
  }

  #words = {
    "time passes": ({ ms }) => this.#clock.pass(ms),
    "server welcomes": ({ welcome }) => this.#welcomes(welcome),
    "server says": ({ frame, text, answers }) => {
      if (text) return this.#socket.hear(text);
      const { ref, room, id } = this.#frames[answers] ?? {};
      const repeated = Object.fromEntries(Object.entries({ ref, room, id }).filter(([, value]) => value !== undefined));
      return this.#socket.say({ ...frame, ...repeated });
    },
    "server tells": ({ room, epoch, seqs }) => { for (const seq of seqs) this.#socket.message(room, seq, { epoch }); },
    "server closes": ({ code }) => this.#socket.end(code),
    "server was given": ({ token }) => equal(this.#socket.protocols, ["switchyard.v1", `bearer.${token}`], "protocols"),

    "user joins": ({ room, after, epoch }) => { this.#client.join(room, { after, epoch }); },
    "user leaves": ({ room }) => this.#client.leave(room),
    "user publishes": ({ room, data, size, id, as }) => {
      this.#keep(as, this.#client.publish(room, size ? "x".repeat(size) : data, id && { id }));
    },
    "user asks": ({ room, before, after, limit, as }) => this.#keep(as, this.#client.history(room, { before, after, limit })),
    "user signals": ({ room, data, taken }) => equal(this.#client.signal(room, data), taken, "taken"),
    "user closes": () => this.#client.close(),

    "client connects": ({ ms }) => this.#connects(ms),
    "client stays away": async () => {
      await this.#clock.pass(HOUR);
      equal(this.#Sockets.all.length, this.#opened, "sockets after an hour");
    },
    "client hangs up": ({ code }) => equal([this.#socket.closed, code && this.#socket.farewell], [true, code], "hung up"),
    "client is": ({ state, code }) => {
      const now = this.#client.state;
      equal([now.name, code && now.code], [state, code], "state");
    },
    "client sends": (step) => this.#sends(step),
    "client sends first": (step) => this.#sends(step, true),
    "client sends nothing": () => equal(this.#socket.sent, [], "sent"),
    "client tells": ({ events }) => equal(this.#told.splice(0), events, "told"),
    "client keeps": ({ of }) => equal(this.#outcomes[of].done, false, "answered"),
    "client answers": ({ of, ack, seqs, error, unknown = false }) => {
      const got = this.#outcomes[of];
      equal(got.done, true, "answered");
      if (error) return equal([got.error?.code, got.error?.outcomeUnknown], [error, unknown], "the error, and whether it leaves the outcome open");
      if (got.error) throw got.error;
      if (seqs) return equal(got.value.messages.map((m) => m.seq), seqs, "seqs");
      return equal([got.value.seq, got.value.epoch, got.value.id, got.value.duplicate], [ack.seq, ack.epoch, ack.id, ack.duplicate], "ack");
    },
  };
}

// A behaviour with codes or errors is one for each of them, named after it.
function expand(script) {
  const each = [...(script.codes ?? []), ...(script.errors ?? [])];
  if (each.length === 0) return [script];
  return each.map((value) => ({
    ...script,
    name: `${value}: ${script.name}`,
    steps: JSON.parse(JSON.stringify(script.steps), (_, v) => (v === "each" ? value : v)),
  }));
}

export async function tests() {
  const all = {};
  for (const [, text] of await jsonFiles("../behaviours/")) {
    for (const script of JSON.parse(text).flatMap(expand)) all[script.name] = () => new Stage(script).play();
  }
  return all;
}

export const run = () => runAll(tests);
