/** What callers say, in the words of the contract. Times are milliseconds here, Durations there. */

import { randomUUID } from "node:crypto";

import type { Duration } from "./v1/google/protobuf/duration.js";
import {
  CancelCompletionRequest,
  ContextWindow,
  IfBusy,
  Message,
  OnDisconnect,
  ResponseFormat,
  ResumeCompletionRequest,
  Role,
  Tool,
  ToolChoiceMode,
} from "./v1/ruvd/v1/session_service.js";
import type {
  CompleteRequest,
  CompletionOptions,
  CreateSessionRequest,
  ToolCall,
} from "./v1/ruvd/v1/session_service.js";

/** How long the daemon waits for a reader to come back, and how long the client tries to. */
export const GRACE_MS = 10_000;

/** Nothing but these fields is needed. */
type With<T, Needed extends keyof T> = Pick<T, Needed> & {
  [Field in Exclude<keyof T, Needed>]?: T[Field] | undefined;
};

/** A message to the model: its role and, as a rule, its content. */
export type MessageInit = With<Message, "role">;

/** One text of the user, or messages. */
export type Messages = string | readonly MessageInit[];

/** How to generate. What is unset is left to the engine. */
export interface GenerationOptions {
  model?: string | undefined;
  temperature?: number | undefined;
  topP?: number | undefined;
  maxTokens?: number | undefined;
  stop?: readonly string[] | undefined;
  seed?: number | undefined;
  bypassCache?: boolean | undefined;
  frequencyPenalty?: number | undefined;
  presencePenalty?: number | undefined;
  logitBias?: Record<number, number> | undefined;
  /** `parameters` is a JSON Schema as JSON text. */
  tools?: readonly With<Tool, "name">[] | undefined;
  /** A rule for all tools, or the name of the one. */
  toolChoice?: ToolChoiceMode | string | undefined;
  parallelToolCalls?: boolean | undefined;
  /** `jsonSchema` is JSON text. */
  responseFormat?: With<ResponseFormat, "jsonSchema"> | undefined;
  /** More fields of the request to the engine's server. */
  extraBody?: Record<string, unknown> | undefined;
}

/** What an item of a batch may say beside its messages, and a completion. */
export interface RequestOptions extends GenerationOptions {
  /** Which session; unknown ones are created. Unset is a stateless completion. */
  sessionId?: string | undefined;
  /** What the model is told first: of a session that this creates, or stateless. */
  systemPrompt?: string | undefined;
  /** Makes a retry safe: the same id is never generated twice. A random one by default. */
  requestId?: string | undefined;
  /** Fail with SESSION_NOT_FOUND instead of creating the session. */
  requireExisting?: boolean | undefined;
  /** What to do when the session has a completion running: queue by default. */
  ifBusy?: IfBusy | undefined;
  /** What happens when the last reader has gone. With CONTINUE, who leaves cancels nothing. */
  onDisconnect?: OnDisconnect | undefined;
  /** How long the daemon waits for a lost reader: 10 s by default, and 0 in a batch. */
  disconnectGraceMs?: number | undefined;
}

/** What a completion may say beside its messages. */
export interface CompleteOptions extends RequestOptions {
  /** Cancels it. */
  signal?: AbortSignal | undefined;
  /** How long the whole answer may take. */
  timeoutMs?: number | undefined;
}

/** An item of a batch. */
export interface CompleteRequestInit extends RequestOptions {
  messages: Messages;
}

/** A session before its first turn. */
export interface SessionInit {
  /** An unguessable one by default. */
  sessionId?: string | undefined;
  systemPrompt?: string | undefined;
  /** A history to start from. */
  messages?: Messages | undefined;
  labels?: Record<string, string> | undefined;
  contextWindow?: Partial<ContextWindow> | undefined;
  /** How long it may be idle; the daemon's default is used where it is unset. */
  idleTimeoutMs?: number | undefined;
  model?: string | undefined;
  /** Makes a retry safe: the same id gives the same session. */
  requestId?: string | undefined;
}

/** Which completion: its id, or the session (none if stateless) and request id it began with. */
export type CompletionRef = string | { sessionId?: string | undefined; requestId: string };

