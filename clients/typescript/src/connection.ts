/** The connection to the daemon: its channel options, calls, and closing. */

import { on } from "node:events";
import { createRequire } from "node:module";

import { Client, Metadata } from "@grpc/grpc-js";
import type { CallCredentials } from "@grpc/grpc-js";

import { RuvdError, cancelled } from "./errors.js";
import type { Security } from "./security.js";
import { CancelCompletionRequest, SessionServiceService } from "./v1/ruvd/v1/session_service.js";
import { serviceConfig } from "./v1/service_config.js";

const CANCEL_TIMEOUT_MS = 5000;

const OPTIONS = {
  // The daemon limits the sizes, because its error says why a message was rejected.
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.enable_http_proxy": 0,
  // The backoff of the stream's resumption, so that a restarted daemon is found at each attempt.
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.service_config": JSON.stringify(serviceConfig),
};

/** A method of a service, as described by generated code. */
export interface Method<Request, Response> {
  path: string;
  requestSerialize: (request: Request) => Buffer;
  responseDeserialize: (bytes: Buffer) => Response;
}

/** The cancellation and timeout of a completion or a batch. */
export interface CallLimits {
  /** Cancels it when aborted. */
  signal?: AbortSignal | undefined;
  /** The timeout of the whole, in milliseconds. */
  timeoutMs?: number | undefined;
}

/** A connection, opened by the first call. Every call fails with RuvdError. */
export class Connection {
  readonly #grpc: Client;
  readonly #credentials: CallCredentials;
  readonly #streams = new Set<() => void>();
  readonly #pendingCancels = new Set<Promise<unknown>>();
  #closed = false;

  constructor(address: string, security: Security) {
    this.#grpc = new Client(address, security.channel, { ...OPTIONS, ...security.options });
    this.#credentials = security.calls;
  }

  /** Makes a unary call. */
  async call<Request, Response>(
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    { timeoutMs = Infinity, metadata = traceMetadata() } = {},
  ): Promise<Response> {
    if (this.#closed) throw cancelled();
    const options = { deadline: Date.now() + timeoutMs, credentials: this.#credentials };
    return new Promise((resolve, reject) => {
      const done = (error: unknown, response?: Response) => {
        if (response === undefined) reject(RuvdError.of(error));
        else resolve(response);
      };
      this.#grpc.makeUnaryRequest(path, write, read, request, metadata, options, done);
    });
  }

  /** Makes a streaming call. Aborting the signal ends it with the signal's reason as the error. */
  async *stream<Request, Response>(
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    { signal, metadata, deadline }: { signal: AbortSignal; metadata: Metadata; deadline: number },
  ): AsyncGenerator<Response, void, undefined> {
    signal.throwIfAborted();
    const options = { deadline, credentials: this.#credentials };
    const call = this.#grpc.makeServerStreamRequest(path, write, read, request, metadata, options);
    call.on("error", () => undefined); // An abandoned call also emits an error.
    const cancel = () => {
      call.cancel();
    };
    signal.addEventListener("abort", cancel);
    try {
      // Responses are buffered here: when a stream ends with an error, grpc-js discards those that it
      // still holds, so a slow reader would lose the last pieces of text.
      const responses = on(call, "data", { close: ["end"] }) as AsyncIterable<[Response]>;
      for await (const [response] of responses) {
        signal.throwIfAborted();
        yield response;
      }
    } catch (error) {
      signal.throwIfAborted();
      throw RuvdError.of(error);
    } finally {
      signal.removeEventListener("abort", cancel);
      cancel();
    }
  }

  /** Lets `close` and the caller's signal abort a stream. Returns a function that undoes this. */
  abortWith(controller: AbortController, signal?: AbortSignal): () => void {
    const stop = () => {
      controller.abort(cancelled(signal?.reason));
    };
    if (this.#closed || signal?.aborted) stop();
    this.#streams.add(stop);
    signal?.addEventListener("abort", stop);
    return () => {
      this.#streams.delete(stop);
      signal?.removeEventListener("abort", stop);
    };
  }

  /** Sends a cancel call, whose errors are ignored. Only `close` waits for it. */
  cancel(target: Partial<CancelCompletionRequest>, metadata: Metadata): void {
    const request = CancelCompletionRequest.fromPartial(target);
    const options = { timeoutMs: CANCEL_TIMEOUT_MS, metadata };
    const cancellation = this.call(SessionServiceService.cancelCompletion, request, options)
      .catch(() => undefined) // The completion or the daemon has already ended.
      .finally(() => this.#pendingCancels.delete(cancellation));
    this.#pendingCancels.add(cancellation);
  }

  /** Aborts all streams, and closes the channel after the pending cancel calls. */
  close(): void {
    if (this.#closed) return;
    for (const stop of this.#streams) stop();
    this.#closed = true;
    void Promise.all(this.#pendingCancels).then(() => {
      this.#grpc.close();
    });
  }
}

// Loaded with `require`, because an optional import needs a top-level await, and modules with one
// cannot be loaded with `require`. The API shares its globals between both forms.
let openTelemetry: typeof import("@opentelemetry/api") | undefined;
try {
  const require = createRequire(import.meta.url);
  openTelemetry = require("@opentelemetry/api") as typeof import("@opentelemetry/api");
} catch {
  openTelemetry = undefined;
}

/** Returns the metadata of a call made now: `traceparent`, if OpenTelemetry is installed. */
export function traceMetadata(): Metadata {
  const metadata = new Metadata();
  openTelemetry?.propagation.inject(openTelemetry.context.active(), metadata, {
    set: (carrier, key, value) => {
      carrier.set(key, value);
    },
  });
  return metadata;
}
