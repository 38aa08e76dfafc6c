// How client.js reconnects, in addition to what every client does (test/behaviors).

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll, settlePromises } from "./fakes.mjs";

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, ...options });
  return { client, clock, Sockets };
}

export const tests = {};

tests["events of an abandoned socket are ignored"] = async () => {
  const { client, clock, Sockets } = start();
  const old = Sockets.last;
  const late = { onmessage: old.onmessage, onclose: old.onclose };
  old.welcome();
  await clock.advance(50_000);
  await clock.advance(500);
  Sockets.last.welcome({ node: "n2" });
  late.onclose({ code: 1000, reason: "" });
  late.onmessage({ data: JSON.stringify({ type: "welcome", node: "n1" }) });
  equal([client.state.name, client.welcome.node], ["live", "n2"], "state");
};

tests["a fresh token is fetched for each connection, and after 4001 the client reconnects with one"] = async () => {
  let tokens = 0;
  const { client, clock, Sockets } = start({ getToken: async () => `t${++tokens}` });
  await settlePromises();
  equal(Sockets.last.protocols, ["switchyard.v1", "bearer.t1"], "protocols");
  Sockets.last.closeWith(4001);
  equal(client.state.name, "waiting", "state");
  await clock.advance(250);
  equal(Sockets.last.protocols[1], "bearer.t2", "the second token");
  Sockets.last.closeWith(4003);
  equal(client.state.name, "closed", "the state after 4003");
};

tests["a token request that fails is reported and repeated"] = async () => {
  let fail = true;
  const { client, clock, Sockets } = start({ getToken: async () => { if (fail) throw new Error("no net"); return "t"; } });
  const errors = [];
  client.on("error", (error) => errors.push(error.code));
  await settlePromises();
  equal([errors, Sockets.all.length], [["connect_failed"], 0], "errors and sockets");
  fail = false;
  await clock.advance(250);
  equal(Sockets.all.length, 1, "sockets");
};

tests["closing while a token is fetched opens nothing"] = async () => {
  let resolveToken;
  const { client, Sockets } = start({ getToken: () => new Promise((resolve) => { resolveToken = resolve; }) });
  client.close();
  resolveToken("t");
  await settlePromises();
  equal([client.state.name, Sockets.all.length], ["closed", 0], "state and sockets");
};

tests["reconnect does not wait, and reopens a closed client"] = async () => {
  const { client, clock, Sockets } = start();
  Sockets.last.closeWith(1006);
  client.reconnect();
  equal(Sockets.all.length, 2, "sockets at once");
  await clock.advance(5_000);
  equal(Sockets.all.length, 2, "sockets after the time of the earlier timer");
  client.close();
  client.reconnect();
  equal(client.state.name, "connecting", "state");
};

tests["close leaves no timer behind"] = async () => {
  const { client, clock, Sockets } = start();
  Sockets.last.welcome();
  client.publish("r", 1).catch(() => {});
  client.close();
  equal([clock.idle, Sockets.last.closed], [true, true], "no timers, and a closed socket");
};

tests["the url may be relative, or begin with http"] = async () => {
  const Sockets = fakeSockets();
  Switchyard.connect("/ws", { WebSocket: Sockets, clock: new FakeClock() });
  equal(Sockets.last.url, `ws://${location.host}/ws`, "relative");
  Switchyard.connect("https://host/ws", { WebSocket: Sockets, clock: new FakeClock() });
  equal(Sockets.last.url, "wss://host/ws", "https");
};

export const run = () => runAll(tests);
