/**
 * The drop-in provider: what it works out by itself, and what comes of it on a real daemon.
 *
 * The last two groups need one at RUVD_ADDRESS, with `--engine echo --echo-faults
 * --echo-delay-seconds 0.02` or, when RUVD_ENGINE is llama, with the embedded engine.
 */

/* eslint-disable @typescript-eslint/no-floating-promises -- node:test awaits its tests itself */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { Client, FinishReason, Role, RuvdError, SessionView } from "../src/client.js";
import type { Message } from "../src/client.js";
import { fromCall, toResponse, unseen } from "../src/ruvllm-messages.js";
import { LLMProviderError, RuvllmProvider } from "../src/ruvllm-provider.js";
import type { LLMCompletionResponse, LLMMessageParam } from "../src/ruvllm-provider.js";

const NOBODY = "127.0.0.1:1";
const ENGINE = process.env.RUVD_ADDRESS ? (process.env.RUVD_ENGINE ?? "echo") : "none";

const user = (content: string): LLMMessageParam => ({ role: "user", content });
const answer = (content: string): LLMMessageParam => ({ role: "assistant", content });
const told = (...messages: LLMMessageParam[]): Message[] => fromCall({ messages }).messages;

async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 5000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `not within 5 s: ${String(condition)}`);
    await sleep(10);
  }
}

function text({ content }: LLMCompletionResponse): string {
  return content[0]?.text ?? "";
}

describe("what is new in a call", () => {
  const history = told(user("one"), answer("1"), user("two"), answer("2"));

  const cases: [string, LLMMessageParam[], LLMMessageParam[]][] = [
    ["the new message alone is", [user("three")], [user("three")]],
    ["a message that was said before is, said again", [user("one")], [user("one")]],
    [
      "what follows the whole history is",
      [user("one"), answer("1"), user("two"), answer("2"), user("three")],
      [user("three")],
    ],
    ["what follows its end is", [user("two"), answer("2"), user("three")], [user("three")]],
    [
      "what follows an answer whose white space was trimmed is",
      [user("two"), answer(" 2\n"), user("three")],
      [user("three")],
    ],
    [
      "a turn that was answered elsewhere is",
      [user("two"), answer("2"), user("three"), answer("3"), user("four")],
      [user("three"), answer("3"), user("four")],
    ],
    [
      "what follows an answer that was edited is, and the edit is not",
      [user("two"), answer("II"), user("three")],
      [user("three")],
    ],
    ["nothing is where the history is all there is", [user("two"), answer("2")], []],
  ];
  for (const [claim, given, expected] of cases) {
    it(claim, () => {
      assert.deepEqual(unseen(history, told(...given)), told(...expected));
    });
  }

  it("everything is in a session without a history", () => {
    assert.deepEqual(unseen([], history), history);
  });
});

