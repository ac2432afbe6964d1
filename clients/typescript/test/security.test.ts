/* eslint-disable @typescript-eslint/no-floating-promises -- node:test awaits its tests itself */

import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, afterEach, before, describe, it } from "node:test";

import { Client, RuvdError, status } from "../src/client.js";
import type { ClientOptions, Token } from "../src/client.js";
import { Started } from "../src/v1/ruvd/v1/session_service.js";
import { ScriptedDaemon } from "./scripted-daemon.js";
import type { Script } from "./scripted-daemon.js";

const VARIABLES = Object.keys(process.env).filter((name) => name.startsWith("RUVD_T"));
const REMOTE = "192.0.2.1:1";

let folder = "";

before(async () => {
  for (const name of VARIABLES) Reflect.deleteProperty(process.env, name);
  folder = await mkdtemp(join(tmpdir(), "ruvd-"));
});

after(() => rm(folder, { recursive: true }));

afterEach(() => {
  delete process.env.RUVD_TOKEN;
  delete process.env.RUVD_TOKEN_FILE;
});

async function file(name: string, content: string): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

const started = { sequence: 1, started: Started.fromPartial({ completionId: "c-1" }) };

/** Runs a test against a daemon that follows the scripts. */
async function against(
  scripts: Script[],
  options: ClientOptions,
  body: (client: Client, daemon: ScriptedDaemon) => Promise<void>,
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

/** Returns what a cancel call of a new client sends as its authorization. */
async function sent(options: ClientOptions): Promise<string | undefined> {
  let authorization: string | undefined;
  await against([], options, async (client, daemon) => {
    await client.cancelCompletion("c");
    authorization = daemon.received[0]?.authorization;
  });
  return authorization;
}

function refuses(address: string, options: ClientOptions, text: RegExp): void {
  assert.throws(
    () => new Client(address, options),
    (error) => error instanceof RuvdError && text.test(error.message),
  );
}

describe("a token", () => {
  it("is asked for by every call of a completion, and sent with it", async () => {
    let asked = 0;
    const token = () => Promise.resolve(` t${String(++asked)}\n`);
    const scripts = [
      { events: [started], end: { code: status.UNAVAILABLE } },
      { events: [{ sequence: 2, delta: { text: "a" } }] },
    ];
    await against(scripts, { token }, async (client, daemon) => {
      for await (const text of client.complete("hi")) if (text) break;
      await daemon.until(() => daemon.calls.length === 3);
      assert.deepEqual(
        daemon.received.map(({ method, authorization }) => [method, authorization]),
        [
          ["Complete", "Bearer t1"],
          ["ResumeCompletion", "Bearer t2"],
          ["CancelCompletion", "Bearer t3"],
        ],
      );
    });
  });

  it("may be a value, a file or a function, and comes from the environment otherwise", async () => {
    assert.equal(await sent({}), "");
    assert.equal(await sent({ token: " value " }), "Bearer value");
    assert.equal(await sent({ token: () => "function" }), "Bearer function");
    const path = await file("token", "\nfile\r\n");
    assert.equal(await sent({ token: { file: path } }), "Bearer file");
    process.env.RUVD_TOKEN = "variable";
    assert.equal(await sent({}), "Bearer variable");
    assert.equal(await sent({ token: "value" }), "Bearer value");
    assert.equal(await sent({ token: "" }), "");
    process.env.RUVD_TOKEN_FILE = path;
    assert.equal(await sent({}), "Bearer file");
    process.env.RUVD_TOKEN_FILE = "";
    assert.equal(await sent({}), "Bearer variable");
  });

  it("that cannot be had fails the call, which is not made", async () => {
    const tokens: [Token, RegExp][] = [
      [() => Promise.reject(new Error("the vault is sealed")), /the vault is sealed/],
      [
        () => {
          throw new Error("the vault is sealed");
        },
        /the vault is sealed/,
      ],
      [() => undefined as unknown as string, /no token/],
      [() => " ", /empty/],
      [() => "two words", /visible ASCII/],
      [() => "schlüssel", /visible ASCII/],
      [{ file: join(folder, "nowhere") }, /ENOENT.*nowhere/],
    ];
    for (const [token, text] of tokens) {
      await against([], { token }, async (client, daemon) => {
        const calls = [
          client.listModels(),
          client.complete("hi").text(),
          client.resumeCompletion("c").text(),
          client.batch(["hi"])[Symbol.asyncIterator]().next(),
        ];
        // Every call is awaited at once: they may fail in any order.
        for (const outcome of await Promise.allSettled<unknown>(calls)) {
          assert.ok(outcome.status === "rejected", "a call succeeded without a token");
          const error: unknown = outcome.reason;
          assert.ok(error instanceof RuvdError, String(error));
          assert.deepEqual([error.code, error.reason], [status.UNAUTHENTICATED, ""]);
          assert.match(error.message, text);
          assert.doesNotMatch(error.message, /two words|schlüssel/);
        }
        assert.deepEqual(daemon.calls, []);
      });
    }
  });

  it("that never comes does not outlast the call", async () => {
    const token = () => new Promise<string>(() => undefined);
    await against([], { token, timeoutMs: 100 }, async (client, daemon) => {
      await assert.rejects(client.listModels(), { code: status.DEADLINE_EXCEEDED });
      const answer = client.complete("hi", { signal: AbortSignal.timeout(100) });
      await assert.rejects(answer.text(), { code: status.CANCELLED });
      assert.deepEqual(daemon.calls, []);
    });
  });

  it("with a value that cannot be sent is refused at once", () => {
    for (const token of [" ", "two words", "two\nlines", "schlüssel"]) {
      refuses("127.0.0.1:1", { token }, /^the token (is empty|has a character that .*ASCII)$/);
    }
  });

  it("is not sent to another machine in plain text", () => {
    const remote = [REMOTE, "128.0.0.1:1", "0.0.0.0:1", "[2001:db8::1]:1", "::1:1", "a.test:1"];
    const names = ["localhost.a.test:1", "127.0.0.1.a.test:1", "127.0.0.1:1@a.test:1"];
    for (const address of [...remote, ...names, "dns:///127.0.0.1:1"]) {
      refuses(address, { token: "secret" }, /in plain text: use TLS$/);
      new Client(address, { token: "" }).close();
      new Client(address, { token: "secret", tls: {} }).close();
    }
    const local = ["localhost:1", "LocalHost:1", "127.0.0.1:1", "127.255.3.4:1", "[::1]:1"];
    for (const address of [...local, "[0:0::1]:1", "unix:/run/nobody", "unix:///run/nobody"]) {
      new Client(address, { token: "secret" }).close();
    }
    process.env.RUVD_TOKEN = "secret";
    refuses(REMOTE, {}, /in plain text: use TLS$/);
  });
});

describe("TLS", () => {
  it("with files that cannot be used is refused at once", async () => {
    const empty = await file("empty.pem", "");
    refuses(REMOTE, { tls: { caFile: "/nowhere/ca.pem" } }, /ENOENT.*nowhere/);
    refuses(REMOTE, { tls: { caFile: empty } }, /empty\.pem cannot be used/);
    refuses(REMOTE, { tls: { certFile: empty } }, /both/);
    refuses(REMOTE, { tls: { keyFile: empty } }, /both/);
    refuses(REMOTE, { tls: { certFile: empty, keyFile: empty } }, /cannot be used/);
    new Client("unix:/run/nobody", { tls: { caFile: "/nowhere/ca.pem" } }).close();
  });
});
