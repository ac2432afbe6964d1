/** The client: the verbs of `ruvd.v1.SessionService`. It gives the messages of the contract. */

import { randomUUID } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { Batch } from "./batch.js";
import type { BatchOptions } from "./batch.js";
import { Completion } from "./completion.js";
import { Connection } from "./connection.js";
import type { CallLimits, Method } from "./connection.js";
import { RuvdError } from "./errors.js";
import type { Duration } from "./v1/google/protobuf/duration.js";
import * as v1 from "./v1/ruvd/v1/session_service.js";
import { Message, Role, SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type { DeepPartial, Session } from "./v1/ruvd/v1/session_service.js";

export { status } from "@grpc/grpc-js";
export * from "./v1/ruvd/v1/session_service.js";
export type { Completion as CompletionResult } from "./v1/ruvd/v1/session_service.js";
export { Batch, Completion, RuvdError };
export type { BatchOptions, CallLimits };
export type { BatchOutcome } from "./batch.js";
export type { FieldViolation } from "./errors.js";

/** Where the daemon is unless something else is said. */
export const DEFAULT_ADDRESS = "127.0.0.1:50051";

/** How long the daemon waits for a reader to come back, and how long the client tries to. */
const GRACE_MS = 10_000;

/** What holds for all calls of a client. */
export interface ClientOptions {
  /** How long a call may take that streams no answer, in milliseconds. */
  timeoutMs?: number | undefined;
  /** How long a stream that broke is taken up again, in milliseconds: 10,000 by default. */
  reconnectMs?: number | undefined;
}

/** One text of the user, or messages: each a role and, as a rule, its content. */
export type Messages = string | DeepPartial<Message>[];

type RequestFields = Omit<v1.CompleteRequest, "messages" | "options" | "disconnectGrace">;

/** What a completion may say beside its messages: the contract's fields, but milliseconds. */
export interface RequestOptions
  extends DeepPartial<RequestFields>, DeepPartial<v1.CompletionOptions> {
  /** How long the daemon waits for a lost reader: 10 s by default, and 0 in a batch. */
  disconnectGraceMs?: number | undefined;
}

export type CompleteOptions = RequestOptions & CallLimits;

/** An item of a batch. */
export interface CompleteRequestInit extends RequestOptions {
  messages: Messages;
}

/** A session before its first turn: the contract's fields, but milliseconds. */
export interface SessionInit extends DeepPartial<
  Omit<v1.CreateSessionRequest, "messages" | "idleTimeout">
> {
  /** A history to start from. */
  messages?: Messages;
  /** How long it may be idle; the daemon's default is used where it is unset. */
  idleTimeoutMs?: number;
}

/** Which completion: its id, or the session (none if stateless) and request id it began with. */
export type CompletionRef = string | { sessionId?: string; requestId: string };

/** Not generated, as it is so little: whether the service of this name serves. */
const CHECK: Method<string, boolean> = {
  path: "/grpc.health.v1.Health/Check",
  requestSerialize: (name) => Buffer.from(`\x0a${String.fromCharCode(name.length)}${name}`),
  responseDeserialize: (bytes) => bytes.equals(Buffer.of(8, 1)),
};

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
    const messages = toMessages(init.messages ?? []);
    const fields = { ...init, messages, idleTimeout: toDuration(init.idleTimeoutMs) };
    return this.#session(service.createSession, v1.CreateSessionRequest.fromPartial(fields));
  }

  /** Read one session; with its messages in SESSION_VIEW_FULL. */
  async getSession(id: string, view = v1.SessionView.SESSION_VIEW_BASIC): Promise<Session> {
    return this.#session(service.getSession, { sessionId: id, view });
  }

  /** All sessions that have these labels, page by page, in the order of creation. */
  async *listSessions(labelFilter: Record<string, string> = {}): AsyncGenerator<Session, void> {
    const request = v1.ListSessionsRequest.fromPartial({ labelFilter });
    do {
      const { sessions, nextPageToken } = await this.#call(service.listSessions, request);
      yield* sessions;
      request.pageToken = nextPageToken;
    } while (request.pageToken);
  }

  /** Change what is given, or what `updateMask` names, once the turns before it are done. */
  async updateSession(
    id: string,
    changes: DeepPartial<Omit<v1.UpdateSessionRequest, "idleTimeout">> & { idleTimeoutMs?: number },
  ): Promise<Session> {
    const idleTimeout = toDuration(changes.idleTimeoutMs);
    const fields = { ...changes, sessionId: id, idleTimeout };
    return this.#session(service.updateSession, v1.UpdateSessionRequest.fromPartial(fields));
  }

  /** Commit messages without generating, once the turns before it are done. */
  async appendMessages(id: string, messages: Messages, { requestId = "" } = {}): Promise<Session> {
    const request = { sessionId: id, messages: toMessages(messages), requestId };
    return this.#session(service.appendMessages, request);
  }

  /** Make a session that begins with the first exchanges of another one, by default all. */
  async forkSession(
    id: string,
    options: DeepPartial<Omit<v1.ForkSessionRequest, "sessionId">> = {},
  ): Promise<Session> {
    const request = v1.ForkSessionRequest.fromPartial({ sessionId: id, ...options });
    return this.#session(service.forkSession, request);
  }

  /** Delete a session with its messages. */
  async endSession(id: string, { allowMissing = false } = {}): Promise<void> {
    await this.#call(service.endSession, { sessionId: id, allowMissing });
  }

  /** Answer the new messages, in a session or, without `sessionId`, stateless. */
  complete(messages: Messages, options: CompleteOptions = {}): Completion {
    const { disconnectGraceMs = GRACE_MS } = options;
    return this.#completion(toRequest({ ...options, messages, disconnectGraceMs }), options);
  }

  /** Read a completion on, after the event of that number, whoever began it. Leaving it stops it. */
  resumeCompletion(
    ref: CompletionRef,
    { afterSequence = 0, ...limits }: CallLimits & { afterSequence?: number } = {},
  ): Completion {
    const request = v1.ResumeCompletionRequest.fromPartial({ ...named(ref), afterSequence });
    return this.#completion(request, limits);
  }

  /**
   * Stop a completion, whoever began it, and return when it has ended. With `keepPartial`, what there
   * is of its answer is committed.
   */
  async cancelCompletion(ref: CompletionRef, { keepPartial = false } = {}): Promise<void> {
    const request = v1.CancelCompletionRequest.fromPartial({ ...named(ref), keepPartial });
    await this.#call(service.cancelCompletion, request);
  }

  /** Answer many requests, 10,000 at most; each outcome comes as soon as it is there. */
  batch(items: readonly (string | CompleteRequestInit)[], options: BatchOptions = {}): Batch {
    return new Batch(this.#connection, items.map(toRequest), options);
  }

  /** Which models the engine offers, and the one that answers where a call names none. */
  async listModels(): Promise<v1.ListModelsResponse> {
    return this.#call(service.listModels, {});
  }

  /** What the daemon has measured since it started. */
  async getSessionMetrics(): Promise<v1.SessionMetrics> {
    const { metrics } = await this.#call(service.getSessionMetrics, {});
    return v1.SessionMetrics.fromPartial(metrics ?? {});
  }

  /** Whether the daemon takes turns now; false also where none answers. */
  async health(): Promise<boolean> {
    try {
      return await this.#call(CHECK, "readiness");
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

  /** Every one of these calls gives a session. */
  async #session<Request>(
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

/** The message that answers a tool call in the next turn. */
export function toolResult(call: v1.ToolCall, content: string): Message {
  return Message.fromPartial({ role: Role.ROLE_TOOL, content, toolCallId: call.id });
}

/** A request that may be repeated, as it has an id. */
function toRequest(item: string | CompleteRequestInit): v1.CompleteRequest {
  const init = typeof item === "string" ? { messages: item } : item;
  return v1.CompleteRequest.fromPartial({
    ...init,
    messages: toMessages(init.messages),
    options: init, // Of what is given, each message takes the fields that it has.
    requestId: init.requestId ?? randomUUID(),
    disconnectGrace: toDuration(init.disconnectGraceMs),
  });
}

function toMessages(messages: Messages): Message[] {
  if (typeof messages !== "string") return messages.map((each) => Message.fromPartial(each));
  return [Message.fromPartial({ role: Role.ROLE_USER, content: messages })];
}

function toDuration(milliseconds: number | undefined): Duration | undefined {
  if (milliseconds === undefined) return undefined;
  const seconds = Math.trunc(milliseconds / 1000);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1000) * 1e6) };
}

function named(ref: CompletionRef): DeepPartial<v1.ResumeCompletionRequest> {
  return typeof ref === "string" ? { completionId: ref } : ref;
}
