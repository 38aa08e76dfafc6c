// How the client comes back: the table of close codes, backoff, silence, tokens.

import { Switchyard } from "/client.js";
import { FakeClock, equal, fakeSockets, runAll, settled } from "./kit.js";

const HOUR = 3_600_000;

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, ...options });
  const waits = [];
  client.on("state", (state) => { if (state.name === "waiting") waits.push(state.in); });
  return { client, clock, Sockets, waits };
}

const tests = {};

for (const code of [1000, 1002, 1003, 1007, 1008, 4001, 4003, 4009]) {
  tests[`${code}: stays away`] = async () => {
    const { client, clock, Sockets } = start();
    Sockets.last.welcome();
    Sockets.last.end(code, "why");
    equal(client.state, { name: "closed", code, reason: "why" }, "state");
    await clock.pass(HOUR);
    equal(Sockets.all.length, 1, "sockets opened");
  };
}
for (const code of [1012, 4200, 4208, 4209, 4299]) {
  tests[`${code}: comes back within a second`] = async () => {
    const { client, clock, Sockets, waits } = start();
    for (let i = 0; i < 3; i++) {
      Sockets.last.welcome();
      await clock.pass(30_000);
      Sockets.last.end(code);
      equal(client.state.name, "waiting", "state");
      await clock.pass(499);
      equal(Sockets.all.length, i + 1, "sockets before the time");
      await clock.pass(1);
      equal(Sockets.all.length, i + 2, "sockets after half a second");
    }
    equal(waits, [500, 500, 500], "half of a second each time");
  };
}
for (const code of [1001, 1005, 1006, 1009, 1011, 1013, 1015, 3000, 4100, 4103, 4300, 4999]) {
  tests[`${code}: backs off`] = async () => {
    const { clock, Sockets, waits } = start();
    for (let i = 0; i < 3; i++) {
      Sockets.last.end(code);
      await clock.pass(waits.at(-1));
    }
    equal(waits, [250, 500, 1000], "half of a bound that doubles");
  };
}

tests["backoff is bounded by 20 s, and begins anew after 10 s live"] = async () => {
  const { clock, Sockets, waits } = start();
  for (let i = 0; i < 8; i++) {
    Sockets.last.end(1006);
    await clock.pass(waits.at(-1));
  }
  equal(Math.max(...waits), 10_000, "half of the highest bound");
  Sockets.last.welcome();
  await clock.pass(9_999);
  Sockets.last.end(1006);
  equal(waits.at(-1), 10_000, "after less than 10 s live");
  await clock.pass(10_000);
  Sockets.last.welcome();
  await clock.pass(10_000);
  Sockets.last.end(1006);
  equal(waits.at(-1), 250, "after 10 s live");
};

tests["4208 twice within 10 s backs off"] = async () => {
  const { clock, Sockets, waits } = start({ random: () => 0.8 });
  Sockets.last.welcome();
  Sockets.last.end(4208);
  await clock.pass(800);
  Sockets.last.welcome();
  Sockets.last.end(4208);
  equal(waits, [800, 400], "the second is a backoff from its first bound");
  await clock.pass(10_000);
  Sockets.last.welcome();
  Sockets.last.end(4208);
  equal(waits.at(-1), 800, "a third, 10 s later, is not");
};

tests["two heartbeats of silence close the socket"] = async () => {
  const { client, clock, Sockets } = start();
  const first = Sockets.last;
  first.welcome({ heartbeat_ms: 1_000 });
  await clock.pass(1_999);
  first.say({ type: "heartbeat", at: "" });
  await clock.pass(1_999);
  equal([client.state.name, first.closed], ["live", false], "after a heartbeat");
  await clock.pass(1);
  equal([client.state.name, client.state.code, first.closed], ["waiting", 1006, true], "after two without");
  await clock.pass(1_000);
  equal(Sockets.all.length, 2, "sockets");
};

tests["a server that never says welcome is left after 10 s"] = async () => {
  const { client, clock, Sockets } = start();
  await clock.pass(9_999);
  equal(client.state.name, "connecting", "before");
  await clock.pass(1);
  equal([client.state.name, Sockets.last.closed], ["waiting", true], "after");
};

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
