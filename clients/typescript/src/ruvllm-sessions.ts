/**
 * Snapshots of a provider's open sessions, from which its synchronous methods answer.
 *
 * A session is read from the daemon after each call in it; its messages only if another client has
 * added some. A failed read does not fail the call: the older snapshot is kept.
 */

import { ErrorReason, RuvdError, SessionView } from "./client.js";
import type { Client, Message, Session, SessionMetrics as DaemonMetrics } from "./client.js";
import { contextOf, defined } from "./ruvllm-messages.js";

/** The reasons of the errors for a session that the daemon does not have, or no longer. */
const LOST = new Set<string>([
  ErrorReason.SESSION_NOT_FOUND,
  ErrorReason.SESSION_EVICTED,
  ErrorReason.SESSION_EXPIRED,
]);

/** A snapshot of a session. The object stays the same while the provider has the session. */
export interface SessionInfo {
  id: string;
  /** Milliseconds since the epoch, like all times here. */
  createdAt: number;
  /** The time when a turn last started or ended in it. */
  lastUsedAt: number;
  /** The number of messages in the history, including answers. */
  messageCount: number;
  /** The last ten messages as `User: ...`, `Assistant: ...`, `Tool: ...`, the newest last. */
  context: string[];
}

/** The first three describe this provider's sessions, the others the whole daemon since its start. */
export interface SessionMetrics {
  totalSessions: number;
  /** The number of sessions that have not expired. */
  activeSessions: number;
  avgMessagesPerSession: number;
  /** In percent; 0 also if not measured yet, in which case it is unset in `daemon`. */
  avgLatencyReduction: number;
  /** The share of cached tokens in the prompt tokens, in percent; 0 until one is reported. */
  cacheHitRate: number;
  /** All of the daemon's measurements; unknown ones are unset. */
  daemon?: DaemonMetrics;
}

/** A session and the provider's internal state of it. */
export interface SessionEntry {
  info: SessionInfo;
  /** All messages, as last read. */
  history: Message[];
  /** Its creation in the daemon; unset before its first call and after the daemon has lost it. */
  opened?: Promise<void> | undefined;
  /** Its last use, as of the newest read. */
  readAt: number;
  /** The number of running calls; a session with any neither expires nor is evicted. */
  calls: number;
}

/** The sessions of one provider. */
export class OpenSessions {
  /** The client; unset while the provider is not connected. */
  client: Client | undefined;
  /** The daemon's metrics, as last read. */
  daemonMetrics: DaemonMetrics | undefined;
  readonly #timeoutMs: number;
  readonly #maxSessions: number;
  /** The sessions in the order of their use, least recently used first. */
  readonly #entries = new Map<string, SessionEntry>();
  /** The pending EndSession calls. */
  readonly #ending = new Map<string, Promise<void>>();

  /** `maxSessions` does not apply to sessions with running calls. */
  constructor(timeoutMs: number, maxSessions: number) {
    this.#timeoutMs = timeoutMs;
    this.#maxSessions = maxSessions;
  }

  /** Returns a session unless it has expired. */
  find(id: string): SessionEntry | undefined {
    const entry = this.#entries.get(id);
    return entry && !this.#expired(entry) ? entry : undefined;
  }

  /** Returns the session as the most recently used one, creating it if necessary. */
  use(id: string): SessionEntry {
    let entry = this.find(id);
    this.#entries.delete(id);
    this.#evict(this.#maxSessions - 1);
    if (!entry) {
      const now = Date.now();
      const info = { id, createdAt: now, lastUsedAt: now, messageCount: 0, context: [] };
      entry = { info, history: [], readAt: 0, calls: 0 };
    }
    this.#entries.set(id, entry);
    return entry;
  }

  /** Records the end of a call in a session, if it had one. */
  release(entry: SessionEntry | undefined): void {
    if (entry) entry.calls--;
    this.#evict(this.#maxSessions);
  }

