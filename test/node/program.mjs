// A program in Node that uses client.js as its users do. It prints the states and errors of its client, and the acks of
// the lines on its standard input, which it publishes.
//
//   node program.mjs ws|own URL

import { webcrypto } from "node:crypto";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

import { Switchyard } from "../../web/client.js";

globalThis.crypto ??= webcrypto;
const require = createRequire(import.meta.url); // finds Debian's packages by NODE_PATH
const [, , kind, url] = process.argv;
const options = { WebSocket: kind === "ws" ? require("ws") : globalThis.WebSocket, backoff: { base: 20, cap: 20 } };
if (kind === "none") {
  delete globalThis.WebSocket;
  delete options.WebSocket;
}

const client = Switchyard.connect(url, options);
client.on("state", ({ name }) => console.log(`state ${name}`));
client.on("error", ({ code }) => console.log(`error ${code}`));
client.join("node", { after: 0 }).on("message", ({ data }) => console.log(`message ${data}`));
createInterface({ input: process.stdin }).on("line", async (line) => {
  if (line === "close") return client.close();
  const { seq } = await client.publish("node", line);
  return console.log(`ack ${line} ${seq}`);
}).on("close", () => client.close());
