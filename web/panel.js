// The lamp in the header and the gauges on the right.

const $ = (id) => document.getElementById(id);
const SAMPLES = 60; // round trips that the curve shows

const WORDS = { connecting: "Connecting", live: "Live", waiting: "Back in", closed: "Closed" };
const COLORS = ["blue", "green"];

let countdown;

/** Shows where the connection stands, and counts down to the next attempt. */
export function showState(state) {
  clearInterval(countdown);
  document.body.dataset.state = state.name;
  $("state").textContent = WORDS[state.name];
  $("countdown").textContent = "";
  $("retry").hidden = state.name !== "waiting" && state.name !== "closed";
  $("progress").style.transform = "scaleX(0)";
  if (state.name === "live") showPlate(state.welcome);
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

/** Shows who serves, from a welcome. */
export function showPlate({ node, color, deployment, version, session }) {
  $("plate").hidden = false;
  $("color").textContent = color || "no colour";
  $("color").dataset.color = COLORS.includes(color) ? color : "none";
  $("node").textContent = node;
  $("deployment").textContent = deployment;
  const facts = { color, deployment, version, session: session.split(".")[0] }; // the rest is secret
  for (const [name, value] of Object.entries(facts)) {
    $(`f-${name}`).textContent = value || "–";
    $(`f-${name}`).title = value || "";
  }
}

/** Shows who is in the room that is open; session is this window's own, its public part. */
export function showPeople(people, session) {
  const lines = people.lines(session);
  $("here").hidden = people.count === null;
  $("here").textContent = `${people.count} here`;
  $("people").hidden = lines.length === 0;
  $("people-list").replaceChildren(...lines.map((line) => {
    const item = document.createElement("li");
    item.textContent = item.title = line;
    return item;
  }));
}

function inTimes(n) { return n === 1 ? "once" : `${n} times`; }

function inMs(ms) { return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`; }

/** What the instruments on the right have measured. */
export class Gauges {
  #acks = []; #heardAt = null; #lives = 0; #moves = 0;

  constructor() {
    setInterval(() => {
      if (this.#heardAt === null) return;
      const s = Math.floor((performance.now() - this.#heardAt) / 1000);
      $("f-heard").textContent = s < 1 ? "just now" : `${s} s ago`;
    }, 1_000);
  }

  heard() { this.#heardAt = performance.now(); }

  state(state) {
    if (state.name !== "live") return;
    this.#lives += 1;
    $("f-returns").textContent = inTimes(this.#lives - 1);
  }

  moved() { $("f-moves").textContent = inTimes(++this.#moves); }

  /** One publish was answered after so many milliseconds. */
  ack(ms) {
    this.#acks.push(ms);
    if (this.#acks.length > SAMPLES) this.#acks.shift();
    const sorted = [...this.#acks].sort((a, b) => a - b);
    $("ack-last").textContent = inMs(ms);
    $("ack-median").textContent = inMs(sorted[sorted.length >> 1]);
    const top = sorted.at(-1);
    const points = this.#acks.map((v, i) => `${(i * 120) / Math.max(1, this.#acks.length - 1)},${30 - (v / top) * 27}`);
    $("spark").setAttribute("points", points.join(" "));
  }

  /** Shows two ledgers of the room that is open: of what the server sent, and of what the page shows. */
  ledger(sent, shown) {
    const clean = sent.clean && shown.clean;
    const verdict = sent.clean && !shown.clean ? `shown: ${shown.verdict()}` : sent.verdict();
    $("received").textContent = String(sent.received);
    // A fault of the server's may go on to the page: that is one.
    for (const name of ["lost", "doubled", "reordered"]) $(name).textContent = String(Math.max(sent[name], shown[name]));
    $("verdict").textContent = verdict;
    for (const id of ["verdict", "tick"]) $(id).dataset.clean = clean;
    $("tick").textContent = clean ? "✓ in order" : `✗ ${verdict}`;
  }
}
