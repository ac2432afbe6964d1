/**
 * Tests of the provider, without a daemon and with a real one.
 *
 * The last two groups need a daemon at RUVD_ADDRESS, with `--engine echo --echo-faults
 * --echo-delay-seconds 0.02` or, if RUVD_ENGINE is llama, with the embedded engine.
 */

/* eslint-disable @typescript-eslint/no-floating-promises -- node:test awaits its tests itself */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Client, FinishReason, Role, RuvdError, SessionView, status } from "../src/client.js";
import type { Message } from "../src/client.js";
import { fromCall, toResponse, unsentMessages } from "../src/ruvllm-messages.js";
import { LLMProviderError, RuvllmProvider } from "../src/ruvllm-provider.js";
import type { LLMCompletionResponse, LLMMessageParam } from "../src/ruvllm-provider.js";
import { OpenSessions } from "../src/ruvllm-sessions.js";
import { ErrorInfo } from "../src/v1/google/rpc/error_details.js";
import { Finished } from "../src/v1/ruvd/v1/session_service.js";

const NOBODY = "127.0.0.1:1";
const ENGINE = process.env.RUVD_ADDRESS ? (process.env.RUVD_ENGINE ?? "echo") : "none";

const user = (content: string): LLMMessageParam => ({ role: "user", content });
const answer = (content: string): LLMMessageParam => ({ role: "assistant", content });
const convert = (...messages: LLMMessageParam[]): Message[] => fromCall({ messages }).messages;

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `not within 60 s: ${String(condition)}`);
    await sleep(10);
  }
}

function text({ content }: LLMCompletionResponse): string {
  return content[0]?.text ?? "";
}

describe("the new messages of a call", () => {
  const history = convert(user("one"), answer("1"), user("two"), answer("2"));

  const cases: [string, LLMMessageParam[], LLMMessageParam[]][] = [
    ["are all messages if it has only new ones", [user("three")], [user("three")]],
    ["include a repetition of an earlier message", [user("one")], [user("one")]],
    [
      "are those after the whole history",
      [user("one"), answer("1"), user("two"), answer("2"), user("three")],
      [user("three")],
    ],
    ["are those after its end", [user("two"), answer("2"), user("three")], [user("three")]],
    [
      "are those after an answer with different white space",
      [user("two"), answer(" 2\n"), user("three")],
      [user("three")],
    ],
    [
      "include a turn that another model answered",
      [user("two"), answer("2"), user("three"), answer("3"), user("four")],
      [user("three"), answer("3"), user("four")],
    ],
    [
      "are those after an edited answer, without the edit",
      [user("two"), answer("II"), user("three")],
      [user("three")],
    ],
    ["are none if it only repeats the history", [user("two"), answer("2")], []],
  ];
  for (const [claim, messages, expected] of cases) {
    it(claim, () => {
      assert.deepEqual(unsentMessages(history, convert(...messages)), convert(...expected));
    });
  }

  it("are all messages in a session without a history", () => {
    assert.deepEqual(unsentMessages([], history), history);
  });
});

describe("a converted call", () => {
  it("has all system texts, in any position, as its system prompt", () => {
    const messages: LLMMessageParam[] = [user("hi"), { role: "system", content: "Be kind." }];
    const call = fromCall({ system: [{ type: "text", text: "Be brief." }], messages });
    assert.equal(call.systemPrompt, "Be brief.\nBe kind.");
    assert.deepEqual(call.messages, convert(user("hi")));
  });

  it("has tools, tool calls and their results", () => {
    const converted = fromCall({
      tools: [{ name: "weather", input_schema: { type: "object" } }],
      messages: [
        {
          role: "assistant",
          content: [{ type: "tool_use", id: "c1", name: "weather", input: {} }],
        },
        {
          role: "user",
          content: [
            { type: "tool_result", tool_use_id: "c1", content: [{ type: "text", text: "rain" }] },
            { type: "text", text: "And now?" },
          ],
        },
      ],
    });
    assert.deepEqual(converted.tools?.[0]?.parameters, '{"type":"object"}');
    const [call, result, question] = converted.messages;
    const expected = { id: "c1", name: "weather", arguments: "{}", engineData: "" };
    assert.deepEqual(call?.toolCalls, [expected]);
    assert.deepEqual(
      [result?.role, result?.toolCallId, result?.content],
      [Role.ROLE_TOOL, "c1", "rain"],
    );
    assert.deepEqual([question?.role, question?.content], [Role.ROLE_USER, "And now?"]);
  });

  it("is rejected if it has an image, which ruvd does not support", () => {
    const image = { role: "user" as const, content: [{ type: "image" as const, source: {} }] };
    assert.throws(() => fromCall({ messages: [image] }), { code: "UNSUPPORTED" });
  });
});

