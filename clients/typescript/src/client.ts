/** The client, with the methods of `ruvd.v1.SessionService`. They return its generated messages. */

import { parseAddresses } from "./addresses.js";
import { Batch } from "./batch.js";
import type { BatchOptions } from "./batch.js";
import { Completion } from "./completion.js";
import { Connection } from "./connection.js";
import type { CallLimits, Method } from "./connection.js";
import { ErrorReason, REQUEST_TOO_LARGE, RuvdError } from "./errors.js";
import { MessageParts } from "./parts.js";
import {
  GRACE_MS,
  identify,
  toDuration,
  toMessages,
  toMetadata,
  toRequest,
  toRequests,
  toolResult,
} from "./requests.js";
import type {
  AppendOptions,
  BatchItems,
  CompleteOptions,
  CompletionRef,
  Messages,
  SessionInit,
} from "./requests.js";
import { securityOf } from "./security.js";
import type { SecurityOptions } from "./security.js";
import * as v1 from "./v1/ruvd/v1/session_service.js";
import { SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type { DeepPartial, Message, Session } from "./v1/ruvd/v1/session_service.js";

export { status } from "@grpc/grpc-js";
export {
  Compaction,
  FinishReason,
  IfBusy,
  OnDisconnect,
  Rendering,
  Role,
  SessionView,
  ToolChoiceMode,
} from "./v1/ruvd/v1/session_service.js";
export type {
  BatchSummary,
  CompactSessionResponse,
  Completion as CompletionResult,
  CompletionEvent,
  CompletionOptions,
  ContextWindow,
  DeepPartial,
  Delta,
  EngineInfo,
  Finished,
  GetServerInfoResponse,
  ListModelsResponse,
  Message,
  MessagePart,
  ResponseFormat,
  ServerLimits,
  Session,
  SessionMetrics,
  Started,
  Timings,
  Tool,
  ToolCall,
  ToolCallDelta,
  ToolChoice,
  Usage,
} from "./v1/ruvd/v1/session_service.js";
export type { Duration } from "./v1/google/protobuf/duration.js";
export { Batch, Completion, ErrorReason, REQUEST_TOO_LARGE, RuvdError, toolResult };
export type { BatchOptions, CallLimits };
export type {
  AppendOptions,
  BatchItems,
  CompleteOptions,
  CompleteRequestInit,
  CompletionRef,
  Messages,
  RequestOptions,
  SessionInit,
} from "./requests.js";
export type { BatchOutcome } from "./batch-calls.js";
export type { FieldViolation } from "./errors.js";
export type { SecurityOptions, Tls, Token } from "./security.js";

/** The default address of the daemon. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

/** The most messages of a history that the daemon returns at once. */
const PAGE_SIZE = 1000;

/** Options of a client. */
export interface ClientOptions extends SecurityOptions {
  /** The timeout of unary calls, in milliseconds. */
  timeoutMs?: number | undefined;
  /** How long the client tries to resume a broken stream, in milliseconds: 10,000 by default. */
  reconnectMs?: number | undefined;
  /** Metadata that is sent with every call. A key that ends with `-bin` has a Buffer. */
  metadata?: Readonly<Record<string, string | Buffer>> | undefined;
}

/**
 * A client of ruvd, which connects at its first call. One is enough for a service.
 *
 * `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS or 127.0.0.1:50051. It may be a list
 * with commas: the client uses one, and goes on with the next if that fails. Every method fails with
 * RuvdError, and so does creating a client whose addresses, token or TLS files cannot be used.
 */
export class Client {
  /** The address, or the list of addresses, that the client was created with. */
  readonly address: string;
  readonly #connection: Connection;
  readonly #timeoutMs: number | undefined;
  readonly #reconnectMs: number;

  constructor(address?: string, options: ClientOptions = {}) {
    this.address = address ?? (process.env.RUVD_ADDRESS || DEFAULT_ADDRESS);
    const addresses = parseAddresses(this.address);
    const security = securityOf(addresses, options);
    this.#connection = new Connection(addresses, security, toMetadata(options.metadata ?? {}));
    this.#timeoutMs = options.timeoutMs;
    this.#reconnectMs = options.reconnectMs ?? GRACE_MS;
  }

  /** Creates a session before its first turn. */
  async createSession(init: SessionInit = {}): Promise<Session> {
    const messages = toMessages(init.messages ?? []);
    const fields = { ...init, messages, idleTimeout: toDuration(init.idleTimeoutMs) };
    return this.#session(service.createSession, v1.CreateSessionRequest.fromPartial(fields));
  }

  /**
   * Returns one session, including its messages with SESSION_VIEW_FULL. A history is read in as many
   * calls as its size requires. If the session ends meanwhile, the error is SESSION_NOT_FOUND.
   */
  async getSession(id: string, view = v1.SessionView.SESSION_VIEW_BASIC): Promise<Session> {
    const allowMessageParts = view === v1.SessionView.SESSION_VIEW_FULL;
    const pageSize = allowMessageParts ? PAGE_SIZE : 0;
    const fields = { sessionId: id, view, pageSize, allowMessageParts };
    const request = v1.GetSessionRequest.fromPartial(fields);
    const messages: Message[] = [];
    const parts = new MessageParts();
    for (;;) {
      const page = await this.#call(service.getSession, request);
      const { session, nextPageToken, messagePart } = page;
      for (const message of session?.messages ?? []) messages.push(message);
      if (messagePart) parts.add(messagePart);
      if (parts.isWhole) messages.push(parts.take());
      if (!nextPageToken) return v1.Session.fromPartial({ ...session, messages });
      request.pageToken = nextPageToken;
    }
  }

  /** Yields all sessions that have these labels, in the order of their creation. */
  async *listSessions(
    labelFilter: Record<string, string> = {},
    { pageSize = 0 } = {},
  ): AsyncGenerator<Session, void> {
    const request = v1.ListSessionsRequest.fromPartial({ labelFilter, pageSize });
    do {
      const { sessions, nextPageToken } = await this.#call(service.listSessions, request);
      yield* sessions;
      request.pageToken = nextPageToken;
    } while (request.pageToken);
  }

  /**
   * Changes the given fields, or those in `updateMask`, after the turns before it. A field that the
   * mask names although it is not given gets the daemon's default.
   */
  async updateSession(
    id: string,
    changes: DeepPartial<Omit<v1.UpdateSessionRequest, "idleTimeout">> & { idleTimeoutMs?: number },
  ): Promise<Session> {
    const idleTimeout = toDuration(changes.idleTimeoutMs);
    const fields = { ...changes, sessionId: id, idleTimeout };
    return this.#session(service.updateSession, v1.UpdateSessionRequest.fromPartial(fields));
  }

  /** Commits messages without generating an answer, after the turns before it. */
  async appendMessages(
    id: string,
    messages: Messages,
    options: AppendOptions = {},
  ): Promise<Session> {
    const fields = { ...options, sessionId: id, messages: toMessages(messages) };
    const request = v1.AppendMessagesRequest.fromPartial(fields);
    return this.#session(service.appendMessages, request);
  }

  /** Creates a session that starts with another one's first exchanges, by default all. */
  async forkSession(
    id: string,
    options: DeepPartial<Omit<v1.ForkSessionRequest, "sessionId">> = {},
  ): Promise<Session> {
    const request = v1.ForkSessionRequest.fromPartial({ sessionId: id, ...options });
    return this.#session(service.forkSession, request);
  }

  /**
   * Summarises the exchanges before the last ones, which later prompts no longer have. With `dryRun` it
   * only says what that would do.
   */
  async compactSession(id: string, { dryRun = false } = {}): Promise<v1.CompactSessionResponse> {
    return this.#call(service.compactSession, { sessionId: id, dryRun });
  }

  /** Deletes a session and its messages. */
  async endSession(id: string, { allowMissing = false } = {}): Promise<void> {
    await this.#call(service.endSession, { sessionId: id, allowMissing });
  }

  /** Returns a completion of the new messages, stateless if there is no `sessionId`. */
  complete(messages: Messages, options: CompleteOptions = {}): Completion {
    const { disconnectGraceMs = GRACE_MS } = options;
    return this.#completion(toRequest({ ...options, messages, disconnectGraceMs }), options);
  }

  /** Reads any client's completion from the event after `afterSequence` on. Leaving it stops it. */
  resumeCompletion(
    ref: CompletionRef,
    { afterSequence = 0, ...limits }: CallLimits & { afterSequence?: number } = {},
  ): Completion {
    const request = v1.ResumeCompletionRequest.fromPartial({ ...identify(ref), afterSequence });
    return this.#completion(request, limits);
  }

  /**
   * Stops any client's completion and returns when it has ended. With `keepPartial`, the part of the
   * answer generated so far is committed.
   */
  async cancelCompletion(ref: CompletionRef, { keepPartial = false } = {}): Promise<void> {
    const request = v1.CancelCompletionRequest.fromPartial({ ...identify(ref), keepPartial });
    await this.#call(service.cancelCompletion, request);
  }

  /**
   * Runs any number of completions, in calls of a size that the daemon accepts, one after the other.
   * Each outcome is returned as soon as it is available.
   */
  batch(items: BatchItems, options: BatchOptions = {}): Batch {
    return new Batch(this.#connection, toRequests(items), options);
  }

  /** Returns the models that the engine offers, and the default model. */
  async listModels(): Promise<v1.ListModelsResponse> {
    return this.#call(service.listModels, {});
  }

  /** Returns the daemon's version, features, limits and engine. */
  async getServerInfo(): Promise<v1.GetServerInfoResponse> {
    return this.#call(service.getServerInfo, {});
  }

  /** Returns the daemon's measurements since it started. */
  async getSessionMetrics(): Promise<v1.SessionMetrics> {
    const { metrics } = await this.#call(service.getSessionMetrics, {});
    return v1.SessionMetrics.fromPartial(metrics ?? {});
  }

  /** Returns whether the daemon accepts turns, or one of several; false if none answers. */
  async health(): Promise<boolean> {
    return this.#connection.isReady(this.#timeoutMs);
  }

  /** Cancels the running completions, then closes the connection. */
  close(): void {
    this.#connection.close();
  }

  #call<Request extends object | string, Response>(
    method: Method<Request, Response>,
    request: Request,
  ): Promise<Response> {
    return this.#connection.call(method, request, { timeoutMs: this.#timeoutMs });
  }

  /** Makes a call that returns a session. */
  async #session<Request extends object>(
    method: Method<Request, { session: Session | undefined }>,
    request: Request,
  ): Promise<Session> {
    const { session } = await this.#call(method, request);
    return v1.Session.fromPartial(session ?? {});
  }

  #completion(
    request: v1.CompleteRequest | v1.ResumeCompletionRequest,
    { signal, timeoutMs = Infinity }: CallLimits,
  ): Completion {
    const limits = { signal, deadline: Date.now() + timeoutMs, reconnectMs: this.#reconnectMs };
    return new Completion(this.#connection, request, limits);
  }
}
