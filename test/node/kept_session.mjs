// How client.js keeps its session over a reload, a tab that is discarded, and a copy of the tab.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll } from "./fakes.mjs";

const KEY = "test.session";

// Node has no sessionStorage before version 25.
function withStorage(storage, test) {
  const before = Object.getOwnPropertyDescriptor(globalThis, "sessionStorage");
  Object.defineProperty(globalThis, "sessionStorage", { configurable: true, ...storage });
  return test().finally(() => {
    if (before) Object.defineProperty(globalThis, "sessionStorage", before);
    else delete globalThis.sessionStorage;
  });
}

function memory(content = {}) {
  const items = new Map(Object.entries(content));
  const value = {
    getItem: (key) => items.get(key) ?? null,
    setItem: (key, text) => items.set(key, String(text)),
    removeItem: (key) => items.delete(key),
  };
  return { value, items };
}

function start(options = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const client = Switchyard.connect("ws://host/ws", { WebSocket: Sockets, clock, random: () => 0.5, keepSession: KEY, ...options });
  return { client, clock, Sockets };
}

const GOES = [[globalThis, "pagehide"], [document, "freeze"]];
const COMES = [[globalThis, "pageshow"], [document, "resume"]];

export const tests = {
  async "it is stored only while the page is not there"() {
    for (const [i, [target, event]] of GOES.entries()) {
      const { value, items } = memory();
      await withStorage({ value }, async () => {
        const { client, Sockets } = start();
        Sockets.last.welcome({ session: "one.secret" });
        equal(items.size, 0, `${event}: what is stored while the page is there`);
        target.dispatchEvent(new Event(event));
        equal([...items], [[KEY, "one.secret"]], `${event}: what is stored`);
        COMES[i][0].dispatchEvent(new Event(COMES[i][1]));
        equal(items.size, 0, `${COMES[i][1]}: what is stored`);
        client.close();
        target.dispatchEvent(new Event(event));
        equal(items.size, 0, `${event}: what a closed client stores`);
      });
    }
  },

  async "the next page continues it, and takes it out of the storage"() {
    const { value, items } = memory({ [KEY]: "one.secret" });
    await withStorage({ value }, async () => {
      const { client, Sockets } = start();
      equal([Sockets.last.protocols, items.size], [["switchyard.v1", "session.one.secret"], 0], "protocols, and what is stored");
      client.close();
    });
  },

  async "a page that goes before its welcome loses nothing"() {
    const { value, items } = memory({ [KEY]: "one.secret" });
    await withStorage({ value }, async () => {
      const { client } = start();
      globalThis.dispatchEvent(new Event("pagehide"));
      equal(items.get(KEY), "one.secret", "what is stored");
      client.close();
    });
  },

  async "storage that is refused, or has something else, costs only the session"() {
    const refused = () => { throw new DOMException("The operation is insecure.", "SecurityError"); };
    const full = { ...memory().value, setItem: refused };
    for (const storage of [{ get: refused }, { value: full }, { value: memory({ [KEY]: "not a session" }).value }, { value: undefined }]) {
      await withStorage(storage, async () => {
        const { client, Sockets } = start();
        equal(Sockets.last.protocols, ["switchyard.v1"], "protocols");
        Sockets.last.welcome();
        for (const [target, event] of [...GOES, ...COMES]) target.dispatchEvent(new Event(event));
        equal(client.state.name, "live", "state");
        client.close();
      });
    }
  },

  async "a client whose session a copy has taken begins one of its own, and loses nothing"() {
    await withStorage(memory({ [KEY]: "one.secret" }), async () => {
      const { client, clock, Sockets } = start();
      Sockets.last.welcome({ session: "one.secret" });
      const outcome = client.publish("r", 1);
      Sockets.last.closeWith(4009, "replaced");
      equal(client.state.name, "waiting", "state");
      await clock.advance(500);
      equal(Sockets.last.protocols, ["switchyard.v1"], "protocols");
      Sockets.last.welcome({ session: "two.secret" });
      Sockets.last.ack(Sockets.last.sentOf("publish")[0], 7);
      equal((await outcome).seq, 7, "seq");
      client.close();
    });
  },
};

export const run = () => runAll(tests);
