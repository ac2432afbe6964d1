/**
 * The conversion between the old provider's messages, which follow Anthropic's API, and ruvd's.
 *
 * Callers pass either only new messages or the whole conversation; `unsentMessages` handles both.
 */

import { ErrorReason, FinishReason, Role, RuvdError, status } from "./client.js";
import type { CompleteOptions, Finished, Message } from "./client.js";
import { Message as MessageType } from "./v1/ruvd/v1/session_service.js";

const CONTEXT_LINES = 10;

const SPEAKERS: Partial<Record<Role, string>> = {
  [Role.ROLE_USER]: "User",
  [Role.ROLE_ASSISTANT]: "Assistant",
  [Role.ROLE_TOOL]: "Tool",
};

const STOP_REASONS: Partial<Record<FinishReason, LLMCompletionResponse["stop_reason"]>> = {
  [FinishReason.FINISH_REASON_LENGTH]: "max_tokens",
  [FinishReason.FINISH_REASON_TOOL_CALLS]: "tool_use",
};

/** A part of an answer. Every part has a `text`; that of a tool call is empty. */
export interface ContentBlock {
  type: "text" | "tool_use";
  text: string;
  /** A tool call's id, tool, and arguments (as text if they are invalid JSON). */
  id?: string;
  name?: string;
  input?: unknown;
}

/** A part of a message to the model. */
export type ContentBlockParam =
  | { type: "text"; text: string }
  | { type: "tool_use"; id: string; name: string; input: unknown }
  | {
      type: "tool_result";
      tool_use_id: string;
      content?: string | { type: "text"; text: string }[];
    }
  | { type: "image"; [field: string]: unknown };

/** A message to the model. */
export interface LLMMessageParam {
  role: "user" | "assistant" | "system";
  content: string | (ContentBlockParam | ContentBlock)[];
}

/** A call. The other options of the client's `complete` (`topP`, `stop`, `seed`, `signal`) work too. */
export interface LLMCompletionOptions extends Omit<
  CompleteOptions,
  "sessionId" | "systemPrompt" | "requireExisting" | "tools"
> {
  /** The whole conversation; in a session alternatively only the new messages. */
  messages: LLMMessageParam[];
  /** The system prompt, joined with any system messages; a session's cannot be changed. */
  system?: string | { type: "text"; text: string }[] | undefined;
  tools?: { name: string; description?: string; input_schema: object }[] | undefined;
  /** Has no effect: use `streamComplete`. */
  stream?: boolean | undefined;
  metadata?: { sessionId?: string | undefined; [key: string]: unknown } | undefined;
}

/** An answer. */
export interface LLMCompletionResponse {
  /** The text, even if it is empty, then the tool calls. */
  content: ContentBlock[];
  model: string;
  /** `end_turn` also after a stop string, because engines do not distinguish the two. */
  stop_reason: "end_turn" | "max_tokens" | "tool_use" | "stop_sequence";
  /** The completion's id. */
  id: string;
  /** As reported by the engine; 0 if not reported. Both inputs add up to the prompt tokens. */
  usage: {
    /** Prompt tokens that were not in the engine's cache. */
    input_tokens: number;
    output_tokens: number;
    /** Prompt tokens from the engine's cache; unset if the engine does not report them. */
    cache_read_input_tokens?: number;
  };
  /** The `latency` in milliseconds; the `sessionId`; a failed batch item's `error` and `reason`. */
  metadata: { latency: number; sessionId?: string; error?: string; reason?: string };
}

/** An event of a streamed answer: text in `content_block_delta`, the whole in `message_stop`. */
export interface LLMStreamEvent {
  type:
    | "message_start" | "content_block_start" | "content_block_delta" | "content_block_stop"
    | "message_delta" | "message_stop"; // prettier-ignore
  delta?: { type: "text_delta"; text: string };
  content_block?: { type: "text"; text: string };
  message?: Partial<LLMCompletionResponse>;
}

/** The error of a failed call. `cause` is the client's error, with ruvd's `reason`. */
export class LLMProviderError extends Error {
  override readonly name = "LLMProviderError";
  readonly provider = "ruvllm";

  constructor(
    message: string,
    /** NOT_INITIALIZED, INIT_ERROR, INFERENCE_ERROR, STREAM_ERROR, BATCH_ERROR or UNSUPPORTED. */
    readonly code: string,
    /** Whether a retry may succeed. */
    readonly retryable = false,
    cause?: unknown,
  ) {
    super(message, { cause });
  }
}

/** Converts the error `cause` of an action. */
export function providerError(action: string, code: string, cause: unknown): LLMProviderError {
  if (cause instanceof LLMProviderError) return cause;
  const retryable =
    cause instanceof RuvdError &&
    (cause.retryAfterMs !== undefined ||
      cause.code === status.UNAVAILABLE ||
      // The daemon was restarted during the answer and committed nothing of it.
      cause.reason === ErrorReason.COMPLETION_NOT_FOUND);
  return new LLMProviderError(`${action}: ${messageOf(cause)}`, code, retryable, cause);
}

/** Returns the response of a failed batch item. */
export function failedItem(
  index: number,
  sessionId: string | undefined,
  error: unknown,
): LLMCompletionResponse {
  const reason = error instanceof RuvdError ? error.reason : "";
  return {
    content: [{ type: "text", text: "" }],
    model: "",
    stop_reason: "end_turn",
    id: `batch-error-${String(index)}`,
    usage: { input_tokens: 0, output_tokens: 0 },
    metadata: { latency: 0, ...defined({ sessionId }), error: messageOf(error), reason },
  };
}

