/** The lines of `PROGRAM calls`. */

import { Compaction, FinishReason, Rendering, Role } from "../src/client.js";
import type { Completion, Finished, Session, ToolCall, Usage } from "../src/client.js";
import { describe as sessionLine, print, printError } from "./output.js";

/** Prints the error of a call that has to fail. */
export async function attempt(call: Promise<unknown>): Promise<void> {
  await call.then(() => {
    throw new Error("the call should have failed");
  }, printError);
}

/** Waits for the whole answer and prints it, or its error. */
export async function printAnswer(answer: Completion): Promise<void> {
  try {
    const { content, toolCalls } = await answer.message();
    const { finished } = answer;
    if (!finished) throw new Error("the stream ended without Finished");
    const exchanges = String(finished.exchangeCount);
    print(`answer ${reasonOf(finished)} [${content}] exchanges=${exchanges}`);
    printCalls(toolCalls);
    print(usageLine(finished.usage));
  } catch (error) {
    printError(error);
  }
}

export function printCalls(toolCalls: ToolCall[]): void {
  for (const { id, name, arguments: text } of toolCalls) print(`call ${id} ${name} ${text}`);
}

export function printMessages({ messages }: Session): void {
  for (const { role, content, toolCalls, toolCallId, pinned } of messages) {
    const notes = `${pinned ? " pinned" : ""}${toolCallId && ` of=${toolCallId}`}`;
    print(`message ${Role[role].replace("ROLE_", "")} [${content}]${notes}`);
    printCalls(toolCalls);
  }
}

/** Prints all fields of a session but its messages. */
export function describe(session: Session): void {
  print(sessionLine(session));
  print(`prompt [${session.systemPrompt}]`);
  const labels = Object.entries(session.labels).map((pair) => pair.join("="));
  print(["labels", ...labels.sort()].join(" "));
  const { contextWindow: window } = session;
  const counts = `keep=${optional(window?.keepExchanges)} max=${optional(window?.maxExchanges)}`;
  print(`window ${counts} tokens=${optional(window?.maxTokens)}`);
  const { rendering: style = Rendering.RENDERING_UNSPECIFIED } = window ?? {};
  const rendering = Rendering[style].replace("RENDERING_", "");
  print(`rendering ${rendering} first=${optional(window?.keepFirst)}`);
  const { compaction: rule = Compaction.COMPACTION_UNSPECIFIED } = window ?? {};
  const compaction = Compaction[rule].replace("COMPACTION_", "");
  print(`compaction ${compaction} at=${optional(window?.compactAt)}`);
  print(`instruction [${session.compactionInstruction}]`);
  print(`summary [${session.summary}] of=${String(session.summaryExchangeCount)}`);
  print(`compactions ${String(session.compactions)}`);
  const parent = session.parentId || "-";
  const idle = optional(session.idleTimeout?.seconds);
  print(`settings idle=${idle}s model=${session.model} parent=${parent}`);
  print(usageLine(session.usage));
  print(`create_time ${word(session.createTime !== undefined)}`);
  print(`last_used_time ${word(session.lastUsedTime !== undefined)}`);
  print(`expire_time ${word(session.expireTime !== undefined)}`);
}

export function usageLine(usage: Usage | undefined): string {
  const { promptTokens = 0, cachedTokens, completionTokens = 0 } = usage ?? {};
  const prompt = String(promptTokens);
  return `usage prompt=${prompt} cached=${optional(cachedTokens)} answer=${String(completionTokens)}`;
}

export function reasonOf({ finishReason }: Finished): string {
  return FinishReason[finishReason].replace("FINISH_REASON_", "");
}

export function optional(value: number | undefined): string {
  return value === undefined ? "-" : String(value);
}

export function word(value: boolean): string {
  return value ? "yes" : "no";
}
