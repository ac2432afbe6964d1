/** Tests of the client where a real daemon would have to be killed at a certain moment. */

/* eslint-disable @typescript-eslint/no-floating-promises -- node:test awaits its tests itself */

import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { context, propagation, trace } from "@opentelemetry/api";
import { AsyncLocalStorageContextManager } from "@opentelemetry/context-async-hooks";
import { W3CTraceContextPropagator } from "@opentelemetry/core";

import * as api from "../src/client.js";
import { Client, FinishReason, OnDisconnect, Role, RuvdError, status } from "../src/client.js";
import type { Completion } from "../src/client.js";
import { Finished, Message, MessagePart, Started } from "../src/v1/ruvd/v1/session_service.js";
import type { CompleteRequest, CompletionEvent } from "../src/v1/ruvd/v1/session_service.js";
import { ScriptedDaemon } from "./scripted-daemon.js";
import type { Script } from "./scripted-daemon.js";

const LOST = { end: { code: status.UNAVAILABLE } };
const FORGOTTEN = { end: { code: status.NOT_FOUND, reason: "COMPLETION_NOT_FOUND" } };

/** Longer than the runner lets a test take. */
const FOREVER_MS = 3_600_000;

function started(completionId = "c-1"): CompletionEvent {
  return { sequence: 1, started: Started.fromPartial({ completionId }) };
}

function delta(sequence: number, text: string): CompletionEvent {
  return { sequence, delta: { text } };
}

function finished(sequence: number, content: string): CompletionEvent {
  const message = { role: Role.ROLE_ASSISTANT, content };
  const finishReason = FinishReason.FINISH_REASON_STOP;
  return { sequence, finished: Finished.fromPartial({ finishReason, message }) };
}

async function read(answer: Completion): Promise<{ texts: string[]; error: unknown }> {
  const texts: string[] = [];
  try {
    for await (const text of answer) texts.push(text);
    return { texts, error: undefined };
  } catch (error) {
    return { texts, error };
  }
}

function failsWith(error: unknown, code: status, reason: string): void {
  assert.ok(error instanceof RuvdError, String(error));
  assert.deepEqual([status[error.code], error.reason], [status[code], reason]);
}

/** Runs a test against a daemon that follows the scripts. */
async function against(
  scripts: ConstructorParameters<typeof ScriptedDaemon>,
  body: (client: Client, daemon: ScriptedDaemon) => Promise<void>,
  options: ConstructorParameters<typeof Client>[1] = {},
): Promise<void> {
  const daemon = await new ScriptedDaemon(...scripts).listen();
  const client = new Client(daemon.address, options);
  try {
    await body(client, daemon);
  } finally {
    client.close();
    daemon.stop();
  }
}

describe("a large message", () => {
  const message = Message.fromPartial({ content: "Zürich", reasoning: "why" });
  const data = Message.encode(message).finish();
  const parts: CompletionEvent[] = [];
  for (let offset = 0; offset < data.length; offset += 4) {
    const piece = Buffer.from(data.slice(offset, offset + 4));
    const messagePart = MessagePart.fromPartial({ data: piece, offset, totalBytes: data.length });
    parts.push({ sequence: 2, messagePart });
  }
  const last = { sequence: 3, finished: Finished.fromPartial({ messageInParts: true }) };

  it("is put into Finished, also if the stream breaks among its parts", async () => {
    const first = { events: [started(), delta(2, "Zür"), ...parts.slice(0, 2)], ...LOST };
    await against([first, { events: [...parts, last], end: "ok" }], async (client) => {
      const answer = client.complete("hi");
      assert.deepEqual(await read(answer), { texts: ["Zür", "ich"], error: undefined });
      assert.deepEqual(await answer.message(), message);
    });
  });

  it("of which a part is missing is DATA_LOSS", async () => {
    const events = [started(), ...parts.slice(0, 1), ...parts.slice(2), last];
    await against([{ events, end: "ok" }], async (client) => {
      failsWith((await read(client.complete("hi"))).error, status.DATA_LOSS, "");
    });
  });
});

