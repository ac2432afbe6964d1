/** Many requests in one call. */

import { traced } from "./connection.js";
import type { CallLimits, Connection } from "./connection.js";
import { RuvdError } from "./errors.js";
import { SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

/** What came of one item: its answer, or its error. */
export interface BatchOutcome {
  /** Which item, from 0 on. */
  index: number;
  completion: v1.Completion | undefined;
  error: RuvdError | undefined;
}

/** What holds for a batch as a whole. */
export interface BatchOptions extends CallLimits {
  /** How many run side by side at most; unset is the daemon's default. */
  maxConcurrency?: number | undefined;
}

/**
 * The outcomes of a batch, each as soon as it is there; it can be read once.
 *
 * The call is made when it is read first. Leaving the loop cancels what has not ended. A batch that
 * breaks throws RuvdError and is not repeated: call it again with the same request ids, and only
 * what was not finished runs.
 */
export class Batch implements AsyncIterable<BatchOutcome> {
  /** What came of all items; set after the last outcome. */
  summary: v1.BatchSummary | undefined;
  readonly #outcomes: AsyncGenerator<BatchOutcome, void, undefined>;

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
    const left = new AbortController();
    const forget = connection.stopWith(left, signal);
    const limits = { signal: left.signal, metadata: traced(), deadline: Date.now() + timeoutMs };
    const request = { items, maxConcurrency };
    try {
      for await (const each of connection.stream(service.batchComplete, request, limits)) {
        this.summary = each.summary;
        if (!each.result) continue;
        const { index, completion, error } = each.result;
        // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- they are gRPC's
        const failure = error && new RuvdError(error.code, error.message, error.details);
        yield { index, completion, error: failure };
      }
    } finally {
      forget();
    }
  }
}
