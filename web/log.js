// The list of one room: rows by seq, gaps where the log has none, and what was sent but not stored yet.
// Whatever others wrote enters the page by textContent only.

const PAGE = 50; // messages a history request
const MAX_ROWS = 2_000; // rows kept in the page; older ones can be loaded again

export function make(tag, className, text) {
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

/** What a message says and who says so: ours are {name, text}, others are shown as their JSON. */
export function read(message) {
  const { data, from } = message;
  const ours = typeof data?.text === "string";
  const name = from ?? (typeof data?.name === "string" && data.name !== "" ? data.name : "anonymous");
  return { name, text: ours ? data.text : JSON.stringify(data), ours };
}

export class Log {
  element = make("div", "log");
  #list = make("ol", "rows"); #waiting = make("ol", "rows waiting");
  #room; #isMine; #onChange; #oldest = null; #more = false; #loading = false; #stuck = true; #queue = [];

  /** room is a client's room; isMine tells by its id whether this window sent a message; onChange follows history. */
  constructor(room, isMine, onChange) {
    this.#room = room;
    this.#onChange = onChange;
    this.#isMine = isMine;
    this.element.dataset.room = room.name;
    this.element.tabIndex = 0;
    this.element.setAttribute("role", "log");
    this.element.setAttribute("aria-label", `Messages in ${room.name}`);
    this.element.append(this.#list, this.#waiting);
    this.element.addEventListener("scroll", () => { this.#stuck = this.#atEnd(); });
    // A keyboard that slides in or a window that shrinks must not hide what was said last.
    new ResizeObserver(() => { if (this.#stuck) this.#toEnd(); }).observe(this.element);
    this.element.addEventListener("scroll", () => { if (this.element.scrollTop < 80) this.older(); });
  }

  get empty() { return this.#list.children.length + this.#queue.length + this.#waiting.children.length === 0; }

  /** The room was joined with this head: what lies below it is history. */
  begin(head) {
    if (this.#oldest !== null) return;
    this.#oldest = head + 1;
    this.#more = head > 0;
    this.older();
  }

  /** Loads the page above the oldest row, and keeps what is being read where it is. */
  async older() {
    if (this.#loading || !this.#more) return;
    this.#loading = true;
    this.#list.setAttribute("aria-busy", "true"); // history is not news: it is not read out
    try {
      const { messages, more } = await this.#room.history({ before: this.#oldest, limit: PAGE });
      const end = this.element.scrollHeight - this.element.scrollTop;
      const stuck = this.#atEnd();
      this.#list.prepend(...messages.map((m) => this.#row(m)));
      if (messages.length > 0) this.#oldest = messages[0].seq;
      this.#more = more;
      if (!more && this.#oldest > 1) this.#list.prepend(this.#gapRow({ from: 1, to: this.#oldest - 1, reason: "trimmed" }));
      this.element.scrollTop = stuck ? this.element.scrollHeight : this.element.scrollHeight - end;
    } catch (error) {
      if (error.code === "closed") return; // the status line says so already
      throw error;
    } finally {
      this.#loading = false;
      this.#list.removeAttribute("aria-busy");
      this.#onChange();
    }
  }

  message(message) { this.#append(() => this.#row(message)); }

  /** A line that is no message, such as that the connection has moved. */
  note(text) { this.#append(() => this.#noteRow(text)); }

  gap(gap) { this.#append(() => this.#gapRow(gap)); }

  /** Shows a message on its way until promise settles; again(row) sends it once more. */
  sending(name, text, promise, again) {
    const row = make("li", "row mine");
    const body = make("div", "body");
    const fate = make("span", "fate", "waiting");
    body.append(make("span", `who hue-${hueOf(name)}`, name), make("span", "text", text));
    row.append(make("span", "seq", "···"), make("span", "rail"), body, fate);
    this.#waiting.append(row);
    this.#toEnd();
    promise.then(() => row.remove(), (error) => {
      row.classList.add("failed");
      fate.textContent = error.message;
      const retry = make("button", "quiet", "Send again");
      const drop = make("button", "quiet", "Dismiss");
      retry.type = drop.type = "button";
      retry.onclick = () => { row.remove(); again(); };
      drop.onclick = () => row.remove();
      row.append(retry, drop);
    });
  }

  show() { this.#toEnd(); }

  // Rows come in gulps: a hundred messages in one frame of the screen are one layout, not a hundred.
  #append(build) {
    if (this.#queue.push(build) > 1) return;
    setTimeout(() => {
      const stuck = this.#atEnd();
      this.#list.append(...this.#queue.splice(0).map((f) => f()));
      if (stuck) {
        this.#trim();
        this.#toEnd();
      }
    }, 16);
  }

  #trim() {
    const rows = this.#list.children;
    while (rows.length > MAX_ROWS) rows[0].remove();
    const first = Number(this.#list.querySelector("[data-seq]")?.dataset.seq);
    if (first > this.#oldest) {
      this.#oldest = first;
      this.#more = true;
    }
  }

  #atEnd() { return this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 60; }

  #toEnd() { this.element.scrollTop = this.element.scrollHeight; }

  #row(message) {
    const { name, text, ours } = read(message);
    const row = make("li", this.#isMine(message.id) ? "row mine" : "row");
    row.dataset.seq = message.seq;
    const body = make("div", "body");
    body.append(make("span", `who hue-${hueOf(name)}`, name), make(ours ? "span" : "code", "text", text));
    const time = make("time", "at", clock.format(new Date(message.at)));
    time.dateTime = time.title = message.at;
    row.append(make("span", "seq", message.seq), make("span", "rail"), body, time);
    return row;
  }

  #noteRow(text) {
    const row = make("li", "row note");
    const now = new Date();
    const time = make("time", "at", clock.format(now));
    time.dateTime = now.toISOString();
    row.append(make("span", "seq"), make("span", "rail"), make("div", "body", text), time);
    return row;
  }

  #gapRow({ from, to, reason }) {
    const row = make("li", "row gap");
    const why = reason === "epoch" ? "the log began a new life" : "no longer stored";
    row.append(make("span", "seq", from === to ? from : `${from}–${to}`), make("span", "rail"), make("div", "body", why));
    return row;
  }
}
