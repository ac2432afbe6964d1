/**
 * The messages of the old provider, which are Anthropic's, and how they become ruvd's and back.
 *
 * Callers pass either what is new or the whole conversation: `unseen` tells the two apart.
 */

import { FinishReason, Role, RuvdError, status } from "./client.js";
import type { CompleteOptions, Finished, Message } from "./client.js";

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

/** A part of a message. What the model answers has `text` in every part; a tool call's is empty. */
export interface ContentBlock {
  type: "text" | "tool_use";
  text: string;
  /** Of a tool call: its id, the tool, and its arguments (as text where they are no valid JSON). */
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

/** A call. What the client's `complete` takes besides (`topP`, `stop`, `seed`, `signal`) is taken too. */
export interface LLMCompletionOptions extends Omit<
  CompleteOptions,
  "sessionId" | "systemPrompt" | "requireExisting" | "tools"
> {
  /** In a session what is new, or the whole conversation; without one the whole conversation. */
  messages: LLMMessageParam[];
  /** What the model is told first, as are the system messages; of a session it stays the same. */
  system?: string | { type: "text"; text: string }[] | undefined;
  tools?: { name: string; description?: string; input_schema: object }[] | undefined;
  /** No effect: `streamComplete` streams. */
  stream?: boolean | undefined;
  metadata?: { sessionId?: string | undefined; [key: string]: unknown } | undefined;
}

/** An answer. */
export interface LLMCompletionResponse {
  /** The text, also if it is empty, then the tool calls. */
  content: ContentBlock[];
  model: string;
  /** `end_turn` also where a stop string ended it: engines do not tell the two apart. */
  stop_reason: "end_turn" | "max_tokens" | "tool_use" | "stop_sequence";
  /** The completion's id. */
  id: string;
  /** As the engine counted; zeros where it did not say. Prompt tokens are the sum of both inputs. */
  usage: {
    /** Prompt tokens that were not in the engine's cache. */
    input_tokens: number;
    output_tokens: number;
    /** Those that were; unset where the engine does not say. */
    cache_read_input_tokens?: number;
  };
  /**
   * `latency` in milliseconds; the `sessionId`; of a failed item of a batch `error` and `reason`.
   */
  metadata: { latency: number; sessionId?: string; error?: string; reason?: string };
}

/** A step of a streamed answer: its text comes in `content_block_delta`, the whole in `message_stop`. */
export interface LLMStreamEvent {
  type:
    | "message_start" | "content_block_start" | "content_block_delta" | "content_block_stop"
    | "message_delta" | "message_stop"; // prettier-ignore
  delta?: { type: "text_delta"; text: string };
  content_block?: { type: "text"; text: string };
  message?: Partial<LLMCompletionResponse>;
}

/** A call that failed. `cause` is the client's error, with ruvd's `reason`. */
export class LLMProviderError extends Error {
  override readonly name = "LLMProviderError";
  readonly provider = "ruvllm";

  constructor(
    message: string,
    /** NOT_INITIALIZED, INIT_ERROR, INFERENCE_ERROR, STREAM_ERROR, BATCH_ERROR or UNSUPPORTED. */
    readonly code: string,
    /** Whether the same call may succeed later. */
    readonly retryable = false,
    cause?: unknown,
  ) {
    super(message, { cause });
  }
}

/** The error of a call that failed with `cause`. */
export function failure(what: string, code: string, cause: unknown): LLMProviderError {
  if (cause instanceof LLMProviderError) return cause;
  const retryable =
    cause instanceof RuvdError &&
    (cause.retryAfterMs !== undefined ||
      cause.code === status.UNAVAILABLE ||
      // The daemon was started anew in the middle of the answer, and committed nothing of it.
      cause.reason === "COMPLETION_NOT_FOUND");
  return new LLMProviderError(`${what}: ${messageOf(cause)}`, code, retryable, cause);
}

/** The place of an item of a batch that failed. */
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
    metadata: { latency: 0, ...given({ sessionId }), error: messageOf(error), reason },
  };
}

/** What is set of some values. */
export function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const set = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(set) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