describe("a broken stream", () => {
  it("is resumed after its last event, and each text is delivered once", async () => {
    const first = { events: [started(), delta(2, "a"), delta(3, " b")], ...LOST };
    const second = {
      events: [delta(3, " b"), delta(4, " c"), finished(5, "a b c")],
      end: "ok" as const,
    };
    await against([first, LOST, second], async (client, daemon) => {
      const answer = client.complete("hi", { sessionId: "s" });
      assert.deepEqual(await read(answer), { texts: ["a", " b", " c"], error: undefined });
      assert.deepEqual(daemon.calls, ["Complete", "ResumeCompletion", "ResumeCompletion"]);
      assert.deepEqual(daemon.received[2]?.request, {
        completionId: "c-1",
        sessionId: "",
        requestId: "",
        afterSequence: 3,
      });
      assert.equal(answer.lastSequence, 5);
      assert.equal(answer.finished?.message?.content, "a b c");
    });
  });

  it("is requested again by the same request if it broke before its first event", async () => {
    const whole = { events: [started(), delta(2, "a"), finished(3, "a")], end: "ok" as const };
    await against([LOST, whole], async (client, daemon) => {
      assert.equal(await client.complete("hi").text(), "a");
      assert.deepEqual(daemon.calls, ["Complete", "Complete"]);
      const [once, again] = daemon.received;
      assert.deepEqual(once?.request, again?.request);
      assert.match(once?.request.requestId ?? "", /^[0-9a-f-]{36}$/);
    });
  });

  it("is generated again if the daemon has lost it and nothing was delivered", async () => {
    const regenerated = {
      events: [started("c-2"), delta(2, "a"), finished(3, "a")],
      end: "ok" as const,
    };
    await against(
      [{ events: [started()], ...LOST }, FORGOTTEN, regenerated],
      async (client, daemon) => {
        const answer = client.complete("hi");
        assert.deepEqual(await read(answer), { texts: ["a"], error: undefined });
        assert.deepEqual(daemon.calls, ["Complete", "ResumeCompletion", "Complete"]);
        assert.equal(answer.started?.completionId, "c-2");
      },
    );
  });

  it("is an error if the daemon has lost it and a text was delivered", async () => {
    const scripts = [{ events: [started(), delta(2, "a")], ...LOST }, FORGOTTEN];
    await against(scripts, async (client, daemon) => {
      const answer = client.complete("hi");
      const { texts, error } = await read(answer);
      assert.deepEqual(texts, ["a"]);
      failsWith(error, status.NOT_FOUND, "COMPLETION_NOT_FOUND");
      await assert.rejects(answer.text(), error as RuvdError);
      assert.deepEqual(daemon.calls, ["Complete", "ResumeCompletion"]);
    });
  });

  it("delivers the missing text from Finished, to readers of text only", async () => {
    const scripts: Script[] = [
      { events: [started(), delta(2, "a b")], ...LOST },
      { events: [finished(9, "a b c d")], end: "ok" },
    ];
    await against([...scripts], async (client) => {
      assert.deepEqual((await read(client.complete("hi"))).texts, ["a b", " c d"]);
    });
    await against([...scripts], async (client) => {
      const numbers: number[] = [];
      for await (const { sequence } of client.complete("hi").events()) numbers.push(sequence);
      assert.deepEqual(numbers, [1, 2, 9]);
    });
  });

  it("is DATA_LOSS if the whole answer contradicts the delivered text", async () => {
    const first = { events: [started(), delta(2, "a b")], ...LOST };
    await against([first, { events: [finished(9, "b c")], end: "ok" }], async (client) => {
      const answer = client.complete("hi");
      const { texts, error } = await read(answer);
      assert.deepEqual(texts, ["a b"]);
      failsWith(error, status.DATA_LOSS, "");
      assert.equal(answer.finished, undefined);
    });
  });

  it("ends after reconnectMs with the error of the last attempt", async () => {
    const scripts = Array.from({ length: 9 }, () => LOST);
    await against(
      scripts,
      async (client, daemon) => {
        failsWith((await read(client.complete("hi"))).error, status.UNAVAILABLE, "");
        assert.ok(daemon.calls.length >= 2 && daemon.calls.length <= 4, daemon.calls.join());
        assert.deepEqual(new Set(daemon.calls), new Set(["Complete"]));
      },
      { reconnectMs: 200 },
    );
  });

  it("is not resumed after a status that no lost connection causes", async () => {
    for (const code of [status.UNIMPLEMENTED, status.PERMISSION_DENIED]) {
      await against([{ end: { code } }], async (client, daemon) => {
        failsWith((await read(client.complete("hi"))).error, code, "");
        assert.deepEqual(daemon.calls, ["Complete"]);
      });
    }
  });
});