describe("a call in ruvd's words", () => {
  it("has the system texts, wherever they stand, as its system prompt", () => {
    const messages: LLMMessageParam[] = [user("hi"), { role: "system", content: "Be kind." }];
    const asked = fromCall({ system: [{ type: "text", text: "Be brief." }], messages });
    assert.equal(asked.systemPrompt, "Be brief.\nBe kind.");
    assert.deepEqual(asked.messages, told(user("hi")));
  });

  it("has tools, tool calls and their results", () => {
    const asked = fromCall({
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
    assert.deepEqual(asked.tools?.[0]?.parameters, '{"type":"object"}');
    const [call, result, question] = asked.messages;
    assert.deepEqual(call?.toolCalls, [{ id: "c1", name: "weather", arguments: "{}" }]);
    assert.deepEqual(
      [result?.role, result?.toolCallId, result?.content],
      [Role.ROLE_TOOL, "c1", "rain"],
    );
    assert.deepEqual([question?.role, question?.content], [Role.ROLE_USER, "And now?"]);
  });

  it("is refused with an image in it, which ruvd would lose", () => {
    const image = { role: "user" as const, content: [{ type: "image" as const, source: {} }] };
    assert.throws(() => fromCall({ messages: [image] }), { code: "UNSUPPORTED" });
  });
});

describe("an answer in the provider's words", () => {
  const finished = {
    finishReason: FinishReason.FINISH_REASON_TOOL_CALLS,
    message: {
      role: Role.ROLE_ASSISTANT,
      content: "",
      toolCalls: [
        { id: "c1", name: "weather", arguments: '{"city": "Bern"}' },
        { id: "c2", name: "weather", arguments: "{broken" },
      ],
      toolCallId: "",
      reasoning: "",
    },
    usage: { promptTokens: 100, cachedTokens: 80, completionTokens: 7 },
    timings: undefined,
    exchangeCount: 1,
  };

  it("has its tool calls after its text, and arguments that are no JSON as they are", () => {
    const { content, stop_reason } = toResponse({ finished }, 1);
    assert.equal(stop_reason, "tool_use");
    assert.deepEqual(content, [
      { type: "text", text: "" },
      { type: "tool_use", text: "", id: "c1", name: "weather", input: { city: "Bern" } },
      { type: "tool_use", text: "", id: "c2", name: "weather", input: "{broken" },
    ]);
  });

  it("tells cached tokens from others only where the engine does", () => {
    assert.deepEqual(toResponse({ finished }, 1).usage, {
      input_tokens: 20,
      output_tokens: 7,
      cache_read_input_tokens: 80,
    });
    const usage = { promptTokens: 100, completionTokens: 7 };
    const { usage: found } = toResponse({ finished: { ...finished, usage } }, 1);
    assert.deepEqual(found, { input_tokens: 100, output_tokens: 7 });
  });
});

describe("without a daemon", () => {
  it("sessions are made, found and ended at once", () => {
    const provider = new RuvllmProvider({ address: NOBODY });
    const begun = Date.now();
    const session = provider.createSession();
    assert.deepEqual({ ...session, id: "", createdAt: 0, lastUsedAt: 0 }, {
      id: "", createdAt: 0, lastUsedAt: 0, messageCount: 0, context: [],
    }); // prettier-ignore
    assert.ok(session.createdAt >= begun && session.createdAt <= Date.now());
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

  it("no more than maxSessions are open, and the least recent goes", () => {
    const provider = new RuvllmProvider({ maxSessions: 2 });
    const [first, second, third] = [1, 2, 3].map(() => provider.createSession().id);
    assert.equal(provider.getSession(first ?? ""), undefined);
    assert.ok(provider.getSession(second ?? ""));
    assert.ok(provider.getSession(third ?? ""));
  });

  it("a session that was not used for sessionTimeout is gone", async () => {
    const provider = new RuvllmProvider({ sessionTimeout: 30 });
    const { id } = provider.createSession();
    await until(() => provider.getSession(id) === undefined);
    assert.equal(provider.getSessionMetrics().activeSessions, 0);
    assert.equal(provider.endSession(id), false);
  });

  it("a call before initialize, and initialize itself, say what is wrong", async () => {
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

  it("bounds that leave no room for a session are refused", () => {
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

  it("a session comes to be with its first call, and its snapshot follows each", async () => {
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
    const found = await find(session.id);
    assert.equal(found.systemPrompt, "Be brief.");
    assert.equal(found.idleTimeout?.seconds, 60);
    assert.equal(session.createdAt, found.createTime?.getTime());
    assert.equal(session.lastUsedAt, found.lastUsedTime?.getTime());
  });

  it("a caller who passes the whole conversation every time doubles nothing", async () => {
    const { id } = provider.createSession();
    const conversation: LLMMessageParam[] = [];
    for (const words of ["one", "two", "three"]) {
      conversation.push(user(words));
      const said = await say(id, ...conversation);
      conversation.push(answer(text(said)));
    }
    const { messages } = await find(id);
    assert.deepEqual(messages, told(...conversation));
  });

  it("a conversation that began elsewhere goes on in a session", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"), answer("1"), user("two"));
    assert.deepEqual(
      (await find(id)).messages,
      told(user("one"), answer("1"), user("two"), answer("two")),
    );
  });

  it("options reach the engine, and an answer that they cut short says so", async () => {
    const said = await provider.complete({ messages: [user("one two three")], maxTokens: 2 });
    assert.equal(text(said).trim(), "one two");
    assert.equal(said.stop_reason, "max_tokens");
    assert.equal(said.usage.output_tokens, 2);
    const wrong = provider.complete({ messages: [user("hi")], temperature: 3 });
    await assert.rejects(wrong, (error: LLMProviderError) => {
      assert.equal(error.code, "INFERENCE_ERROR");
      assert.equal(error.retryable, false);
      return error.cause instanceof RuvdError && error.cause.reason === "INVALID_REQUEST";
    });
  });

  it("an error that passes is retryable", async () => {
    const fault = provider.complete({ messages: [user("!fault ENGINE_UNAVAILABLE")] });
    await assert.rejects(fault, { code: "INFERENCE_ERROR", retryable: true });
  });

  it("without enableSessions a session's id means nothing", async () => {
    const stateless = new RuvllmProvider({ enableSessions: false });
    await stateless.initialize();
    const { id } = stateless.createSession();
    await stateless.complete({ messages: [user("hi")], metadata: { sessionId: id } });
    await stateless.shutdown();
    assert.ok(await gone(id));
  });

  it("the least recently used session is ended in the daemon for one too many", async () => {
    const ids = ["lru-1", "lru-2", "lru-3"];
    for (const id of ids) await say(id, user("hi"));
    await say("lru-1", user("again"));
    await say("lru-4", user("hi"));
    await until(() => gone("lru-2"));
    assert.equal(provider.getSessionMetrics().totalSessions, 3);
    assert.equal((await find("lru-1")).messageCount, 4);
  });

  it("an ended session is gone, and its id begins anew", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"));
    assert.equal(provider.endSession(id), true);
    await say(id, user("two"));
    assert.equal(provider.getSession(id)?.messageCount, 2);
    assert.equal((await find(id)).messageCount, 2);
    provider.endSession(id);
    await until(() => gone(id));
  });

  it("a session that the daemon has lost begins anew with its next call", async () => {
    const { id } = provider.createSession();
    await say(id, user("one"));
    await client.endSession(id);
    assert.equal(text(await say(id, user("two"))), "two");
    assert.deepEqual((await find(id)).messages, told(user("two"), answer("two")));
    assert.equal((await find(id)).idleTimeout?.seconds, 60);
  });

  it("another provider goes on with a session that outlived the first", async () => {
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

  it("calls side by side in a session all come to be in it", async () => {
    const { id } = provider.createSession();
    await Promise.all(["a", "b", "c", "d"].map((words) => say(id, user(words))));
    assert.equal(provider.getSession(id)?.messageCount, 8);
    assert.equal((await find(id)).messageCount, 8);
  });

  it("a stream gives the text as it comes and the whole at its end", async () => {
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

  it("leaving a stream cancels its turn and leaves the session as it was", async () => {
    const { id } = provider.createSession();
    await say(id, user("before"));
    const many = user(Array.from({ length: 500 }, (_, index) => `w${String(index)}`).join(" "));
    for await (const { delta } of provider.streamComplete({
      messages: [many],
      metadata: { sessionId: id },
    })) {
      if (delta) break;
    }
    await until(async () => (await client.getSession(id)).runningCompletionId === "");
    assert.equal((await find(id)).messageCount, 2);
    await say(id, user("after"));
    assert.equal((await find(id)).messageCount, 4);
  });

  it("a stream that fails says so", async () => {
    const read = async () => {
      const messages = [user("!fault ENGINE_REJECTED")];
      for await (const { delta } of provider.streamComplete({ messages }))
        assert.equal(delta, undefined);
    };
    await assert.rejects(read, { code: "STREAM_ERROR", retryable: false });
  });

  it("a batch keeps its order, and an item fails alone", async () => {
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
    const reasons = answers.map((each) => each.metadata.reason);
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

  it("a batch of failures throws", async () => {
    const wrong = { messages: [user("!fault ENGINE_REJECTED")] };
    await assert.rejects(provider.batchComplete([wrong, wrong]), { code: "BATCH_ERROR" });
  });

  it("is healthy until its end, which leaves the daemon and its sessions alone", async () => {
    const own = new RuvllmProvider();
    await own.initialize();
    await own.initialize();
    const health = await own.healthCheck();
    assert.equal(health.healthy, true);
    assert.equal(health.error, undefined);
    assert.ok(health.timestamp instanceof Date);
    const { id } = own.createSession();
    await own.complete({ messages: [user("hi")], metadata: { sessionId: id } });
    await own.shutdown();
    assert.equal((await own.healthCheck()).healthy, false);
    assert.equal((await find(id)).messageCount, 2);
    await client.endSession(id);
  });
});

describe("on the embedded engine", { skip: ENGINE !== "llama" && "needs a daemon" }, () => {
  it("a conversation of two turns is kept, cached and measured", async () => {
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
    for (const said of [first, second]) {
      assert.ok(text(said).length > 0);
      assert.equal(said.content[0]?.type, "text");
      assert.ok(["end_turn", "max_tokens"].includes(said.stop_reason));
      assert.ok(said.usage.output_tokens > 0);
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
    // Nothing stateless has run: there is nothing to compare with, which is told from a measured 0.
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
