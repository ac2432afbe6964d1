/** `PROGRAM calls` of clients/CONFORMANCE.md: every call of the service with all of its fields. */

import { Client, SessionView, ToolChoiceMode, toolResult } from "../src/client.js";
import type { BatchOutcome, CompleteRequestInit } from "../src/client.js";
import {
  attempt,
  describe,
  optional,
  printAnswer,
  printMessages,
  reasonOf,
  word,
} from "./calls-output.js";
import { append, compact, create, fork, get, list, update } from "./calls-sessions.js";
import { codeOf, connect, describe as sessionLine, print, words } from "./output.js";

const FEATURES = ["batch", "compaction", "resume", "sessions", "structured_output", "tools"];

/** Makes the calls one after the other. */
export async function calls(client: Client): Promise<void> {
  await create(client);
  await get(client);
  await list(client);
  await update(client);
  await append(client);
  await fork(client);
  await compact(client);
  await complete(client);
  await tools(client);
  await formats(client);
  await resume(client);
  await cancel(client);
  await batches(client);
  await end(client);
  await server(client);
  await metrics(client);
  const nobody = connect("RUVD_NOBODY");
  print(`health ${word(await nobody.health())}`);
  nobody.close();
}

async function complete(client: Client): Promise<void> {
  print("# complete");
  const answer = client.complete("four five six", { sessionId: "alpha" });
  await printAnswer(answer);
  const { started } = answer;
  if (!started) throw new Error("the stream ended without Started");
  const created = `created=${word(started.sessionCreated)}`;
  const trimmed = `trimmed=${word(started.contextTrimmed)}`;
  print(`started ${created} ${trimmed} summarized=${word(started.contextSummarized)}`);
  const sent = String(started.contextMessages);
  print(`started session=${started.sessionId} model=${started.model} sent=${sent}`);
  const options = {
    model: "echo",
    temperature: 0.5,
    topP: 0.9,
    maxTokens: 2,
    stop: ["never"],
    seed: 7,
    bypassCache: true,
    frequencyPenalty: 0.5,
    presencePenalty: -0.5,
    logitBias: { 5: -1 },
    extraBody: { top_k: 40 },
  };
  await printAnswer(client.complete("one two three", options));
  const sessionId = "gamma";
  const fresh = { systemPrompt: "New.", recreateIfGone: true, disconnectGraceMs: 1000 };
  await printAnswer(client.complete("seven", { sessionId, ...fresh }));
  await printAnswer(client.complete("eight", { sessionId, systemPrompt: "Other." }));
  await printAnswer(client.complete("nine", { sessionId: "nobody", requireExisting: true }));
}

async function tools(client: Client): Promise<void> {
  print("# tools");
  const weather = {
    name: "weather",
    description: "The weather.",
    parameters: '{"type": "object"}',
    strict: false,
  };
  const turn = { sessionId: "delta", tools: [weather], parallelToolCalls: false };
  const answer = client.complete("in Oslo", { ...turn, toolChoice: { function: "weather" } });
  await printAnswer(answer);
  const { toolCalls } = await answer.message();
  const results = toolCalls.map((call) => toolResult(call, "12 degrees"));
  await printAnswer(client.complete(results, turn));
  const toolChoice = { mode: ToolChoiceMode.TOOL_CHOICE_MODE_NONE };
  await printAnswer(client.complete("weather", { ...turn, toolChoice }));
  printMessages(await client.getSession("delta", SessionView.SESSION_VIEW_FULL));
}

async function formats(client: Client): Promise<void> {
  print("# formats");
  await printAnswer(client.complete("ada", { responseFormat: { jsonObject: true } }));
  const jsonSchema = JSON.stringify({ type: "object", properties: { name: { type: "string" } } });
  const responseFormat = { jsonSchema, name: "person", strict: true };
  await printAnswer(client.complete("ada", { responseFormat }));
}

async function resume(client: Client): Promise<void> {
  print("# resume");
  const turn = { sessionId: "epsilon", requestId: "resume-1" };
  const answer = client.complete("one two three", turn);
  await printAnswer(answer);
  const id = answer.started?.completionId ?? "";
  await printAnswer(client.resumeCompletion(id));
  await printAnswer(client.resumeCompletion(turn));
  const afterSequence = answer.lastSequence - 1;
  await printAnswer(client.resumeCompletion(id, { afterSequence }));
  await printAnswer(client.resumeCompletion("nobody"));
}

async function cancel(client: Client): Promise<void> {
  print("# cancel");
  const text = words(2000);
  const turn = { sessionId: "zeta", requestId: "cancel-1" };
  const answer = client.complete(text, turn);
  let readers = 0;
  for await (const piece of answer) {
    if (piece && readers++ === 0) await client.cancelCompletion(turn, { keepPartial: true });
  }
  const { finished } = answer;
  if (!finished) throw new Error("the stream ended without Finished");
  print(`finished ${reasonOf(finished)} exchanges=${String(finished.exchangeCount)}`);
  const length = finished.message?.content.length ?? 0;
  print(`partial ${word(0 < length && length < text.length)}`);

  const other = client.complete(text, { sessionId: "zeta" });
  const pieces = other[Symbol.asyncIterator]();
  await pieces.next();
  const id = other.started?.completionId ?? "";
  await client.cancelCompletion(id);
  await attempt(
    (async () => {
      while (!(await pieces.next()).done);
    })(),
  );
  await client.cancelCompletion(id);
  print("cancelled");
  print(sessionLine(await client.getSession("zeta")));
  await attempt(client.cancelCompletion("nobody"));
}