describe("an error of the daemon", () => {
  it("is final, and a slow reader also gets all texts before it", async () => {
    const events = [started(), ...Array.from({ length: 99 }, (_, index) => delta(index + 2, "w "))];
    const end = { code: status.UNAVAILABLE, reason: "ENGINE_UNAVAILABLE" };
    await against([{ events, end }], async (client, daemon) => {
      let texts = 0;
      const readSlowly = async () => {
        for await (const text of client.complete("hi")) {
          texts += text.length / 2;
          await sleep(1);
        }
      };
      await assert.rejects(readSlowly, { reason: "ENGINE_UNAVAILABLE" });
      assert.equal(texts, 99);
      assert.deepEqual(daemon.calls, ["Complete"]);
    });
  });

  it("is resumed if its reason has another domain than ruvd's", async () => {
    const other = { code: status.UNAVAILABLE, reason: "PROXY_SAYS", domain: "proxy.example" };
    const rest = { events: [finished(2, "")], end: "ok" as const };
    await against([{ events: [started()], end: other }, rest], async (client, daemon) => {
      await client.complete("hi").text();
      assert.deepEqual(daemon.calls, ["Complete", "ResumeCompletion"]);
    });
  });
});

describe("a caller that leaves", () => {
  const open = { events: [started(), delta(2, "a")] };

  const ways: [string, (answer: Completion, controller: AbortController) => Promise<unknown>][] = [
    ["by leaving the loop", (answer) => first(answer)],
    ["by cancel", (answer) => readAndLeave(answer, () => { answer.cancel(); })],
    ["by a signal", (answer, controller) => readAndLeave(answer, () => { controller.abort(); })],
  ]; // prettier-ignore
  for (const [how, leave] of ways) {
    it(`${how} cancels the stream and the completion`, async () => {
      await against([open], async (client, daemon) => {
        const controller = new AbortController();
        const answer = client.complete("hi", { signal: controller.signal });
        await leave(answer, controller);
        await daemon.until(() => daemon.calls.length === 2 && daemon.cancelled === 1);
        assert.deepEqual(daemon.received[1]?.request, {
          completionId: "c-1",
          sessionId: "",
          requestId: "",
          keepPartial: false,
        });
        await assert.rejects(answer.text(), { code: status.CANCELLED, reason: "" });
      });
    });
  }

  async function first(answer: Completion): Promise<string | undefined> {
    for await (const text of answer) return text;
    return undefined;
  }

  async function readAndLeave(answer: Completion, action: () => void): Promise<void> {
    const texts: string[] = [];
    const reading = async () => {
      for await (const text of answer) {
        texts.push(text);
        action();
      }
    };
    await assert.rejects(reading, { code: status.CANCELLED });
    assert.deepEqual(texts, ["a"]);
  }

  it("by cancel, without reading on, cancels both, too", async () => {
    await against([open], async (client, daemon) => {
      const answer = client.complete("hi");
      await answer[Symbol.asyncIterator]().next();
      answer.cancel();
      await daemon.until(() => daemon.calls.length === 2 && daemon.cancelled === 1);
    });
  });

  it("before Started cancels by session and request id", async () => {
    await against([{}], async (client, daemon) => {
      const answer = client.complete("hi", { sessionId: "s", requestId: "r" });
      const reading = read(answer);
      await daemon.until(() => daemon.calls.length === 1);
      answer.cancel();
      failsWith((await reading).error, status.CANCELLED, "");
      await daemon.until(() => daemon.calls.length === 2);
      const request = { completionId: "", sessionId: "s", requestId: "r", keepPartial: false };
      assert.deepEqual(daemon.received[1]?.request, request);
    });
  });

  it("by the timeout, even without reading on, gets DEADLINE_EXCEEDED", async () => {
    // On a busy machine the first event may take longer than the timeout, which then is too short.
    for (let [timeoutMs, isShort] = [500, true]; isShort; timeoutMs *= 4) {
      await against([open], async (client, daemon) => {
        const answer = client.complete("hi", { timeoutMs });
        const first = answer[Symbol.asyncIterator]().next();
        isShort = await first.then(() => false, () => timeoutMs < 30_000); // prettier-ignore
        if (isShort) return;
        await daemon.until(() => daemon.cancelled === 1);
        failsWith((await read(answer)).error, status.DEADLINE_EXCEEDED, "");
        assert.deepEqual(daemon.calls, ["Complete"]); // The daemon itself ends it at its deadline.
      });
    }
  });

  it("by the timeout, without a daemon, gets DEADLINE_EXCEEDED", async () => {
    const client = new Client("127.0.0.1:1", { reconnectMs: FOREVER_MS });
    const answer = client.complete("hi", { timeoutMs: 300 });
    failsWith((await read(answer)).error, status.DEADLINE_EXCEEDED, "");
    client.close();
  });

  it("cancels a completion that another client started, too", async () => {
    for (const [ref, target] of [
      ["c-1", { completionId: "c-1", sessionId: "", requestId: "" }],
      [
        { sessionId: "s", requestId: "r" },
        { completionId: "", sessionId: "s", requestId: "r" },
      ],
    ] as const) {
      await against([{}], async (client, daemon) => {
        const answer = client.resumeCompletion(ref, { afterSequence: 3 });
        const reading = read(answer);
        await daemon.until(() => daemon.calls.length === 1);
        answer.cancel();
        failsWith((await reading).error, status.CANCELLED, "");
        await daemon.until(() => daemon.calls.length === 2);
        assert.deepEqual(daemon.received[0]?.request, { ...target, afterSequence: 3 });
        assert.deepEqual(daemon.received[1]?.request, { ...target, keepPartial: false });
      });
    }
  });

  it("by closing the client cancels before the connection is closed", async () => {
    await against([open], async (client, daemon) => {
      const answer = client.complete("hi");
      await answer[Symbol.asyncIterator]().next();
      client.close();
      await daemon.until(() => daemon.calls.length === 2 && daemon.cancelled === 1);
      failsWith((await read(answer)).error, status.CANCELLED, "");
      failsWith((await read(client.complete("again"))).error, status.CANCELLED, "");
      await assert.rejects(client.listModels(), { code: status.CANCELLED });
    });
  });

  it("by a signal, without a daemon, does not wait for one", async () => {
    const client = new Client("127.0.0.1:1", { reconnectMs: FOREVER_MS });
    const answer = client.complete("hi", { signal: AbortSignal.timeout(100) });
    failsWith((await read(answer)).error, status.CANCELLED, "");
    client.close();
  });

  it("does not cancel a completion with ON_DISCONNECT_CONTINUE", async () => {
    await against([open], async (client, daemon) => {
      await first(client.complete("hi", { onDisconnect: OnDisconnect.ON_DISCONNECT_CONTINUE }));
      await daemon.until(() => daemon.cancelled === 1);
      // A cancel call of the client's own would have arrived before this one.
      await client.cancelCompletion("another");
      assert.equal(daemon.calls.length, 2);
      const last = daemon.received[1]?.request;
      assert.equal(last && "completionId" in last && last.completionId, "another");
    });
  });

  it("before the call makes no call", async () => {
    await against([open], async (client, daemon) => {
      const answer = client.complete("hi", { signal: AbortSignal.abort("enough") });
      const { error } = await read(answer);
      failsWith(error, status.CANCELLED, "");
      assert.equal((error as RuvdError).cause, "enough");
      assert.deepEqual(daemon.calls, []);
    });
  });
});

