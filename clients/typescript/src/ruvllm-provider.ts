/**
 * `RuvllmProvider` for code that was written for the provider of that name: the same calls, on ruvd.
 *
 * That code asks for sessions synchronously, so ids are made here, the daemon hears of a session with
 * its first call, and what is known of it is a snapshot that every awaited call refreshes. The history
 * is the daemon's: of the messages that a caller passes, only those that it has not seen are sent.
 */

import { randomUUID } from "node:crypto";

import { Client } from "./client.js";
import type { CompleteRequestInit, Message } from "./client.js";
import {
  LLMProviderError,
  failedItem,
  failure,
  fromCall,
  given,
  messageOf,
  toResponse,
  unseen,
} from "./ruvllm-messages.js";
import type {
  LLMCompletionOptions,
  LLMCompletionResponse,
  LLMStreamEvent,
} from "./ruvllm-messages.js";

import { OpenSessions } from "./ruvllm-sessions.js";
import type { Held, SessionInfo, SessionMetrics } from "./ruvllm-sessions.js";

export { LLMProviderError } from "./ruvllm-messages.js";
export type {
  ContentBlock,
  ContentBlockParam,
  LLMCompletionOptions,
  LLMCompletionResponse,
  LLMMessageParam,
  LLMStreamEvent,
} from "./ruvllm-messages.js";
export type { SessionInfo, SessionMetrics } from "./ruvllm-sessions.js";

const LONGEST_TIMEOUT_MS = 3650 * 86_400_000;

/** What the old provider took and the daemon decides now: accepted, without effect. */
type DecidedByTheDaemon =
  | "name" | "debug" | "maxRetries" | "ruvllmPath" | "port" | "gpuLayers" | "contextSize" | "threads"
  | "enableEmbeddings" | "enableTRM" | "enableSONA" | "maxTRMIterations" | "convergenceThreshold"
  | "sonaConfig"; // prettier-ignore

/** Options of the provider. */
export interface RuvllmProviderConfig extends Partial<Record<DecidedByTheDaemon, unknown>> {
  /** The daemon: `host:port` or `unix:PATH`. Default: `RUVD_ADDRESS`, else 127.0.0.1:50051. */
  address?: string | undefined;
  /** Whether `metadata.sessionId` means a session; otherwise each call is stateless. Default: true. */
  enableSessions?: boolean | undefined;
  /** After how many milliseconds without use a session expires. Default: 30 minutes. */
  sessionTimeout?: number | undefined;
  /** How many sessions are open at most; the least recently used is ended for one more. Default: 100. */
  maxSessions?: number | undefined;
  /** How many milliseconds an answer may take, but for batches. Default: as long as it takes. */
  timeout?: number | undefined;
  /** The model where a call names none. Default: the daemon's. */
  defaultModel?: string | undefined;
  /** The temperature where a call names none. Default: the engine's. */
  defaultTemperature?: number | undefined;
}

/** What `healthCheck` found. */
export interface LLMHealthStatus {
  healthy: boolean;
  /** How many milliseconds the check took. */
  latency: number;
  timestamp: Date;
  error?: string;
}

type Request = Omit<CompleteRequestInit, "messages"> & { messages: Message[] };

/** Conversations with a model, kept by ruvd. `initialize` comes first, `shutdown` last. */
export class RuvllmProvider {
  readonly #config: RuvllmProviderConfig;
  readonly #sessions: OpenSessions;

  /** Throws RangeError for a time-out or a bound that leaves no room for a session. */
  constructor(config: RuvllmProviderConfig = {}) {
    const { sessionTimeout = 1_800_000, maxSessions = 100 } = config;
    if (!(sessionTimeout > 0)) throw new RangeError("sessionTimeout must be more than 0 ms");
    if (!(maxSessions >= 1)) throw new RangeError("maxSessions must be at least 1");
    this.#config = config;
    this.#sessions = new OpenSessions(Math.min(sessionTimeout, LONGEST_TIMEOUT_MS), maxSessions);
  }

