/**
 * `RuvllmProvider`: the interface of the older provider of that name, implemented with ruvd.
 *
 * That interface has synchronous methods for sessions. Ids are therefore made here, the daemon gets a
 * session at its first call, and its state is a snapshot that every asynchronous call refreshes. The
 * daemon keeps the history: of a caller's messages, only those that it does not have are sent.
 */

import { randomUUID } from "node:crypto";

import { Client } from "./client.js";
import type { CompleteRequestInit, Message, SecurityOptions } from "./client.js";
import {
  LLMProviderError,
  failedItem,
  providerError,
  fromCall,
  defined,
  messageOf,
  toResponse,
  unsentMessages,
} from "./ruvllm-messages.js";
import type {
  LLMCompletionOptions,
  LLMCompletionResponse,
  LLMStreamEvent,
} from "./ruvllm-messages.js";

import { OpenSessions } from "./ruvllm-sessions.js";
import type { SessionEntry, SessionInfo, SessionMetrics } from "./ruvllm-sessions.js";

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

/** Options of the old provider that the daemon decides now: accepted, but without effect. */
type DecidedByTheDaemon =
  | "name" | "debug" | "maxRetries" | "ruvllmPath" | "port" | "gpuLayers" | "contextSize" | "threads"
  | "enableEmbeddings" | "enableTRM" | "enableSONA" | "maxTRMIterations" | "convergenceThreshold"
  | "sonaConfig"; // prettier-ignore

/** Options of the provider. */
export interface RuvllmProviderConfig
  extends SecurityOptions, Partial<Record<DecidedByTheDaemon, unknown>> {
  /** The daemon: `host:port` or `unix:PATH`. Default: `RUVD_ADDRESS` or 127.0.0.1:50051. */
  address?: string | undefined;
  /** Whether `metadata.sessionId` selects a session; if not, calls are stateless. Default: true. */
  enableSessions?: boolean | undefined;
  /** The milliseconds without use after which a session expires. Default: 30 minutes. */
  sessionTimeout?: number | undefined;
  /** The maximum number of open sessions; beyond it, the least recently used ends. Default: 100. */
  maxSessions?: number | undefined;
  /** The timeout of an answer in milliseconds, except in batches. Default: none. */
  timeout?: number | undefined;
  /** The model of calls that do not set one. Default: the daemon's. */
  defaultModel?: string | undefined;
  /** The temperature of calls that do not set one. Default: the engine's. */
  defaultTemperature?: number | undefined;
}

/** The result of `healthCheck`. */
export interface LLMHealthStatus {
  healthy: boolean;
  /** The duration of the check in milliseconds. */
  latency: number;
  timestamp: Date;
  error?: string;
}

type Request = Omit<CompleteRequestInit, "messages"> & { messages: Message[] };

/** A provider whose conversations ruvd keeps. Call `initialize` first and `shutdown` last. */
export class RuvllmProvider {
  readonly #config: RuvllmProviderConfig;
  readonly #sessions: OpenSessions;

  /** Throws RangeError if `sessionTimeout` or `maxSessions` allows no session. */
  constructor(config: RuvllmProviderConfig = {}) {
    const { sessionTimeout = 1_800_000, maxSessions = 100 } = config;
    if (!(sessionTimeout > 0)) throw new RangeError("sessionTimeout must be more than 0 ms");
    if (!(maxSessions >= 1)) throw new RangeError("maxSessions must be at least 1");
    this.#config = config;
    this.#sessions = new OpenSessions(Math.min(sessionTimeout, LONGEST_TIMEOUT_MS), maxSessions);
  }

  /** Connects, once. Throws LLMProviderError INIT_ERROR if no daemon answers. */
  async initialize(): Promise<void> {
    if (this.#sessions.client) return;
    const { address, token, tls } = this.#config;
    let client: Client | undefined;
    try {
      client = new Client(address, { token, tls });
      this.#sessions.daemonMetrics = await client.getSessionMetrics();
    } catch (error) {
      client?.close();
      throw providerError("Cannot reach ruvd", "INIT_ERROR", error);
    }
    this.#sessions.client = client;
  }

  /** Disconnects. Running calls fail; the daemon keeps the sessions until they expire. */
  async shutdown(): Promise<void> {
    await this.#sessions.waitForEnds();
    this.#sessions.client?.close();
    this.#sessions.client = undefined;
  }

  /** Creates a session, which the daemon gets at its first call. */
  createSession(): SessionInfo {
    return this.#sessions.use(`session-${randomUUID()}`).info;
  }

  /** Returns the snapshot of a session of this provider, unless it has expired. */
  getSession(sessionId: string): SessionInfo | undefined {
    return this.#sessions.find(sessionId)?.info;
  }

  /** Ends a session, in the daemon asynchronously. Returns whether this provider had it. */
  endSession(sessionId: string): boolean {
    return this.#sessions.end(sessionId);
  }

  /** Returns the metrics as of the last asynchronous call. */
  getSessionMetrics(): SessionMetrics {
    return this.#sessions.metrics();
  }

  /** Checks whether the daemon's store and engine are ready. Does not throw. */
  async healthCheck(): Promise<LLMHealthStatus> {
    const start = performance.now();
    let error: string | undefined;
    try {
      const client = this.#connected();
      if (!(await client.health())) error = "the daemon is not ready for calls";
      else await this.#sessions.refresh(client, []);
    } catch (cause) {
      error = messageOf(cause);
    }
    const latency = performance.now() - start;
    return { healthy: error === undefined, latency, timestamp: new Date(), ...defined({ error }) };
  }

  /** Returns the answer to a call. Throws LLMProviderError INFERENCE_ERROR. */
  async complete(options: LLMCompletionOptions): Promise<LLMCompletionResponse> {
    try {
      for await (const step of this.#answer(options)) if (typeof step !== "string") return step;
      throw new Error("the stream ended without Finished");
    } catch (error) {
      throw providerError("Completion failed", "INFERENCE_ERROR", error);
    }
  }

  /** Streams an answer. Leaving the loop cancels it. Throws LLMProviderError STREAM_ERROR. */
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
      throw providerError("Stream failed", "STREAM_ERROR", error);
    }
  }

