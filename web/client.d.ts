/** Any value that JSON can say, as it comes in. */
export type JSONValue = null | boolean | number | string | JSONValue[] | { [key: string]: JSONValue | undefined };

/** What goes out by way of JSON.stringify; a TypeError where that makes nothing of it, as of a function. */
export type JSONInput = null | boolean | number | string | object;

/** A place in a room. A seq means something only together with the epoch it was counted in. */
export interface Position {
  seq: number;
  epoch?: string;
}

/** One stored publication. Seqs of a room begin at 1 and have no holes. */
export interface Message {
  type: "message";
  room: string;
  epoch: string;
  seq: number;
  id: string;
  /** The publishing user; null for anonymous ones; "api:<name>" when published over HTTP. */
  from: string | null;
  /** RFC 3339 in UTC with microseconds: the time of the commit. */
  at: string;
  data: JSONValue;
}

/** An ephemeral event: delivered now to who is there, never stored. No order against messages. */
export interface Signal {
  type: "signal";
  room: string;
  from: string | null;
  data: JSONValue;
}

/**
 * Messages from..to will never come. "trimmed": they are no longer stored. "epoch": the log began a
 * new life and every position is void, so whatever was built from older messages should be loaded anew.
 */
export interface Gap {
  type: "gap";
  room: string;
  epoch: string;
  from: number;
  to: number;
  reason: "trimmed" | "epoch";
}

/** The server's answer to a join: how far the room reaches. */
export interface Joined {
  type: "joined";
  room: string;
  epoch: string;
  /** The newest seq; 0 for a room that has never had a message. */
  seq: number;
  /** The oldest seq still stored; seq + 1 when none is. */
  first: number;
}

/** Somebody in a room: a session, of which one user may have several. */
export interface Member {
  /** The public part of the session's secret: what stands before its first dot. */
  session: string;
  user: string | null;
}

/** Who is in a room: everybody, or only how many where they are too many to list; later what changed. */
export interface Presence {
  type: "presence";
  room: string;
  count: number;
  members?: Member[];
  joined?: Member[];
  left?: Member[];
}

/** Another socket has taken the place of the one before; nothing was lost, and the state is live as before. */
export interface Moved {
  from: Welcome;
  to: Welcome;
  /** The server's word for it. */
  reason: string;
  /** Milliseconds from opening the new socket until all rooms were joined there. */
  took: number;
}

/** The first word of every connection: who serves it. */
export interface Welcome {
  type: "welcome";
  /** A secret: who has it can take the session over. What stands before its first dot is public. */
  session: string;
  /** The session that the client offered goes on. */
  resumed: boolean;
  user: string | null;
  node: string;
  color: string;
  deployment: string;
  version: string;
  /** Time between two heartbeats of the server, in milliseconds. */
  heartbeat_ms: number;
  /** The largest frame the server takes, in bytes. */
  max_frame: number;
  /** How long the server remembers the id of a publish, in milliseconds. Older servers do not tell. */
  id_window_ms?: number;
  /** In how many milliseconds the token ends; absent when it does not, or there is none. */
  auth_expires_ms?: number;
}

/** The message is stored: it will not be lost, doubled or reordered. */
export interface Ack {
  seq: number;
  epoch: string;
  id: string;
  /** The id was stored before, by an earlier publish or by an attempt of this one whose answer was lost. */
  duplicate: boolean;
}

/** A page of a room's log, ascending. */
export interface History {
  room: string;
  epoch: string;
  messages: Message[];
  /** More lies further in the direction that was asked for. */
  more: boolean;
}

/** Which page of a room's log: the newest below before, or those above after; with neither, the newest. */
export interface Range {
  before?: number | undefined;
  after?: number | undefined;
  /** At most so many messages; the server allows 200, and 256 KiB. */
  limit?: number | undefined;
}

/** Where the connection stands. */
export type State =
  | { name: "connecting" }
  | { name: "live"; welcome: Welcome }
  /** Comes back by itself in so many milliseconds. */
  | { name: "waiting"; in: number; code: number; reason: string }
  /** Stays away. Every promise that waited was rejected with "closed". */
  | { name: "closed"; code: number; reason: string };

/**
 * The codes of failures. Made here: buffer_full (the message names the bound), closed, connect_failed,
 * hole, outcome_unknown, timeout, too_large, conflict. The others are the server's.
 */
export type ErrorCode =
  | "buffer_full" | "closed" | "connect_failed" | "hole" | "outcome_unknown" | "timeout"
  | "malformed" | "invalid" | "unknown_type" | "too_large" | "conflict" | "unauthorized" | "forbidden"
  | "rate_limited" | "too_many_rooms" | "unavailable" | "internal" | (string & {});

export class SwitchyardError extends Error {
  code: ErrorCode;
  /** The message may be stored all the same: an attempt went out and its answer never came. */
  outcomeUnknown: boolean;
  room?: string;
  /** That of the request it answers, for who reads frames. */
  ref?: string;
  /** How long the server asks to wait, in milliseconds. */
  retryAfter?: number;
}

