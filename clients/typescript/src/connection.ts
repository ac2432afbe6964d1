/** The channel to the daemon: its options, the two kinds of calls, and how it is closed. */

import { on } from "node:events";
import { createRequire } from "node:module";

import { Client, Metadata, credentials } from "@grpc/grpc-js";

import { RuvdError, cancelled } from "./errors.js";
import { CancelCompletionRequest, SessionServiceService } from "./v1/ruvd/v1/session_service.js";
import { serviceConfig } from "./v1/service_config.js";

const CANCEL_TIMEOUT_MS = 5000;

const OPTIONS = {
  // The daemon's own limits are lower, and their refusals say why.
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.enable_http_proxy": 0,
  // A daemon that is started anew is found as soon as a stream that broke looks for it.
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.service_config": JSON.stringify(serviceConfig),
};

/** A method of a service, as generated code describes it. */
export interface Method<Request, Response> {
  path: string;
  requestSerialize: (request: Request) => Buffer;
  responseDeserialize: (bytes: Buffer) => Response;
}

/** What ends an answer, or a batch of them, before its end. */
export interface CallLimits {
  /** Cancels it. */
  signal?: AbortSignal | undefined;
  /** How long the whole may take. */
  timeoutMs?: number | undefined;
}

/** A connection, made when the first call needs it. Every call fails with RuvdError. */
export class Connection {
  readonly #grpc: Client;
  readonly #streams = new Set<() => void>();
  readonly #cancels = new Set<Promise<unknown>>();
  #closed = false;

  constructor(address: string) {
    this.#grpc = new Client(address, credentials.createInsecure(), OPTIONS);
  }

  /** One request, one response. */
  async call<Request, Response>(
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    { timeoutMs = Infinity, metadata = traced() } = {},
  ): Promise<Response> {
    if (this.#closed) throw cancelled();
    const options = { deadline: Date.now() + timeoutMs };
    return new Promise((resolve, reject) => {
      const done = (error: unknown, response?: Response) => {
        if (response === undefined) reject(RuvdError.of(error));
        else resolve(response);
      };
      this.#grpc.makeUnaryRequest(path, write, read, request, metadata, options, done);
    });
  }

  /** One request, many responses, until the signal is aborted: then the error is its reason. */
  async *stream<Request, Response>(
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    { signal, metadata, deadline }: { signal: AbortSignal; metadata: Metadata; deadline: number },
  ): AsyncGenerator<Response, void, undefined> {
    signal.throwIfAborted();
    const options = { deadline };
    const call = this.#grpc.makeServerStreamRequest(path, write, read, request, metadata, options);
    call.on("error", () => undefined); // One that was left has an error too, and nobody reads it.
    const cancel = () => {
      call.cancel();
    };
    signal.addEventListener("abort", cancel);
    try {
      // They are taken as they come and wait here for the reader: grpc-js throws away what it still
      // holds when a stream ends with an error, which cost slow readers their last texts.
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

  /** Let `close` and the caller's signal abort a stream; the function that is returned ends that. */
  stopWith(controller: AbortController, signal?: AbortSignal): () => void {
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

  /** Have the daemon stop a completion. Only `close` waits for it, and it throws nothing. */
  cancel(named: Partial<CancelCompletionRequest>, metadata: Metadata): void {
    const request = CancelCompletionRequest.fromPartial(named);
    const options = { timeoutMs: CANCEL_TIMEOUT_MS, metadata };
    const told = this.call(SessionServiceService.cancelCompletion, request, options)
      .catch(() => undefined) // What it would stop has ended, or the daemon has.
      .finally(() => this.#cancels.delete(told));
    this.#cancels.add(told);
  }

  /** Stop all streams, and close once the daemon has heard of it. */
  close(): void {
    if (this.#closed) return;
    for (const stop of this.#streams) stop();
    this.#closed = true;
    void Promise.all(this.#cancels).then(() => {
      this.#grpc.close();
    });
  }
}

// Required rather than imported: an import that may fail would have to be awaited, at the top of a
// module that some load with `require`. The API keeps its globals across both forms.
let openTelemetry: typeof import("@opentelemetry/api") | undefined;
try {
  const require = createRequire(import.meta.url);
  openTelemetry = require("@opentelemetry/api") as typeof import("@opentelemetry/api");
} catch {
  openTelemetry = undefined;
}

/** The metadata of a call that is made now: `traceparent`, where OpenTelemetry is installed. */
export function traced(): Metadata {
  const metadata = new Metadata();
  openTelemetry?.propagation.inject(openTelemetry.context.active(), metadata, {
    set: (carrier, key, value) => {
      carrier.set(key, value);
    },
  });
  return metadata;
}
