// A user of client.js, that of one release, who visits the server of another:
//
//   node visit.mjs path/to/web/client.js ws://host/ws room
//
// Does what testdata/visitor does with the Go client, and prints the same report.

import { webcrypto } from "node:crypto";
import { pathToFileURL } from "node:url";
import { NodeSocket } from "./socket.mjs";

globalThis.crypto ??= webcrypto; // Node 18 has it not

const [path, url, name] = process.argv.slice(2);
const { Switchyard } = await import(pathToFileURL(path));

const report = { acks: {}, messages: [], history: [] };
const client = Switchyard.connect(url, { WebSocket: NodeSocket });
const next = (on, event) => new Promise((resolve) => { const off = on.on(event, (value) => { off(); resolve(value); }); });
const said = ({ seq, id }) => ({ seq, id });

const room = client.join(name, { after: 0 });
room.on("message", (message) => report.messages.push(said(message)));
const { epoch } = await room.joined;

async function publish(from, to) {
  for (let i = from; i <= to; i += 1) report.acks[`id-${i}`] = (await room.publish(i, { id: `id-${i}` })).seq;
}
await publish(1, 10);
const back = next(room, "joined");
console.log("half");
await back; // the server is killed and comes back
await publish(11, 20);
while (report.messages.length < 20) await next(room, "message");

report.duplicate = (await room.publish(7, { id: "id-7" })).duplicate;
report.conflict = await room.publish("other", { id: "id-7" }).then(() => "", (error) => error.code);
const signal = next(room, "signal");
room.signal({ typing: true });
report.signal = (await signal).data;
const page = await room.history({ limit: 3 });
report.history = page.messages.map(said);
report.more = page.more;
room.leave();
const gap = await next(client.join(name, { after: 99, epoch }), "gap");
report.gap = `${gap.from}-${gap.to} ${gap.reason}`;
report.version = client.welcome.version;
client.close();
console.log(JSON.stringify(report));