describe("a converted answer", () => {
  const finished = Finished.fromPartial({
    finishReason: FinishReason.FINISH_REASON_TOOL_CALLS,
    message: {
      role: Role.ROLE_ASSISTANT,
      toolCalls: [
        { id: "c1", name: "weather", arguments: '{"city": "Bern"}' },
        { id: "c2", name: "weather", arguments: "{broken" },
      ],
    },
    usage: { promptTokens: 100, cachedTokens: 80, completionTokens: 7 },
    exchangeCount: 1,
  });

  it("has its tool calls after its text, and invalid JSON arguments as text", () => {
    const { content, stop_reason } = toResponse({ finished }, 1);
    assert.equal(stop_reason, "tool_use");
    assert.deepEqual(content, [
      { type: "text", text: "" },
      { type: "tool_use", text: "", id: "c1", name: "weather", input: { city: "Bern" } },
      { type: "tool_use", text: "", id: "c2", name: "weather", input: "{broken" },
    ]);
  });

  it("separates cached tokens only if the engine reports them", () => {
    assert.deepEqual(toResponse({ finished }, 1).usage, {
      input_tokens: 20,
      output_tokens: 7,
      cache_read_input_tokens: 80,
    });
    const usage = { promptTokens: 100, completionTokens: 7 };
    const { usage: converted } = toResponse({ finished: { ...finished, usage } }, 1);
    assert.deepEqual(converted, { input_tokens: 100, output_tokens: 7 });
  });
});

describe("without a daemon", () => {
  it("sessions are created, found and ended synchronously", () => {
    const provider = new RuvllmProvider({ address: NOBODY });
    const start = Date.now();
    const session = provider.createSession();
    assert.deepEqual({ ...session, id: "", createdAt: 0, lastUsedAt: 0 }, {
      id: "", createdAt: 0, lastUsedAt: 0, messageCount: 0, context: [],
    }); // prettier-ignore
    assert.ok(session.createdAt >= start && session.createdAt <= Date.now());
    assert.equal(session.lastUsedAt, session.createdAt);
    assert.match(session.id, /^[A-Za-z0-9._:-]{1,128}$/);
    assert.equal(provider.getSession(session.id), session);
    assert.deepEqual(provider.getSessionMetrics(), {
      totalSessions: 1,
      activeSessions: 1,
      avgMessagesPerSession: 0,
      avgLatencyReduction: 0,
      cacheHitRate: 0,
    });
    assert.equal(provider.endSession(session.id), true);
    assert.equal(provider.endSession(session.id), false);
    assert.equal(provider.getSession(session.id), undefined);
    assert.equal(provider.getSessionMetrics().totalSessions, 0);
  });

  it("no more than maxSessions are open, and the least recently used is evicted", () => {
    const provider = new RuvllmProvider({ maxSessions: 2 });
    const [first, second, third] = [1, 2, 3].map(() => provider.createSession().id);
    assert.equal(provider.getSession(first ?? ""), undefined);
    assert.ok(provider.getSession(second ?? ""));
    assert.ok(provider.getSession(third ?? ""));
  });

  it("a session expires when it was not used for sessionTimeout", ({ mock }) => {
    mock.timers.enable({ apis: ["Date"] });
    const provider = new RuvllmProvider({ sessionTimeout: 30 });
    const { id } = provider.createSession();
    mock.timers.tick(29);
    assert.ok(provider.getSession(id));
    mock.timers.tick(1);
    assert.equal(provider.getSession(id), undefined);
    assert.equal(provider.getSessionMetrics().activeSessions, 0);
    assert.equal(provider.endSession(id), false);
  });

  it("initialize fails, and a call before it is an error", async () => {
    const provider = new RuvllmProvider({ address: NOBODY });
    const call = { messages: [user("hi")] };
    await assert.rejects(provider.complete(call), { code: "NOT_INITIALIZED", retryable: false });
    await assert.rejects(provider.batchComplete([call]), { code: "NOT_INITIALIZED" });
    await assert.rejects(provider.streamComplete(call).next(), { code: "NOT_INITIALIZED" });
    await assert.rejects(provider.initialize(), { code: "INIT_ERROR", retryable: true });
    const health = await provider.healthCheck();
    assert.equal(health.healthy, false);
    assert.match(health.error ?? "", /initialize/);
    await provider.shutdown();
  });

  it("a token that would be sent in plain text is an error of initialize", async () => {
    const provider = new RuvllmProvider({ address: "192.0.2.1:1", token: "secret" });
    await assert.rejects(provider.initialize(), { code: "INIT_ERROR", retryable: false });
  });

  it("a session that the daemon has ended by itself is created again", () => {
    const sessions = new OpenSessions(60_000, 1);
    for (const reason of ["SESSION_NOT_FOUND", "SESSION_EVICTED", "SESSION_EXPIRED"]) {
      const entry = sessions.use("s");
      entry.opened = Promise.resolve();
      entry.history = convert(user("one"));
      const info = ErrorInfo.encode(ErrorInfo.fromPartial({ domain: "ruvd", reason })).finish();
      const detail = {
        typeUrl: "type.googleapis.com/google.rpc.ErrorInfo",
        value: Buffer.from(info),
      };
      assert.ok(sessions.forgetIfLost(entry, new RuvdError(status.NOT_FOUND, "gone", [detail])));
      assert.deepEqual([entry.opened, entry.history], [undefined, []]);
    }
    const entry = sessions.use("s");
    assert.ok(!sessions.forgetIfLost(entry, new RuvdError(status.NOT_FOUND, "a proxy's")));
  });

  it("limits that allow no session are rejected", () => {
    assert.throws(() => new RuvllmProvider({ maxSessions: 0 }), RangeError);
    assert.throws(() => new RuvllmProvider({ sessionTimeout: -1 }), RangeError);
  });
});

