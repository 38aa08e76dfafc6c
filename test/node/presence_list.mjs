// The page's list of the sessions in a room.

import { PresenceList } from "../../web/people.js";
import { equal, runAll } from "./fakes.mjs";

const member = (session, user = null) => ({ session, user });

function linesAfter(frames, session = "me") {
  const list = new PresenceList();
  for (const frame of frames) list.update(frame);
  return [list.count, ...list.lines(session)];
}

const cases = {
  "before the first frame": [[], [null]],
  "alone": [[{ count: 1, members: [member("me")] }], [1, "this window"]],
  "this window has a user": [[{ count: 1, members: [member("me", "ann")] }], [1, "this window (ann)"]],
  "users by name, and anonymous ones at the end": [
    [{ count: 5, members: [member("a"), member("b", "zoe"), member("c", "bob"), member("d"), member("me")] }],
    [5, "this window", "bob", "zoe", "2 guests"],
  ],
  "a user with two windows is one line": [
    [{ count: 3, members: [member("a", "bob"), member("b", "bob"), member("c")] }], [3, "bob (2 windows)", "1 guest"],
  ],
  "one joins and one leaves": [
    [{ count: 2, members: [member("me"), member("a", "bob")] }, { count: 2, joined: [member("b", "eve")], left: [member("a", "bob")] }],
    [2, "this window", "eve"],
  ],
  "a full list after a reconnect": [
    [{ count: 2, members: [member("me"), member("a", "bob")] }, { count: 1, members: [member("me")] }], [1, "this window"],
  ],
  "too many to list, and fewer again": [
    [{ count: 1, members: [member("me")] }, { count: 900 }, { count: 2, members: [member("me"), member("a")] }], [2, "this window", "1 guest"],
  ],
  "too many to list": [[{ count: 1, members: [member("me")] }, { count: 900 }], [900]],
};

export const tests = Object.fromEntries(Object.entries(cases).map(([name, [frames, want]]) => [
  name, () => equal(linesAfter(frames), want, "count and lines"),
]));

export const run = () => runAll(tests);
