/** Many requests in one call. */

import type { ClientReadableStream } from "@grpc/grpc-js";

import { responses } from "./connection.js";
import type { Connection } from "./connection.js";
import { RuvdError, cancelled } from "./errors.js";
import { SessionServiceService } from "./v1/ruvd/v1/session_service.js";
import type {
  BatchCompleteRequest,
  BatchCompleteResponse,
  BatchSummary,
  Completion as CompletionResult,
} from "./v1/ruvd/v1/session_service.js";

/** What came of one item: its answer, or its error. */
export interface BatchOutcome {
  /** Which item, from 0 on. */
  index: number;
  completion?: CompletionResult;
  error?: RuvdError;
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
  readonly #connection: Connection;
  readonly #request: BatchCompleteRequest;
  readonly #options: BatchOptions;
  readonly #outcomes = this.#read();
  /** Why nothing more is read, where this client wants it so. */
  #left: RuvdError | undefined;

  constructor(connection: Connection, request: BatchCompleteRequest, options: BatchOptions) {
    this.#connection = connection;
    this.#request = request;
    this.#options = options;
  }

  [Symbol.asyncIterator](): AsyncIterator<BatchOutcome> {
    return this.#outcomes;
  }

  async *#read(): AsyncGenerator<BatchOutcome, void, undefined> {
    const { signal, timeoutMs } = this.#options;
    let stream: ClientReadableStream<BatchCompleteResponse> | undefined;
    const stop = () => {
      this.#left = cancelled(signal?.reason);
      stream?.cancel();
    };
    this.#connection.track(stop);
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    try {
      this.#check();
      const method = SessionServiceService.batchComplete;
      stream = this.#connection.stream(method, this.#request, { timeoutMs });
      for await (const { result, summary } of responses(stream)) {
        this.#check();
        if (summary) this.summary = summary;
        if (result?.completion) yield { index: result.index, completion: result.completion };
        if (result?.error) yield { index: result.index, error: RuvdError.ofStatus(result.error) };
      }
    } catch (error) {
      throw this.#left ?? RuvdError.of(error);
    } finally {
      this.#connection.forget(stop);
      signal?.removeEventListener("abort", stop);
      stream?.cancel();
    }
  }

  #check(): void {
    if (this.#left) throw this.#left;
  }
}