describe("on the echo engine", { skip: ENGINE !== "echo" && "needs a daemon" }, () => {
  const provider = new RuvllmProvider({ sessionTimeout: 60_000, maxSessions: 3 });
  const client = new Client();
  const find = (id: string) => client.getSession(id, SessionView.SESSION_VIEW_FULL);
  const gone = (id: string) =>
    client.getSession(id).then(
      () => false,
      (error: unknown) => error instanceof RuvdError && error.reason === "SESSION_NOT_FOUND",
    );
  const say = (sessionId: string, ...messages: LLMMessageParam[]) =>
    provider.complete({ messages, metadata: { sessionId } });

  before(() => provider.initialize());
  after(async () => {
    await provider.shutdown();
    client.close();
  });

  it("a session is created with its first call, and each call updates its snapshot", async () => {
    const session = provider.createSession();
    assert.ok(await gone(session.id));
    const metadata = { sessionId: session.id };
    const first = await provider.complete({
      system: "Be brief.",
      messages: [user("one")],
      metadata,
    });
    assert.equal(text(first), "one");
    assert.equal(first.stop_reason, "end_turn");
    assert.equal(first.model, "echo");
    assert.ok(first.id);
    assert.equal(first.metadata.sessionId, session.id);
    assert.ok(first.metadata.latency > 0);
    await say(session.id, user("two"));
    assert.equal(session.messageCount, 4);
    assert.deepEqual(session.context, [
      "User: one",
      "Assistant: one",
      "User: two",
      "Assistant: two",
    ]);
    const stored = await find(session.id);
    assert.equal(stored.systemPrompt, "Be brief.");
    assert.equal(stored.idleTimeout?.seconds, 60);
    assert.equal(session.createdAt, stored.createTime?.getTime());
    assert.equal(session.lastUsedAt, stored.lastUsedTime?.getTime());
  });

  it("passing the whole conversation every time duplicates no message", async () => {
    const { id } = provider.createSession();
    const conversation: LLMMessageParam[] = [];
    for (const words of ["one", "two", "three"]) {
      conversation.push(user(words));
      const response = await say(id, ...conversation);
      conversation.push(answer(text(response)));
    }
    const { messages } = await find(id);
    assert.deepEqual(messages, convert(...conversation));
  });

  it("a conversation with another model continues in a session", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"), answer("1"), user("two"));
    assert.deepEqual(
      (await find(id)).messages,
      convert(user("one"), answer("1"), user("two"), answer("two")),
    );
  });

  it("options reach the engine, and stop_reason reports the token limit", async () => {
    const response = await provider.complete({ messages: [user("one two three")], maxTokens: 2 });
    assert.equal(text(response).trim(), "one two");
    assert.equal(response.stop_reason, "max_tokens");
    assert.equal(response.usage.output_tokens, 2);
    const invalid = provider.complete({ messages: [user("hi")], temperature: 3 });
    await assert.rejects(invalid, (error: LLMProviderError) => {
      assert.equal(error.code, "INFERENCE_ERROR");
      assert.equal(error.retryable, false);
      return error.cause instanceof RuvdError && error.cause.reason === "INVALID_REQUEST";
    });
  });

  it("a temporary error is retryable", async () => {
    const fault = provider.complete({ messages: [user("!fault ENGINE_UNAVAILABLE")] });
    await assert.rejects(fault, { code: "INFERENCE_ERROR", retryable: true });
  });

  it("without enableSessions a session id has no effect", async () => {
    const stateless = new RuvllmProvider({ enableSessions: false });
    await stateless.initialize();
    const { id } = stateless.createSession();
    await stateless.complete({ messages: [user("hi")], metadata: { sessionId: id } });
    await stateless.shutdown();
    assert.ok(await gone(id));
  });

  it("the least recently used session is ended in the daemon when there are too many", async () => {
    const ids = ["lru-1", "lru-2", "lru-3"];
    for (const id of ids) await say(id, user("hi"));
    await say("lru-1", user("again"));
    await say("lru-4", user("hi"));
    await until(() => gone("lru-2"));
    assert.equal(provider.getSessionMetrics().totalSessions, 3);
    assert.equal((await find("lru-1")).messageCount, 4);
  });

  it("an ended session is deleted, and its id can be used for a new one", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"));
    assert.equal(provider.endSession(id), true);
    await say(id, user("two"));
    assert.equal(provider.getSession(id)?.messageCount, 2);
    assert.equal((await find(id)).messageCount, 2);
    provider.endSession(id);
    await until(() => gone(id));
  });

  it("a session that the daemon has lost is created again by its next call", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"));
    await client.endSession(id);
    assert.equal(text(await say(id, user("two"))), "two");
    assert.deepEqual((await find(id)).messages, convert(user("two"), answer("two")));
    assert.equal((await find(id)).idleTimeout?.seconds, 60);
  });

  it("another provider can continue a session after the first has shut down", async () => {
    const first = new RuvllmProvider();
    await first.initialize();
    const metadata = { sessionId: first.createSession().id };
    await first.complete({ messages: [user("one")], metadata });
    await first.shutdown();
    const second = new RuvllmProvider();
    await second.initialize();
    const messages = [user("one"), answer("one"), user("two")];
    await second.complete({ messages, metadata });
    assert.equal(second.getSession(metadata.sessionId)?.messageCount, 4);
    second.endSession(metadata.sessionId);
    await second.shutdown();
    assert.ok(await gone(metadata.sessionId));
  });

  it("concurrent calls in a session are all committed", async () => {
    const { id } = provider.createSession();
    await Promise.all(["a", "b", "c", "d"].map((words) => say(id, user(words))));
    assert.equal(provider.getSession(id)?.messageCount, 8);
    assert.equal((await find(id)).messageCount, 8);
  });

  it("a stream yields the text in pieces and the whole at its end", async () => {
    const { id } = provider.createSession();
    const types: string[] = [];
    let streamed = "";
    let whole: Partial<LLMCompletionResponse> | undefined;
    const stream = provider.streamComplete({
      messages: [user("a b c")],
      metadata: { sessionId: id },
    });
    for await (const { type, delta, message } of stream) {
      if (types.at(-1) !== type) types.push(type);
      streamed += delta?.text ?? "";
      whole = message;
    }
    assert.deepEqual(types, [
      "message_start",
      "content_block_start",
      "content_block_delta",
      "content_block_stop",
      "message_delta",
      "message_stop",
    ]);
    assert.equal(streamed, "a b c");
    assert.deepEqual(whole?.content, [{ type: "text", text: "a b c" }]);
    assert.equal(whole.stop_reason, "end_turn");
    assert.equal(provider.getSession(id)?.messageCount, 2);
  });

  it("leaving a stream cancels its turn and leaves the session unchanged", async () => {
    const { id } = provider.createSession();
    await say(id, user("before"));
    const longMessage = user(
      Array.from({ length: 500 }, (_, index) => `w${String(index)}`).join(" "),
    );
    for await (const { delta } of provider.streamComplete({
      messages: [longMessage],
      metadata: { sessionId: id },
    })) {
      if (delta) break;
    }
    await until(async () => (await client.getSession(id)).runningCompletionId === "");
    assert.equal((await find(id)).messageCount, 2);
    await say(id, user("after"));
    assert.equal((await find(id)).messageCount, 4);
  });

  it("a failing stream throws", async () => {
    const read = async () => {
      const messages = [user("!fault ENGINE_REJECTED")];
      for await (const { delta } of provider.streamComplete({ messages }))
        assert.equal(delta, undefined);
    };
    await assert.rejects(read, { code: "STREAM_ERROR", retryable: false });
  });

  it("a batch keeps its order, and an item's failure does not affect the others", async () => {
    const { id } = provider.createSession();
    const metadata = { sessionId: id };
    const answers = await provider.batchComplete([
      { messages: [user("a")] },
      { messages: [user("!fault ENGINE_REJECTED")] },
      { messages: [user("b")], metadata },
      { messages: [user("c")], metadata },
      { messages: [user("d")], metadata: { sessionId: "no spaces" } },
    ]);
    assert.deepEqual(answers.map(text), ["a", "", "b", "c", ""]);
    const reasons = answers.map(({ metadata }) => metadata.reason);
    assert.deepEqual(reasons, [
      undefined,
      "ENGINE_REJECTED",
      undefined,
      undefined,
      "INVALID_REQUEST",
    ]);
    assert.ok(answers[1]?.metadata.error);
    assert.equal(provider.getSession(id)?.messageCount, 4);
    assert.deepEqual(await provider.batchComplete([]), []);
  });

  it("a batch throws if all items fail", async () => {
    const failing = { messages: [user("!fault ENGINE_REJECTED")] };
    await assert.rejects(provider.batchComplete([failing, failing]), { code: "BATCH_ERROR" });
  });

  it("is healthy until its shutdown, which does not affect the daemon and its sessions", async () => {
    const fresh = new RuvllmProvider();
    await fresh.initialize();
    await fresh.initialize();
    const health = await fresh.healthCheck();
    assert.equal(health.healthy, true);
    assert.equal(health.error, undefined);
    assert.ok(health.timestamp instanceof Date);
    const { id } = fresh.createSession();
    await fresh.complete({ messages: [user("hi")], metadata: { sessionId: id } });
    await fresh.shutdown();
    assert.equal((await fresh.healthCheck()).healthy, false);
    assert.equal((await find(id)).messageCount, 2);
    await client.endSession(id);
  });
});

