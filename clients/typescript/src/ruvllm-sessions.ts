/**
 * The sessions that a provider has open, as it last saw them: what its synchronous calls answer from.
 *
 * A session is read from the daemon after each call in it, and its messages only where somebody else
 * wrote to it. Reading never fails a call: the answer is there, and an older snapshot is still one.
 */

import { RuvdError, SessionView } from "./client.js";
import type { Client, Message, Session, SessionMetrics as DaemonMetrics } from "./client.js";
import { contextOf, given } from "./ruvllm-messages.js";

/** A session as last seen. The object stays the same for as long as the provider holds the session. */
export interface SessionInfo {
  id: string;
  /** Milliseconds since the epoch, as all times here. */
  createdAt: number;
  /** When a turn last began or ended in it. */
  lastUsedAt: number;
  /** Messages in the history, the answers among them. */
  messageCount: number;
  /** The last ten messages as `User: ...`, `Assistant: ...`, `Tool: ...`, the newest last. */
  context: string[];
}

/** The first three are of this provider's sessions, the others of the whole daemon since its start. */
export interface SessionMetrics {
  totalSessions: number;
  /** Those that have not expired. */
  activeSessions: number;
  avgMessagesPerSession: number;
  /** In percent, measured; 0 while the daemon has no figure: `daemon` tells it from a measured 0. */
  avgLatencyReduction: number;
  /** Cached prompt tokens per prompt tokens in percent; 0 while the engine has reported none. */
  cacheHitRate: number;
  /** All that the daemon measured, with what it does not know unset. */
  daemon?: DaemonMetrics;
}

/** A session, and what only the provider needs to know of it. */
export interface Held {
  info: SessionInfo;
  /** All messages, as last seen. */
  history: Message[];
  /** That the daemon has it; unset before its first call and once the daemon has lost it. */
  opened?: Promise<void> | undefined;
  /** When it was last used, as the newest reading of it says. */
  readAt: number;
  /** Calls under way: such a session is neither expired nor ended for another one. */
  calls: number;
}

/** The sessions of one provider. */
export class OpenSessions {
  /** Who tells the daemon; unset while the provider is not connected. */
  client: Client | undefined;
  /** What the daemon measured, as of the last reading. */
  measured: DaemonMetrics | undefined;
  readonly #timeoutMs: number;
  readonly #most: number;
  /** In the order of their use, the least recent first. */
  readonly #held = new Map<string, Held>();
  /** Those that the daemon is being told to end. */
  readonly #ending = new Map<string, Promise<void>>();

  /** At most so many that are not in use, each for so many milliseconds after its last use. */
  constructor(timeoutMs: number, most: number) {
    this.#timeoutMs = timeoutMs;
    this.#most = most;
  }

  /** A session that has not expired. */
  find(id: string): Held | undefined {
    const held = this.#held.get(id);
    return held && !this.#expired(held) ? held : undefined;
  }

  /** The session as the one that was used last, made if need be. */
  use(id: string): Held {
    let held = this.find(id);
    this.#held.delete(id);
    this.#makeRoom(this.#most - 1);
    if (!held) {
      const now = Date.now();
      const info = { id, createdAt: now, lastUsedAt: now, messageCount: 0, context: [] };
      held = { info, history: [], readAt: 0, calls: 0 };
    }
    this.#held.set(id, held);
    return held;
  }

  /** Note that a call in a session, if it had one, is over. */
  release(held: Held | undefined): void {
    if (held) held.calls--;
    this.#makeRoom(this.#most);
  }

  /** Forget a session at once and have the daemon end it. Whether there was one. */
  end(id: string): boolean {
    const held = this.#held.get(id);
    if (!held) return false;
    this.#held.delete(id);
    const { client } = this;
    if (client && held.opened) {
      const ended = held.opened
        .then(() => client.endSession(id, { allowMissing: true }))
        .catch(() => undefined) // It never came to be, or nobody uses it any more: it will expire.
        .finally(() => {
          if (this.#ending.get(id) === ended) this.#ending.delete(id);
        });
      this.#ending.set(id, ended);
    }
    return !this.#expired(held);
  }

  /** Wait until the daemon has heard of every end. */
  async ended(): Promise<void> {
    await Promise.all(this.#ending.values());
  }

  /** Have the daemon make the session, once; one that it has already is read. */
  async open(client: Client, held: Held, systemPrompt: string): Promise<void> {
    held.opened ??= this.#open(client, held, systemPrompt).catch((error: unknown) => {
      held.opened = undefined;
      throw error;
    });
    await held.opened;
  }

  /** Whether the error says that the daemon has no such session; its next call then makes it anew. */
  lost(held: Held | undefined, error: unknown): boolean {
    const lost = error instanceof RuvdError && error.reason === "SESSION_NOT_FOUND";
    if (!held || !lost) return false;
    held.opened = undefined;
    held.history = [];
    return true;
  }

  /** Read sessions and figures. What cannot be read stays as it was. */
  async refresh(client: Client, sessions: (Held | undefined)[]): Promise<void> {
    const readings = [...new Set(sessions)].map(async (held) => {
      if (!held?.opened) return;
      const { id } = held.info;
      const basic = await client.getSession(id);
      const known = basic.messageCount === held.history.length;
      adopt(held, known ? basic : await client.getSession(id, SessionView.SESSION_VIEW_FULL));
    });
    const figures = client.getSessionMetrics().then((measured) => (this.measured = measured));
    await Promise.allSettled([...readings, figures]);
  }

  /** How many there are and what was measured. */
  metrics(): SessionMetrics {
    const held = [...this.#held.values()];
    const messages = held.reduce((sum, { info }) => sum + info.messageCount, 0);
    return {
      totalSessions: held.length,
      activeSessions: held.filter((each) => !this.#expired(each)).length,
      avgMessagesPerSession: held.length && messages / held.length,
      avgLatencyReduction: this.measured?.avgLatencyReduction ?? 0,
      cacheHitRate: this.measured?.cacheHitRate ?? 0,
      ...given({ daemon: this.measured }),
    };
  }

  async #open(client: Client, held: Held, systemPrompt: string): Promise<void> {
    const sessionId = held.info.id;
    await this.#ending.get(sessionId);
    try {
      const idleTimeoutMs = this.#timeoutMs;
      adopt(held, await client.createSession({ sessionId, systemPrompt, idleTimeoutMs }));
    } catch (error) {
      // Another process of the service made it, or this one before it was started anew.
      if (!(error instanceof RuvdError) || error.reason !== "SESSION_EXISTS") throw error;
      adopt(held, await client.getSession(sessionId, SessionView.SESSION_VIEW_FULL));
    }
  }

  #makeRoom(most: number): void {
    for (const [id, { calls }] of this.#held) {
      if (this.#held.size <= most) return;
      if (!calls) this.end(id);
    }
  }

  #expired({ info, calls }: Held): boolean {
    return !calls && Date.now() - info.lastUsedAt >= this.#timeoutMs;
  }
}

/** Take over what the daemon says of a session, unless something newer is known. */
function adopt(held: Held, session: Session): void {
  const readAt = session.lastUsedTime?.getTime() ?? 0;
  if (readAt < held.readAt) return;
  held.readAt = readAt;
  if (session.messages.length === session.messageCount) held.history = session.messages;
  held.info.createdAt = session.createTime?.getTime() ?? held.info.createdAt;
  held.info.lastUsedAt = readAt;
  held.info.messageCount = session.messageCount;
  held.info.context = contextOf(held.history);
}
