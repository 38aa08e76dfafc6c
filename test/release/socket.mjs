// What client.js uses of a WebSocket, for a Node that has none (before 22): text both ways, close
// codes, pongs. The server is ours: what it sends is trusted to be well formed.

import { randomBytes } from "node:crypto";
import { request } from "node:http";

const TEXT = 1, CLOSE = 8, PING = 9, PONG = 10;

export class NodeSocket {
  bufferedAmount = 0; onmessage = null; onclose = null;
  #socket = null; #rest = Buffer.alloc(0); #waiting = []; #code = 1006; #ended = false;

  constructor(url, protocols) {
    const call = request(String(url).replace(/^ws/, "http"), {
      headers: {
        Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": 13,
        "Sec-WebSocket-Key": randomBytes(16).toString("base64"), "Sec-WebSocket-Protocol": protocols.join(", "),
      },
    });
    call.on("upgrade", (_, socket, head) => {
      this.#socket = socket;
      socket.on("data", (bytes) => this.#read(bytes));
      socket.on("error", () => {});
      socket.on("close", () => this.#end());
      for (const frame of this.#waiting.splice(0)) socket.write(frame);
      this.#read(head);
    });
    call.on("response", (answer) => { answer.resume(); this.#end(); });
    call.on("error", () => this.#end());
    call.end();
  }

  send(text) { this.#write(TEXT, Buffer.from(text)); }

  close(code = 1000) {
    this.#write(CLOSE, Buffer.from([code >> 8, code & 255]));
    this.#socket?.end();
  }

  #end() {
    if (this.#ended) return;
    this.#ended = true;
    this.onclose?.({ code: this.#code, reason: "" });
  }

  // Client frames are masked; a mask of zeros is one.
  #write(opcode, payload) {
    const size = payload.length < 126 ? [128 | payload.length] : [128 | 126, payload.length >> 8, payload.length & 255];
    const frame = Buffer.concat([Buffer.from([128 | opcode, ...size, 0, 0, 0, 0]), payload]);
    if (this.#socket) this.#socket.write(frame);
    else this.#waiting.push(frame);
  }

  #read(bytes) {
    this.#rest = Buffer.concat([this.#rest, bytes]);
    for (;;) {
      if (this.#rest.length < 2) return;
      let size = this.#rest[1] & 127, at = 2;
      if (size === 126) { size = this.#rest.length < 4 ? Infinity : this.#rest.readUInt16BE(2); at = 4; }
      if (size === 127) { size = this.#rest.length < 10 ? Infinity : Number(this.#rest.readBigUInt64BE(2)); at = 10; }
      if (this.#rest.length < at + size) return;
      const [opcode, payload] = [this.#rest[0] & 15, this.#rest.subarray(at, at + size)];
      this.#rest = this.#rest.subarray(at + size);
      if (opcode === TEXT) this.onmessage?.({ data: payload.toString() });
      if (opcode === PING) this.#write(PONG, payload);
      if (opcode === CLOSE) {
        if (payload.length >= 2) this.#code = payload.readUInt16BE(0);
        this.#socket.end();
      }
    }
  }
}