  /** Removes a session and ends it in the daemon. Returns whether it existed. */
  end(id: string): boolean {
    const entry = this.#entries.get(id);
    if (!entry) return false;
    this.#entries.delete(id);
    const { client } = this;
    if (client && entry.opened) {
      const ended = entry.opened
        .then(() => client.endSession(id, { allowMissing: true }))
        .catch(() => undefined) // It was never created, or it will expire because it is unused.
        .finally(() => {
          if (this.#ending.get(id) === ended) this.#ending.delete(id);
        });
      this.#ending.set(id, ended);
    }
    return !this.#expired(entry);
  }

  /** Waits for all pending EndSession calls. */
  async waitForEnds(): Promise<void> {
    await Promise.all(this.#ending.values());
  }

  /** Creates the session in the daemon, once; reads it if it already exists. */
  async open(client: Client, entry: SessionEntry, systemPrompt: string): Promise<void> {
    entry.opened ??= this.#open(client, entry, systemPrompt).catch((error: unknown) => {
      entry.opened = undefined;
      throw error;
    });
    await entry.opened;
  }

  /** Returns whether the daemon has lost the session, which its next call then creates again. */
  forgetIfLost(entry: SessionEntry | undefined, error: unknown): boolean {
    const lost = error instanceof RuvdError && LOST.has(error.reason);
    if (!entry || !lost) return false;
    entry.opened = undefined;
    entry.history = [];
    return true;
  }

  /** Reads sessions and metrics. A failed read changes nothing. */
  async refresh(client: Client, sessions: (SessionEntry | undefined)[]): Promise<void> {
    const reads = [...new Set(sessions)].map(async (entry) => {
      if (!entry?.opened) return;
      const { id } = entry.info;
      const basic = await client.getSession(id);
      const known = basic.messageCount === entry.history.length;
      update(entry, known ? basic : await client.getSession(id, SessionView.SESSION_VIEW_FULL));
    });
    const metrics = client.getSessionMetrics().then((read) => (this.daemonMetrics = read));
    await Promise.allSettled([...reads, metrics]);
  }

  /** Returns the metrics of the sessions and the daemon. */
  metrics(): SessionMetrics {
    const entries = [...this.#entries.values()];
    const messages = entries.reduce((sum, { info }) => sum + info.messageCount, 0);
    return {
      totalSessions: entries.length,
      activeSessions: entries.filter((entry) => !this.#expired(entry)).length,
      avgMessagesPerSession: entries.length && messages / entries.length,
      avgLatencyReduction: this.daemonMetrics?.avgLatencyReduction ?? 0,
      cacheHitRate: this.daemonMetrics?.cacheHitRate ?? 0,
      ...defined({ daemon: this.daemonMetrics }),
    };
  }

  async #open(client: Client, entry: SessionEntry, systemPrompt: string): Promise<void> {
    const sessionId = entry.info.id;
    await this.#ending.get(sessionId);
    try {
      const idleTimeoutMs = this.#timeoutMs;
      update(entry, await client.createSession({ sessionId, systemPrompt, idleTimeoutMs }));
    } catch (error) {
      // Created by another process of the service, or by this service before its restart.
      if (!(error instanceof RuvdError) || error.reason !== ErrorReason.SESSION_EXISTS) throw error;
      update(entry, await client.getSession(sessionId, SessionView.SESSION_VIEW_FULL));
    }
  }

  #evict(maxSessions: number): void {
    for (const [id, { calls }] of this.#entries) {
      if (this.#entries.size <= maxSessions) return;
      if (!calls) this.end(id);
    }
  }

  #expired({ info, calls }: SessionEntry): boolean {
    return !calls && Date.now() - info.lastUsedAt >= this.#timeoutMs;
  }
}

/** Updates an entry from the daemon's session, unless the entry is newer. */
function update(entry: SessionEntry, session: Session): void {
  const readAt = session.lastUsedTime?.getTime() ?? 0;
  if (readAt < entry.readAt) return;
  entry.readAt = readAt;
  if (session.messages.length === session.messageCount) entry.history = session.messages;
  entry.info.createdAt = session.createTime?.getTime() ?? entry.info.createdAt;
  entry.info.lastUsedAt = readAt;
  entry.info.messageCount = session.messageCount;
  entry.info.context = contextOf(entry.history);
}
