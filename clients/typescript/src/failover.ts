/**
 * The repetition of calls at the other addresses of a client, by the rules of clients/CONFORMANCE.md:
 * a failed call is repeated at the next address at once, and after a round of all there is a pause.
 */

import { randomUUID } from "node:crypto";

import { status } from "@grpc/grpc-js";

import { ErrorReason, RuvdError } from "./errors.js";
import { serviceConfig } from "./v1/service_config.js";

/**
 * The address of the next attempt: the same, or the next one. `failOver` and `leave` move later calls,
 * too: the address cannot be reached, or its daemon says that another one should be called. `ask` is
 * for this call only.
 */
export type Step = "stay" | "failOver" | "leave" | "ask";

/** The next attempt of a call: its address, and the time to wait before it. */
export interface Retry {
  step: Step;
  pauseMs: number;
}

/** Tells whether a daemon says with this error that another one should be called. */
export function leaves({ reason }: RuvdError): boolean {
  return reason === ErrorReason.SHUTTING_DOWN || reason === ErrorReason.OWNERSHIP_LOST;
}

/** The attempts at all addresses, one after the other, without a pause between them. */
export class Round {
  #made = 0;

  constructor(private readonly attempts: number) {}

  /** Whether the attempt that runs is the last one of its round. */
  get isLast(): boolean {
    return this.#made + 1 >= this.attempts;
  }

  /** Counts a failed attempt, and returns whether the round is over. The next begins then. */
  failed(): boolean {
    const isOver = this.isLast;
    this.#made = isOver ? 0 : this.#made + 1;
    return isOver;
  }

  /** Begins a new round, after a success. */
  begin(): void {
    this.#made = 0;
  }
}

const CONFIGS = new Map(
  serviceConfig.methodConfig.flatMap((config) =>
    config.name.map(({ method }) => [method, config] as const),
  ),
);
/** The policy of the calls that only read, used for all calls where there are several addresses. */
const POLICY = serviceConfig.methodConfig.flatMap(({ retryPolicy }) => retryPolicy ?? [])[0];

const WITH_REQUEST_ID = new Set(["CreateSession", "AppendMessages", "ForkSession"]);

/** The attempts of one unary call of a client with several addresses. */
export class UnaryAttempts {
  readonly deadline: number;
  readonly #isRead: boolean;
  readonly #round: Round;
  #roundsLeft = POLICY?.maxAttempts ?? 1;
  #pauseMs = toMs(POLICY?.initialBackoff);
  #notFound: RuvdError | undefined;

  constructor(
    private readonly method: string,
    private readonly request: { requestId?: string; allowMissing?: boolean },
    timeoutMs: number,
    attemptsPerRound: number,
  ) {
    const config = CONFIGS.get(method);
    const limitMs = timeoutMs === Infinity && config ? toMs(config.timeout) : timeoutMs;
    this.deadline = Date.now() + limitMs;
    this.#isRead = config !== undefined && "retryPolicy" in config;
    this.#round = new Round(attemptsPerRound);
    if (WITH_REQUEST_ID.has(method)) request.requestId ||= randomUUID();
  }

  /** Returns the next attempt. Throws the error if it is final. */
  handleFailure(error: RuvdError): Retry {
    const step = this.#stepAfter(error);
    if (!this.#round.failed()) return { step, pauseMs: 0 };
    if (this.#notFound) throw this.#notFound;
    if (--this.#roundsLeft <= 0) throw error;
    const pauseMs = Math.max(0, Math.min(this.#pauseMs, this.deadline - Date.now()));
    const factor = POLICY?.backoffMultiplier ?? 1;
    this.#pauseMs = Math.min(this.#pauseMs * factor, toMs(POLICY?.maxBackoff));
    return { step, pauseMs };
  }

  #stepAfter(error: RuvdError): Step {
    if (leaves(error)) return "leave";
    if (error.reason === ErrorReason.COMPLETION_NOT_FOUND) {
      this.#notFound = error;
      return "ask";
    }
    const { code, reason } = error;
    if (code !== status.UNAVAILABLE || (reason && !this.#isRead)) throw error;
    // The call whose connection was lost may have ended the session.
    if (!reason && this.method === "EndSession") this.request.allowMissing = true;
    return "failOver";
  }
}

function toMs(duration: string | undefined): number {
  return duration === undefined ? 0 : 1000 * parseFloat(duration);
}
