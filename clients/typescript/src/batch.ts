/** Many requests in one call. */

import type { Connection } from "./connection.js";
import { RuvdError } from "./errors.js";
import { SessionServiceService } from "./v1/ruvd/v1/session_service.js";
import type {
  BatchSummary,
  CompleteRequest,
  Completion as CompletionResult,
} from "./v1/ruvd/v1/session_service.js";

/** What came of one item: its answer, or its error. */
export interface BatchOutcome {
  /** Which item, from 0 on. */
  index: number;
  completion: CompletionResult | undefined;
  error: RuvdError | undefined;
}

/** What holds for a batch as a whole. */
export interface BatchOptions {
  /** How many run side by side at most; unset is the daemon's default. */
  maxConcurrency?: number | undefined;
  /** Cancels it. */
  signal?: AbortSignal | undefined;
  /** How long the whole batch may take. */
  timeoutMs?: number | undefined;
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
  summary: BatchSummary | undefined;
  readonly #outcomes: AsyncGenerator<BatchOutcome, void, undefined>;

  constructor(connection: Connection, items: CompleteRequest[], options: BatchOptions) {
    this.#outcomes = this.#read(connection, items, options);
  }

  [Symbol.asyncIterator](): AsyncIterator<BatchOutcome> {
    return this.#outcomes;
  }

  async *#read(
    connection: Connection,
    items: CompleteRequest[],
    { maxConcurrency = 0, signal, timeoutMs = Infinity }: BatchOptions,
  ): AsyncGenerator<BatchOutcome, void, undefined> {
    const left = new AbortController();
    const stop = (error: RuvdError) => {
      left.abort(error);
    };
    const forget = connection.stopWith(stop, signal);
    try {
      const method = SessionServiceService.batchComplete;
      const request = { items, maxConcurrency };
      const options = { deadline: Date.now() + timeoutMs };
      for await (const response of connection.stream(method, request, left.signal, options)) {
        this.summary = response.summary;
        if (!response.result) continue;
        const { index, completion, error } = response.result;
        const failure = error && new RuvdError(error.code, error.message, error.details);
        yield { index, completion, error: failure };
      }
    } finally {
      forget();
    }
  }
}
