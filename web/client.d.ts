/** Any value that JSON can represent, as received. JavaScript rounds integers above 2^53: publish such ids as strings. */
export type JSONValue = null | boolean | number | string | JSONValue[] | { [key: string]: JSONValue | undefined };

/** A value to send. JSON.stringify encodes it; publishing what it cannot encode, such as a function, is a TypeError. */
export type JSONInput = null | boolean | number | string | object;

/** A position in a room. A seq has a meaning only in its epoch. */
export interface Position {
  seq: number;
  epoch?: string;
}

/** A stored message. The seqs of a room start at 1 and have no holes. */
export interface Message {
  type: "message";
  room: string;
  epoch: string;
  seq: number;
  id: string;
  /** The publisher: a user, null when anonymous, "api:<name>" when published over HTTP. */
  from: string | null;
  /** RFC 3339 in UTC with microseconds: the time of the commit. */
  at: string;
  data: JSONValue;
}

/** An event for the members that are connected now. It is never stored, and has no order relative to messages. */
export interface Signal {
  type: "signal";
  room: string;
  from: string | null;
  data: JSONValue;
}

/**
 * The messages from..to will not be delivered. "trimmed": they are no longer stored. "epoch": the log is in a new
 * epoch and every position is invalid, so an application should reload what it built from older messages.
 */
export interface Gap {
  type: "gap";
  room: string;
  epoch: string;
  from: number;
  to: number;
  reason: "trimmed" | "epoch";
}

/** The service's answer to a join: which messages the room has. */
export interface Joined {
  type: "joined";
  room: string;
  epoch: string;
  /** The newest seq; 0 for a room that has never had a message. */
  seq: number;
  /** The oldest seq still stored; seq + 1 when none is. */
  first: number;
}

/** A session in a room. One user may have several. */
export interface Member {
  /** The public part of the session's secret: the text before its first dot. */
  session: string;
  user: string | null;
}

/**
 * The sessions in a room. A full list has members; a change has joined and left. None of them is there when there are
 * too many sessions to list.
 */
export interface Presence {
  type: "presence";
  room: string;
  count: number;
  members?: Member[];
  joined?: Member[];
  left?: Member[];
}

/** A completed move: another socket is in use. Nothing was lost, and the state has been live all the time. */
export interface Moved {
  from: Welcome;
  to: Welcome;
  /** As the service gave it. */
  reason: string;
  /** Milliseconds from opening the new socket until all rooms were joined there. */
  took: number;
}

/** A limit of the service: burst at once, then per_second. left is what was left of the burst at the welcome. */
export interface Limit {
  per_second: number;
  burst: number;
  left: number;
}

/** The first frame of every connection: which node serves it, and its limits. */
export interface Welcome {
  type: "welcome";
  /** A secret: any client that has it can take the session over. The text before its first dot is public. */
  session: string;
  /** Whether the session that the client offered was resumed. */
  resumed: boolean;
  user: string | null;
  node: string;
  color: string;
  deployment: string;
  version: string;
  /** Time between two heartbeats of the service, in milliseconds. */
  heartbeat_ms: number;
  /** The largest frame that the service accepts, in bytes. */
  max_frame: number;
  /** How long the service remembers the id of a publish, in milliseconds. Absent from older servers. */
  id_window_ms?: number;
  /** Milliseconds until the token expires; absent when it does not, or there is none. */
  auth_expires_ms?: number;
  /**
   * The rates by which the client paces itself: publishes and signals, bytes of all frames, joins and other frames, history
   * and presence. One that is absent does not apply. Older servers report none.
   */
  limits?: { publish?: Limit; bytes?: Limit; join?: Limit; history?: Limit };
}

/** The message is stored: it will not be lost, doubled or reordered. */
export interface Ack {
  seq: number;
  epoch: string;
  id: string;
  /** The message had been stored before, by an earlier publish or by an attempt of this one whose answer was lost. */
  duplicate: boolean;
}

/** A page of a room's messages, in the order of seq. */
export interface History {
  room: string;
  epoch: string;
  messages: Message[];
  /** Whether there are more messages in the requested direction. */
  more: boolean;
}

/** A page to read: the newest messages below before, or those after after; with neither, the newest. */
export interface Range {
  before?: number | null | undefined;
  after?: number | null | undefined;
  /** The largest number of messages; the service sends at most 200, and 256 KiB. */
  limit?: number | null | undefined;
}

/** The state of the connection. */
export type State =
  | { name: "connecting" }
  | { name: "live"; welcome: Welcome }
  /** Reconnects by itself in that many milliseconds. */
  | { name: "waiting"; in: number; code: number; reason: string }
  /** Does not reconnect. Every pending promise was rejected with "closed". */
  | { name: "closed"; code: number; reason: string };

