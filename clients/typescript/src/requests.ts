/** The requests of the client: their options in plain values, and the messages made of them. */

import { randomUUID } from "node:crypto";

import { Metadata } from "@grpc/grpc-js";

import type { CallLimits } from "./connection.js";
import type { Duration } from "./v1/google/protobuf/duration.js";
import * as v1 from "./v1/ruvd/v1/session_service.js";
import { Message, Role } from "./v1/ruvd/v1/session_service.js";
import type { DeepPartial } from "./v1/ruvd/v1/session_service.js";

/** How long the daemon waits for a reader to return, and how long the client tries to reconnect. */
export const GRACE_MS = 10_000;

/** The text of one user message, or messages: each has a role and usually a content. */
export type Messages = string | DeepPartial<Message>[];

type RequestFields = Omit<v1.CompleteRequest, "messages" | "options" | "disconnectGrace">;

/** The fields of a request other than its messages, as in the proto, but with milliseconds. */
export interface RequestOptions
  extends DeepPartial<RequestFields>, DeepPartial<v1.CompletionOptions> {
  /** How long the daemon waits for a reader to return: 10 s by default, and 0 in a batch. */
  disconnectGraceMs?: number | undefined;
}

/** The options of a completion. */
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

/** Returns the message that answers a tool call in the next turn. */
export function toolResult(call: v1.ToolCall, content: string): Message {
  return Message.fromPartial({ role: Role.ROLE_TOOL, content, toolCallId: call.id });
}

/** Returns a request with an id, so that it can be repeated. */
export function toRequest(item: string | CompleteRequestInit): v1.CompleteRequest {
  const init = typeof item === "string" ? { messages: item } : item;
  return v1.CompleteRequest.fromPartial({
    ...init,
    messages: toMessages(init.messages),
    options: init, // fromPartial ignores the fields that are not of this message.
    requestId: init.requestId ?? randomUUID(),
    disconnectGrace: toDuration(init.disconnectGraceMs),
  });
}

export async function* toRequests(items: BatchItems): AsyncGenerator<v1.CompleteRequest, void> {
  for await (const item of items) yield toRequest(item);
}

export function toMessages(messages: Messages): Message[] {
  if (typeof messages !== "string") return messages.map((message) => Message.fromPartial(message));
  return [Message.fromPartial({ role: Role.ROLE_USER, content: messages })];
}

export function toDuration(milliseconds: number | undefined): Duration | undefined {
  if (milliseconds === undefined) return undefined;
  const seconds = Math.trunc(milliseconds / 1000);
  return { seconds, nanos: Math.round((milliseconds - seconds * 1000) * 1e6) };
}

export function identify(ref: CompletionRef): DeepPartial<v1.ResumeCompletionRequest> {
  return typeof ref === "string" ? { completionId: ref } : ref;
}

export function toMetadata(entries: Readonly<Record<string, string | Buffer>>): Metadata {
  const metadata = new Metadata();
  for (const [key, value] of Object.entries(entries)) metadata.set(key, value);
  return metadata;
}
