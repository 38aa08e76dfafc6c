// The witness must see what goes wrong, or its green tick means nothing.

import { Witness } from "../../web/check.js";
import { equal, runAll } from "./kit.mjs";

function told(frames) {
  const witness = new Witness();
  const ledger = witness.of("r");
  for (const { socket = 1, ...frame } of frames) witness.hear({ room: "r", epoch: "e1", ...frame }, socket);
  return [ledger.verdict(), ledger.received, ledger.lost, ledger.doubled, ledger.reordered];
}

const joined = (seq, more) => ({ type: "joined", seq, ...more });
const messages = (...seqs) => seqs.map((seq) => ({ type: "message", seq }));
const second = (...seqs) => seqs.map((seq) => ({ type: "message", seq, socket: 2 }));
const welcome = (socket) => ({ type: "welcome", socket });
const begins = (socket) => ({ type: "gap", epoch: "e2", from: 1, to: 3, reason: "epoch", socket });

const cases = {
  "nothing yet": [[], ["not joined yet", 0, 0, 0, 0]],
  "joined": [[joined(4)], ["waiting for seq 5", 0, 0, 0, 0]],
  "all in order, over a second join": [
    [joined(4), ...messages(5, 6), joined(8), ...messages(7, 8)], ["every seq from 5 to 8, once, in order", 4, 0, 0, 0],
  ],
  "one lost": [[joined(0), ...messages(1, 2, 4)], ["seq 3 lost", 3, 1, 0, 0]],
  "one doubled": [[joined(0), ...messages(1, 2, 2)], ["seq 2 doubled", 3, 0, 1, 0]],
  "one late": [[joined(0), ...messages(1, 3, 2)], ["seq 2 lost", 3, 0, 0, 1]],
  "one late and then again": [[joined(0), ...messages(1, 3, 2, 2)], ["seq 2 lost", 4, 0, 1, 1]],
  "lost while away": [[joined(2), joined(9), ...messages(10)], ["seq 3 lost", 1, 7, 0, 0]],
  "a declared gap is no loss": [
    [joined(0), ...messages(1), { type: "gap", from: 2, to: 5 }, ...messages(6)], ["every seq from 1 to 6, once, in order", 2, 0, 0, 0],
  ],
  "a new epoch begins a new count": [
    [joined(0), ...messages(1), { type: "gap", epoch: "e2", from: 1, to: 3 }, { type: "message", epoch: "e2", seq: 4 }],
    ["every seq from 4 to 4, once, in order", 2, 0, 0, 0],
  ],
  "a gap tells all that it leaves out": [[joined(0), ...messages(1), { type: "gap", from: 3, to: 5 }], ["seq 2 lost", 1, 1, 0, 0]],
  "what both sockets of a move bring is no double": [
    [joined(0), ...messages(1, 2), welcome(2), joined(2, { socket: 2 }), ...messages(3), ...second(3, 4), ...messages(4, 5), ...second(5, 6)],
    ["every seq from 1 to 6, once, in order", 6, 0, 0, 0],
  ],
  "the second socket may be ahead": [
    [joined(0), welcome(2), joined(2, { socket: 2 }), ...second(1, 2, 3), ...messages(1, 2)], ["every seq from 1 to 3, once, in order", 3, 0, 0, 0],
  ],
  "what one of them brings twice is": [[joined(0), ...messages(1), ...second(1, 2, 2)], ["seq 2 doubled", 3, 0, 1, 0]],
  "what the second one skips is lost": [[joined(0), ...messages(1), ...second(1, 3)], ["seq 2 lost", 2, 1, 0, 0]],
  "what the first one skips is lost, though the second has it": [
    [joined(0), welcome(2), ...second(1, 2, 3), ...messages(1, 3)], ["seq 2 lost", 4, 1, 0, 0],
  ],
  "what came before the second was welcomed is a double": [
    [joined(0), ...messages(1, 2), welcome(2), joined(2, { socket: 2 }), ...second(2, 3)], ["seq 2 doubled", 4, 0, 1, 0],
  ],
  "one of a move goes on in the epoch that the other has seen end": [
    [joined(0), ...messages(1), welcome(2), ...second(2), begins(2), ...messages(2, 3), begins(1), { type: "message", epoch: "e2", seq: 4 },
      { type: "message", epoch: "e2", seq: 4, socket: 2 }],
    ["every seq from 4 to 4, once, in order", 3, 0, 0, 0],
  ],
  "many sockets that came to nothing": [
    [joined(0), ...messages(1), ...[2, 3, 4, 5, 6].map(welcome), ...messages(2), joined(2, { socket: 6 }), { type: "message", seq: 2, socket: 6 }],
    ["every seq from 1 to 2, once, in order", 2, 0, 0, 0],
  ],
  "a room nobody asked about": [[{ ...joined(0), room: "other" }], ["not joined yet", 0, 0, 0, 0]],
};

export const tests = Object.fromEntries(Object.entries(cases).map(([name, [frames, want]]) => [
  name, () => equal(told(frames), want, "verdict, received, lost, doubled, reordered"),
]));

tests["a thousand missing are counted, not all remembered"] = () => {
  equal(told([joined(0), ...messages(1, 100_000)]), ["seq 2 lost", 2, 99_998, 0, 0], "counts");
};

export const run = () => runAll(tests);
