// How client.js comes back, beside what every client does (test/behaviors).

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll, settled } from "./kit.mjs";

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, ...options });
  return { client, clock, Sockets };
}

export const tests = {};

tests["what an abandoned socket still says is not heard"] = async () => {
  const { client, clock, Sockets } = start();
  const old = Sockets.last;
  const late = { onmessage: old.onmessage, onclose: old.onclose };
  old.welcome();
  await clock.pass(50_000);
  await clock.pass(500);
  Sockets.last.welcome({ node: "n2" });
  late.onclose({ code: 1000, reason: "" });
  late.onmessage({ data: JSON.stringify({ type: "welcome", node: "n1" }) });
  equal([client.state.name, client.welcome.node], ["live", "n2"], "state");
};

tests["a fresh token is fetched for each connection, and 4001 comes back only with one"] = async () => {
  let tokens = 0;
  const { client, clock, Sockets } = start({ getToken: async () => `t${++tokens}` });
  await settled();
  equal(Sockets.last.protocols, ["switchyard.v1", "bearer.t1"], "protocols");
  Sockets.last.end(4001);
  equal(client.state.name, "waiting", "state");
  await clock.pass(250);
  equal(Sockets.last.protocols[1], "bearer.t2", "the second token");
  Sockets.last.end(4003);
  equal(client.state.name, "closed", "4003 stays away all the same");
};

tests["a token that cannot be fetched is told, and tried again"] = async () => {
  let fail = true;
  const { client, clock, Sockets } = start({ getToken: async () => { if (fail) throw new Error("no net"); return "t"; } });
  const errors = [];
  client.on("error", (error) => errors.push(error.code));
  await settled();
  equal([errors, Sockets.all.length], [["connect_failed"], 0], "errors and sockets");
  fail = false;
  await clock.pass(250);
  equal(Sockets.all.length, 1, "sockets");
};

tests["closing while a token is fetched opens nothing"] = async () => {
  let give;
  const { client, Sockets } = start({ getToken: () => new Promise((resolve) => { give = resolve; }) });
  client.close();
  give("t");
  await settled();
  equal([client.state.name, Sockets.all.length], ["closed", 0], "state and sockets");
};

tests["reconnect does not wait, and also ends a closed state"] = async () => {
  const { client, clock, Sockets } = start();
  Sockets.last.end(1006);
  client.reconnect();
  equal(Sockets.all.length, 2, "sockets at once");
  await clock.pass(5_000);
  equal(Sockets.all.length, 2, "the earlier timer is off");
  client.close();
  client.reconnect();
  equal(client.state.name, "connecting", "state");
};

tests["close leaves no timer behind"] = async () => {
  const { client, clock, Sockets } = start();
  Sockets.last.welcome();
  client.publish("r", 1).catch(() => {});
  client.close();
  equal([clock.idle, Sockets.last.closed], [true, true], "no timer, and the socket is closed");
};

tests["the url may be relative, or begin with http"] = async () => {
  const Sockets = fakeSockets();
  Switchyard.connect("/ws", { WebSocket: Sockets, clock: new FakeClock() });
  equal(Sockets.last.url, `ws://${location.host}/ws`, "relative");
  Switchyard.connect("https://host/ws", { WebSocket: Sockets, clock: new FakeClock() });
  equal(Sockets.last.url, "wss://host/ws", "https");
};

export const run = () => runAll(tests);
