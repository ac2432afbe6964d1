/** The channel to the daemon: its options, the form of a call, and how it is closed. */

import { on } from "node:events";

import { Client, credentials, status } from "@grpc/grpc-js";
import type { ClientReadableStream, Metadata } from "@grpc/grpc-js";

import { RuvdError, cancelled } from "./errors.js";
import { traced } from "./tracing.js";
import { serviceConfig } from "./v1/service_config.js";

/** Where the daemon is unless something else is said. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

const LAST_WORD_MS = 5000;

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

/** How one call is made. The metadata are the current trace's by default. */
export interface CallOptions {
  timeoutMs?: number | undefined;
  metadata?: Metadata;
}

/** A connection, made when the first call needs it. */
export class Connection {
  readonly #grpc: Client;
  /** What stops each call under way. */
  readonly #running = new Set<() => void>();
  /** Calls that stop something in the daemon: the connection is not closed before they have ended. */
  readonly #lastWords = new Set<Promise<unknown>>();
  #closed = false;

  constructor(address: string) {
    this.#grpc = new Client(address, credentials.createInsecure(), OPTIONS);
  }

  /** One request, one response. Rejects with RuvdError. */
  async call<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    options: CallOptions = {},
  ): Promise<Response> {
    if (this.#closed) throw cancelled();
    return this.#call(method, request, options, this.#running);
  }

  /** A call that a closed connection still makes. Nobody waits for it, and it throws nothing. */
  lastWord<Request>(method: Method<Request, unknown>, request: Request, metadata: Metadata): void {
    const options = { timeoutMs: LAST_WORD_MS, metadata };
    const said: Promise<unknown> = this.#call(method, request, options, new Set())
      .catch(() => undefined) // What it would stop has ended, or the daemon has.
      .finally(() => this.#lastWords.delete(said));
    this.#lastWords.add(said);
  }

  /** One request, many responses. Errors come while they are read, and are gRPC's. */
  stream<Request, Response>(
    method: Method<Request, Response>,
    request: Request,
    { timeoutMs, metadata = traced() }: CallOptions,
  ): ClientReadableStream<Response> {
    const { path, requestSerialize, responseDeserialize } = method;
    const options = { deadline: deadline(timeoutMs) };
    const stream = this.#grpc.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      request,
      metadata,
      options,
    );
    // A stream that was left ends with an error too, and then nobody reads it.
    return stream.on("error", () => undefined);
  }

  /** Have `stop` called when the connection is closed, until it is told to `forget` it. */
  track(stop: () => void): void {
    if (this.#closed) stop();
    else this.#running.add(stop);
  }

  forget(stop: () => void): void {
    this.#running.delete(stop);
  }

  /** Stop what runs, and close once the daemon has heard of it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const stop of this.#running) stop();
    void Promise.all(this.#lastWords).then(() => {
      this.#grpc.close();
    });
  }

  #call<Request, Response>(
    { path, requestSerialize, responseDeserialize }: Method<Request, Response>,
    request: Request,
    { timeoutMs, metadata = traced() }: CallOptions,
    running: Set<() => void>,
  ): Promise<Response> {
    return new Promise((resolve, reject) => {
      const call = this.#grpc.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        metadata,
        { deadline: deadline(timeoutMs) },
        (error, response) => {
          running.delete(stop);
          if (error) reject(RuvdError.of(error));
          else if (response === undefined)
            reject(new RuvdError(status.INTERNAL, "", "no response"));
          else resolve(response);
        },
      );
      const stop = () => {
        call.cancel();
      };
      running.add(stop);
    });
  }
}

/**
 * The responses of a stream. They are taken as they come and wait here for the reader: grpc-js throws
 * away what it still holds when a stream ends with an error, which cost slow readers their last texts.
 */
export async function* responses<Response>(
  stream: ClientReadableStream<Response>,
): AsyncGenerator<Response, void, undefined> {
  const taken = on(stream, "data", { close: ["end"] }) as AsyncIterable<[Response]>;
  for await (const [response] of taken) yield response;
}

function deadline(timeoutMs: number | undefined): number {
  return timeoutMs === undefined ? Infinity : Date.now() + timeoutMs;
}
