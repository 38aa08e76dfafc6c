// The observer must report each fault, or its green tick means nothing.

import { Observer } from "../../web/check.js";
import { equal, runAll } from "./fakes.mjs";

function checked(frames) {
  const observer = new Observer();
  const check = observer.room("r");
  for (const { socket = 1, ...frame } of frames) observer.observe({ room: "r", epoch: "e1", ...frame }, socket);
  return [check.summary(), check.received, check.lost, check.doubled, check.reordered];
}

const joined = (seq, more) => ({ type: "joined", seq, ...more });
const messages = (...seqs) => seqs.map((seq) => ({ type: "message", seq }));
const onSecondSocket = (...seqs) => seqs.map((seq) => ({ type: "message", seq, socket: 2 }));
const welcome = (socket) => ({ type: "welcome", socket });
const epochGap = (socket) => ({ type: "gap", epoch: "e2", from: 1, to: 3, reason: "epoch", socket });

const cases = {
  "nothing yet": [[], ["not joined yet", 0, 0, 0, 0]],
  "joined": [[joined(4)], ["waiting for seq 5", 0, 0, 0, 0]],
  "all in order, across a second join": [
    [joined(4), ...messages(5, 6), joined(8), ...messages(7, 8)], ["every seq from 5 to 8, once, in order", 4, 0, 0, 0],
  ],
  "one message lost": [[joined(0), ...messages(1, 2, 4)], ["seq 3 lost", 3, 1, 0, 0]],
  "one message doubled": [[joined(0), ...messages(1, 2, 2)], ["seq 2 doubled", 3, 0, 1, 0]],
  "one message late": [[joined(0), ...messages(1, 3, 2)], ["seq 2 lost", 3, 0, 0, 1]],
  "one message late and then doubled": [[joined(0), ...messages(1, 3, 2, 2)], ["seq 2 lost", 4, 0, 1, 1]],
  "messages lost during a reconnect": [[joined(2), joined(9), ...messages(10)], ["seq 3 lost", 1, 7, 0, 0]],
  "a reported gap is not a loss": [
    [joined(0), ...messages(1), { type: "gap", from: 2, to: 5 }, ...messages(6)], ["every seq from 1 to 6, once, in order", 2, 0, 0, 0],
  ],
  "a new epoch starts a new count": [
    [joined(0), ...messages(1), { type: "gap", epoch: "e2", from: 1, to: 3 }, { type: "message", epoch: "e2", seq: 4 }],
    ["every seq from 4 to 4, once, in order", 2, 0, 0, 0],
  ],
  "a gap does not cover messages before it": [[joined(0), ...messages(1), { type: "gap", from: 3, to: 5 }], ["seq 2 lost", 1, 1, 0, 0]],
  "a message on both sockets of a move is not doubled": [
    [joined(0), ...messages(1, 2), welcome(2), joined(2, { socket: 2 }), ...messages(3), ...onSecondSocket(3, 4), ...messages(4, 5), ...onSecondSocket(5, 6)],
    ["every seq from 1 to 6, once, in order", 6, 0, 0, 0],
  ],
  "the second socket may be ahead": [
    [joined(0), welcome(2), joined(2, { socket: 2 }), ...onSecondSocket(1, 2, 3), ...messages(1, 2)], ["every seq from 1 to 3, once, in order", 3, 0, 0, 0],
  ],
  "a message twice on one socket of a move is doubled": [[joined(0), ...messages(1), ...onSecondSocket(1, 2, 2)], ["seq 2 doubled", 3, 0, 1, 0]],
  "a message that the second socket skips is lost": [[joined(0), ...messages(1), ...onSecondSocket(1, 3)], ["seq 2 lost", 2, 1, 0, 0]],
  "a message that the first socket skips is lost, although the second delivers it": [
    [joined(0), welcome(2), ...onSecondSocket(1, 2, 3), ...messages(1, 3)], ["seq 2 lost", 4, 1, 0, 0],
  ],
  "a message from before the second socket's welcome is doubled": [
    [joined(0), ...messages(1, 2), welcome(2), joined(2, { socket: 2 }), ...onSecondSocket(2, 3)], ["seq 2 doubled", 4, 0, 1, 0],
  ],
  "one socket of a move continues in an epoch that has ended on the other": [
    [joined(0), ...messages(1), welcome(2), ...onSecondSocket(2), epochGap(2), ...messages(2, 3), epochGap(1), { type: "message", epoch: "e2", seq: 4 },
      { type: "message", epoch: "e2", seq: 4, socket: 2 }],
    ["every seq from 4 to 4, once, in order", 3, 0, 0, 0],
  ],
  "many sockets that deliver nothing": [
    [joined(0), ...messages(1), ...[2, 3, 4, 5, 6].map(welcome), ...messages(2), joined(2, { socket: 6 }), { type: "message", seq: 2, socket: 6 }],
    ["every seq from 1 to 2, once, in order", 2, 0, 0, 0],
  ],
  "a room that is not observed": [[{ ...joined(0), room: "other" }], ["not joined yet", 0, 0, 0, 0]],
};

export const tests = Object.fromEntries(Object.entries(cases).map(([name, [frames, want]]) => [
  name, () => equal(checked(frames), want, "summary, received, lost, doubled, reordered"),
]));

tests["of very many missing messages all are counted, and some remembered"] = () => {
  equal(checked([joined(0), ...messages(1, 100_000)]), ["seq 2 lost", 2, 99_998, 0, 0], "counts");
};

export const run = () => runAll(tests);
