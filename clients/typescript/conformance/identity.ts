/** `PROGRAM identity WAY` of clients/CONFORMANCE.md: the calls of a client with a token and TLS. */

import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

import { Client, RuvdError, status } from "../src/client.js";
import type { Token } from "../src/client.js";

/** Makes the calls for each line of standard input. */
export async function identity(way: string): Promise<void> {
  let client;
  try {
    client = clientOf(way);
  } catch (error) {
    if (!(error instanceof RuvdError)) throw error;
    process.stdout.write("refused\n");
    return;
  }
  for await (const line of createInterface({ input: process.stdin })) await calls(client, line);
  client.close();
}

function clientOf(way: string): Client {
  if (way === "environment") return new Client();
  const { TEST_ADDRESS, TEST_TOKEN = "", TEST_TOKEN_FILE = "" } = process.env;
  const tokens: Record<string, Token> = {
    value: TEST_TOKEN,
    file: { file: TEST_TOKEN_FILE },
    function: () => readFile(TEST_TOKEN_FILE, "utf8"),
  };
  const token = tokens[way];
  if (token === undefined) throw new Error(`unknown way ${way}`);
  const caFile = process.env.TEST_TLS_CA_FILE;
  const tls = {
    caFile,
    certFile: process.env.TEST_TLS_CLIENT_CERT_FILE,
    keyFile: process.env.TEST_TLS_CLIENT_KEY_FILE,
    serverName: process.env.TEST_TLS_SERVER_NAME,
  };
  return new Client(TEST_ADDRESS, caFile ? { token, tls } : { token });
}

async function calls(client: Client, line: string): Promise<void> {
  const ref = { sessionId: line, requestId: line };
  await print("models", client.listModels(), () => "ok");
  await print("complete", client.complete("one two", ref).text(), (text) => `[${text}]`);
  await print("resume", client.resumeCompletion(ref).text(), (text) => `[${text}]`);
  await print("cancel", client.cancelCompletion(ref), () => "ok");
  await print("batch", batch(client), (text) => `[${text}]`);
}

async function batch(client: Client): Promise<string> {
  for await (const { completion, error } of client.batch(["three"])) {
    if (error) throw error;
    return completion?.finished?.message?.content ?? "";
  }
  throw new Error("the batch has no outcome");
}

async function print<T>(name: string, call: Promise<T>, show: (result: T) => string) {
  const result = await call.then(show, (error: unknown) => {
    if (!(error instanceof RuvdError)) throw error;
    return `error ${status[error.code]} ${error.reason || "-"}`;
  });
  process.stdout.write(`${name} ${result}\n`);
}
