// The header's state and server, and the metrics on the right.

const $ = (id) => document.getElementById(id);
const SAMPLES = 60; // round trips in the curve

const STATE_TEXTS = { connecting: "Connecting", live: "Live", waiting: "Back in", closed: "Closed" };
const COLORS = ["blue", "green"];

let countdown;

/** Shows the state of the connection, and counts down to the next attempt. */
export function showState(state) {
  clearInterval(countdown);
  document.body.dataset.state = state.name;
  $("state").textContent = STATE_TEXTS[state.name];
  $("countdown").textContent = "";
  $("retry").hidden = state.name !== "waiting" && state.name !== "closed";
  $("progress").style.transform = "scaleX(0)";
  if (state.name === "live") showServer(state.welcome);
  if (state.name === "closed") $("countdown").textContent = `${state.code} ${state.reason}`.trim();
  if (state.name === "waiting") countDown(state.in);
}

function countDown(ms) {
  const end = performance.now() + ms;
  const step = () => {
    const left = Math.max(0, end - performance.now());
    $("countdown").textContent = `${(left / 1000).toFixed(1)} s`;
    $("progress").style.transform = `scaleX(${ms > 0 ? left / ms : 0})`;
  };
  step();
  countdown = setInterval(step, 100);
}

/** Shows the node, color and deployment of a welcome. */
export function showServer({ node, color, deployment, version, session }) {
  $("plate").hidden = false;
  $("color").textContent = color || "no color";
  $("color").dataset.color = COLORS.includes(color) ? color : "none";
  $("node").textContent = node;
  $("deployment").textContent = deployment;
  const facts = { color, deployment, version, session: session.split(".")[0] }; // the rest is secret
  for (const [name, value] of Object.entries(facts)) {
    $(`f-${name}`).textContent = value || "–";
    $(`f-${name}`).title = value || "";
  }
}

/** Shows the presence list of the open room. session is the public part of this window's session. */
export function showPresence(list, session) {
  const lines = list.lines(session);
  $("here").hidden = list.count === null;
  $("here").textContent = `${list.count} here`;
  $("people").hidden = lines.length === 0;
  $("people-list").replaceChildren(...lines.map((line) => {
    const item = document.createElement("li");
    item.textContent = item.title = line;
    return item;
  }));
}

function formatTimes(n) { return n === 1 ? "once" : `${n} times`; }

function formatMs(ms) { return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`; }

/** The measurements on the right. */
export class Metrics {
  #acks = []; #lastFrameAt = null; #liveCount = 0; #moves = 0;

  constructor() {
    setInterval(() => {
      if (this.#lastFrameAt === null) return;
      const s = Math.floor((performance.now() - this.#lastFrameAt) / 1000);
      $("f-heard").textContent = s < 1 ? "just now" : `${s} s ago`;
    }, 1_000);
  }

  frameReceived() { this.#lastFrameAt = performance.now(); }

  state(state) {
    if (state.name !== "live") return;
    this.#liveCount += 1;
    $("f-returns").textContent = formatTimes(this.#liveCount - 1);
  }

  moved() { $("f-moves").textContent = formatTimes(++this.#moves); }

  /** A publish was acked after ms. */
  ack(ms) {
    this.#acks.push(ms);
    if (this.#acks.length > SAMPLES) this.#acks.shift();
    const sorted = [...this.#acks].sort((a, b) => a - b);
    $("ack-last").textContent = formatMs(ms);
    $("ack-median").textContent = formatMs(sorted[sorted.length >> 1]);
    const top = sorted.at(-1);
    const points = this.#acks.map((v, i) => `${(i * 120) / Math.max(1, this.#acks.length - 1)},${30 - (v / top) * 27}`);
    $("spark").setAttribute("points", points.join(" "));
  }

  /** Shows the two checks of the open room: of the frames that the server sent, and of what the page shows. */
  check(sent, shown) {
    const clean = sent.clean && shown.clean;
    const summary = sent.clean && !shown.clean ? `shown: ${shown.summary()}` : sent.summary();
    $("received").textContent = String(sent.received);
    // A fault of the server may appear on the page as well: it counts once.
    for (const name of ["lost", "doubled", "reordered"]) $(name).textContent = String(Math.max(sent[name], shown[name]));
    $("verdict").textContent = summary;
    for (const id of ["verdict", "tick"]) $(id).dataset.clean = clean;
    $("tick").textContent = clean ? "✓ in order" : `✗ ${summary}`;
  }
}
