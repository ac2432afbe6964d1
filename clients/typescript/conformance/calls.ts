/** `PROGRAM calls` of clients/CONFORMANCE.md: every call of the service with all of its fields. */

import {
  Client,
  Compaction,
  FinishReason,
  Rendering,
  Role,
  SessionView,
  ToolChoiceMode,
  toolResult,
} from "../src/client.js";
import type {
  BatchOutcome,
  CompleteRequestInit,
  Completion,
  ContextWindow,
  DeepPartial,
  Finished,
  Session,
  SessionInit,
  ToolCall,
  Usage,
} from "../src/client.js";
import { codeOf, connect, describe as sessionLine, print, printError, words } from "./output.js";

const WINDOW: DeepPartial<ContextWindow> = {
  maxTokens: 100,
  rendering: Rendering.RENDERING_MESSAGES,
  compaction: Compaction.COMPACTION_NONE,
  keepFirst: 1,
  compactAt: 0.5,
};
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

async function create(client: Client): Promise<void> {
  print("# create");
  const init: SessionInit = {
    sessionId: "alpha",
    systemPrompt: "Be brief.",
    messages: [
      { role: Role.ROLE_USER, content: "one", pinned: true },
      { role: Role.ROLE_ASSISTANT, content: "uno" },
      { role: Role.ROLE_USER, content: "two" },
      { role: Role.ROLE_ASSISTANT, content: "dos" },
    ],
    labels: { user: "ada", team: "a" },
    contextWindow: { keepExchanges: 1, maxExchanges: 4, ...WINDOW },
    idleTimeoutMs: 600_000,
    model: "echo",
    requestId: "create-1",
    compactionInstruction: "Keep numbers.",
    summary: "uno came first",
    summaryExchangeCount: 1,
  };
  describe(await client.createSession(init));
  print(sessionLine(await client.createSession(init)));
  await attempt(client.createSession({ ...init, labels: {} }));
  await attempt(client.createSession({ sessionId: "alpha" }));
  const { id } = await client.createSession();
  print(`made ${word(id !== "")}`);
  await client.endSession(id);
}

async function get(client: Client): Promise<void> {
  print("# get");
  printMessages(await client.getSession("alpha", SessionView.SESSION_VIEW_FULL));
  const { messages } = await client.getSession("alpha");
  print(`messages ${String(messages.length)}`);
  await attempt(client.getSession("nobody"));
}

async function list(client: Client): Promise<void> {
  print("# list");
  for (let number = 1; number <= 105; number++) {
    await client.createSession({ sessionId: `p${String(number)}`, labels: { page: "yes" } });
  }
  const filters: Record<string, string>[] = [
    { page: "yes" },
    { team: "a", user: "ada" },
    { team: "none" },
  ];
  for (const labels of filters) {
    const found: string[] = [];
    for await (const { id } of client.listSessions(labels)) found.push(id);
    const ends = [...found.slice(0, 1), ...found.slice(-1)];
    print(["listed", found.length, ...ends].join(" "));
  }
}

async function update(client: Client): Promise<void> {
  print("# update");
  const changes = {
    labels: { team: "b" },
    idleTimeoutMs: 300_000,
    contextWindow: { keepExchanges: 2, maxExchanges: 6, ...WINDOW },
    compactionInstruction: "Keep names.",
  };
  describe(await client.updateSession("alpha", changes));
  const updateMask = ["idle_timeout", "compaction_instruction"];
  describe(await client.updateSession("alpha", { updateMask }));
  await attempt(client.updateSession("nobody", { labels: { a: "b" } }));
}

async function append(client: Client): Promise<void> {
  print("# append");
  for (const text of ["three", "three", "other"]) {
    const call = client.appendMessages("alpha", text, { requestId: "append-1" });
    await call.then((session) => {
      print(sessionLine(session));
    }, printError);
  }
  const messages = [{ role: Role.ROLE_ASSISTANT, content: "tres" }];
  const options = { summary: "uno, then dos", summaryExchangeCount: 2 };
  describe(await client.appendMessages("alpha", messages, options));
  await attempt(client.appendMessages("nobody", "hi"));
}

async function fork(client: Client): Promise<void> {
  print("# fork");
  const options = { exchangeCount: 1, newSessionId: "alpha-fork", requestId: "fork-1" };
  describe(await client.forkSession("alpha", options));
  print(sessionLine(await client.forkSession("alpha", options)));
  await attempt(client.forkSession("alpha", { newSessionId: "alpha" }));
  await attempt(client.forkSession("alpha", { exchangeCount: 99 }));
  await attempt(client.forkSession("nobody"));
}

async function compact(client: Client): Promise<void> {
  print("# compact");
  const messages = [1, 2, 3].flatMap((number) => [
    { role: Role.ROLE_USER, content: `question ${String(number)}` },
    { role: Role.ROLE_ASSISTANT, content: `answer ${String(number)}` },
  ]);
  const contextWindow = { keepExchanges: 1, maxExchanges: 10 };
  await client.createSession({ sessionId: "beta", messages, contextWindow });
  for (const dryRun of [true, false]) {
    const done = await client.compactSession("beta", { dryRun });
    const { summarizedExchanges, keptExchanges, bytesBefore, bytesAfter, session, usage } = done;
    const counts = `exchanges=${String(summarizedExchanges)} kept=${String(keptExchanges)}`;
    const after = word(bytesAfter !== undefined);
    print(`compaction ${counts} before=${String(bytesBefore)} after=${after}`);
    const { summary = "", summaryExchangeCount = 0, compactions = 0 } = session ?? {};
    print(`summary ${word(summary !== "")} of=${String(summaryExchangeCount)}`);
    print(`compactions ${String(compactions)} usage=${word(usage !== undefined)}`);
  }
  const { summarizedExchanges } = await client.compactSession("beta");
  print(`again exchanges=${String(summarizedExchanges)}`);
  await attempt(client.compactSession("nobody"));
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

/** Prints the error of a call that has to fail. */
async function attempt(call: Promise<unknown>): Promise<void> {
  await call.then(() => {
    throw new Error("the call should have failed");
  }, printError);
}

/** Waits for the whole answer and prints it, or its error. */
async function printAnswer(answer: Completion): Promise<void> {
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

function printCalls(toolCalls: ToolCall[]): void {
  for (const { id, name, arguments: text } of toolCalls) print(`call ${id} ${name} ${text}`);
}

function printMessages({ messages }: Session): void {
  for (const { role, content, toolCalls, toolCallId, pinned } of messages) {
    const notes = `${pinned ? " pinned" : ""}${toolCallId && ` of=${toolCallId}`}`;
    print(`message ${Role[role].replace("ROLE_", "")} [${content}]${notes}`);
    printCalls(toolCalls);
  }
}

/** Prints all fields of a session but its messages. */
function describe(session: Session): void {
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

function usageLine(usage: Usage | undefined): string {
  const { promptTokens = 0, cachedTokens, completionTokens = 0 } = usage ?? {};
  const prompt = String(promptTokens);
  return `usage prompt=${prompt} cached=${optional(cachedTokens)} answer=${String(completionTokens)}`;
}

function reasonOf({ finishReason }: Finished): string {
  return FinishReason[finishReason].replace("FINISH_REASON_", "");
}

function optional(value: number | undefined): string {
  return value === undefined ? "-" : String(value);
}

function word(value: boolean): string {
  return value ? "yes" : "no";
}
