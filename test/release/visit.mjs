// A program that uses the client.js of one release with the server of another:
//
//   node visit.mjs path/to/web/client.js ws://host/ws room
//
// It does what testdata/visitor does with the Go client, and prints the same report.

import { webcrypto } from "node:crypto";
import { pathToFileURL } from "node:url";
import { NodeWebSocket } from "./node_websocket.mjs";

globalThis.crypto ??= webcrypto; // not global in Node 18

const [path, url, name] = process.argv.slice(2);
const { Switchyard } = await import(pathToFileURL(path));

const report = { acks: {}, messages: [], history: [] };
const client = Switchyard.connect(url, { WebSocket: NodeWebSocket });
const nextEvent = (source, event) => new Promise((resolve) => { const off = source.on(event, (value) => { off(); resolve(value); }); });
const seqAndID = ({ seq, id }) => ({ seq, id });

const room = client.join(name, { after: 0 });
room.on("message", (message) => report.messages.push(seqAndID(message)));
const { epoch } = await room.joined;

async function publish(from, to) {
  for (let i = from; i <= to; i += 1) report.acks[`id-${i}`] = (await room.publish(i, { id: `id-${i}` })).seq;
}
await publish(1, 10);
const rejoined = nextEvent(room, "joined");
console.log("half");
await rejoined; // the test kills the server and restarts it
await publish(11, 20);
while (report.messages.length < 20) await nextEvent(room, "message");

report.duplicate = (await room.publish(7, { id: "id-7" })).duplicate;
report.conflict = await room.publish("other", { id: "id-7" }).then(() => "", (error) => error.code);
const signal = nextEvent(room, "signal");
room.signal({ typing: true });
report.signal = (await signal).data;
const page = await room.history({ limit: 3 });
report.history = page.messages.map(seqAndID);
report.more = page.more;
room.leave();
const gap = await nextEvent(client.join(name, { after: 99, epoch }), "gap");
report.gap = `${gap.from}-${gap.to} ${gap.reason}`;
report.version = client.welcome.version;
client.close();
console.log(JSON.stringify(report));
