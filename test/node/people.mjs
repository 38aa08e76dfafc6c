// What the page says about who is in a room.

import { People } from "../../web/people.js";
import { equal, runAll } from "./kit.mjs";

const member = (session, user = null) => ({ session, user });

function seen(frames, session = "me") {
  const people = new People();
  for (const frame of frames) people.told(frame);
  return [people.count, ...people.lines(session)];
}

const cases = {
  "before anybody told": [[], [null]],
  "alone": [[{ count: 1, members: [member("me")] }], [1, "this window"]],
  "with a name of one's own": [[{ count: 1, members: [member("me", "ann")] }], [1, "this window (ann)"]],
  "users by name, and guests at the end": [
    [{ count: 5, members: [member("a"), member("b", "zoe"), member("c", "bob"), member("d"), member("me")] }],
    [5, "this window", "bob", "zoe", "2 guests"],
  ],
  "somebody with two windows is one line": [
    [{ count: 3, members: [member("a", "bob"), member("b", "bob"), member("c")] }], [3, "bob (2 windows)", "1 guest"],
  ],
  "who comes and goes": [
    [{ count: 2, members: [member("me"), member("a", "bob")] }, { count: 2, joined: [member("b", "eve")], left: [member("a", "bob")] }],
    [2, "this window", "eve"],
  ],
  "everybody anew after a return": [
    [{ count: 2, members: [member("me"), member("a", "bob")] }, { count: 1, members: [member("me")] }], [1, "this window"],
  ],
  "too many to list, and fewer again": [
    [{ count: 1, members: [member("me")] }, { count: 900 }, { count: 2, members: [member("me"), member("a")] }], [2, "this window", "1 guest"],
  ],
  "too many to list": [[{ count: 1, members: [member("me")] }, { count: 900 }], [900]],
};

export const tests = Object.fromEntries(Object.entries(cases).map(([name, [frames, want]]) => [
  name, () => equal(seen(frames), want, "count and lines"),
]));

export const run = () => runAll(tests);
