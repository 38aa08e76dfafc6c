// The part of client.js for what an application leaves unhandled. Applications import client.js.

/** Reports an error as uncaught. A browser reports it to the page; Node would end the process for it, and React Native the app. */
export function reportUncaught(error) {
  const isBrowser = (globalThis.document || globalThis.WorkerGlobalScope) && !globalThis.process?.versions?.node;
  if (isBrowser) queueMicrotask(() => { throw error; });
  else console.error(error);
}

/** The promise of a call. It knows whether anybody awaits it: Node ends the process for a rejection that nobody handles. */
export class Call extends Promise {
  static get [Symbol.species]() { return Promise; }
  #isAwaited = false;

  /** Returns the call of a promise. onUnawaited gets its error if nobody awaits the call by then. */
  static of(promise, onUnawaited) {
    const call = new Call((resolve, reject) => { promise.then(resolve, reject); });
    Promise.prototype.then.call(call, undefined, (error) => { if (!call.#isAwaited) onUnawaited(error); });
    return call;
  }

  then(onFulfilled, onRejected) {
    this.#isAwaited = true;
    return super.then(onFulfilled, onRejected);
  }
}
