/** Batches: many completions in calls that are made one after the other. */

import { setTimeout as sleep } from "node:timers/promises";

import { BatchCalls } from "./batch-calls.js";
import type { BatchOutcome } from "./batch-calls.js";
import type { CallLimits, Connection } from "./connection.js";
import { RuvdError } from "./errors.js";
import { SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

/** Below the daemon's default `max_request_bytes` of 4 MiB. */
const MAX_CALL_BYTES = 3 << 20;
const RECONNECT_MS = 60_000;

/** Options of a whole batch. */
export interface BatchOptions extends CallLimits {
  /** The maximum number of items that run concurrently. Unset: the daemon's default. */
  maxConcurrency?: number | undefined;
  /** The size of one call: 3 MiB by default. A larger item is sent alone. */
  maxCallBytes?: number | undefined;
  /** How long the client waits for a daemon that has stopped: 60,000 ms by default. */
  reconnectMs?: number | undefined;
}

/**
 * A running batch: an iterable over its outcomes, each as soon as it is available. It is read once.
 *
 * The calls are made when reading starts, and items are taken only for the next call. Leaving the loop
 * cancels the unfinished items. If a daemon stops, they are repeated when one is there.
 */
export class Batch implements AsyncIterable<BatchOutcome> {
  /** The summary of all items; set after the last outcome. */
  summary: v1.BatchSummary | undefined;
  readonly #outcomes: AsyncGenerator<BatchOutcome, void, undefined>;

  /** @internal */
  constructor(
    private readonly connection: Connection,
    items: Iterable<v1.CompleteRequest> | AsyncIterable<v1.CompleteRequest>,
    private readonly options: BatchOptions,
  ) {
    this.#outcomes = this.#read(items);
  }

  /** Returns the outcomes that have not been read yet. */
  [Symbol.asyncIterator](): AsyncIterator<BatchOutcome> {
    return this.#outcomes;
  }

  async *#read(
    items: Iterable<v1.CompleteRequest> | AsyncIterable<v1.CompleteRequest>,
  ): AsyncGenerator<BatchOutcome, void, undefined> {
    const { maxCallBytes = MAX_CALL_BYTES, reconnectMs = RECONNECT_MS } = this.options;
    const { attemptsPerRound } = this.connection.channels;
    const controller = new AbortController();
    const detach = this.connection.abortWith(controller, this.options.signal);
    const calls = new BatchCalls({ maxCallBytes, reconnectMs, attemptsPerRound });
    const run = this.#runner(calls, controller.signal);
    try {
      for await (const item of items) if (calls.add(item)) yield* run();
      calls.flush();
      yield* run();
      this.summary = calls.summary;
    } finally {
      detach();
    }
  }

  /** Returns a function that makes the pending calls. */
  #runner(calls: BatchCalls, signal: AbortSignal): () => AsyncGenerator<BatchOutcome, void> {
    const { connection } = this;
    const { maxConcurrency = 0, timeoutMs = Infinity } = this.options;
    const deadline = Date.now() + timeoutMs;
    const metadata = connection.metadata();
    let channel = connection.channels.current;
    return async function* () {
      for (let call = calls.next(); call; call = calls.next()) {
        const request = { items: [...call.unfinished.values()], maxConcurrency };
        const limits = { signal, metadata: metadata.clone(), deadline };
        let failure: RuvdError | undefined;
        try {
          const responses = connection.stream(channel, service.batchComplete, request, limits);
          for await (const response of responses) {
            const outcome = calls.handleResponse(call, response);
            if (outcome) yield outcome;
          }
        } catch (error) {
          signal.throwIfAborted();
          failure = RuvdError.of(error);
          const outcome = calls.handleFailure(call, failure);
          if (outcome) yield outcome;
        }
        const { step, pauseMs } = calls.finish(call, failure);
        if (pauseMs) await sleep(pauseMs, undefined, { signal }).catch(() => undefined);
        signal.throwIfAborted();
        channel = connection.channels.after(channel, step);
      }
    };
  }
}