async function batches(client: Client): Promise<void> {
  print("# batch");
  const items: (string | CompleteRequestInit)[] = [
    "a",
    "!fault ENGINE_REJECTED",
    { messages: "b", sessionId: "eta" },
    { messages: "c", sessionId: "eta" },
    { messages: "too hot", temperature: 3 },
  ];
  await runBatch(client, items, (content) => `[${content}]`);
  print(sessionLine(await client.getSession("eta")));
  const large = Array<string>(5).fill("x".repeat(1_000_000));
  await runBatch(client, large, (content) => `bytes=${String(content.length)}`);
  const wrong = client.batch(["a"], { maxConcurrency: -1 })[Symbol.asyncIterator]();
  await attempt(wrong.next());
}

async function runBatch(
  client: Client,
  items: (string | CompleteRequestInit)[],
  show: (content: string) => string,
): Promise<void> {
  const batch = client.batch(items, { maxConcurrency: 2 });
  const outcomes: BatchOutcome[] = [];
  for await (const outcome of batch) outcomes.push(outcome);
  outcomes.sort((one, other) => one.index - other.index);
  for (const { index, completion, error } of outcomes) {
    const content = completion?.finished?.message?.content ?? "";
    const result = error ? `error ${codeOf(error)} ${error.reason || "-"}` : show(content);
    print(`item ${String(index)} ${result}`);
  }
  const { succeeded, failed, usage } = batch.summary ?? {};
  const counts = `succeeded=${String(succeeded)} failed=${String(failed)}`;
  const { promptTokens, completionTokens } = usage ?? {};
  print(`summary ${counts} prompt=${String(promptTokens)} answer=${String(completionTokens)}`);
}

async function end(client: Client): Promise<void> {
  print("# end");
  await client.appendMessages("alpha", "bye");
  describe(await client.getSession("alpha"));
  await client.endSession("alpha");
  print("ended");
  await attempt(client.endSession("alpha"));
  await client.endSession("alpha", { allowMissing: true });
  print("ended");
}

async function server(client: Client): Promise<void> {
  print("# server");
  const { models, defaultModel } = await client.listModels();
  print(`models ${models.join(" ")} default=${defaultModel}`);
  const { version, instanceId, features, limits, engines } = await client.getServerInfo();
  print(`info version=${word(version !== "")} instance=${word(instanceId !== "")}`);
  for (const feature of FEATURES) print(`feature ${feature} ${word(features.includes(feature))}`);
  if (!limits) throw new Error("the daemon has no limits");
  const numbers = {
    max_request_bytes: limits.maxRequestBytes,
    max_message_bytes: limits.maxMessageBytes,
    max_messages: limits.maxMessages,
    max_session_bytes: limits.maxSessionBytes,
    max_sessions: limits.maxSessions,
    max_inflight: limits.maxInflight,
    max_batch_items: limits.maxBatchItems,
    max_answer_bytes: limits.maxAnswerBytes,
    max_output_tokens: limits.maxOutputTokens,
  };
  for (const [name, value] of Object.entries(numbers)) print(`limit ${name} ${optional(value)}`);
  print(`limit idle_timeout ${optional(limits.idleTimeout?.seconds)}s`);
  print(`limit completion_retention ${optional(limits.completionRetention?.seconds)}s`);
  for (const engine of engines) {
    const sizes = `tokens=${optional(engine.windowTokens)} slots=${optional(engine.slots)}`;
    const names = `default=${engine.defaultModel} models=${engine.models.join(" ")}`;
    print(`engine ${engine.name} ready=${word(engine.ready)} ${names} ${sizes}`);
  }
  print(`health ${word(await client.health())}`);
}

async function metrics(client: Client): Promise<void> {
  print("# metrics");
  const found = await client.getSessionMetrics();
  print(`sessions total=${String(found.totalSessions)} active=${String(found.activeSessions)}`);
  const stateless = String(found.statelessCompletions);
  print(`completions ${String(found.sessionCompletions)} stateless=${stateless}`);
  print(`messages average=${found.avgMessagesPerSession.toFixed(2)}`);
  const measured = {
    cache_hit_rate: found.cacheHitRate,
    avg_session_latency: found.avgSessionLatency,
    avg_stateless_latency: found.avgStatelessLatency,
    avg_latency_reduction: found.avgLatencyReduction,
    avg_prefill_reduction: found.avgPrefillReduction,
  };
  for (const [name, value] of Object.entries(measured)) {
    print(`measured ${name} ${word(value !== undefined)}`);
  }
}
