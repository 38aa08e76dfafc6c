// The part of a WebSocket that client.js uses, for versions of Node without one (before 22): text in both
// directions, close codes, pongs. It trusts that the server's frames are well formed.

import { randomBytes } from "node:crypto";
import { request } from "node:http";

const TEXT = 1, CLOSE = 8, PING = 9, PONG = 10;

export class NodeWebSocket {
  bufferedAmount = 0; onmessage = null; onclose = null;
  #socket = null; #received = Buffer.alloc(0); #unsent = []; #code = 1006; #ended = false;

  constructor(url, protocols) {
    const handshake = request(String(url).replace(/^ws/, "http"), {
      headers: {
        Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": 13,
        "Sec-WebSocket-Key": randomBytes(16).toString("base64"), "Sec-WebSocket-Protocol": protocols.join(", "),
      },
    });
    handshake.on("upgrade", (_, socket, head) => {
      this.#socket = socket;
      socket.on("data", (bytes) => this.#read(bytes));
      socket.on("error", () => {});
      socket.on("close", () => this.#end());
      for (const frame of this.#unsent.splice(0)) socket.write(frame);
      this.#read(head);
    });
    handshake.on("response", (response) => { response.resume(); this.#end(); });
    handshake.on("error", () => this.#end());
    handshake.end();
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

  // A client must mask its frames; a mask of zeros is allowed.
  #write(opcode, payload) {
    const size = payload.length < 126 ? [128 | payload.length] : [128 | 126, payload.length >> 8, payload.length & 255];
    const frame = Buffer.concat([Buffer.from([128 | opcode, ...size, 0, 0, 0, 0]), payload]);
    if (this.#socket) this.#socket.write(frame);
    else this.#unsent.push(frame);
  }

  #read(bytes) {
    this.#received = Buffer.concat([this.#received, bytes]);
    for (;;) {
      if (this.#received.length < 2) return;
      let size = this.#received[1] & 127, offset = 2;
      if (size === 126) { size = this.#received.length < 4 ? Infinity : this.#received.readUInt16BE(2); offset = 4; }
      if (size === 127) { size = this.#received.length < 10 ? Infinity : Number(this.#received.readBigUInt64BE(2)); offset = 10; }
      if (this.#received.length < offset + size) return;
      const [opcode, payload] = [this.#received[0] & 15, this.#received.subarray(offset, offset + size)];
      this.#received = this.#received.subarray(offset + size);
      if (opcode === TEXT) this.onmessage?.({ data: payload.toString() });
      if (opcode === PING) this.#write(PONG, payload);
      if (opcode === CLOSE) {
        if (payload.length >= 2) this.#code = payload.readUInt16BE(0);
        this.#socket.end();
      }
    }
  }
}