describe("a request", () => {
  async function sent(options: Parameters<Client["complete"]>[1]): Promise<CompleteRequest> {
    const script = { events: [started(), finished(2, "a")], end: "ok" as const };
    let request: CompleteRequest | undefined;
    await against([script], async (client, daemon) => {
      await client.complete("hi", options).text();
      request = daemon.received[0]?.request as CompleteRequest;
    });
    assert.ok(request);
    return request;
  }

  it("has a request id and a grace, unless the caller sets them", async () => {
    const { requestId, disconnectGrace } = await sent({});
    assert.notEqual(requestId, (await sent({})).requestId);
    assert.deepEqual(disconnectGrace, { seconds: 10, nanos: 0 });
    const custom = await sent({ requestId: "r", disconnectGraceMs: 1500 });
    assert.equal(custom.requestId, "r");
    assert.deepEqual(custom.disconnectGrace, { seconds: 1, nanos: 500_000_000 });
    assert.equal((await sent({ disconnectGraceMs: undefined })).disconnectGrace?.seconds, 10);
  });

  it("has the options of the proto by their names", async () => {
    const toolChoice = { function: "weather" };
    const fields = { sessionId: "s", recreateIfGone: true, seed: 7, toolChoice };
    const { sessionId, recreateIfGone, options, messages } = await sent(fields);
    assert.equal(sessionId, "s");
    assert.equal(recreateIfGone, true);
    assert.equal((await sent({})).recreateIfGone, false);
    assert.equal(options?.seed, 7);
    assert.equal(options.toolChoice?.function, "weather");
    assert.equal(options.temperature, undefined);
    assert.deepEqual(
      messages.map(({ role, content }) => [role, content]),
      [[Role.ROLE_USER, "hi"]],
    );
  });
});

