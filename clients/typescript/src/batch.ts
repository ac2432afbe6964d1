/** Batches: many completions in one call. */

import { traceMetadata } from "./connection.js";
import type { CallLimits, Connection } from "./connection.js";
import { RuvdError } from "./errors.js";
import { MessageParts } from "./parts.js";
import { SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

/** The outcome of one item: its answer or its error. */
export interface BatchOutcome {
  /** The position of the item, starting at 0. */
  index: number;
  completion: v1.Completion | undefined;
  error: RuvdError | undefined;
}

/** Options of a whole batch. */
export interface BatchOptions extends CallLimits {
  /** The maximum number of items that run concurrently. Unset: the daemon's default. */
  maxConcurrency?: number | undefined;
}

/**
 * A running batch: an iterable over its outcomes, each as soon as it is available. It is read once.
 *
 * The call is made when reading starts. Leaving the loop cancels the unfinished items. If it throws
 * RuvdError, repeating it with the same request ids runs only the unfinished items.
 */
export class Batch implements AsyncIterable<BatchOutcome> {
  /** The summary of all items; set after the last outcome. */
  summary: v1.BatchSummary | undefined;
  readonly #outcomes: AsyncGenerator<BatchOutcome, void, undefined>;

  /** @internal */
  constructor(connection: Connection, items: v1.CompleteRequest[], options: BatchOptions) {
    this.#outcomes = this.#read(connection, items, options);
  }

  [Symbol.asyncIterator](): AsyncIterator<BatchOutcome> {
    return this.#outcomes;
  }

  async *#read(
    connection: Connection,
    items: v1.CompleteRequest[],
    { maxConcurrency = 0, signal, timeoutMs = Infinity }: BatchOptions,
  ): AsyncGenerator<BatchOutcome, void, undefined> {
    const controller = new AbortController();
    const detach = connection.abortWith(controller, signal);
    const deadline = Date.now() + timeoutMs;
    const limits = { signal: controller.signal, metadata: traceMetadata(), deadline };
    const request = { items, maxConcurrency };
    const parts = new MessageParts();
    try {
      for await (const response of connection.stream(service.batchComplete, request, limits)) {
        this.summary = response.summary;
        if (response.messagePart) parts.add(response.messagePart);
        if (!response.result) continue;
        parts.join(response.result.completion?.finished);
        const { index, completion, error } = response.result;
        // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- gRPC's codes
        const failure = error && new RuvdError(error.code, error.message, error.details);
        yield { index, completion, error: failure };
      }
    } finally {
      detach();
    }
  }
}
