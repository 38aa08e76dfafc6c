// A program in Node that uses client.js as its users do. It prints the states and errors of its client, and the acks of
// the lines on its standard input, which it publishes.
//
//   node program.mjs ws|own|none|native URL [careless|fast]

import { webcrypto } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

globalThis.crypto ??= webcrypto;
const require = createRequire(import.meta.url); // finds Debian's packages by NODE_PATH
const [, , kind, url, manner] = process.argv;
const options = { WebSocket: kind === "own" ? globalThis.WebSocket : require("ws"), backoff: { base: 20, cap: 20 } };
if (kind === "none") {
  delete globalThis.WebSocket;
  delete options.WebSocket;
}
if (kind === "native") { // what React Native lacks, and a slash that it appends
  for (const name of ["crypto", "TextEncoder", "reportError"]) delete globalThis[name];
  const lacks = { get() { throw new Error("URL: not implemented"); } };
  globalThis.URL = class {
    constructor(text) { this.href = `${text}/`; }
  };
  for (const name of ["protocol", "host", "origin", "pathname", "hash", "search"]) Object.defineProperty(URL.prototype, name, lacks);
}
if (manner === "fast") { // a second is ten milliseconds
  options.clock = { now: () => performance.now() * 100, setTimeout: (f, ms) => setTimeout(f, ms / 100), clearTimeout };
}

const { Switchyard } = await import("../../web/client.js");
const client = Switchyard.connect(url, options);
const room = client.join("node", { after: 0 });
if (manner === "careless") { // listeners that throw, before those that print
  for (const event of ["state", "error", "message", "joined"]) {
    client.on(event, () => { throw undefined; }); // eslint-disable-line no-throw-literal
    client.on(event, async () => { throw new Error("later"); });
  }
  room.on("message", () => { throw new Error("at once"); });
  room.on("message", async () => { throw new Error("later"); });
}
client.on("state", ({ name }) => console.log(`state ${name}`));
client.on("error", ({ code }) => console.log(`error ${code}`));
room.on("message", ({ data }) => console.log(`message ${data}`));
const publish = async (line) => {
  const { seq } = await client.publish("node", line);
  console.log(`ack ${line} ${seq}`);
};
createInterface({ input: process.stdin }).on("line", (line) => {
  if (line === "close") client.close();
  else if (manner === "careless") client.publish("node", line); // and nobody awaits it
  else publish(line);
}).on("close", () => client.close());
