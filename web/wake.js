// The part of client.js that listens to the page. Applications import client.js.

/**
 * Calls onWake when the page comes back to life or its network does, and onOffline when the browser says that the network
 * is gone. Returns a function that ends it. Outside of pages and workers nothing is called.
 */
export function watchPage(onWake, onOffline) {
  const stops = [];
  const listen = (target, event, listener) => {
    if (typeof target?.addEventListener !== "function") return;
    target.addEventListener(event, listener);
    stops.push(() => target.removeEventListener(event, listener));
  };
  listen(globalThis, "online", onWake);
  listen(globalThis, "pageshow", onWake); // also out of the back/forward cache, into which no socket goes
  listen(globalThis, "offline", onOffline);
  listen(globalThis.document, "visibilitychange", () => { if (globalThis.document.visibilityState === "visible") onWake(); });
  return () => { for (const stop of stops) stop(); };
}
