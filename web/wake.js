// The part of client.js that listens to the page. Applications import client.js.

import { isSession } from "./options.js";

function listenTo(target, event, listener) {
  if (typeof target?.addEventListener !== "function") return () => {};
  target.addEventListener(event, listener);
  return () => target.removeEventListener(event, listener);
}

/**
 * Calls onWake when the page comes back to life or its network does, onOffline when the browser says that the network is
 * gone, onGone when the page goes and may never come back, and onBack when it was gone and is back. Returns a function that
 * ends it. Outside of pages and workers nothing is called.
 */
export function watchPage({ onWake, onOffline, onGone, onBack }) {
  const page = globalThis.document;
  const back = () => {
    onBack();
    onWake();
  };
  const stops = [
    listenTo(globalThis, "online", onWake),
    listenTo(globalThis, "offline", onOffline),
    listenTo(page, "visibilitychange", () => { if (page.visibilityState === "visible") onWake(); }),
    listenTo(globalThis, "pagehide", onGone),
    listenTo(globalThis, "pageshow", back), // also out of the back/forward cache, into which no socket goes
    listenTo(page, "freeze", onGone), // the last event before a browser discards a tab
    listenTo(page, "resume", back),
  ];
  return () => { for (const stop of stops) stop(); };
}

// A session in sessionStorage, which is there only while its page is not: a reload finds it, and so does a tab that the
// browser has discarded, but no copy of an open tab does. A browser may refuse storage.
export class KeptSession {
  #key;

  constructor(key) { this.#key = key; }

  keep(session) {
    try { if (this.#key && session) sessionStorage.setItem(this.#key, session); } catch { /* refused */ }
  }

  /** Returns the session that is kept, and keeps it no longer. Another page may have stored anything there. */
  take() {
    if (!this.#key) return undefined;
    try {
      const found = sessionStorage.getItem(this.#key);
      sessionStorage.removeItem(this.#key);
      return isSession(found ?? "") ? found : undefined;
    } catch {
      return undefined;
    }
  }
}
