// How client.js asks whether the service is there before it opens another socket, and what it does with a socket that
// the browser holds back.

import { Switchyard } from "../../web/client.js";
import { FakeClock, equal, fakeSockets, runAll, settlePromises } from "./fakes.mjs";

// answer is the status that fetch returns, "refused", or "silence" until the question is given up.
function start({ answer = "refused", ...options } = {}) {
  const clock = new FakeClock();
  const Sockets = fakeSockets();
  const env = { clock, Sockets, answer, questions: [] };
  const fetch = (url, { signal }) => new Promise((resolve, reject) => {
    env.questions.push(url);
    if (env.answer === "refused") reject(new TypeError("fetch failed"));
    else if (env.answer === "silence") signal.addEventListener("abort", () => reject(signal.reason));
    else resolve({ status: env.answer });
  });
  env.client = Switchyard.connect("wss://host/chat/ws?x=1", { WebSocket: Sockets, clock, random: () => 0.5, fetch, ...options });
  return env;
}

// Lets the first two sockets fail.
async function startAway(options) {
  const env = start(options);
  env.Sockets.last.closeWith(1006);
  await env.clock.advance(250);
  env.Sockets.last.closeWith(1006);
  await env.clock.advance(500);
  return env;
}

export const tests = {
  async "after two failures it asks beside the socket, and opens none without an answer"() {
    const env = await startAway();
    equal([env.Sockets.all.length, env.questions], [2, ["https://host/chat/icon.svg"]], "sockets and questions");
    equal([env.client.state.name, env.client.state.in], ["waiting", 1_500], "state");
    await env.clock.advance(20_000);
    equal([env.Sockets.all.length, env.questions.length], [2, 14], "sockets and questions after 20 s more");
    env.answer = 200;
    await env.clock.advance(2_000);
    equal([env.Sockets.all.length, env.client.state.name], [3, "connecting"], "sockets and state after an answer");
    env.client.close();
  },

  async "the questions do not count as failures"() {
    const env = await startAway();
    await env.clock.advance(60_000);
    env.answer = 200;
    await env.clock.advance(2_000);
    env.Sockets.last.closeWith(1006);
    equal(env.client.state.in, 1_000, "the wait after the third failed socket");
    env.client.close();
  },

  async "a proxy's answer for a service that is away opens no socket, any other answer does"() {
    for (const [answer, sockets] of [[502, 2], [503, 2], [504, 2], [200, 3], [304, 3], [404, 3], [0, 3]]) { // 0: a redirect
      const env = await startAway({ answer });
      equal(env.Sockets.all.length, sockets, `sockets after ${answer}`);
      env.client.close();
    }
  },

  async "a question without an answer is given up after three seconds"() {
    const env = await startAway({ answer: "silence" });
    equal(env.client.state.name, "connecting", "state while it asks");
    await env.clock.advance(3_000);
    equal([env.client.state.name, env.Sockets.all.length], ["waiting", 2], "state and sockets then");
    env.client.close();
    equal(env.clock.idle, true, "no timers");
  },

  async "closing while it asks opens nothing"() {
    const env = await startAway({ answer: "silence" });
    env.client.close();
    env.answer = 200;
    await env.clock.advance(10_000);
    equal([env.client.state.name, env.Sockets.all.length, env.clock.idle], ["closed", 2, true], "state, sockets, no timers");
  },

  async "no token is fetched while nothing answers"() {
    let tokens = 0;
    const env = start({ getToken: () => `t${++tokens}` });
    for (const ms of [250, 500]) {
      await settlePromises();
      env.Sockets.last.closeWith(1006);
      await env.clock.advance(ms);
    }
    await env.clock.advance(10_000);
    equal(tokens, 2, "tokens");
    env.client.close();
  },

  async "a socket is opened now and then without an answer, and its welcome ends the questions"() {
    const env = await startAway();
    await env.clock.advance(63 * 1_500 - 1);
    equal([env.questions.length, env.Sockets.all.length], [63, 2], "questions and sockets");
    await env.clock.advance(1);
    equal([env.questions.length, env.Sockets.all.length], [64, 3], "questions and sockets after the 64th");
    env.Sockets.last.welcome();
    for (let i = 0; i < 3; i++) {
      env.Sockets.last.closeWith(1006);
      await env.clock.advance(4_000);
    }
    equal([env.questions.length, env.Sockets.all.length], [64, 6], "questions and sockets of the next outage");
    env.client.close();
  },

  async "an answer keeps the questions, and ten seconds live end them until the next outage"() {
    const env = await startAway({ answer: 200 });
    env.Sockets.last.welcome();
    await env.clock.advance(10_000);
    env.Sockets.last.closeWith(1006);
    await env.clock.advance(250);
    equal([env.questions.length, env.Sockets.all.length], [1, 4], "questions and sockets of the next outage");
    env.Sockets.last.closeWith(1006);
    await env.clock.advance(500);
    equal(env.questions.length, 2, "questions after its second failure");
    env.client.close();
  },

  async "a socket of an own class is not preceded by questions"() {
    const env = await startAway({ fetch: undefined });
    equal([env.Sockets.all.length, env.questions.length], [3, 0], "sockets and questions");
    env.client.close();
  },

  async "a socket that is held back is cut unless the service answers otherwise"() {
    for (const [answer, closed] of [["refused", true], [503, true], [200, false]]) {
      const env = start({ answer });
      const socket = env.Sockets.last;
      socket.readyState = 0;
      await env.clock.advance(9_999);
      equal([socket.closed, env.questions.length], [false, 0], `${answer}: cut, and questions, before ten seconds`);
      await env.clock.advance(1);
      equal([socket.closed, env.questions.length], [closed, 1], `${answer}: cut, and questions, after ten seconds`);
      env.client.close();
    }
  },

  async "a socket that is held back may open within 90 seconds, and has ten more until its welcome"() {
    const env = start({ answer: 200 });
    const held = env.Sockets.last;
    held.readyState = 0;
    await env.clock.advance(65_000);
    equal([held.closed, env.Sockets.all.length], [false, 1], "cut, and sockets");
    held.readyState = 1;
    held.onopen({});
    await env.clock.advance(9_999);
    equal(held.closed, false, "cut before ten seconds more");
    held.welcome();
    equal(env.client.state.name, "live", "state");
    env.client.close();

    const never = start({ answer: 200 });
    never.Sockets.last.readyState = 0;
    await never.clock.advance(90_000);
    equal(never.client.state.name, "waiting", "state of one that never opens");
    never.client.close();
  },

  async "a welcome while it asks about a held socket is not undone"() {
    const env = start({ answer: "silence" });
    env.Sockets.last.readyState = 0;
    await env.clock.advance(10_000);
    env.Sockets.last.readyState = 1;
    env.Sockets.last.onopen({});
    env.Sockets.last.welcome();
    await env.clock.advance(3_000);
    equal(env.client.state.name, "live", "state");
    env.client.close();
    equal(env.clock.idle, true, "no timers");
  },
};

export const run = () => runAll(tests);
