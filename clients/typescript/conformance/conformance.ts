/**
 * The program of clients/CONFORMANCE.md: `conformance scenario|calls|restart|failover`, or
 * `conformance identity WAY`.
 */

import { setTimeout as sleep } from "node:timers/promises";

import {
  Client,
  ErrorReason,
  FinishReason,
  IfBusy,
  OnDisconnect,
  Role,
  RuvdError,
  SessionView,
} from "../src/client.js";
import type { CompleteOptions, Completion, Session } from "../src/client.js";
import { calls } from "./calls.js";
import { failover } from "./failover.js";
import { identity } from "./identity.js";
import { codeOf, connect, describe, print, printError, words } from "./output.js";

async function printFailure(call: Promise<unknown>): Promise<void> {
  await call.then(() => {
    throw new Error("the call should have failed");
  }, printError);
}

function printSession(session: Session): void {
  print(describe(session));
}

async function printTexts(answer: Completion): Promise<void> {
  try {
    for await (const text of answer) print(`text [${text}]`);
    const { finished, lastSequence } = answer;
    if (!finished) throw new Error("the stream ended without Finished");
    const reason = FinishReason[finished.finishReason].replace("FINISH_REASON_", "");
    const exchanges = String(finished.exchangeCount);
    print(`finished ${reason} sequence=${String(lastSequence)} exchanges=${exchanges}`);
  } catch (error) {
    printError(error);
  }
}

async function printEvents(answer: Completion): Promise<void> {
  for await (const { sequence, started, delta, finished } of answer.events()) {
    const number = String(sequence);
    if (started) print(`event ${number} started`);
    if (delta) print(`event ${number} delta [${delta.text ?? ""}]`);
    if (finished) {
      const reason = FinishReason[finished.finishReason].replace("FINISH_REASON_", "");
      print(`event ${number} finished ${reason} [${finished.message?.content ?? ""}]`);
    }
  }
}

async function complete(client: Client, message: string, options?: CompleteOptions): Promise<void> {
  await printTexts(client.complete(message, options));
}

async function waitUntilIdle(client: Client, id: string): Promise<boolean> {
  const deadline = Date.now() + 60_000;
  while ((await client.getSession(id)).runningCompletionId) {
    if (Date.now() > deadline) return false;
    await sleep(50);
  }
  return true;
}

async function sessions(client: Client): Promise<void> {
  print("# sessions");
  const init = { sessionId: "alpha", systemPrompt: "Be brief.", labels: { team: "a" } };
  printSession(await client.createSession(init));
  await complete(client, "one two three", { sessionId: "alpha" });
  await complete(client, "four", { sessionId: "alpha" });
  const session = await client.getSession("alpha", SessionView.SESSION_VIEW_FULL);
  printSession(session);
  for (const { role, content } of session.messages) {
    print(`message ${Role[role].replace("ROLE_", "")} [${content}]`);
  }
  for await (const { id } of client.listSessions()) print(`listed ${id}`);
  await client.endSession("alpha");
  print("ended");
  await printFailure(client.getSession("alpha"));
  await printFailure(client.endSession("alpha"));
}

async function streams(client: Client): Promise<void> {
  print("# stream");
  await printEvents(client.complete("alpha beta gamma"));
  print("# unicode");
  await complete(client, "Grüße aus Köln");
  await complete(client, "世界 👩‍🚀 ok");
  await complete(client, "नमस्ते दुनिया");
  await complete(client, "e\u0301 A\u030A");
  print("# request id");
  for (const message of ["once only", "once only", "other"]) {
    await complete(client, message, { sessionId: "beta", requestId: "r-1" });
  }
  printSession(await client.getSession("beta"));
}

async function cuts(client: Client): Promise<void> {
  print("# cut after the third event");
  const third = connect("RUVD_CUT_THIRD");
  await printEvents(third.complete("a b c d e f", { sessionId: "gamma" }));
  printSession(await third.getSession("gamma"));
  print("# cut always");
  const always = connect("RUVD_CUT_ALWAYS");
  await complete(always, "a b c d e f g h", { sessionId: "delta" });
  printSession(await always.getSession("delta"));
  print("# cut before the first event");
  const first = connect("RUVD_CUT_FIRST");
  await complete(first, "x y z", { sessionId: "epsilon" });
  printSession(await client.getSession("epsilon"));
  for (const cut of [third, always, first]) cut.close();
}

async function cancel(client: Client): Promise<void> {
  print("# cancel");
  await client.createSession({ sessionId: "zeta" });
  let remaining = 3;
  for await (const text of client.complete(words(200), { sessionId: "zeta" })) {
    print(`text [${text}]`);
    if (--remaining === 0) break;
  }
  print((await waitUntilIdle(client, "zeta")) ? "cancelled" : "still running");
  printSession(await client.getSession("zeta"));
}

