// How client.js notices that its connection, its network or its page was away, whatever the clock of the computer says.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll, settlePromises } from "./fakes.mjs";

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, ...options });
  const errors = [];
  client.on("error", (error) => errors.push(error));
  return { client, clock, Sockets, errors };
}

function startLive(options) {
  const env = start(options);
  env.Sockets.last.welcome();
  return env;
}

const PAGE_EVENTS = { online: globalThis, pageshow: globalThis, visibilitychange: document };

export const tests = {
  async "a socket that fails without an end is at its end soon"() {
    const { client, clock, Sockets } = start();
    Sockets.last.onerror({});
    await clock.advance(499);
    equal(client.state.name, "connecting", "state before half a second");
    await clock.advance(1);
    equal(client.state.name, "waiting", "state after half a second");
    client.close();

    const closed = start();
    closed.Sockets.last.onerror({});
    closed.Sockets.last.closeWith(1006);
    closed.client.reconnect();
    closed.Sockets.last.welcome();
    await closed.clock.advance(500);
    equal(closed.client.state.name, "live", "state of the connection after one that had an end");
    closed.client.close();
  },

  async "a waiting client connects when the page or its network comes back"() {
    for (const [event, target] of Object.entries(PAGE_EVENTS)) {
      const { client, Sockets } = start();
      Sockets.last.closeWith(1006);
      target.dispatchEvent(new Event(event));
      equal([client.state.name, Sockets.all.length], ["connecting", 2], event);
      client.close();
    }
  },

  async "a live client asks for an answer when the page or the network was away"() {
    for (const [event, target] of Object.entries({ ...PAGE_EVENTS, offline: globalThis })) {
      const { client, clock, Sockets } = startLive();
      target.dispatchEvent(new Event(event));
      equal(Sockets.last.sentOf("ping").length, 1, `${event}: pings`);
      await clock.advance(3_000);
      equal(Sockets.all.length, 2, `${event}: sockets after three seconds of silence`);
      client.close();
    }
  },

  async "a client that waits does not connect when the network goes"() {
    const { client, Sockets } = start();
    Sockets.last.closeWith(1006);
    globalThis.dispatchEvent(new Event("offline"));
    equal(Sockets.all.length, 1, "sockets");
    client.close();
  },

  async "a client that was closed stays closed, and one that is reopened listens again"() {
    const { client, Sockets } = startLive();
    client.close();
    for (const [event, target] of Object.entries(PAGE_EVENTS)) target.dispatchEvent(new Event(event));
    equal([client.state.name, Sockets.all.length], ["closed", 1], "state and sockets");
    client.reconnect();
    Sockets.last.closeWith(1006);
    globalThis.dispatchEvent(new Event("online"));
    equal(Sockets.all.length, 3, "sockets after it was reopened, and online came");
    client.close();
  },

  async "closing while a ping waits for its answer leaves no timer"() {
    const { client, clock } = startLive();
    client.reconnect();
    client.close();
    equal(clock.idle, true, "no timers");
  },

  async "silence is noticed although the wall clock was set back"() {
    const { client, clock, Sockets } = startLive();
    clock.wallOffset = -3_600_000;
    await clock.advance(50_000);
    equal([client.state.name, Sockets.last.closed], ["waiting", true], "state and closed");
  },

  async "the clock of the machine measures silence, not the wall clock"() {
    const Sockets = fakeSockets();
    const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets });
    const { now } = Date;
    Sockets.last.welcome({ heartbeat_ms: 25 });
    const { last } = Sockets;
    let timeout;
    const dropped = new Promise((resolve, reject) => {
      last.close = resolve;
      timeout = setTimeout(() => reject(new Error("silence for 20 s is not noticed")), 20_000);
    });
    Date.now = () => now() - 3_600_000;
    try {
      await dropped;
    } finally {
      clearTimeout(timeout);
      Date.now = now;
      client.close();
    }
  },

  async "no publish is resent after its window, although the wall clock was set back"() {
    const { client, clock, Sockets } = startLive();
    let code;
    client.publish("r", 1).catch((error) => { code = error.code; });
    clock.wallOffset = -1_200_000;
    Sockets.last.closeWith(1006);
    await clock.advance(1_000);
    Sockets.last.welcome(); // counts anew how long the publish may be resent
    Sockets.last.closeWith(1006);
    await clock.advance(299_000);
    Sockets.last.welcome();
    equal([code, Sockets.last.sentOf("publish")], ["outcome_unknown", []], "the code of its end, and resent");
    client.close();
  },

  async "no publish is resent after its window, although the monotonic clock stood still"() {
    const { client, clock, Sockets } = startLive();
    let ended;
    client.publish("r", 1).catch((error) => { ended = error; });
    Sockets.last.closeWith(1006);
    clock.wallOffset = 300_000; // the computer slept
    await clock.advance(500);
    Sockets.last.welcome();
    await settlePromises();
    equal([ended?.code, ended?.outcomeUnknown, Sockets.last.sentOf("publish")], ["outcome_unknown", true, []], "the code of its end, outcomeUnknown, and resent");
    client.close();
  },

  async "a publish whose window is not over is resent although the clocks were set"() {
    const { client, clock, Sockets } = startLive();
    client.publish("r", 1).catch(() => {});
    Sockets.last.closeWith(1006);
    clock.wallOffset = -1_200_000;
    await clock.advance(500);
    clock.wallOffset = 0;
    Sockets.last.welcome();
    equal(Sockets.last.sentOf("publish").length, 1, "resent");
    client.close();
  },

  async "the second connection without an answer is told, with what it may be"() {
    const { client, clock, Sockets, errors } = start();
    Sockets.last.closeWith(1006);
    equal(errors.length, 0, "errors after the first");
    await clock.advance(20_000);
    Sockets.last.closeWith(1006);
    const [{ code, message }] = errors;
    const words = ["ALLOWED_ORIGINS", location.origin, "/ws", "proxy", "http://host/no-connection.html"];
    equal([code, words.filter((word) => !message.includes(word))], ["connect_failed", []], message);
    for (let i = 0; i < 3; i++) {
      await clock.advance(20_000);
      Sockets.last.closeWith(1006);
    }
    equal(errors.length, 1, "errors after five");
    client.close();
  },

  async "a connection that ends after a welcome is not told"() {
    const { client, clock, Sockets, errors } = startLive();
    for (let i = 0; i < 3; i++) {
      Sockets.last.closeWith(1006);
      await clock.advance(20_000);
    }
    equal(errors, [], "errors");
    client.close();
    await settlePromises();
  },
};

export const run = () => runAll(tests);