/** Time, as the tests replace it. */
export interface Clock {
  /** Milliseconds since any fixed moment. */
  now(): number;
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(timer: unknown): void;
}

/** What the client uses of a WebSocket: a browser's has it, Node's and that of the package ws, too. */
export interface Socket {
  send(text: string): void;
  close(code?: number): void;
  readonly bufferedAmount?: number;
  // Each library has event types of its own.
  onmessage: any;
  onclose: any;
}

export interface Options {
  /**
   * Called before each connection, and again before the token ends; it may take half a minute. The token
   * travels as the subprotocol `bearer.<token>`, later in a frame.
   */
  getToken?: () => string | Promise<string>;
  /** The secret of an earlier session, as in its welcome, that is to go on. */
  session?: string;
  /** The class to open sockets with; the global one unless given. */
  WebSocket?: new (url: string, protocols: string[]) => Socket;
  /** Bounds of the full-jitter backoff in milliseconds: 500 and 20,000. */
  backoff?: { base: number; cap: number };
  /** A number in [0, 1); Math.random unless given. */
  random?: () => number;
  clock?: Clock;
  /** Most requests that may wait for an answer: 1,000. */
  maxPending?: number;
  /** Most bytes of such requests, and of signals the socket has not taken yet: 4 MiB. */
  maxPendingBytes?: number;
  /**
   * How long a request is kept before it was sent, and from then on how long it is sent again, in
   * milliseconds. The latter is at most half of the server's ID_WINDOW; 300,000 where nobody tells.
   */
  resendFor?: number;
}

interface RoomEvents {
  message: Message;
  signal: Signal;
  gap: Gap;
  /** After the join and after each return, but not after a move. */
  joined: Joined;
  /** What changed, once presence() was asked; everybody after a return or a move. */
  presence: Presence;
}

interface Events extends RoomEvents {
  state: State;
  /** The server has asked to move, and it is done. */
  moved: Moved;
  /** What no promise tells: refused joins and signals, a connection that could not be tried. */
  error: SwitchyardError;
}

/**
 * Every frame of the server as it came, before anything is dropped, and the number of its socket: for tests
 * and instruments. During a move two sockets bring the same messages.
 */
type FrameListener = (frame: { type: string; [field: string]: unknown }, socket: number) => void;

/** A room that was joined and stays so, across sockets, until it is left. */
export interface Room {
  readonly name: string;
  /** The last seq seen, to be kept and given to join after a reload; null until joined. */
  readonly position: Position | null;
  /** The first answer to the join; rejects when the server refuses it, and with code "left" when it is left before. */
  readonly joined: Promise<Joined>;
  /** Returns a function that takes the listener off again. */
  on<E extends keyof RoomEvents>(event: E, listener: (value: RoomEvents[E]) => void): () => void;
  publish(data: JSONInput, options?: { id?: string | undefined }): Promise<Ack>;
  signal(data: JSONInput): boolean;
  history(range?: Range): Promise<History>;
  /** Who is there; changes are told by "presence" from then on. */
  presence(): Promise<Presence>;
  leave(): void;
}

/** A connection that lasts longer than its sockets: it comes back, moves, resumes and resends by itself. */
export class Switchyard {
  /** Opens a connection. The url may be relative and may begin with http; "/ws" unless given. */
  static connect(url?: string | URL, options?: Options): Switchyard;

  readonly state: State;
  /** The last welcome; null before the first. */
  readonly welcome: Welcome | null;

  /** Returns a function that takes the listener off again. */
  on<E extends keyof Events>(event: E, listener: (value: Events[E]) => void): () => void;
  on(event: "frame", listener: FrameListener): () => void;

  /**
   * Joins a room: from now, or with every message after a position. A position other than 0 needs its
   * epoch. A room that is joined already is returned as it is.
   */
  join(room: string, position?: { after?: number | undefined; epoch?: string | undefined }): Room;
  leave(room: string): void;

  /**
   * Stores a message; works while disconnected too, and needs no join. It is sent until answered, with
   * the same id, for resendFor; then it rejects with outcome_unknown (timeout if it was never sent).
   */
  publish(room: string, data: JSONInput, options?: { id?: string | undefined }): Promise<Ack>;

  /** Sends an ephemeral event; false when nobody can be told now. */
  signal(room: string, data: JSONInput): boolean;

  /** Reads a page of the log, ascending; it is asked for again on the next connection, too. */
  history(room: string, range?: Range): Promise<History>;

  /** Who is in a room, joined or not; if it is joined, changes are told from then on. */
  presence(room: string): Promise<Presence>;

  /**
   * Brings a fresh token now, as when the user's rights have changed; the client does so by itself before the
   * token ends. Rejects when the server refuses it or half a minute has passed; the old token goes on then.
   */
  refreshToken(): Promise<void>;

  /** Tries again at once instead of waiting, and also after the end. */
  reconnect(): void;

  /** Closes for good. What waits for an answer is rejected with "closed". */
  close(): void;
}

/** What a close code asks of a client; the table is in the protocol's documentation. */
export function afterClose(code: number): "stay" | "token" | "shed" | "soon" | "backoff";
