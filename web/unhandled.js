// The part of client.js for what an application leaves unhandled. Applications import client.js.

/** Reports an error as uncaught: browsers report it to the page, and Node would end the process for it. */
export function reportUncaught(error) {
  if (globalThis.process?.versions?.node) console.error(error);
  else queueMicrotask(() => { throw error; });
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
