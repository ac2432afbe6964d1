/** The client, with the methods of `ruvd.v1.SessionService`. They return its generated messages. */

import { randomUUID } from "node:crypto";

import { parseAddresses } from "./addresses.js";
import { Batch } from "./batch.js";
import type { BatchOptions } from "./batch.js";
import { Completion } from "./completion.js";
import { Connection } from "./connection.js";
import type { CallLimits, Method } from "./connection.js";
import { ErrorReason, REQUEST_TOO_LARGE, RuvdError } from "./errors.js";
import { MessageParts } from "./parts.js";
import { securityOf } from "./security.js";
import type { SecurityOptions } from "./security.js";
import type { Duration } from "./v1/google/protobuf/duration.js";
import * as v1 from "./v1/ruvd/v1/session_service.js";
import { Message, Role, SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type { DeepPartial, Session } from "./v1/ruvd/v1/session_service.js";

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
export { Batch, Completion, ErrorReason, REQUEST_TOO_LARGE, RuvdError };
export type { BatchOptions, CallLimits };
export type { BatchOutcome } from "./batch-calls.js";
export type { FieldViolation } from "./errors.js";
export type { SecurityOptions, Tls, Token } from "./security.js";

/** The default address of the daemon. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

/** How long the daemon waits for a reader to return, and how long the client tries to reconnect. */
const GRACE_MS = 10_000;

/** The most messages of a history that the daemon returns at once. */
const PAGE_SIZE = 1000;

/** Options of a client. */
export interface ClientOptions extends SecurityOptions {
  /** The timeout of unary calls, in milliseconds. */
  timeoutMs?: number | undefined;
  /** How long the client tries to resume a broken stream, in milliseconds: 10,000 by default. */
  reconnectMs?: number | undefined;
}

/** The text of one user message, or messages: each has a role and usually a content. */
export type Messages = string | DeepPartial<Message>[];

type RequestFields = Omit<v1.CompleteRequest, "messages" | "options" | "disconnectGrace">;

/** The fields of a request other than its messages, as in the proto, but with milliseconds. */
export interface RequestOptions
  extends DeepPartial<RequestFields>, DeepPartial<v1.CompletionOptions> {
  /** How long the daemon waits for a reader to return: 10 s by default, and 0 in a batch. */
  disconnectGraceMs?: number | undefined;
}

export type CompleteOptions = RequestOptions & CallLimits;

/** An item of a batch. */
export interface CompleteRequestInit extends RequestOptions {
  messages: Messages;
}

/** The items of a batch: each has messages, or is the text of one user message. */
export type BatchItems =
  Iterable<string | CompleteRequestInit> | AsyncIterable<string | CompleteRequestInit>;

/** The fields of a new session, as in the proto, but with milliseconds. */
export interface SessionInit extends DeepPartial<
  Omit<v1.CreateSessionRequest, "messages" | "idleTimeout">
> {
  /** The history that the session starts with. */
  messages?: Messages;
  /** The time without use after which the session expires. Unset: the daemon's default. */
  idleTimeoutMs?: number;
}

/** Options of messages that are appended. */
export interface AppendOptions {
  /** An id that makes retries safe: messages with the same id are never appended twice. */
  requestId?: string;
  /** A summary that is sent in place of the first exchanges of the history. */
  summary?: string;
  /** The number of those exchanges. Unset: all but those that a trim of the context window keeps. */
  summaryExchangeCount?: number;
}

/** Identifies a completion by its id, or by its session (unless stateless) and its request id. */
export type CompletionRef = string | { sessionId?: string; requestId: string };

/** The health check, encoded by hand because it is so small: whether the named service serves. */
const HEALTH_CHECK: Method<string, boolean> = {
  path: "/grpc.health.v1.Health/Check",
  requestSerialize: (name) => Buffer.from(`\x0a${String.fromCharCode(name.length)}${name}`),
  responseDeserialize: (bytes) => bytes.equals(Buffer.of(8, 1)),
};

/**
 * A client of ruvd, which connects at its first call. One is enough for a service.
 *
 * `address` is `host:port` or `unix:PATH`, by default RUVD_ADDRESS or 127.0.0.1:50051. It may be a list
 * with commas: the client uses one, and goes on with the next if that fails. Every method fails with
 * RuvdError, and so does creating a client whose addresses, token or TLS files cannot be used.
 */
export class Client {
  readonly address: string;
  readonly #connection: Connection;
  readonly #timeoutMs: number | undefined;
  readonly #reconnectMs: number;

  constructor(address?: string, options: ClientOptions = {}) {
    this.address = address ?? (process.env.RUVD_ADDRESS || DEFAULT_ADDRESS);
    const addresses = parseAddresses(this.address);
    this.#connection = new Connection(addresses, securityOf(addresses, options));
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
    return this.#connection.isReady(HEALTH_CHECK, this.#timeoutMs);
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

/** Returns the message that answers a tool call in the next turn. */
export function toolResult(call: v1.ToolCall, content: string): Message {
  return Message.fromPartial({ role: Role.ROLE_TOOL, content, toolCallId: call.id });
}

/** Returns a request with an id, so that it can be repeated. */
function toRequest(item: string | CompleteRequestInit): v1.CompleteRequest {
  const init = typeof item === "string" ? { messages: item } : item;
  return v1.CompleteRequest.fromPartial({
    ...init,
    messages: toMessages(init.messages),
    options: init, // fromPartial ignores the fields that are not of this message.
    requestId: init.requestId ?? randomUUID(),
    disconnectGrace: toDuration(init.disconnectGraceMs),
  });
}

async function* toRequests(items: BatchItems): AsyncGenerator<v1.CompleteRequest, void> {
  for await (const item of items) yield toRequest(item);
}

function toMessages(messages: Messages): Message[] {
  if (typeof messages !== "string") return messages.map((message) => Message.fromPartial(message));
  return [Message.fromPartial({ role: Role.ROLE_USER, content: messages })];
}

function toDuration(milliseconds: number | undefined): Duration | undefined {
  if (milliseconds === undefined) return undefined;
  const seconds = Math.trunc(milliseconds / 1000);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1000) * 1e6) };
}

function identify(ref: CompletionRef): DeepPartial<v1.ResumeCompletionRequest> {
  return typeof ref === "string" ? { completionId: ref } : ref;
}