describe("the package", () => {
  it("exports what its users need, and not all of the generated code", () => {
    assert.deepEqual(Object.keys(api).sort(), [
      "Batch",
      "Client",
      "Compaction",
      "Completion",
      "DEFAULT_ADDRESS",
      "ErrorReason",
      "FinishReason",
      "IfBusy",
      "OnDisconnect",
      "REQUEST_TOO_LARGE",
      "Rendering",
      "Role",
      "RuvdError",
      "SessionView",
      "ToolChoiceMode",
      "status",
      "toolResult",
    ]);
  });

  it("has the reasons of errors as constants, so that a wrong name does not compile", () => {
    const reason: "SESSION_BUSY" = api.ErrorReason.SESSION_BUSY;
    assert.equal(reason, "SESSION_BUSY");
    for (const [name, value] of Object.entries(api.ErrorReason)) assert.equal(name, value);
    assert.ok(!("UNSPECIFIED" in api.ErrorReason));
  });
});

describe("a connection", () => {
  it("can be made to a Unix socket", async () => {
    const folder = await mkdtemp(join(tmpdir(), "ruvd-"));
    const script = { events: [started(), finished(2, "a")], end: "ok" as const };
    const daemon = await new ScriptedDaemon(script).listen(`unix:${join(folder, "s")}`);
    const client = new Client(daemon.address);
    try {
      assert.deepEqual((await read(client.complete("hi"))).texts, ["a"]);
    } finally {
      client.close();
      daemon.stop();
      await rm(folder, { recursive: true });
    }
  });
});

describe("the caller's own metadata", () => {
  const scripts = [{ events: [started()], ...LOST }, { events: [delta(2, "a")] }];
  const sent = async (metadata: Record<string, string>): Promise<[string, string][]> => {
    let headers: [string, string][] = [];
    const body = async (client: Client, daemon: ScriptedDaemon) => {
      for await (const text of client.complete("hi", { sessionId: "s" })) if (text) break;
      await daemon.until(() => daemon.calls.length === 3);
      headers = daemon.received.map(({ tenant, session }) => [tenant, session]);
    };
    await against([...scripts], body, { metadata });
    return headers;
  };

  it("is sent with every call, also those that resume and cancel", async () => {
    const headers = await sent({ "x-tenant": "blue" });
    assert.deepEqual(headers, Array(3).fill(["blue", "s"]));
  });

  it("is not replaced by the session's header", async () => {
    const headers = await sent({ "x-ruvd-session-id": "own" });
    assert.deepEqual(headers, Array(3).fill(["", "own"]));
  });
});

describe("the caller's trace", () => {
  before(() => {
    context.setGlobalContextManager(new AsyncLocalStorageContextManager().enable());
    propagation.setGlobalPropagator(new W3CTraceContextPropagator());
  });

  it("is sent with a completion and with the calls that resume and cancel it", async () => {
    const scripts = [{ events: [started()], ...LOST }, { events: [delta(2, "a")] }];
    await against(scripts, async (client, daemon) => {
      const span = { traceId: "0af7651916cd43dd8448eb211c80319c", spanId: "b7ad6b7169203331" };
      const caller = trace.setSpanContext(context.active(), { ...span, traceFlags: 1 });
      const answer = context.with(caller, () => client.complete("hi"));
      for await (const text of answer) if (text) break;
      await daemon.until(() => daemon.calls.length === 3);
      assert.deepEqual(
        daemon.received.map(({ method, traceparent }) => [method, traceparent]),
        ["Complete", "ResumeCompletion", "CancelCompletion"].map((method) => [
          method,
          `00-${span.traceId}-${span.spanId}-01`,
        ]),
      );
    });
  });
});
