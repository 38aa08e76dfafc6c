// Node's test runner over the same modules that Chromium runs in test/browser.
//
//   node --test test/node/

import { webcrypto } from "node:crypto";
import { test } from "node:test";

// What browsers have and Node has not: crypto came with 20, a page's address never will.
globalThis.crypto ??= webcrypto;
globalThis.location ??= new URL("http://host/page");

for (const name of ["behaviors", "golden", "returning", "keeping", "witness", "people", "fleet"]) {
  const { tests } = await import(`./${name}.mjs`);
  for (const [title, run] of Object.entries(typeof tests === "function" ? await tests() : tests)) test(`${name}: ${title}`, run);
}
