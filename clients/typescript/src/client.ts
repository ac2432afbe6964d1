/** The client: the verbs of `ruvd.v1.SessionService`. It gives the messages of the contract. */

import { status } from "@grpc/grpc-js";

import { Batch } from "./batch.js";
import type { BatchOptions } from "./batch.js";
import { Completion } from "./completion.js";
import { Connection, DEFAULT_ADDRESS } from "./connection.js";
import type { Method } from "./connection.js";
import { RuvdError } from "./errors.js";
import { check } from "./health.js";
import {
  GRACE_MS,
  cancelRequest,
  completeRequest,
  createRequest,
  itemRequest,
  resumeRequest,
  toDuration,
  toMessages,
} from "./requests.js";
import type {
  CompleteOptions,
  CompleteRequestInit,
  CompletionRef,
  Messages,
  SessionInit,
} from "./requests.js";
import {
  ContextWindow,
  EndSessionRequest,
  ForkSessionRequest,
  ListSessionsRequest,
  SessionServiceService as service,
  SessionView,
  UpdateSessionRequest,
} from "./v1/ruvd/v1/session_service.js";
import type { Session, SessionMetrics } from "./v1/ruvd/v1/session_service.js";

export { Batch, Completion, DEFAULT_ADDRESS, RuvdError };
export { status } from "@grpc/grpc-js";
export { toolResult } from "./requests.js";
export {
  ErrorReason,
  FinishReason,
  IfBusy,
  OnDisconnect,
  Rendering,
  Role,
  SessionView,
  ToolChoiceMode,
} from "./v1/ruvd/v1/session_service.js";
export type { BatchOptions, BatchOutcome } from "./batch.js";
export type { FieldViolation } from "./errors.js";
export type {
  CompleteOptions,
  CompleteRequestInit,
  CompletionRef,
  GenerationOptions,
  MessageInit,
  Messages,
  RequestOptions,
  SessionInit,
} from "./requests.js";
export type {
  BatchSummary,
  Completion as CompletionResult,
  CompletionEvent,
  ContextWindow,
  Delta,
  Finished,
  Message,
  ResponseFormat,
  Session,
  SessionMetrics,
  Started,
  Timings,
  Tool,
  ToolCall,
  ToolCallDelta,
  Usage,
} from "./v1/ruvd/v1/session_service.js";

/** What holds for all calls of a client. */
export interface ClientOptions {
  /** How long a call may take that streams no answer, in milliseconds. */
  timeoutMs?: number | undefined;
  /** How long a stream that broke is taken up again, in milliseconds: 10,000 by default. */
  reconnectMs?: number | undefined;
}

/**
 * A connection to ruvd, made when the first call needs it. One is enough for a service.
 *
 * `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS, else 127.0.0.1:50051. Every
 * method fails with RuvdError.
 */
export class Client {
  readonly address: string;
  readonly #connection: Connection;
  readonly #timeoutMs: number | undefined;
  readonly #reconnectMs: number;

  constructor(address?: string, { timeoutMs, reconnectMs = GRACE_MS }: ClientOptions = {}) {
    this.address = address ?? (process.env.RUVD_ADDRESS || DEFAULT_ADDRESS);
    this.#connection = new Connection(this.address);
    this.#timeoutMs = timeoutMs;
    this.#reconnectMs = reconnectMs;
  }