/**
 * The codes of failures. The client's own: buffer_full (the message names the bound), closed, connect_failed,
 * hole (the service skipped a message; the client requests it again), left (a join, by leave), listener_failed (a listener
 * has thrown, or its promise has rejected: cause is with what), outcome_unknown, timeout, too_large, conflict, unauthorized
 * (no getToken, or no token from it), user_changed (the token of a later connection is another user's). The others are the
 * service's.
 */
export type ErrorCode =
  | "buffer_full" | "closed" | "connect_failed" | "hole" | "listener_failed" | "outcome_unknown" | "timeout" | "user_changed"
  | "malformed" | "invalid" | "unknown_type" | "too_large" | "conflict" | "unauthorized" | "forbidden"
  | "rate_limited" | "too_many_rooms" | "unavailable" | "internal" | (string & {});

export class SwitchyardError extends Error {
  code: ErrorCode;
  /** The message may be stored in spite of the error: an attempt was sent, and its answer never arrived. */
  outcomeUnknown: boolean;
  room?: string;
  /** The ref of the request, for applications that read frames. */
  ref?: string;
  /** How long the service asks to wait, in milliseconds. */
  retryAfter?: number;
}

/** A clock; tests replace it. */
export interface Clock {
  /** Milliseconds since any fixed moment. Nobody sets this clock: silence and delays are measured by it. */
  now(): number;
  /**
   * Milliseconds of the wall clock, which also counts while the computer sleeps: resending ends by whichever of the two
   * says so first. By default now().
   */
  wall?(): number;
  setTimeout(callback: () => void, ms: number): unknown;
  clearTimeout(timer: unknown): void;
}

/** The part of a WebSocket that the client uses. Browsers, Node and the package ws have it. */
export interface Socket {
  send(text: string): void;
  close(code?: number): void;
  readonly bufferedAmount?: number;
  readonly readyState?: number;
  // Each library has its own event types.
  onmessage: any;
  onclose: any;
  onopen?: any;
  onerror?: any;
}

type TokenResult = string | null | undefined;

/** null is as undefined everywhere. What is of another type than here, or out of bounds, throws a TypeError that names it. */
export interface Options {
  /**
   * Called before each connection, and again before the token expires; it may take half a minute. The handshake has
   * the token as the subprotocol `bearer.<token>`; a refresh sends it in a frame. Nothing or "" means that there is no
   * token: none is offered. What the service says to that is an "error". Only letters, digits and !#$%&'*+-.^_`|~ may
   * stand in a token.
   */
  getToken?: (() => TokenResult | Promise<TokenResult>) | null;
  /** The secret of an earlier session to resume, from its welcome; nothing or "" starts a new one. */
  session?: string | null;
  /**
   * A name in sessionStorage under which the client keeps its session while the page is not there: a reload, or a tab that
   * the browser had discarded, continues it. A copy of the tab begins a session of its own, and so does a client whose
   * session another page has taken over, instead of ending with 4009. Where storage is refused, nothing is kept.
   */
  keepSession?: string | null;
  /** The class of the sockets; by default the global one. connect throws where there is neither. */
  WebSocket?: new (url: string, protocols: string[]) => Socket;
  /**
   * After two failures the client asks by it whether the service is there, for the file icon.svg beside the socket, before it
   * opens another socket. By default the global one, and none with a WebSocket of your own, which may take another way.
   */
  fetch?: typeof fetch | null;
  /** Bounds of the full-jitter backoff in milliseconds; by default 500 and 20,000. */
  backoff?: { base?: number; cap?: number };
  /** Returns a number in [0, 1); by default Math.random. */
  random?: () => number;
  clock?: Clock;
  /** The largest number of requests without an answer; by default 1,000. */
  maxPending?: number;
  /** The most bytes of such requests, and of data in the socket's buffer for a signal to be sent; by default 4 MiB. */
  maxPendingBytes?: number;
  /**
   * Milliseconds for which a request is kept until it is sent, by default 300,000, and then for which it is resent, by
   * default and at most half of the service's ID_WINDOW (300,000 if the service does not report it). At most 2 ** 31 - 1.
   */
  resendFor?: number;
}

interface RoomEvents {
  message: Message;
  signal: Signal;
  gap: Gap;
  /** After the join and after each reconnect, but not after a move. */
  joined: Joined;
  /**
   * The service has taken the room away: a new token does not open it. It is joined again, from its position, as soon as a
   * later token does; "joined" then follows.
   */
  removed: SwitchyardError;
  /** Changes, after a call of presence(); the full list after a reconnect or a move. */
  presence: Presence;
}

