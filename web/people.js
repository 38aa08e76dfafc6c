// The sessions in a room: a full list at first, then changes, or only the count when there are too many to list.

export class PresenceList {
  count = null; // null before the first frame
  #users = null; // session → user, null for an anonymous one; null when only the count is known

  /** Applies the answer of presence() or a "presence" event. */
  update({ count, members, joined, left }) {
    this.count = count;
    if (members) this.#users = new Map();
    else if (!joined && !left) this.#users = null;
    for (const { session } of left ?? []) this.#users?.delete(session);
    for (const { session, user } of [...(members ?? []), ...(joined ?? [])]) this.#users?.set(session, user);
  }

  /** One line for each user: this window first, anonymous users together at the end. session is this window's. */
  lines(session) {
    const windows = new Map(); // by user
    for (const [other, user] of this.#users ?? []) if (other !== session) windows.set(user, (windows.get(user) ?? 0) + 1);
    const anonymous = windows.get(null) ?? 0;
    windows.delete(null);
    const lines = [...windows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([user, n]) => (n > 1 ? `${user} (${n} windows)` : user));
    if (anonymous > 0) lines.push(anonymous === 1 ? "1 guest" : `${anonymous} guests`);
    if (!this.#users?.has(session)) return lines;
    const self = this.#users.get(session);
    return [self === null ? "this window" : `this window (${self})`, ...lines];
  }
}