  /** Make a session before its first turn. */
  async createSession(init: SessionInit = {}): Promise<Session> {
    return sessionOf(await this.#call(service.createSession, createRequest(init)));
  }

  /** Read one session; with its messages in SESSION_VIEW_FULL. */
  async getSession(id: string, view = SessionView.SESSION_VIEW_BASIC): Promise<Session> {
    return sessionOf(await this.#call(service.getSession, { sessionId: id, view }));
  }

  /** All sessions that have these labels, page by page, in the order of creation. */
  async *listSessions(
    labelFilter: Record<string, string> = {},
  ): AsyncGenerator<Session, void, undefined> {
    const request = ListSessionsRequest.fromPartial({ labelFilter });
    do {
      const { sessions, nextPageToken } = await this.#call(service.listSessions, request);
      yield* sessions;
      request.pageToken = nextPageToken;
    } while (request.pageToken);
  }

  /** Change what is given, once the turns before it are done; `labels` are replaced. */
  async updateSession(
    id: string,
    changes: Pick<SessionInit, "labels" | "idleTimeoutMs" | "contextWindow">,
  ): Promise<Session> {
    const { labels, idleTimeoutMs, contextWindow } = changes;
    const updateMask: string[] = [];
    if (labels) updateMask.push("labels");
    if (idleTimeoutMs !== undefined) updateMask.push("idle_timeout");
    if (contextWindow) updateMask.push("context_window");
    const request: UpdateSessionRequest = {
      sessionId: id,
      labels: labels ?? {},
      idleTimeout: toDuration(idleTimeoutMs),
      contextWindow: contextWindow && ContextWindow.fromPartial(contextWindow),
      updateMask,
    };
    return sessionOf(await this.#call(service.updateSession, request));
  }

  /** Commit messages without generating, once the turns before it are done. */
  async appendMessages(
    id: string,
    messages: Messages,
    { requestId = "" }: { requestId?: string } = {},
  ): Promise<Session> {
    const request = { sessionId: id, messages: toMessages(messages), requestId };
    return sessionOf(await this.#call(service.appendMessages, request));
  }

  /** Make a session that begins with the first exchanges of another one, by default all. */
  async forkSession(
    id: string,
    options: { exchangeCount?: number; newSessionId?: string; requestId?: string } = {},
  ): Promise<Session> {
    const request = ForkSessionRequest.fromPartial({ sessionId: id, ...options });
    return sessionOf(await this.#call(service.forkSession, request));
  }

  /** Delete a session with its messages. */
  async endSession(id: string, options: { allowMissing?: boolean } = {}): Promise<void> {
    const request = EndSessionRequest.fromPartial({ sessionId: id, ...options });
    await this.#call(service.endSession, request);
  }

  /** Answer the new messages, in a session or, without `sessionId`, stateless. */
  complete(messages: Messages, options: CompleteOptions = {}): Completion {
    const { signal, timeoutMs } = options;
    const complete = completeRequest(messages, options);
    const reconnectMs = this.#reconnectMs;
    return new Completion(this.#connection, { complete, reconnectMs, timeoutMs, signal });
  }

  /** Read a completion on, after the event of that number, whoever began it. */
  resumeCompletion(
    ref: CompletionRef,
    options: { afterSequence?: number } & Pick<CompleteOptions, "signal" | "timeoutMs"> = {},
  ): Completion {
    const { afterSequence = 0, signal, timeoutMs } = options;
    const resume = resumeRequest(ref, afterSequence);
    const reconnectMs = this.#reconnectMs;
    return new Completion(this.#connection, { resume, reconnectMs, timeoutMs, signal });
  }

  /**
   * Stop a completion, whoever began it, and return when it has ended. With `keepPartial`, what there
   * is of its answer is committed.
   */
  async cancelCompletion(
    ref: CompletionRef,
    { keepPartial }: { keepPartial?: boolean } = {},
  ): Promise<void> {
    await this.#call(service.cancelCompletion, cancelRequest(ref, keepPartial));
  }

  /** Answer many requests, 10,000 at most; each outcome comes as soon as it is there. */
  batch(items: readonly (string | CompleteRequestInit)[], options: BatchOptions = {}): Batch {
    const { maxConcurrency = 0 } = options;
    const request = { items: items.map(itemRequest), maxConcurrency };
    return new Batch(this.#connection, request, options);
  }

  /** Which models the engine offers, and the one that answers where a call names none. */
  async listModels(): Promise<{ models: string[]; defaultModel: string }> {
    return this.#call(service.listModels, {});
  }

  /** What the daemon has measured since it started. */
  async getSessionMetrics(): Promise<SessionMetrics> {
    const { metrics } = await this.#call(service.getSessionMetrics, {});
    return metrics ?? missing("metrics");
  }

  /** Whether the daemon takes turns now; false also where none answers. */
  async health(): Promise<boolean> {
    try {
      return await this.#call(check, "readiness");
    } catch (error) {
      if (error instanceof RuvdError && error.code === status.UNAVAILABLE) return false;
      throw error;
    }
  }

  /** Cancel what runs, and close the connection once the daemon has heard of it. */
  close(): void {
    this.#connection.close();
  }

  #call<Request, Response>(method: Method<Request, Response>, request: Request): Promise<Response> {
    return this.#connection.call(method, request, { timeoutMs: this.#timeoutMs });
  }
}

function sessionOf({ session }: { session?: Session | undefined }): Session {
  return session ?? missing("session");
}

function missing(what: string): never {
  throw new RuvdError(status.INTERNAL, "", `the response has no ${what}`);
}