async function busy(client: Client): Promise<void> {
  print("# busy");
  await client.createSession({ sessionId: "eta" });
  const first = client.complete(words(200), { sessionId: "eta" })[Symbol.asyncIterator]();
  await first.next();
  await complete(client, "no", { sessionId: "eta", ifBusy: IfBusy.IF_BUSY_REJECT });
  await complete(client, "mine", { sessionId: "eta", ifBusy: IfBusy.IF_BUSY_INTERRUPT });
  try {
    while (!(await first.next()).done);
  } catch (error) {
    printError(error);
  }
  printSession(await client.getSession("eta"));
}

async function errors(client: Client): Promise<void> {
  print("# errors");
  for (const reason of Object.values(ErrorReason)) {
    print(`fault ${reason}`);
    await complete(client, `!fault ${reason}`);
  }
  print("# error after text");
  await complete(client, "!fault ENGINE_UNAVAILABLE one two", { sessionId: "theta" });
  await printFailure(client.getSession("theta"));
  print("# wrong fields");
  await complete(client, "hi", { sessionId: "no spaces", temperature: 3 });
}

async function tooLarge(client: Client): Promise<void> {
  print("# too large");
  await complete(client, "x".repeat(5 << 20));
}

async function longHistory(client: Client): Promise<void> {
  print("# long history");
  const messages = Array.from({ length: 1000 }, (_, index) => ({
    role: Role.ROLE_USER,
    content: `m${String(index + 1)}`,
  }));
  await client.createSession({ sessionId: "mu", messages });
  await complete(client, "end", { sessionId: "mu" });
  const session = await client.getSession("mu", SessionView.SESSION_VIEW_FULL);
  printSession(session);
  const contents = session.messages.map(({ content }) => content);
  const [first, last] = [contents[0] ?? "", contents.at(-1) ?? ""];
  print(`history ${String(contents.length)} [${first}] [${last}]`);
}

async function fork(client: Client): Promise<void> {
  print("# fork");
  await complete(client, "first", { sessionId: "iota" });
  await complete(client, "second", { sessionId: "iota" });
  const options = { exchangeCount: 1, newSessionId: "iota-fork" };
  printSession(await client.forkSession("iota", options));
  await complete(client, "third", { sessionId: "iota-fork" });
  printSession(await client.getSession("iota"));
  printSession(await client.getSession("iota-fork"));
}

async function batches(client: Client): Promise<void> {
  print("# batch");
  const batch = client.batch([
    "b0",
    "!fault ENGINE_REJECTED",
    { messages: "b2", sessionId: "kappa" },
    { messages: "b3", sessionId: "kappa" },
  ]);
  const outcomes = [];
  for await (const outcome of batch) outcomes.push(outcome);
  outcomes.sort((one, other) => one.index - other.index);
  for (const { index, completion, error } of outcomes) {
    const content = completion?.finished?.message?.content ?? "";
    const result = error ? `error ${codeOf(error)} ${error.reason || "-"}` : `[${content}]`;
    print(`item ${String(index)} ${result}`);
  }
  const { succeeded, failed } = batch.summary ?? {};
  print(`summary succeeded=${String(succeeded)} failed=${String(failed)}`);
  printSession(await client.getSession("kappa"));
}

async function deadline(client: Client): Promise<void> {
  print("# deadline");
  await client.createSession({ sessionId: "lambda" });
  const answer = client.complete(words(200), { sessionId: "lambda", timeoutMs: 400 });
  await answer.text().then(
    () => {
      print("no error");
    },
    (error: unknown) => {
      if (!(error instanceof RuvdError)) throw error;
      print(`error ${codeOf(error)}`);
    },
  );
  print((await waitUntilIdle(client, "lambda")) ? "over" : "still running");
  printSession(await client.getSession("lambda"));
}

async function models(client: Client): Promise<void> {
  print("# models");
  const { models: names, defaultModel } = await client.listModels();
  for (const name of names) print(`model ${name}`);
  print(`default ${defaultModel}`);
}

async function nobody(): Promise<void> {
  print("# nobody there");
  const client = connect("RUVD_NOBODY");
  await printFailure(client.listModels());
  await printFailure(client.complete("hi", { timeoutMs: 500 }).text());
  client.close();
}

async function scenario(client: Client): Promise<void> {
  await sessions(client);
  await streams(client);
  await cuts(client);
  await cancel(client);
  await busy(client);
  await errors(client);
  await tooLarge(client);
  await fork(client);
  await longHistory(client);
  await batches(client);
  await deadline(client);
  await models(client);
  await nobody();
}

async function restart(client: Client): Promise<void> {
  let received = "";
  try {
    const answer = client.complete(words(40), {
      sessionId: "omega",
      onDisconnect: OnDisconnect.ON_DISCONNECT_CONTINUE,
    });
    for await (const text of answer) {
      if (!received) print("ready");
      received += text;
    }
    print(`text [${received}]`);
  } catch (error) {
    printError(error);
  }
  await client.getSession("omega").then(printSession, printError);
}

const [name = "", way = ""] = process.argv.slice(2);
if (name === "identity") await identity(way);
else if (name === "failover") await failover();
else {
  const program = { scenario, calls, restart }[name];
  if (!program) throw new Error("usage: conformance scenario|calls|restart|failover|identity WAY");
  const client = new Client(undefined, program === restart ? { reconnectMs: 60_000 } : {});
  await program(client);
  client.close();
}