/** Returns the values without undefined ones. */
export function defined<T extends object>(
  values: T,
): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const set = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(set) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

/** Returns the message of an error. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** Converts a call to ruvd's fields. Throws LLMProviderError UNSUPPORTED for an image. */
export function fromCall(call: LLMCompletionOptions): ConvertedCall {
  // eslint-disable-next-line @typescript-eslint/no-unused-vars -- the rest is for the client
  const { messages, system, stream, tools, metadata, signal, timeoutMs, ...rest } = call;
  const prompts = [system ?? []].flat().map(textOf);
  const converted: Message[] = [];
  for (const { role, content } of messages) {
    const blocks = blocksOf(content);
    if (role === "system") prompts.push(blocks.map(textOf).join(""));
    else converted.push(...fromParam(role, blocks));
  }
  const mapped = tools?.map(({ name, description = "", input_schema }) => ({
    name,
    description,
    parameters: JSON.stringify(input_schema),
  }));
  return {
    ...rest,
    messages: converted,
    systemPrompt: prompts.join("\n"),
    ...defined({ tools: mapped }),
  };
}

interface ConvertedCall extends Omit<CompleteOptions, "signal" | "timeoutMs"> {
  messages: Message[];
  systemPrompt: string;
}

interface CompletedAnswer {
  completionId?: string;
  sessionId?: string;
  model?: string;
  finished: Finished;
}

type Block = ContentBlockParam | ContentBlock;

function blocksOf(content: string | Block[]): Block[] {
  return typeof content === "string" ? [{ type: "text", text: content }] : content;
}

function textOf(block: string | Block): string {
  if (typeof block === "string") return block;
  if (block.type === "image") {
    throw new LLMProviderError("ruvd supports text only, no images", "UNSUPPORTED");
  }
  return block.type === "text" ? block.text : "";
}

/** Returns the message, preceded by a separate message for each tool result in it. */
function fromParam(role: "user" | "assistant", blocks: Block[]): Message[] {
  const results: Message[] = [];
  const message = MessageType.fromPartial({
    role: role === "user" ? Role.ROLE_USER : Role.ROLE_ASSISTANT,
    content: blocks.map(textOf).join(""),
  });
  for (const block of blocks) {
    if (block.type === "tool_result") {
      const content = blocksOf(block.content ?? "")
        .map(textOf)
        .join("");
      results.push({ ...message, role: Role.ROLE_TOOL, content, toolCallId: block.tool_use_id });
    } else if (block.type === "tool_use") {
      const { id = "", name = "", input } = block;
      const argumentsText = typeof input === "string" ? input : JSON.stringify(input ?? {});
      message.toolCalls.push({ id, name, arguments: argumentsText, engineData: "" });
    }
  }
  return message.content || message.toolCalls.length || !results.length
    ? [...results, message]
    : results;
}

/**
 * Returns the messages of a call that are not yet in the session.
 *
 * If the call starts with the end of the history, those are the messages after it. Otherwise, a call
 * with answers in it differs from the history (an edited answer, fixed examples at its start): the
 * history is kept, and only the messages after the last answer are new.
 */
export function unsentMessages(history: Message[], messages: Message[]): Message[] {
  if (!history.length) return messages;
  const historyKeys = history.map(messageKey);
  const keys = messages.map(messageKey);
  for (let count = Math.min(historyKeys.length, keys.length); count > 0; count--) {
    const first = historyKeys.length - count;
    if (keys.slice(0, count).every((key, index) => key === historyKeys[first + index])) {
      return messages.slice(count);
    }
  }
  return messages.slice(messages.findLastIndex(({ role }) => role === Role.ROLE_ASSISTANT) + 1);
}

/** Returns a key to compare messages, as callers trim answers and reformat tools' arguments. */
function messageKey({ role, content, toolCalls, toolCallId }: Message): string {
  return JSON.stringify([role, content.trim(), toolCalls.map(({ id }) => id), toolCallId]);
}

/** Returns the last messages of a history in the form of `context`. */
export function contextOf(history: Message[]): string[] {
  return history
    .slice(-CONTEXT_LINES)
    .map(({ role, content }) => `${SPEAKERS[role] ?? "System"}: ${content}`);
}

/** Converts the answer of a completion. `latency` is in milliseconds. */
export function toResponse(
  { completionId = "", model = "", sessionId, finished }: CompletedAnswer,
  latency: number,
): LLMCompletionResponse {
  const { message, usage } = finished;
  const content: ContentBlock[] = [{ type: "text", text: message?.content ?? "" }];
  for (const { id: callId, name, arguments: argumentsText } of message?.toolCalls ?? []) {
    content.push({ type: "tool_use", text: "", id: callId, name, input: parseJson(argumentsText) });
  }
  const cached = usage?.cachedTokens;
  return {
    content,
    model,
    stop_reason: STOP_REASONS[finished.finishReason] ?? "end_turn",
    id: completionId,
    usage: {
      input_tokens: (usage?.promptTokens ?? 0) - (cached ?? 0),
      output_tokens: usage?.completionTokens ?? 0,
      ...defined({ cache_read_input_tokens: cached }),
    },
    metadata: { latency, ...(sessionId ? { sessionId } : {}) },
  };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
