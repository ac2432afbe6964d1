/** The connection of a client: its calls, their metadata, and closing. */

import { on } from "node:events";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

import { Metadata, status } from "@grpc/grpc-js";
import type { CallCredentials } from "@grpc/grpc-js";

import type { Address } from "./addresses.js";
import { Channels } from "./channels.js";
import type { Channel } from "./channels.js";
import { RuvdError, cancelled } from "./errors.js";
import { UnaryAttempts } from "./failover.js";
import type { Security } from "./security.js";
import { CancelCompletionRequest, SessionServiceService } from "./v1/ruvd/v1/session_service.js";

const CANCEL_TIMEOUT_MS = 5000;
const HEALTH_TIMEOUT_MS = 10_000;
const SESSION_HEADER = "x-ruvd-session-id";

/** A method of a service, as described by generated code. */
export interface Method<Request, Response> {
  path: string;
  requestSerialize: (request: Request) => Buffer;
  responseDeserialize: (bytes: Buffer) => Response;
}

/** The health check, encoded by hand because it is so small: whether the named service serves. */
const HEALTH_CHECK: Method<string, boolean> = {
  path: "/grpc.health.v1.Health/Check",
  requestSerialize: (name) => Buffer.from(`\x0a${String.fromCharCode(name.length)}${name}`),
  responseDeserialize: (bytes) => bytes.equals(Buffer.of(8, 1)),
};

/** The cancellation and timeout of a completion or a batch. */
export interface CallLimits {
  /** Cancels it when aborted. */
  signal?: AbortSignal | undefined;
  /** The timeout of the whole, in milliseconds. */
  timeoutMs?: number | undefined;
}

/** The connection of a client, opened by the first call. Every call fails with RuvdError. */
export class Connection {
  readonly channels: Channels;
  readonly #credentials: CallCredentials;
  readonly #streams = new Set<() => void>();
  readonly #pendingCancels = new Set<Promise<unknown>>();
  #closed = false;

  constructor(
    addresses: readonly Address[],
    security: Security,
    private readonly ownMetadata: Metadata,
  ) {
    this.channels = new Channels(addresses, security);
    this.#credentials = security.calls;
  }

  /** Returns the metadata of a call made now: the caller's own, and the trace context if there is one. */
  metadata(): Metadata {
    return withTrace(this.ownMetadata.clone());
  }

  /** Makes a unary call. */
  async call<Request extends object | string, Response>(
    method: Method<Request, Response>,
    request: Request,
    { timeoutMs = Infinity } = {},
  ): Promise<Response> {
    const metadata = withSession(this.metadata(), sessionOf(request));
    let channel = this.channels.current;
    if (!this.channels.hasOthers) {
      return this.#callOnce(channel, method, request, metadata, Date.now() + timeoutMs);
    }
    const name = method.path.slice(method.path.lastIndexOf("/") + 1);
    const fields = typeof request === "string" ? {} : request;
    const { attemptsPerRound } = this.channels;
    const attempts = new UnaryAttempts(name, fields, timeoutMs, attemptsPerRound);
    for (;;) {
      try {
        const { deadline } = attempts;
        return await this.#callOnce(channel, method, request, metadata.clone(), deadline);
      } catch (error) {
        const { step, pauseMs } = attempts.handleFailure(RuvdError.of(error));
        if (pauseMs) await sleep(pauseMs);
        channel = this.channels.after(channel, step);
      }
    }
  }

  /** Tells whether one of the daemons accepts turns; each is asked at most once. */
  async isReady(timeoutMs = HEALTH_TIMEOUT_MS): Promise<boolean> {
    for (const channel of this.channels.fromCurrent) {
      const deadline = Date.now() + timeoutMs;
      try {
        const metadata = this.metadata();
        if (await this.#callOnce(channel, HEALTH_CHECK, "readiness", metadata, deadline))
          return true;
      } catch (error) {
        const { code, reason } = RuvdError.of(error);
        if (code !== status.UNAVAILABLE || reason) throw error;
      }
    }
    return false;
  }

  async #callOnce<Request, Response>(
    channel: Channel,
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    metadata: Metadata,
    deadline: number,
  ): Promise<Response> {
    if (this.#closed) throw cancelled();
    const options = { deadline, credentials: this.#credentials };
    channel.begin();
    try {
      await channel.connected(deadline);
      return await new Promise((resolve, reject) => {
        const done = (error: unknown, response?: Response) => {
          if (response === undefined) reject(RuvdError.of(error));
          else resolve(response);
        };
        channel.grpc.makeUnaryRequest(path, write, read, request, metadata, options, done);
      });
    } finally {
      channel.end();
    }
  }

  /** Makes a streaming call. Aborting the signal ends it with the signal's reason as the error. */
  async *stream<Request, Response>(
    channel: Channel,
    { path, requestSerialize: write, responseDeserialize: read }: Method<Request, Response>,
    request: Request,
    { signal, metadata, deadline }: { signal: AbortSignal; metadata: Metadata; deadline: number },
  ): AsyncGenerator<Response, void, undefined> {
    signal.throwIfAborted();
    channel.begin();
    try {
      await channel.connected(deadline);
      signal.throwIfAborted();
      const options = { deadline, credentials: this.#credentials };
      const { grpc } = channel;
      const call = grpc.makeServerStreamRequest(path, write, read, request, metadata, options);
      call.on("error", () => undefined); // An abandoned call also emits an error.
      const cancel = () => {
        call.cancel();
      };
      signal.addEventListener("abort", cancel);
      try {
        // Responses are buffered here: when a stream ends with an error, grpc-js discards those that
        // it still holds, so a slow reader would lose the last pieces of text.
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
    } finally {
      channel.end();
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
  cancel(channel: Channel, target: Partial<CancelCompletionRequest>, metadata: Metadata): void {
    if (channel.isClosed) return;
    const request = CancelCompletionRequest.fromPartial(target);
    const { cancelCompletion } = SessionServiceService;
    const deadline = Date.now() + CANCEL_TIMEOUT_MS;
    const call = this.#callOnce(channel, cancelCompletion, request, metadata, deadline);
    const cancellation = call
      .catch(() => undefined) // The completion or the daemon has already ended.
      .finally(() => this.#pendingCancels.delete(cancellation));
    this.#pendingCancels.add(cancellation);
  }

  /** Aborts all streams, and closes the channels after the pending cancel calls. */
  close(): void {
    if (this.#closed) return;
    for (const stop of this.#streams) stop();
    this.#closed = true;
    void Promise.all(this.#pendingCancels).then(() => {
      this.channels.close();
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

/** Adds `traceparent`, if OpenTelemetry is installed. */
function withTrace(metadata: Metadata): Metadata {
  openTelemetry?.propagation.inject(openTelemetry.context.active(), metadata, {
    set: (carrier, key, value) => {
      carrier.set(key, value);
    },
  });
  return metadata;
}

/** Adds the session's header, by which proxies choose a daemon, unless the caller has set it. */
export function withSession(metadata: Metadata, sessionId: string): Metadata {
  const isValid = /^[A-Za-z0-9._:-]{1,128}$/.test(sessionId);
  if (isValid && !metadata.get(SESSION_HEADER).length) metadata.set(SESSION_HEADER, sessionId);
  return metadata;
}

function sessionOf(request: object | string): string {
  return (request as { sessionId?: string }).sessionId ?? "";
}
