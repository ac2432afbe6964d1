/** `PROGRAM failover` of clients/CONFORMANCE.md: the calls that its standard input names. */

import { createInterface } from "node:readline";

import { Client, FinishReason, RuvdError } from "../src/client.js";
import type { Completion } from "../src/client.js";
import { codeOf, describe, print, printError } from "./output.js";

/** Makes a call for each line of standard input. */
export async function failover(): Promise<void> {
  let client: Client;
  try {
    client = new Client();
  } catch (error) {
    if (!(error instanceof RuvdError)) throw error;
    print(`refused ${error.message}`);
    return;
  }
  for await (const line of createInterface({ input: process.stdin })) {
    await call(client, line).catch(printError);
  }
  client.close();
}

async function call(client: Client, line: string): Promise<void> {
  const [, name = "", rest = ""] = /^(\S+) ?(.*)$/.exec(line) ?? [];
  const [, word = "", text = ""] = /^(\S*) ?(.*)$/.exec(rest) ?? [];
  const [, requestId = "", message = ""] = /^(\S*) ?(.*)$/.exec(text) ?? [];
  const sessionId = word === "-" ? "" : word;
  const turn = { sessionId, requestId };
  const calls: Record<string, () => Promise<string>> = {
    complete: () => streamed(client.complete(message, turn)),
    collect: async () => `collected [${await client.complete(message, turn).text()}]`,
    batch: () => batched(client, rest.split(" ")),
    create: async () => `created ${(await client.createSession({ sessionId })).id}`,
    append: async () => {
      const { messageCount } = await client.appendMessages(sessionId, text);
      return `appended messages=${String(messageCount)}`;
    },
    update: async () => {
      await client.updateSession(sessionId, {
        labels: { value: text },
        updateMask: ["labels"],
      });
      return "updated";
    },
    fork: async () => {
      const { exchangeCount } = await client.forkSession(sessionId, { newSessionId: text });
      return `forked exchanges=${String(exchangeCount)}`;
    },
    get: async () => describe(await client.getSession(sessionId)),
    end: () => client.endSession(sessionId).then(() => "ended"),
    models: () => client.listModels().then(() => "models ok"),
    cancel: () => client.cancelCompletion(turn).then(() => "cancelled"),
  };
  const make = calls[name];
  if (!make) throw new Error(`unknown call ${name}`);
  print(await make());
}

async function streamed(answer: Completion): Promise<string> {
  for await (const text of answer) print(`text [${text}]`);
  if (!answer.finished) throw new Error("the stream ended without Finished");
  const { finishReason, exchangeCount } = answer.finished;
  const reason = FinishReason[finishReason].replace("FINISH_REASON_", "");
  return `finished ${reason} exchanges=${String(exchangeCount)}`;
}

async function batched(client: Client, words: string[]): Promise<string> {
  const lines: string[] = [];
  for await (const { index, completion, error } of client.batch(words)) {
    const content = completion?.finished?.message?.content ?? "";
    const failure = error && `error ${codeOf(error)} ${error.reason}`;
    lines[index] = `item ${String(index)} ${failure ?? `[${content}]`}`;
  }
  return lines.join("\n");
}
