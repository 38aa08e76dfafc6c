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

function showPlate({ node, color, deployment, version, session }) {
  $("plate").hidden = false;
  $("color").textContent = color || "no colour";
  $("color").dataset.color = COLORS.includes(color) ? color : "none";
  $("node").textContent = node;
  const facts = { color, deployment, version, session: session.split(".")[0] }; // the rest is secret
  for (const [name, value] of Object.entries(facts)) {
    $(`f-${name}`).textContent = value || "–";
    $(`f-${name}`).title = value || "";
  }
}

function inMs(ms) { return ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`; }

/** What the instruments on the right have measured. */
export class Gauges {
  #acks = []; #heardAt = null; #lives = 0;

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
    const returns = this.#lives - 1;
    $("f-returns").textContent = returns === 1 ? "once" : `${returns} times`;
  }

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

  /** Shows the ledger of the room that is open. */
  ledger(ledger) {
    for (const name of ["received", "lost", "doubled", "reordered"]) $(name).textContent = String(ledger[name]);
    $("verdict").textContent = ledger.verdict();
    for (const id of ["verdict", "tick"]) $(id).dataset.clean = ledger.clean;
    $("tick").textContent = ledger.clean ? "✓ in order" : `✗ ${ledger.verdict()}`;
  }
}