/** What an error says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What a call asks of ruvd. Throws LLMProviderError UNSUPPORTED for an image. */
export function fromCall(call: LLMCompletionOptions): Asked {
  // eslint-disable-next-line @typescript-eslint/no-unused-vars -- what is left is for the client
  const { messages, system, stream, tools, metadata, signal, timeoutMs, ...rest } = call;
  const prompts = [system ?? []].flat().map(textOf);
  const asked: Message[] = [];
  for (const { role, content } of messages) {
    const blocks = blocksOf(content);
    if (role === "system") prompts.push(blocks.map(textOf).join(""));
    else asked.push(...fromParam(role, blocks));
  }
  const mapped = tools?.map(({ name, description = "", input_schema }) => ({
    name,
    description,
    parameters: JSON.stringify(input_schema),
  }));
  return {
    ...rest,
    messages: asked,
    systemPrompt: prompts.join("\n"),
    ...given({ tools: mapped }),
  };
}

interface Asked extends Omit<CompleteOptions, "signal" | "timeoutMs"> {
  messages: Message[];
  systemPrompt: string;
}

interface Answered {
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
    throw new LLMProviderError("ruvd takes text only, not images", "UNSUPPORTED");
  }
  return block.type === "text" ? block.text : "";
}

/** One message, after those for the results of tools that it holds. */
function fromParam(role: "user" | "assistant", blocks: Block[]): Message[] {
  const results: Message[] = [];
  const message: Message = {
    role: role === "user" ? Role.ROLE_USER : Role.ROLE_ASSISTANT,
    content: blocks.map(textOf).join(""),
    toolCalls: [],
    toolCallId: "",
    reasoning: "",
  };
  for (const block of blocks) {
    if (block.type === "tool_result") {
      const content = blocksOf(block.content ?? "")
        .map(textOf)
        .join("");
      results.push({ ...message, role: Role.ROLE_TOOL, content, toolCallId: block.tool_use_id });
    } else if (block.type === "tool_use") {
      const { id = "", name = "", input } = block;
      const written = typeof input === "string" ? input : JSON.stringify(input ?? {});
      message.toolCalls.push({ id, name, arguments: written });
    }
  }
  return message.content || message.toolCalls.length || !results.length
    ? [...results, message]
    : results;
}

/**
 * The messages of a call that its session has not seen.
 *
 * Where the call begins with what the history ends with, that is what comes after it. Otherwise a call
 * with answers in it tells the story differently (an edited answer, examples that it always begins
 * with): the session's history stands, and what comes after the last answer is new.
 */
export function unseen(history: Message[], messages: Message[]): Message[] {
  if (!history.length) return messages;
  const known = history.map(keyOf);
  const given = messages.map(keyOf);
  for (let count = Math.min(known.length, given.length); count > 0; count--) {
    const first = known.length - count;
    if (given.slice(0, count).every((key, index) => key === known[first + index])) {
      return messages.slice(count);
    }
  }
  return messages.slice(messages.findLastIndex(({ role }) => role === Role.ROLE_ASSISTANT) + 1);
}

/** What makes two messages the same: callers trim answers, and write a tool's arguments anew. */
function keyOf({ role, content, toolCalls, toolCallId }: Message): string {
  return JSON.stringify([role, content.trim(), toolCalls.map(({ id }) => id), toolCallId]);
}

/** The last messages of a history as `context` shows them. */
export function contextOf(history: Message[]): string[] {
  return history
    .slice(-CONTEXT_LINES)
    .map(({ role, content }) => `${SPEAKERS[role] ?? "System"}: ${content}`);
}

/** The answer of a completion that took so many milliseconds. */
export function toResponse(
  { completionId = "", model = "", sessionId, finished }: Answered,
  latency: number,
): LLMCompletionResponse {
  const { message, usage } = finished;
  const content: ContentBlock[] = [{ type: "text", text: message?.content ?? "" }];
  for (const { id: callId, name, arguments: written } of message?.toolCalls ?? []) {
    content.push({ type: "tool_use", text: "", id: callId, name, input: parsed(written) });
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
      ...given({ cache_read_input_tokens: cached }),
    },
    metadata: { latency, ...(sessionId ? { sessionId } : {}) },
  };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