  /** Connect. Throws LLMProviderError INIT_ERROR if no daemon answers. Again, it does nothing. */
  async initialize(): Promise<void> {
    if (this.#sessions.client) return;
    const client = new Client(this.#config.address);
    try {
      this.#sessions.measured = await client.getSessionMetrics();
    } catch (error) {
      client.close();
      throw failure("Cannot reach ruvd", "INIT_ERROR", error);
    }
    this.#sessions.client = client;
  }

  /** Disconnect. Calls under way fail; the daemon keeps the sessions until they expire. */
  async shutdown(): Promise<void> {
    await this.#sessions.ended();
    this.#sessions.client?.close();
    this.#sessions.client = undefined;
  }

  /** A new session, of which the daemon hears with its first call. */
  createSession(): SessionInfo {
    return this.#sessions.use(`session-${randomUUID()}`).info;
  }

  /** A session that this provider holds and that has not expired, as last seen. */
  getSession(sessionId: string): SessionInfo | undefined {
    return this.#sessions.find(sessionId)?.info;
  }

  /** End a session, here at once and in the daemon soon after. Whether this provider had it. */
  endSession(sessionId: string): boolean {
    return this.#sessions.end(sessionId);
  }

  /** What there is and what was measured, as of the last awaited call. */
  getSessionMetrics(): SessionMetrics {
    return this.#sessions.metrics();
  }

  /** Whether the daemon takes calls now: its store and its engine are up. Throws nothing. */
  async healthCheck(): Promise<LLMHealthStatus> {
    const begun = performance.now();
    let error: string | undefined;
    try {
      const client = this.#connected();
      if (!(await client.health())) error = "the daemon is not ready for calls";
      else await this.#sessions.refresh(client, []);
    } catch (cause) {
      error = messageOf(cause);
    }
    const latency = performance.now() - begun;
    return { healthy: error === undefined, latency, timestamp: new Date(), ...given({ error }) };
  }

  /** The answer to a call. Throws LLMProviderError INFERENCE_ERROR. */
  async complete(options: LLMCompletionOptions): Promise<LLMCompletionResponse> {
    try {
      for await (const step of this.#answer(options)) if (typeof step !== "string") return step;
      throw new Error("the answer has no end");
    } catch (error) {
      throw failure("Completion failed", "INFERENCE_ERROR", error);
    }
  }

  /** The answer as it comes; leaving the loop cancels it. Throws LLMProviderError STREAM_ERROR. */
  async *streamComplete(options: LLMCompletionOptions): AsyncGenerator<LLMStreamEvent> {
    try {
      this.#connected();
      yield { type: "message_start" };
      yield { type: "content_block_start", content_block: { type: "text", text: "" } };
      for await (const step of this.#answer(options)) {
        if (typeof step === "string") {
          yield { type: "content_block_delta", delta: { type: "text_delta", text: step } };
        } else {
          yield { type: "content_block_stop" };
          yield {
            type: "message_delta",
            message: { stop_reason: step.stop_reason, usage: step.usage },
          };
          yield { type: "message_stop", message: step };
        }
      }
    } catch (error) {
      throw failure("Stream failed", "STREAM_ERROR", error);
    }
  }

  /**
   * The answers to many calls, in their order. One that failed has an empty text and says `error` and
   * `reason` in its metadata; LLMProviderError BATCH_ERROR is thrown if all have.
   */
  async batchComplete(requests: LLMCompletionOptions[]): Promise<LLMCompletionResponse[]> {
    const begun = performance.now();
    const client = this.#connected();
    const held = requests.map((options) => this.#begin(options));
    const answers = new Map<number, LLMCompletionResponse>();
    const failures = new Map<number, unknown>();
    try {
      const prepared = await Promise.allSettled(
        requests.map((options, index) => this.#request(client, options, held[index])),
      );
      const items: { index: number; request: Request }[] = [];
      for (const [index, each] of prepared.entries()) {
        if (each.status === "rejected") failures.set(index, each.reason);
        else items.push({ index, request: each.value });
      }
      try {
        const batch = items.length ? client.batch(items.map(({ request }) => request)) : [];
        for await (const { index: nth, completion, error } of batch) {
          const index = items[nth]?.index ?? nth;
          if (completion?.finished) {
            const latency = performance.now() - begun;
            answers.set(
              index,
              toResponse({ ...completion, finished: completion.finished }, latency),
            );
          } else {
            failures.set(index, error);
            this.#sessions.lost(held[index], error);
          }
        }
      } catch (error) {
        for (const { index } of items) if (!answers.has(index)) failures.set(index, error);
      }
      await this.#sessions.refresh(client, held);
    } finally {
      for (const each of held) this.#sessions.release(each);
    }
    if (requests.length && failures.size === requests.length) {
      const first = failures.get(0);
      throw failure(`All ${String(requests.length)} items failed, the first`, "BATCH_ERROR", first);
    }
    return requests.map(
      (options, index) =>
        answers.get(index) ?? failedItem(index, options.metadata?.sessionId, failures.get(index)),
    );
  }

  /** The texts of an answer, then the answer. */
  async *#answer(options: LLMCompletionOptions): AsyncGenerator<string | LLMCompletionResponse> {
    const begun = performance.now();
    const client = this.#connected();
    const held = this.#begin(options);
    try {
      for (let again = true; ; again = false) {
        try {
          const { messages, ...rest } = await this.#request(client, options, held);
          const { signal, timeoutMs = this.#config.timeout } = options;
          const completion = client.complete(messages, {
            ...rest,
            ...given({ signal, timeoutMs }),
          });
          yield* completion;
          const { started, finished } = completion;
          if (!finished) throw new Error("the answer has no end");
          const latency = performance.now() - begun;
          if (held && finished.message) held.history.push(...messages, finished.message);
          await this.#sessions.refresh(client, [held]);
          yield toResponse({ ...started, finished }, latency);
          return;
        } catch (error) {
          if (!this.#sessions.lost(held, error) || !again) throw error;
        }
      }
    } finally {
      this.#sessions.release(held);
    }
  }

  #connected(): Client {
    if (this.#sessions.client) return this.#sessions.client;
    throw new LLMProviderError("Call initialize() first", "NOT_INITIALIZED");
  }

  /** Note that a call begins in its session; undefined for a stateless one. */
  #begin({ metadata }: LLMCompletionOptions): Held | undefined {
    if (this.#config.enableSessions === false || !metadata?.sessionId) return undefined;
    const held = this.#sessions.use(metadata.sessionId);
    held.calls++;
    return held;
  }

  /** What to ask the daemon for; once it is there, the daemon has the session. */
  async #request(
    client: Client,
    options: LLMCompletionOptions,
    held: Held | undefined,
  ): Promise<Request> {
    const asked = fromCall(options);
    const model = asked.model ?? this.#config.defaultModel;
    const temperature = asked.temperature ?? this.#config.defaultTemperature;
    const request = { ...asked, ...given({ model, temperature }) };
    if (!held) return request;
    await this.#sessions.open(client, held, request.systemPrompt);
    const sessionId = held.info.id;
    const messages = unseen(held.history, request.messages);
    return { ...request, sessionId, requireExisting: true, messages };
  }
}