  /**
   * Returns the answers to many calls, in the order of the calls. A failed one has an empty text, and
   * `error` and `reason` in its metadata. Throws LLMProviderError BATCH_ERROR if all have failed.
   */
  async batchComplete(requests: LLMCompletionOptions[]): Promise<LLMCompletionResponse[]> {
    const start = performance.now();
    const client = this.#connected();
    const entries = requests.map((options) => this.#startCall(options));
    const answers = new Map<number, LLMCompletionResponse>();
    const failures = new Map<number, unknown>();
    try {
      const prepared = await Promise.allSettled(
        requests.map((options, index) => this.#request(client, options, entries[index])),
      );
      const items: { index: number; request: Request }[] = [];
      for (const [index, result] of prepared.entries()) {
        if (result.status === "rejected") failures.set(index, result.reason);
        else items.push({ index, request: result.value });
      }
      try {
        const batch = items.length ? client.batch(items.map(({ request }) => request)) : [];
        for await (const { index: batchIndex, completion, error } of batch) {
          const index = items[batchIndex]?.index ?? batchIndex;
          if (completion?.finished) {
            const latency = performance.now() - start;
            answers.set(
              index,
              toResponse({ ...completion, finished: completion.finished }, latency),
            );
          } else {
            failures.set(index, error);
            this.#sessions.forgetIfLost(entries[index], error);
          }
        }
      } catch (error) {
        for (const { index } of items) if (!answers.has(index)) failures.set(index, error);
      }
      await this.#sessions.refresh(client, entries);
    } finally {
      for (const entry of entries) this.#sessions.release(entry);
    }
    if (requests.length && failures.size === requests.length) {
      const first = failures.get(0);
      throw providerError(
        `All ${String(requests.length)} items failed, the first`,
        "BATCH_ERROR",
        first,
      );
    }
    return requests.map(
      (options, index) =>
        answers.get(index) ?? failedItem(index, options.metadata?.sessionId, failures.get(index)),
    );
  }

  /** Yields the pieces of an answer's text, then the answer. */
  async *#answer(options: LLMCompletionOptions): AsyncGenerator<string | LLMCompletionResponse> {
    const start = performance.now();
    const client = this.#connected();
    const entry = this.#startCall(options);
    try {
      for (let again = true; ; again = false) {
        try {
          const { messages, ...rest } = await this.#request(client, options, entry);
          const { signal, timeoutMs = this.#config.timeout } = options;
          const completion = client.complete(messages, {
            ...rest,
            ...defined({ signal, timeoutMs }),
          });
          yield* completion;
          const { started, finished } = completion;
          if (!finished) throw new Error("the stream ended without Finished");
          const latency = performance.now() - start;
          if (entry && finished.message) entry.history.push(...messages, finished.message);
          await this.#sessions.refresh(client, [entry]);
          yield toResponse({ ...started, finished }, latency);
          return;
        } catch (error) {
          if (!this.#sessions.forgetIfLost(entry, error) || !again) throw error;
        }
      }
    } finally {
      this.#sessions.release(entry);
    }
  }

  #connected(): Client {
    if (this.#sessions.client) return this.#sessions.client;
    throw new LLMProviderError("Call initialize() first", "NOT_INITIALIZED");
  }

  /** Registers a call in its session and returns the session; undefined if stateless. */
  #startCall({ metadata }: LLMCompletionOptions): SessionEntry | undefined {
    if (this.#config.enableSessions === false || !metadata?.sessionId) return undefined;
    const entry = this.#sessions.use(metadata.sessionId);
    entry.calls++;
    return entry;
  }

  /** Returns the request to send, after creating the session in the daemon if necessary. */
  async #request(
    client: Client,
    options: LLMCompletionOptions,
    entry: SessionEntry | undefined,
  ): Promise<Request> {
    const converted = fromCall(options);
    const model = converted.model ?? this.#config.defaultModel;
    const temperature = converted.temperature ?? this.#config.defaultTemperature;
    const request = { ...converted, ...defined({ model, temperature }) };
    if (!entry) return request;
    await this.#sessions.open(client, entry, request.systemPrompt);
    const sessionId = entry.info.id;
    const messages = unsentMessages(entry.history, request.messages);
    return { ...request, sessionId, requireExisting: true, messages };
  }
}
