/** The calls of `PROGRAM calls` that make, read and change sessions. */

import { Client, Compaction, Rendering, Role, SessionView } from "../src/client.js";
import type { ContextWindow, DeepPartial, SessionInit } from "../src/client.js";
import { attempt, describe, printMessages, word } from "./calls-output.js";
import { describe as sessionLine, print, printError } from "./output.js";

const WINDOW: DeepPartial<ContextWindow> = {
  maxTokens: 100,
  rendering: Rendering.RENDERING_MESSAGES,
  compaction: Compaction.COMPACTION_NONE,
  keepFirst: 1,
  compactAt: 0.5,
};
export async function create(client: Client): Promise<void> {
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

export async function get(client: Client): Promise<void> {
  print("# get");
  printMessages(await client.getSession("alpha", SessionView.SESSION_VIEW_FULL));
  const { messages } = await client.getSession("alpha");
  print(`messages ${String(messages.length)}`);
  await attempt(client.getSession("nobody"));
}

export async function list(client: Client): Promise<void> {
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

export async function update(client: Client): Promise<void> {
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

export async function append(client: Client): Promise<void> {
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

export async function fork(client: Client): Promise<void> {
  print("# fork");
  const options = { exchangeCount: 1, newSessionId: "alpha-fork", requestId: "fork-1" };
  describe(await client.forkSession("alpha", options));
  print(sessionLine(await client.forkSession("alpha", options)));
  await attempt(client.forkSession("alpha", { newSessionId: "alpha" }));
  await attempt(client.forkSession("alpha", { exchangeCount: 99 }));
  await attempt(client.forkSession("nobody"));
}

export async function compact(client: Client): Promise<void> {
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
