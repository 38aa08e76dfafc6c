// The page: rooms on the left, messages in the middle, metrics on the right.

import { Switchyard } from "./client.js";
import { Observer } from "./check.js";
import { MessageLog, createElement, parseMessage } from "./log.js";
import { Metrics, showPresence, showServer, showState } from "./panel.js";
import { PresenceList } from "./people.js";

const $ = (id) => document.getElementById(id);
const ROOM = /^[A-Za-z0-9.:-][A-Za-z0-9._:-]{0,127}$/;
const TYPING_EVERY = 2_000; // ms between two typing signals
const SIGNAL_SHOWN = 3_500; // ms
const SESSION_KEY = "switchyard.session"; // other pages of this origin may have a session of another kind

// The ids of this window's messages begin with a random windowID, by which it recognizes them.
const windowID = [...crypto.getRandomValues(new Uint8Array(12))].map((b) => b.toString(16).padStart(2, "0")).join("");
let count = 0;

// A private window may refuse storage. The page then works without it.
const storage = {
  get(store, key) { try { return store()[key]; } catch { return undefined; } },
  set(store, key, value) { try { store()[key] = value; } catch { /* see above */ } },
};
const perTab = () => sessionStorage;
const persistent = () => localStorage;

// The socket is beside this file, behind a path prefix too.
const client = Switchyard.connect(new URL("ws", import.meta.url), { keepSession: SESSION_KEY });
const frameObserver = new Observer(); // of the frames that the service sends
const shownObserver = new Observer(); // of the messages that the client emits and the page shows
const metrics = new Metrics();
const rooms = new Map(); // name → {handle, log, link, presence, unread}
let active = null; // the name of the open room

client.on("frame", (frame, socket) => {
  metrics.frameReceived();
  frameObserver.observe(frame, socket);
});
client.on("moved", ({ to, took }) => { // the state stays live
  showServer(to);
  metrics.moved();
  for (const { log } of rooms.values()) log.addNote(`moved to node ${to.node} in ${Math.round(took)} ms`);
  refresh();
});
client.on("state", (state) => {
  showState(state);
  metrics.state(state);
});
client.on("error", (error) => notice(error.message));
client.on("joined", (frame) => {
  shownObserver.observe(frame);
  rooms.get(frame.room)?.log.setHead(frame.seq);
  refresh();
});
client.on("removed", ({ room, message }) => rooms.get(room)?.log.addNote(message));
client.on("presence", presenceChanged);
client.on("message", (message) => {
  shownObserver.observe(message);
  const room = rooms.get(message.room);
  room.log.message(message);
  clearTyping(message.room, parseMessage(message).name);
  if (message.room !== active) room.unread += 1;
  refresh();
});
client.on("gap", (gap) => {
  shownObserver.observe(gap);
  rooms.get(gap.room).log.gap(gap);
  refresh();
});
client.on("signal", ({ room, data }) => {
  if (typeof data?.name !== "string" || data.by === windowID) return;
  if (data.wave) showSignal(room, data.name, "waves");
  if (data.typing) showSignal(room, data.name, "is writing");
});

function join(name) {
  const handle = client.join(name);
  const log = new MessageLog(handle, (id) => id.startsWith(windowID), refresh);
  const item = createElement("li");
  const link = createElement("a");
  link.href = `#${encodeURIComponent(name)}`;
  link.append(createElement("span", "dot"), createElement("span", "name", name), createElement("span", "unread num"));
  item.append(link);
  $("rooms").append(item);
  $("logs").append(log.element);
  frameObserver.room(name);
  shownObserver.room(name);
  rooms.set(name, { handle, log, link, presence: new PresenceList(), unread: 0 });
  handle.joined.then(
    () => handle.presence().then(presenceChanged, () => {}), // an older server has no presence
    (error) => { if (error.code !== "closed") closeRoom(name); },
  );
  rememberRooms();
}

function presenceChanged(frame) {
  const room = rooms.get(frame.room);
  if (!room) return; // it was left since the request
  room.presence.update(frame);
  if (frame.room === active) showActivePresence();
}

function showActivePresence() { showPresence(rooms.get(active).presence, client.welcome?.session.split(".")[0]); }

