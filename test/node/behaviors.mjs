// Plays test/behaviors, the list of what every client does, with client.js. The Go client plays it in
// internal/client; test/behaviors/README.md says what the words mean.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, jsonFiles, runAll, settled } from "./kit.mjs";

const HOUR = 3_600_000;

// A Stage is where one behaviour is played.
class Stage {
  #script; #clock = new FakeClock(); #Sockets = fakeSockets(); #client;
  #opened = 0; #frames = {}; #outcomes = {}; #told = []; #states = [];

  constructor(script) { this.#script = script; }

  async play() {
    const { random = 0, resendFor, tokens, begin, steps } = this.#script;
    const options = { WebSocket: this.#Sockets, clock: this.#clock, random: () => random, resendFor };
    const left = [...(tokens ?? [])];
    if (tokens) {
      options.getToken = async () => {
        const token = left.shift();
        if (token == null) throw new Error("no token to be had");
        if (token === "never") return new Promise(() => {});
        if (token.startsWith("late ")) await new Promise((resolve) => { this.#clock.setTimeout(resolve, 1_000); });
        return token.replace("late ", "");
      };
    }
    this.#client = Switchyard.connect("ws://host/ws", options);
    this.#states.push(this.#client.state.name); // told before anybody can listen
    this.#listen();
    await this.#connects(0);
    if (begin !== "silent") this.#welcomes({});
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
    tell("presence", ({ room, count, members, joined, left }) => `${room} ${count}${sessions(" =", members)}${sessions(" +", joined)}${sessions(" -", left)}`);
    tell("moved", ({ from, to, reason }) => `${from.node} ${to.node} ${reason}`);
    this.#client.on("state", ({ name }) => this.#states.push(name));
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

  // The connection that a step is about.
  #on({ on = this.#opened }) { return this.#Sockets.all[on - 1]; }

  #welcomes(step) { this.#on(step).welcome({ ...this.#script.welcome, ...step.welcome }); }

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
  }

  #keep(name, promise) {
    const outcome = { done: false };
    this.#outcomes[name] = outcome;
    promise.then((value) => Object.assign(outcome, { done: true, value }), (error) => Object.assign(outcome, { done: true, error }));
  }

  // The next frame of that type and room: an order holds in a room.
  #sends({ frame, without = [], as, on }, first) {
    const { sent } = this.#on({ on });
    const at = first ? 0 : sent.findIndex((f) => f.type === frame.type && f.room === frame.room);
    const [got] = at < 0 ? [] : sent.splice(at, 1);
    if (!got) throw new Error(`it did not; it sent ${JSON.stringify(sent)}`);
    for (const [field, want] of Object.entries(frame)) equal(got[field], want, field);
    for (const field of without) equal(field in got, false, `${field} is there`);
    this.#frames[as] = got;
  }

  #words = {
    "time passes": ({ ms }) => this.#clock.pass(ms),
    "server welcomes": (step) => this.#welcomes(step),
    "server says": ({ frame, text, answers, on }) => {
      const socket = this.#on({ on });
      if (text) return socket.hear(text);
      const { ref, room, id } = this.#frames[answers] ?? {};
      const repeated = Object.fromEntries(Object.entries({ ref, room, id }).filter(([, value]) => value !== undefined));
      return socket.say({ ...frame, ...repeated });
    },
    "server tells": ({ room, epoch, seqs, on }) => { for (const seq of seqs) this.#on({ on }).message(room, seq, { epoch }); },
    "server closes": ({ code, on }) => this.#on({ on }).end(code),
    "server was given": ({ token, session, on }) => {
      const want = ["switchyard.v1", token && `bearer.${token}`, session && `session.${session}`].filter(Boolean);
      equal(this.#on({ on }).protocols, want, "protocols");
    },

    "user joins": ({ room, after, epoch }) => { this.#client.join(room, { after, epoch }); },
    "user leaves": ({ room }) => this.#client.leave(room),
    "user publishes": ({ room, data, size, id, as }) => {
      this.#keep(as, this.#client.publish(room, size ? "x".repeat(size) : data, id && { id }));
    },
    "user asks": ({ room, before, after, limit, as }) => this.#keep(as, this.#client.history(room, { before, after, limit })),
    "user signals": ({ room, data, taken }) => equal(this.#client.signal(room, data), taken, "taken"),
    "user looks": ({ room, as }) => this.#keep(as, this.#client.presence(room)),
    "user refreshes": ({ as }) => this.#keep(as, this.#client.refreshToken()),
    "user closes": () => this.#client.close(),

    "client connects": ({ ms }) => this.#connects(ms),
    "client stays away": async () => {
      await this.#clock.pass(HOUR);
      equal(this.#Sockets.all.length, this.#opened, "sockets after an hour");
    },
    "client opens nothing": () => equal(this.#Sockets.all.length, this.#opened, "sockets"),
    "client hangs up": ({ code, on }) => {
      const { closed, farewell } = this.#on({ on });
      equal([closed, code && farewell], [true, code], "hung up");
    },
    "client holds on": ({ on }) => equal(this.#on({ on }).closed, false, "hung up"),
    "client is": ({ state, code, welcome = {} }) => {
      const now = this.#client.state;
      equal([now.name, code && now.code], [state, code], "state");
      for (const [field, want] of Object.entries(welcome)) equal(now.welcome?.[field], want, field);
    },
    "client was": ({ states }) => equal(this.#states.splice(0), states, "states"),
    "client sends": (step) => this.#sends(step),
    "client sends first": (step) => this.#sends(step, true),
    "client sends nothing": ({ on }) => equal(this.#on({ on }).sent, [], "sent"),
    "client tells": ({ events }) => equal(this.#told.splice(0), events, "told"),
    "client keeps": ({ of }) => equal(this.#outcomes[of].done, false, "answered"),
    "client answers": ({ of, ack, seqs, count, error, unknown = false }) => {
      const got = this.#outcomes[of];
      equal(got.done, true, "answered");
      if (error) return equal([got.error?.code, got.error?.outcomeUnknown], [error, unknown], "the error, and whether it leaves the outcome open");
      if (got.error) throw got.error;
      if (seqs) return equal(got.value.messages.map((m) => m.seq), seqs, "seqs");
      if (count !== undefined) return equal(got.value.count, count, "count");
      if (!ack) return undefined;
      return equal([got.value.seq, got.value.epoch, got.value.id, got.value.duplicate], [ack.seq, ack.epoch, ack.id, ack.duplicate], "ack");
    },
  };
}

function sessions(before, members = []) { return members.map(({ session }) => before + session).join(""); }

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
  for (const [, text] of await jsonFiles("../behaviors/")) {
    for (const script of JSON.parse(text).flatMap(expand)) all[script.name] = () => new Stage(script).play();
  }
  return all;
}

export const run = () => runAll(tests);