/** The messages of a turn. */
export function toMessages(messages: Messages): Message[] {
  const given =
    typeof messages === "string" ? [{ role: Role.ROLE_USER, content: messages }] : messages;
  return given.map((message) => ({
    role: message.role,
    content: message.content ?? "",
    toolCalls: message.toolCalls ?? [],
    toolCallId: message.toolCallId ?? "",
    reasoning: message.reasoning ?? "",
  }));
}

/** The message that answers a tool call in the next turn. */
export function toolResult(call: ToolCall, content: string): MessageInit {
  return { role: Role.ROLE_TOOL, content, toolCallId: call.id };
}

/** A request that may be repeated: with a request id, and a grace for who is cut off. */
export function completeRequest(messages: Messages, options: RequestOptions): CompleteRequest {
  const { requestId = randomUUID(), disconnectGraceMs = GRACE_MS } = options;
  return itemRequest({ ...options, messages, requestId, disconnectGraceMs });
}

/** One item of a batch. */
export function itemRequest(item: string | CompleteRequestInit): CompleteRequest {
  const init = typeof item === "string" ? { messages: item } : item;
  return {
    sessionId: init.sessionId ?? "",
    messages: toMessages(init.messages),
    options: toOptions(init),
    requestId: init.requestId ?? randomUUID(),
    requireExisting: init.requireExisting ?? false,
    ifBusy: init.ifBusy ?? IfBusy.IF_BUSY_UNSPECIFIED,
    onDisconnect: init.onDisconnect ?? OnDisconnect.ON_DISCONNECT_UNSPECIFIED,
    disconnectGrace: toDuration(init.disconnectGraceMs),
    systemPrompt: init.systemPrompt ?? "",
  };
}

/** The request of one CreateSession. */
export function createRequest(init: SessionInit): CreateSessionRequest {
  return {
    sessionId: init.sessionId ?? "",
    systemPrompt: init.systemPrompt ?? "",
    messages: toMessages(init.messages ?? []),
    labels: init.labels ?? {},
    contextWindow: init.contextWindow && ContextWindow.fromPartial(init.contextWindow),
    idleTimeout: toDuration(init.idleTimeoutMs),
    model: init.model ?? "",
    requestId: init.requestId ?? "",
  };
}

/** The request that reads a completion on. */
export function resumeRequest(ref: CompletionRef, afterSequence: number): ResumeCompletionRequest {
  return ResumeCompletionRequest.fromPartial({ ...named(ref), afterSequence });
}

/** The request that stops a completion. */
export function cancelRequest(ref: CompletionRef, keepPartial = false): CancelCompletionRequest {
  return CancelCompletionRequest.fromPartial({ ...named(ref), keepPartial });
}

/** Milliseconds as a Duration. */
export function toDuration(milliseconds: number | undefined): Duration | undefined {
  if (milliseconds === undefined) return undefined;
  const seconds = Math.trunc(milliseconds / 1000);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1000) * 1e6) };
}

function named(
  ref: CompletionRef,
): { completionId: string } | { sessionId: string; requestId: string } {
  if (typeof ref === "string") return { completionId: ref };
  return { sessionId: ref.sessionId ?? "", requestId: ref.requestId };
}

function toOptions(given: GenerationOptions): CompletionOptions {
  const { toolChoice, responseFormat } = given;
  return {
    model: given.model ?? "",
    temperature: given.temperature,
    topP: given.topP,
    maxTokens: given.maxTokens,
    stop: [...(given.stop ?? [])],
    seed: given.seed,
    bypassCache: given.bypassCache ?? false,
    frequencyPenalty: given.frequencyPenalty,
    presencePenalty: given.presencePenalty,
    logitBias: given.logitBias ?? {},
    tools: (given.tools ?? []).map((tool) => ({
      name: tool.name,
      description: tool.description ?? "",
      parameters: tool.parameters ?? "",
      strict: tool.strict,
    })),
    toolChoice:
      typeof toolChoice === "string"
        ? { function: toolChoice }
        : toolChoice === undefined
          ? undefined
          : { mode: toolChoice },
    parallelToolCalls: given.parallelToolCalls,
    responseFormat: responseFormat && {
      jsonSchema: responseFormat.jsonSchema,
      name: responseFormat.name ?? "",
      strict: responseFormat.strict,
    },
    extraBody: given.extraBody,
  };
}
