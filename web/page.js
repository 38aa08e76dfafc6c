// The page: rooms on the left, what is said in the middle, the instruments on the right.

import { Switchyard } from "./client.js";
import { Witness } from "./check.js";
import { Log, make, read } from "./log.js";
import { Gauges, showPeople, showPlate, showState } from "./panel.js";
import { People } from "./people.js";

const $ = (id) => document.getElementById(id);
const ROOM = /^[A-Za-z0-9.:-][A-Za-z0-9._:-]{0,127}$/;
const TYPING_EVERY = 2_000; // ms between two signals that say so
const SIGNAL_SHOWN = 3_500; // ms

// Ids begin with what only this window knows: that is how it tells its own messages.
const mark = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
let count = 0;

const client = Switchyard.connect("/ws");
const witness = new Witness(); // of what the server sends
const screen = new Witness(); // of what the client makes of it, and the page shows
const gauges = new Gauges();
const rooms = new Map(); // name → {handle, log, link, people, unread}
let active = null;

// Private windows may refuse storage: then the page remembers nothing and works.
const memory = {
  get(store, key) { try { return store()[key]; } catch { return undefined; } },
  set(store, key, value) { try { store()[key] = value; } catch { /* see above */ } },
};
const tab = () => sessionStorage;
const always = () => localStorage;

client.on("frame", (frame, socket) => {
  gauges.heard();
  witness.hear(frame, socket);
});
client.on("moved", ({ to, took }) => { // the state is live all the while
  showPlate(to);
  gauges.moved();
  for (const { log } of rooms.values()) log.note(`moved to node ${to.node} in ${Math.round(took)} ms`);
  refresh();
});
client.on("state", (state) => {
  showState(state);
  gauges.state(state);
});
client.on("error", (error) => notice(error.message));
client.on("joined", (frame) => {
  screen.hear(frame);
  rooms.get(frame.room)?.log.begin(frame.seq);
  refresh();
});
client.on("presence", peopleTold);
client.on("message", (message) => {
  screen.hear(message);
  const room = rooms.get(message.room);
  room.log.message(message);
  hush(message.room, read(message).name);
  if (message.room !== active) room.unread += 1;
  refresh();
});
client.on("gap", (gap) => {
  screen.hear(gap);
  rooms.get(gap.room).log.gap(gap);
  refresh();
});
client.on("signal", ({ room, data }) => {
  if (typeof data?.name !== "string" || data.by === mark) return;
  if (data.wave) saySignal(room, data.name, "waves");
  if (data.typing) saySignal(room, data.name, "is writing");
});

function join(name) {
  const handle = client.join(name);
  const log = new Log(handle, (id) => id.startsWith(mark), refresh);
  const item = make("li");
  const link = make("a");
  link.href = `#${encodeURIComponent(name)}`;
  link.append(make("span", "dot"), make("span", "name", name), make("span", "unread num"));
  item.append(link);
  $("rooms").append(item);
  $("logs").append(log.element);
  witness.of(name);
  screen.of(name);
  rooms.set(name, { handle, log, link, people: new People(), unread: 0 });
  handle.joined.then(
    () => handle.presence().then(peopleTold, () => {}), // an older service does not know who is there
    (error) => { if (error.code !== "closed") drop(name); },
  );
  remember();
}

function peopleTold(presence) {
  const room = rooms.get(presence.room);
  if (!room) return; // left meanwhile
  room.people.told(presence);
  if (presence.room === active) showWho();
}

function showWho() { showPeople(rooms.get(active).people, client.welcome?.session.split(".")[0]); }

function drop(name) {
  const room = rooms.get(name);
  if (!room) return;
  room.handle.leave();
  room.link.parentElement.remove();
  room.log.element.remove();
  rooms.delete(name);
  witness.forget(name);
  screen.forget(name);
  remember();
  if (active === name) location.hash = encodeURIComponent([...rooms.keys()][0] ?? "lobby");
}

function remember() { memory.set(tab, "rooms", JSON.stringify([...rooms.keys()])); }

function nameInHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function open() {
  const name = nameInHash();
  if (name === "composer") return $("composer").focus();
  if (!ROOM.test(name)) {
    if (name) notice(`“${name}” cannot be a room: letters, digits and . _ - : are allowed, not _ first`);
    return location.replace(`#${active ?? "lobby"}`);
  }
  if (!rooms.has(name)) join(name);
  active = name;
  rooms.get(name).unread = 0;
  document.title = `${name} · Switchyard`;
  $("title").textContent = name;
  $("second").href = location.href;
  for (const [other, { log, link }] of rooms) {
    log.element.hidden = other !== name;
    if (other === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  $("signals").textContent = "";
  rooms.get(name).log.show();
  showWho();
  refresh();
}

// One refresh for whatever happened within a sixtieth of a second.
let due = null;
function refresh() {
  due ??= setTimeout(() => {
    due = null;
    for (const [name, { link, unread }] of rooms) {
      link.querySelector(".unread").textContent = unread > 0 ? String(unread) : "";
      link.dataset.clean = witness.of(name).clean && screen.of(name).clean;
    }
    if (!rooms.has(active)) return;
    gauges.ledger(witness.of(active), screen.of(active));
    $("empty").hidden = !rooms.get(active).log.empty;
  }, 16);
}

function send(text, room = active) {
  const name = myName();
  const began = performance.now();
  const live = client.state.name === "live";
  const id = `${mark}.${++count}`;
  const publish = () => client.publish(room, { name, text }, { id });
  const attempt = () => {
    const promise = publish();
    // What waits for a server says nothing of how fast it answers.
    promise.then(() => { if (live) gauges.ack(performance.now() - began); }, () => {});
    rooms.get(room)?.log.sending(name, text, promise, attempt);
    refresh();
    promise.then(refresh, refresh);
  };
  attempt();
}

function myName() { return $("name").value.trim() || "anonymous"; }

let noticeEnds;
function notice(text) {
  $("notice").textContent = text;
  clearTimeout(noticeEnds);
  noticeEnds = setTimeout(() => { $("notice").textContent = ""; }, 8_000);
}

let signalEnds;
function saySignal(room, name, does) {
  if (room !== active) return;
  $("signals").textContent = `${name.slice(0, 24)} ${does}`;
  clearTimeout(signalEnds);
  signalEnds = setTimeout(() => { $("signals").textContent = ""; }, SIGNAL_SHOWN);
}

// Who has just written is no longer writing.
function hush(room, name) {
  if (room === active && $("signals").textContent === `${name.slice(0, 24)} is writing`) $("signals").textContent = "";
}

let typedAt = -Infinity;
$("composer").addEventListener("input", () => {
  const field = $("composer");
  field.rows = Math.min(6, field.value.split("\n").length);
  if (performance.now() - typedAt < TYPING_EVERY || field.value.trim() === "") return;
  typedAt = performance.now();
  client.signal(active, { typing: true, name: myName(), by: mark });
});
// Enter sends, Shift+Enter breaks the line. Some input methods break it all the same after their keydown
// was taken: then the break is refused.
let breaks = false;
$("composer").addEventListener("beforeinput", (event) => {
  if (event.inputType === "insertLineBreak" && !breaks) event.preventDefault();
});
$("composer").addEventListener("keydown", (event) => {
  breaks = event.shiftKey;
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer-form").requestSubmit();
});
$("composer-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("composer").value.trim();
  if (text === "") return;
  send(text);
  $("composer").value = "";
  $("composer").rows = 1;
  typedAt = -Infinity;
});
$("wave").addEventListener("click", () => {
  const told = client.signal(active, { wave: true, name: myName(), by: mark });
  notice(told ? "You waved" : "Nobody can be told now");
});
$("burst").addEventListener("click", () => { for (let i = 1; i <= 20; i++) send(`${i} of 20`); });
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = encodeURIComponent($("room").value.trim());
  $("room").value = "";
  $("composer").focus();
});
$("leave").addEventListener("click", () => { if (active !== "lobby" || rooms.size > 1) drop(active); });
$("retry").addEventListener("click", () => client.reconnect());
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("composer").focus();
});
$("name").value = memory.get(always, "name") ?? `guest-${mark.slice(0, 4)}`;
$("name").addEventListener("change", () => memory.set(always, "name", $("name").value.trim()));
addEventListener("online", () => client.reconnect());
addEventListener("hashchange", open);

showState(client.state);
for (const name of JSON.parse(memory.get(tab, "rooms") ?? "[]").filter((n) => ROOM.test(n))) join(name);
open();
$("composer").focus();
