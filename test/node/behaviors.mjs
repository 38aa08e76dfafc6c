// Plays test/behaviors, the list of what every client does, with client.js. The Go client plays it in
// internal/client; test/behaviors/README.md defines the words.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, jsonFiles, runAll, settlePromises } from "./fakes.mjs";

const HOUR = 3_600_000;

// A ScriptPlayer runs the script of one behavior.
class ScriptPlayer {
  #script; #clock = new FakeClock(); #Sockets = fakeSockets(); #client;
  #connectionCount = 0; #frames = {}; #outcomes = {}; #events = []; #states = []; #named = {};

  constructor(script) { this.#script = script; }

  async play() {
    const { random = 0, resendFor, tokens, begin, steps } = this.#script;
    const options = { WebSocket: this.#Sockets, clock: this.#clock, random: () => random, resendFor };
    const remainingTokens = [...(tokens ?? [])];
    if (tokens) {
      options.getToken = async () => {
        const token = remainingTokens.shift();
        if (token == null) throw new Error("no token available");
        if (token === "never") return new Promise(() => {});
        if (token.startsWith("late ")) await new Promise((resolve) => { this.#clock.setTimeout(resolve, 1_000); });
        return token.replace("late ", "");
      };
    }
    this.#client = Switchyard.connect("ws://host/ws", options);
    this.#states.push(this.#client.state.name); // the first state precedes every listener
    this.#recordEvents();
    await this.#expectConnection(0);
    if (begin !== "not welcomed") this.#sendWelcome({});
    for (const [i, step] of steps.entries()) {
      await settlePromises();
      try {
        await this.#runStep(step);
      } catch (error) {
        throw new Error(`step ${i + 1}, ${JSON.stringify(step)}: ${error.message}`);
      }
    }
    this.#client.close();
  }

  // The events of joins that have a name are theirs, and those of the others the client's.
  #recordEvents() {
    const hasName = (room) => Object.values(this.#named).some(({ name }) => name === room);
    for (const [event, line] of Object.entries(ROOM_EVENTS)) {
      this.#client.on(event, (value) => { if (!hasName(value.room)) this.#events.push(`${event} ${line(value)}`); });
    }
    this.#client.on("moved", ({ from, to, reason }) => this.#events.push(`moved ${from.node} ${to.node} ${reason}`));
    this.#client.on("state", ({ name }) => this.#states.push(name));
    this.#client.on("error", (e) => { if (e.room) this.#events.push(`refused ${e.room} ${e.code}`); });
  }

  async #runStep(step) {
    for (const actor of ["server", "user", "client", "time"]) {
      const word = step[actor];
      if (!word) continue;
      const run = this.#steps[`${actor} ${word}`];
      if (!run) throw new Error(`unknown word: "${actor} ${word}"`);
      return run(step);
    }
    throw new Error("the step has no actor");
  }

  // The socket of the connection that a step is about.
  #socketFor({ on = this.#connectionCount }) { return this.#Sockets.all[on - 1]; }

  #sendWelcome(step) { this.#socketFor(step).welcome({ ...this.#script.welcome, ...step.welcome }); }

  async #expectConnection(ms) {
    if (ms > 0) {
      await this.#clock.advance(ms - 1);
      equal(this.#Sockets.all.length, this.#connectionCount, "sockets a millisecond before");
      await this.#clock.advance(1);
    } else {
      await this.#clock.advance(0);
    }
    this.#connectionCount += 1;
    equal(this.#Sockets.all.length, this.#connectionCount, "sockets then");
  }

  #recordOutcome(name, promise) {
    const outcome = { done: false };
    this.#outcomes[name] = outcome;
    promise.then((value) => Object.assign(outcome, { done: true, value }), (error) => Object.assign(outcome, { done: true, error }));
  }

  // Removes the next frame of that type and room and checks it. Frames are in order within a room only.
  #expectFrame({ frame, without = [], as, on }, first) {
    const { sent } = this.#socketFor({ on });
    const at = first ? 0 : sent.findIndex((f) => f.type === frame.type && f.room === frame.room);
    const [got] = at < 0 ? [] : sent.splice(at, 1);
    if (!got) throw new Error(`it did not send that frame; it sent ${JSON.stringify(sent)}`);
    for (const [field, want] of Object.entries(frame)) equal(got[field], want, field);
    for (const field of without) equal(field in got, false, `the frame has ${field}`);
    this.#frames[as] = got;
  }

  #steps = {
    "time passes": ({ ms }) => this.#clock.advance(ms),
    "server welcomes": (step) => this.#sendWelcome(step),
    "server sends": ({ frame, text, answers, on }) => {
      const socket = this.#socketFor({ on });
      if (text) return socket.receiveText(text);
      const { ref, room, id } = this.#frames[answers] ?? {};
      const repeated = Object.fromEntries(Object.entries({ ref, room, id }).filter(([, value]) => value !== undefined));
      return socket.receive({ ...frame, ...repeated });
    },
    "server sends messages": ({ room, epoch, seqs, on }) => { for (const seq of seqs) this.#socketFor({ on }).message(room, seq, { epoch }); },
    "server closes": ({ code, on }) => this.#socketFor({ on }).closeWith(code),
    "server received credentials": ({ token, session, on }) => {
      const want = ["switchyard.v1", token && `bearer.${token}`, session && `session.${session}`].filter(Boolean);
      equal(this.#socketFor({ on }).protocols, want, "protocols");
    },

    "user joins": ({ room, after, epoch, last, as }) => {
      const joined = this.#client.join(room, { after, epoch, last });
      if (!as) return;
      this.#named[as] = joined;
      for (const [event, line] of Object.entries(ROOM_EVENTS)) joined.on(event, (value) => this.#events.push(`${as}: ${event} ${line(value)}`));
    },
    "user leaves": ({ room, of }) => { if (of) this.#named[of].leave(); else this.#client.leave(room); },
    "user reconnects": () => this.#client.reconnect(),
    "user publishes": ({ room, data, size, id, as }) => {
      this.#recordOutcome(as, this.#client.publish(room, size ? "x".repeat(size) : data, id && { id }));
    },
    "user requests history": ({ room, before, after, limit, as }) => this.#recordOutcome(as, this.#client.history(room, { before, after, limit })),
    "user signals": ({ room, data, taken }) => equal(this.#client.signal(room, data), taken, "taken"),
    "user requests presence": ({ room, as }) => this.#recordOutcome(as, this.#client.presence(room)),
    "user refreshes the token": ({ as }) => this.#recordOutcome(as, this.#client.refreshToken()),
    "user closes": () => this.#client.close(),

    "client connects": ({ ms }) => this.#expectConnection(ms),
    "client does not reconnect": async () => {
      await this.#clock.advance(HOUR);
      equal(this.#Sockets.all.length, this.#connectionCount, "sockets after an hour");
    },
    "client has not connected": () => equal(this.#Sockets.all.length, this.#connectionCount, "sockets"),
    "client closes": ({ code, on }) => {
      const { closed, closeCode } = this.#socketFor({ on });
      equal([closed, code && closeCode], [true, code], "closed, and the code");
    },
    "client stays connected": ({ on }) => equal(this.#socketFor({ on }).closed, false, "closed"),
    "client has state": ({ state, code, welcome = {} }) => {
      const now = this.#client.state;
      equal([now.name, code && now.code], [state, code], "state");
      for (const [field, want] of Object.entries(welcome)) equal(now.welcome?.[field], want, field);
    },
    "client had states": ({ states }) => equal(this.#states.splice(0), states, "states"),
    "client sends": (step) => this.#expectFrame(step),
    "client sends first": (step) => this.#expectFrame(step, true),
    "client sends nothing": ({ on }) => equal(this.#socketFor({ on }).sent, [], "sent"),
    "client emits": ({ events }) => equal(this.#events.splice(0), events, "events"),
    "client is pending": ({ of }) => equal(this.#outcomes[of].done, false, "completed"),
    "client completes": ({ of, ack, seqs, count, error, unknown = false }) => {
      const got = this.#outcomes[of];
      equal(got.done, true, "completed");
      if (error) return equal([got.error?.code, got.error?.outcomeUnknown], [error, unknown], "code and outcomeUnknown of the error");
      if (got.error) throw got.error;
      if (seqs) return equal(got.value.messages.map((m) => m.seq), seqs, "seqs");
      if (count !== undefined) return equal(got.value.count, count, "count");
      if (!ack) return undefined;
      return equal([got.value.seq, got.value.epoch, got.value.id, got.value.duplicate], [ack.seq, ack.epoch, ack.id, ack.duplicate], "ack");
    },
  };
}

const ROOM_EVENTS = {
  message: (m) => `${m.room} ${m.epoch}/${m.seq}`,
  gap: (g) => `${g.room} ${g.epoch} ${g.from}-${g.to} ${g.reason}`,
  joined: (j) => `${j.room} ${j.seq}`,
  signal: (s) => `${s.room} ${s.from ?? "-"} ${JSON.stringify(s.data)}`,
  presence: ({ room, count, members, joined, left }) => `${room} ${count}${sessions(" =", members)}${sessions(" +", joined)}${sessions(" -", left)}`,
};

function sessions(before, members = []) { return members.map(({ session }) => before + session).join(""); }

// Returns one behavior for each code and error of a script, named after it, or the script itself.
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
    for (const script of JSON.parse(text).flatMap(expand)) all[script.name] = () => new ScriptPlayer(script).play();
  }
  return all;
}

export const run = () => runAll(tests);