interface Events extends RoomEvents {
  state: State;
  /** A move that the service asked for is complete. */
  moved: Moved;
  /**
   * Errors that belong to no promise: refused joins and signals, skipped messages, a failed getToken or socket, a token that
   * the service refuses at the handshake or misses, a token of another user than before (user_changed), and, once, two
   * connections without an answer before the first welcome; also those of calls that nobody awaits, and of listeners that throw.
   */
  error: SwitchyardError;
}

/**
 * Called with every frame of the service as it arrived, before the client drops anything, and the number of its socket,
 * for tests and checks. During a move two sockets deliver the same messages.
 */
type FrameListener = (frame: { type: string; [field: string]: unknown }, socket: number) => void;

/**
 * What one call of join returns. Each has a position, listeners and an end of its own: two parts of a page may join the same
 * room. The room is rejoined on each new socket, and left with the last of them.
 */
export interface Room {
  readonly name: string;
  /** The last position that was delivered, to be stored and passed to join later; null until joined. */
  readonly position: Position | null;
  /** The answer to the first join. Rejects when the service refuses it, and with code "left" when leave is called first. */
  readonly joined: Promise<Joined>;
  /**
   * Adds a listener, and returns a function that removes it. The first one of "message", here or of the client, gets every
   * message since the join, however late it is added.
   */
  on<E extends keyof RoomEvents>(event: E, listener: (value: RoomEvents[E]) => void): () => void;
  publish(data: JSONInput, options?: { id?: string | null | undefined } | null): Promise<Ack>;
  signal(data: JSONInput): boolean;
  history(range?: Range | null): Promise<History>;
  /** Returns the sessions in the room; "presence" reports changes from then on. */
  presence(): Promise<Presence>;
  /** Ends this one: its listeners are not called any more. */
  leave(): void;
}

/** Where a join starts: now, after a position, or before the last messages. */
export interface Start {
  /** The seq after which messages are delivered: 0 for all. A higher one needs its epoch. */
  after?: number | null | undefined;
  epoch?: string | null | undefined;
  /** How many of the newest stored messages are delivered first. It excludes after. */
  last?: number | null | undefined;
}

/** A client, which outlives its sockets: it reconnects, moves, resumes and resends by itself. */
export class Switchyard {
  /** Starts a client. The url may be relative and may begin with http; by default it is "/ws". */
  static connect(url?: string | URL | null, options?: Options | null): Switchyard;

  readonly state: State;
  /** The last welcome; null before the first. */
  readonly welcome: Welcome | null;

  /**
   * Adds a listener, and returns a function that removes it. The events of rooms come once for each message, also where
   * several have joined the room: older messages that one of them reads again come to its own listeners only.
   */
  on<E extends keyof Events>(event: E, listener: (value: Events[E]) => void): () => void;
  on(event: "frame", listener: FrameListener): () => void;

  /** Joins a room. Each call returns another Room, which is to be left when it is not needed any more. */
  join(room: string, start?: Start | null): Room;
  /** Leaves a room, for all who have joined it. */
  leave(room: string): void;

  /**
   * Stores a message. It works while disconnected, too, and needs no join. The messages of a room are stored in the order
   * of the calls; calls beyond the rate of the service wait for their turn. The message is resent with the same id until
   * it is answered, for resendFor; then the promise rejects with outcome_unknown, or with timeout if it was never sent.
   */
  publish(room: string, data: JSONInput, options?: { id?: string | null | undefined } | null): Promise<Ack>;

  /** Sends an event; returns false when it cannot be sent now, because of the connection or of its rate. */
  signal(room: string, data: JSONInput): boolean;

  /** Reads a page of messages, in the order of seq. The request is repeated on the next connection if need be. */
  history(room: string, range?: Range | null): Promise<History>;

  /** Returns the sessions in a room, joined or not. For a joined room, "presence" reports changes from then on. */
  presence(room: string): Promise<Presence>;

  /**
   * Sends a fresh token now, for instance when the user's rights have changed. Before the token expires, the client does
   * so by itself. Resolves once the service has a token that is as new as the call, on the next connection if this one ends.
   * Rejects when the service refuses it or after half a minute, and then the old token stays in use; and with "closed".
   */
  refreshToken(): Promise<void>;

  /**
   * Reconnects at once instead of waiting, also when the client is closed. A live client asks the service for an answer: after
   * three seconds without one it opens a second connection, and drops the first when that is live or fails as well. The client
   * calls this by itself on the page's events online, pageshow and visibilitychange.
   */
  reconnect(): void;

  /** Closes the client. Pending requests are rejected with "closed". */
  close(): void;
}

/** Returns what a close code asks of a client; docs/protocol.md has the table. */
export function afterClose(code: number): "stay" | "token" | "shed" | "soon" | "backoff";
