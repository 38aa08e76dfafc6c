// The list of one room: messages by seq, gaps in the log, and pending messages.
// Text of other users enters the page through textContent only.

const PAGE = 50; // messages of a history request
const MAX_ROWS = 2_000; // rows kept in the page; older ones can be loaded again

export function createElement(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });

function hueOf(name) {
  let sum = 0;
  for (const c of name) sum = (sum * 31 + c.codePointAt(0)) >>> 0;
  return sum % 6;
}

/**
 * Returns the author and text of a message. The page's own messages are {name, text}; others are shown as JSON. isVerified
 * says whether the service vouches for the name: an anonymous sender writes any name into the message, also that of a user.
 */
export function parseMessage(message) {
  const { data, from } = message;
  const isChat = typeof data?.text === "string";
  const ownName = typeof data?.name === "string" && data.name !== "" ? data.name : null;
  return { name: from ?? ownName ?? "anonymous", isVerified: from !== null || ownName === null, text: isChat ? data.text : JSON.stringify(data), isChat };
}

export class MessageLog {
  element = createElement("div", "log");
  #list = createElement("ol", "rows"); #pendingList = createElement("ol", "rows waiting");
  #room; #isMine; #onChange; #oldest = null; #hasOlder = false; #loading = false; #followsEnd = true; #newRows = [];

  /**
   * room is a room of the client; isMine(id) says whether this window sent the message; onChange is called after each
   * page of history.
   */
  constructor(room, isMine, onChange) {
    this.#room = room;
    this.#onChange = onChange;
    this.#isMine = isMine;
    this.element.dataset.room = room.name;
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "log");
    this.element.setAttribute("aria-label", `Messages in ${room.name}`);
    this.element.append(this.#list, this.#pendingList);
    this.element.addEventListener("scroll", () => { this.#followsEnd = this.#isAtEnd(); });
    // An on-screen keyboard or a smaller window must not hide the newest message.
    new ResizeObserver(() => { if (this.#followsEnd) this.scrollToEnd(); }).observe(this.element);
    this.element.addEventListener("scroll", () => { if (this.element.scrollTop < 80) this.loadOlder(); });
  }

  get empty() { return this.#list.children.length + this.#newRows.length + this.#pendingList.children.length === 0; }

  /** Sets the head of the room at the first join: messages up to it are history. */
  setHead(head) {
    if (this.#oldest !== null) return;
    this.#oldest = head + 1;
    this.#hasOlder = head > 0;
    this.loadOlder();
  }

  /** Loads the page above the oldest row, without moving the visible rows. */
  async loadOlder() {
    if (this.#loading || !this.#hasOlder) return;
    this.#loading = true;
    this.#list.setAttribute("aria-busy", "true"); // a screen reader does not read history out
    try {
      const { messages, more } = await this.#room.history({ before: this.#oldest, limit: PAGE });
      const end = this.element.scrollHeight - this.element.scrollTop;
      const atEnd = this.#isAtEnd();
      this.#list.prepend(...messages.map((m) => this.#row(m)));
      if (messages.length > 0) this.#oldest = messages[0].seq;
      this.#hasOlder = more;
      if (!more && this.#oldest > 1) this.#list.prepend(this.#gapRow({ from: 1, to: this.#oldest - 1, reason: "trimmed" }));
      this.element.scrollTop = atEnd ? this.element.scrollHeight : this.element.scrollHeight - end;
    } catch (error) {
      if (error.code === "closed") return; // the header shows it already
      throw error;
    } finally {
      this.#loading = false;
      this.#list.removeAttribute("aria-busy");
      this.#onChange();
    }
  }

  message(message) { this.#append(() => this.#row(message)); }

  /** Adds a line that is not a message, such as a move of the connection. */
  addNote(text) { this.#append(() => this.#noteRow(text)); }

  gap(gap) { this.#append(() => this.#gapRow(gap)); }

  /** Shows a pending message until promise settles; resend() publishes it once more. */
  addPending(name, text, promise, resend) {
    const row = createElement("li", "row mine");
    const body = createElement("div", "body");
    const status = createElement("span", "fate", "waiting");
    body.append(createElement("span", `who hue-${hueOf(name)}`, name), createElement("span", "text", text));
    row.append(createElement("span", "seq", "···"), createElement("span", "rail"), body, status);
    this.#pendingList.append(row);
    this.scrollToEnd();
    promise.then(() => row.remove(), (error) => {
      row.classList.add("failed");
      status.textContent = error.message;
      const retry = createElement("button", "quiet", "Send again");
      const drop = createElement("button", "quiet", "Dismiss");
      retry.type = drop.type = "button";
      retry.onclick = () => { row.remove(); resend(); };
      drop.onclick = () => row.remove();
      row.append(retry, drop);
    });
  }

  scrollToEnd() { this.element.scrollTop = this.element.scrollHeight; }

  // Rows are appended in batches, so that a hundred messages at once need one layout instead of a hundred.
  #append(build) {
    if (this.#newRows.push(build) > 1) return;
    setTimeout(() => {
      const atEnd = this.#isAtEnd();
      this.#list.append(...this.#newRows.splice(0).map((f) => f()));
      if (atEnd) {
        this.#trim();
        this.scrollToEnd();
      }
    }, 16);
  }

  #trim() {
    const rows = this.#list.children;
    while (rows.length > MAX_ROWS) rows[0].remove();
    const first = Number(this.#list.querySelector("[data-seq]")?.dataset.seq);
    if (first > this.#oldest) {
      this.#oldest = first;
      this.#hasOlder = true;
    }
  }

  #isAtEnd() { return this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 60; }


  #row(message) {
    const { name, isVerified, text, isChat } = parseMessage(message);
    const row = createElement("li", this.#isMine(message.id) ? "row mine" : "row");
    row.dataset.seq = message.seq;
    const body = createElement("div", "body");
    const who = createElement("span", `who hue-${hueOf(name)}`, name);
    if (!isVerified) {
      who.classList.add("unverified");
      who.title = "an anonymous sender gave itself this name";
    }
    body.append(who, createElement(isChat ? "span" : "code", "text", text));
    const time = createElement("time", "at", clock.format(new Date(message.at)));
    time.dateTime = time.title = message.at;
    row.append(createElement("span", "seq", message.seq), createElement("span", "rail"), body, time);
    return row;
  }

  #noteRow(text) {
    const row = createElement("li", "row note");
    const now = new Date();
    const time = createElement("time", "at", clock.format(now));
    time.dateTime = now.toISOString();
    row.append(createElement("span", "seq"), createElement("span", "rail"), createElement("div", "body", text), time);
    return row;
  }

  #gapRow({ from, to, reason }) {
    const row = createElement("li", "row gap");
    const explanation = reason === "epoch" ? "the log began a new epoch" : "no longer stored";
    row.append(createElement("span", "seq", from === to ? from : `${from}–${to}`), createElement("span", "rail"), createElement("div", "body", explanation));
    return row;
  }
}
