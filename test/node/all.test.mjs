// Node's test runner over the same modules that Chromium runs in test/browser.
//
//   node --test test/node/

import { webcrypto } from "node:crypto";
import { test } from "node:test";

// Globals of browsers that Node lacks: crypto is global from Node 20 on, and a page's address never is.
globalThis.crypto ??= webcrypto;
globalThis.location ??= new URL("http://host/page");
for (const target of [globalThis, globalThis.document ??= { visibilityState: "visible" }]) {
  const events = new EventTarget();
  for (const method of ["addEventListener", "removeEventListener", "dispatchEvent"]) target[method] = events[method].bind(events);
}

for (const name of ["behaviors", "golden", "reconnecting", "requests", "arguments", "alive", "reachable", "kept_session", "listeners", "unhandled", "observer", "presence_list", "move_model"]) {
  const { tests } = await import(`./${name}.mjs`);
  for (const [title, run] of Object.entries(typeof tests === "function" ? await tests() : tests)) test(`${name}: ${title}`, run);
}