function closeRoom(name) {
  const room = rooms.get(name);
  if (!room) return;
  room.handle.leave();
  room.link.parentElement.remove();
  room.log.element.remove();
  rooms.delete(name);
  frameObserver.forget(name);
  shownObserver.forget(name);
  rememberRooms();
  if (active === name) location.hash = encodeURIComponent([...rooms.keys()][0] ?? "lobby");
}

function rememberRooms() { storage.set(perTab, "rooms", JSON.stringify([...rooms.keys()])); }

// Another page of this origin may have stored anything under that name.
function rememberedRooms() {
  try {
    return JSON.parse(storage.get(perTab, "rooms")).filter((name) => typeof name === "string" && ROOM.test(name));
  } catch {
    return [];
  }
}

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
  rooms.get(name).log.scrollToEnd();
  showActivePresence();
  refresh();
}

// All changes within a sixtieth of a second need one refresh.
let refreshTimer = null;
function refresh() {
  refreshTimer ??= setTimeout(() => {
    refreshTimer = null;
    for (const [name, { link, unread }] of rooms) {
      link.querySelector(".unread").textContent = unread > 0 ? String(unread) : "";
      link.dataset.clean = frameObserver.room(name).clean && shownObserver.room(name).clean;
    }
    if (!rooms.has(active)) return;
    metrics.check(frameObserver.room(active), shownObserver.room(active));
    $("empty").hidden = !rooms.get(active).log.empty;
  }, 16);
}

function send(text, room = active) {
  const name = myName();
  const began = performance.now();
  const live = client.state.name === "live";
  const id = `${windowID}.${++count}`;
  const publish = () => client.publish(room, { name, text }, { id });
  const attempt = () => {
    const promise = publish();
    // A publish that waits for a connection does not measure how fast the service answers.
    promise.then(() => { if (live) metrics.ack(performance.now() - began); }, () => {});
    rooms.get(room)?.log.addPending(name, text, promise, attempt);
    refresh();
    promise.then(refresh, refresh);
  };
  attempt();
}

function myName() { return $("name").value.trim() || "anonymous"; }

let noticeTimer;
function notice(text) {
  $("notice").textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => { $("notice").textContent = ""; }, 8_000);
}

let signalTimer;
function showSignal(room, name, action) {
  if (room !== active) return;
  $("signals").textContent = `${name.slice(0, 24)} ${action}`;
  clearTimeout(signalTimer);
  signalTimer = setTimeout(() => { $("signals").textContent = ""; }, SIGNAL_SHOWN);
}

// Clears "is writing" once that user's message has arrived.
function clearTyping(room, name) {
  if (room === active && $("signals").textContent === `${name.slice(0, 24)} is writing`) $("signals").textContent = "";
}

let typedAt = -Infinity;
$("composer").addEventListener("input", () => {
  const field = $("composer");
  field.rows = Math.min(6, field.value.split("\n").length);
  if (performance.now() - typedAt < TYPING_EVERY || field.value.trim() === "") return;
  typedAt = performance.now();
  client.signal(active, { typing: true, name: myName(), by: windowID });
});
// Enter sends, Shift+Enter breaks the line. Some input methods insert a line break although the keydown event
// was canceled: that break is prevented here.
let breakAllowed = false;
$("composer").addEventListener("beforeinput", (event) => {
  if (event.inputType === "insertLineBreak" && !breakAllowed) event.preventDefault();
});
$("composer").addEventListener("keydown", (event) => {
  breakAllowed = event.shiftKey;
  // Enter also confirms the text of an input method. Safari ends the composition before this event, and sends the key
  // code 229 for it.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
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
  const sent = client.signal(active, { wave: true, name: myName(), by: windowID });
  notice(sent ? "You waved" : "Not sent: there is no connection");
});
$("burst").addEventListener("click", () => { for (let i = 1; i <= 20; i++) send(`${i} of 20`); });
$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  location.hash = encodeURIComponent($("room").value.trim());
  $("room").value = "";
  $("composer").focus();
});
$("leave").addEventListener("click", () => { if (active !== "lobby" || rooms.size > 1) closeRoom(active); });
$("retry").addEventListener("click", () => client.reconnect());
$("skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("composer").focus();
});
$("name").value = storage.get(persistent, "name") ?? `guest-${windowID.slice(0, 4)}`;
$("name").addEventListener("change", () => storage.set(persistent, "name", $("name").value.trim()));
addEventListener("hashchange", open);

showState(client.state);
for (const name of rememberedRooms()) join(name);
open();
$("composer").focus();
