/** The lines that the conformance programs print, and their clients. */

import { Client, RuvdError, status } from "../src/client.js";
import type { Session } from "../src/client.js";

export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Returns a client of the address in the variable. */
export function connect(variable: string): Client {
  const address = process.env[variable];
  if (!address) throw new Error(`${variable} is not set`);
  return new Client(address);
}

/** Returns w1 w2 ... wN. */
export function words(count: number): string {
  return Array.from({ length: count }, (_, index) => `w${String(index + 1)}`).join(" ");
}

export function codeOf(error: RuvdError): string {
  return status[error.code];
}

/** Prints an error of the client. Throws any other error. */
export function printError(error: unknown): void {
  if (!(error instanceof RuvdError)) throw error;
  const { reason, retryAfterMs, violations } = error;
  const retry = retryAfterMs === undefined ? "" : ` retry=${String(retryAfterMs)}ms`;
  print(`error ${codeOf(error)} ${reason || "-"}${retry}`);
  for (const { field, description } of violations) print(`violation ${field}: ${description}`);
}

export function describe({ id, messageCount, exchangeCount }: Session): string {
  return `session ${id} messages=${String(messageCount)} exchanges=${String(exchangeCount)}`;
}