describe("on the embedded engine", { skip: ENGINE !== "llama" && "needs a daemon" }, () => {
  it("a conversation of two turns is stored, cached and measured", async () => {
    const provider = new RuvllmProvider({
      enableSessions: true,
      sessionTimeout: 30 * 60 * 1000,
      maxSessions: 100,
    });
    await provider.initialize();
    const session = provider.createSession();
    const turn = (content: string) =>
      provider.complete({
        messages: [{ role: "user", content }],
        metadata: { sessionId: session.id },
        maxTokens: 40,
        temperature: 0,
      });
    const first = await turn("What is quality engineering?");
    const second = await turn("How does it differ from QA?");
    for (const response of [first, second]) {
      assert.ok(text(response).length > 0);
      assert.equal(response.content[0]?.type, "text");
      assert.ok(["end_turn", "max_tokens"].includes(response.stop_reason));
      assert.ok(response.usage.output_tokens > 0);
    }
    const { input_tokens, cache_read_input_tokens: cached = 0 } = second.usage;
    assert.ok(cached > 0 && cached > input_tokens, JSON.stringify(second.usage));
    assert.deepEqual(provider.getSession(session.id)?.context, [
      "User: What is quality engineering?",
      `Assistant: ${text(first)}`,
      "User: How does it differ from QA?",
      `Assistant: ${text(second)}`,
    ]);
    const metrics = provider.getSessionMetrics();
    assert.equal(metrics.totalSessions, 1);
    assert.equal(metrics.activeSessions, 1);
    assert.equal(metrics.avgMessagesPerSession, 4);
    assert.ok(metrics.cacheHitRate > 0 && metrics.cacheHitRate < 100, String(metrics.cacheHitRate));
    assert.equal(metrics.cacheHitRate, metrics.daemon?.cacheHitRate);
    // Without stateless completions there is no comparison; `daemon` distinguishes that from 0.
    assert.equal(metrics.avgLatencyReduction, 0);
    assert.equal(metrics.daemon?.avgLatencyReduction, undefined);
    await provider.complete({ messages: [user("Say hello.")], maxTokens: 8, temperature: 0 });
    const { avgLatencyReduction, daemon } = provider.getSessionMetrics();
    assert.ok(avgLatencyReduction !== 0);
    assert.equal(avgLatencyReduction, daemon?.avgLatencyReduction);
    assert.equal(provider.endSession(session.id), true);
    await provider.shutdown();
  });
});
