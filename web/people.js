// Who is in a room: everybody at first, later what changed, or only how many where they are too many to list.

export class People {
  count = null; // nobody has told yet
  #users = null; // session → user, null for an anonymous one; null where only the count is told

  /** Takes in what presence() answers and what "presence" tells from then on. */
  told({ count, members, joined, left }) {
    this.count = count;
    if (members) this.#users = new Map();
    else if (!joined && !left) this.#users = null;
    for (const { session } of left ?? []) this.#users?.delete(session);
    for (const { session, user } of [...(members ?? []), ...(joined ?? [])]) this.#users?.set(session, user);
  }

  /** One line for each user, this window first and those without a name together at the end. */
  lines(session) {
    const windows = new Map(); // by user
    for (const [other, user] of this.#users ?? []) if (other !== session) windows.set(user, (windows.get(user) ?? 0) + 1);
    const guests = windows.get(null) ?? 0;
    windows.delete(null);
    const named = [...windows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([user, n]) => (n > 1 ? `${user} (${n} windows)` : user));
    if (guests > 0) named.push(guests === 1 ? "1 guest" : `${guests} guests`);
    if (!this.#users?.has(session)) return named;
    const self = this.#users.get(session);
    return [self === null ? "this window" : `this window (${self})`, ...named];
  }
}
