/**
 * The calls of one batch: their sizes, their repetition and their outcomes.
 *
 * Every item has a request id, so that an item which is repeated after a connection failure is not
 * generated twice. This module makes no calls itself.
 */

import { status } from "@grpc/grpc-js";

import { ErrorReason, REQUEST_TOO_LARGE, RuvdError } from "./errors.js";
import { Round, leaves } from "./failover.js";
import type { Retry } from "./failover.js";
import { MessageParts } from "./parts.js";
import { BatchSummary, CompleteRequest, Usage } from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

const MAX_ITEMS = 10_000;
/** The maximum overhead of an item in a call. */
const ITEM_BYTES = 8;
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 2000;

/** The outcome of one item: its answer or its error. */
export interface BatchOutcome {
  /** The position of the item, starting at 0. */
  index: number;
  completion: v1.Completion | undefined;
  error: RuvdError | undefined;
}

/** One call: those of its items that have no outcome yet, by their positions in the batch. */
export interface BatchCall {
  readonly indexes: readonly number[];
  readonly unfinished: Map<number, CompleteRequest>;
  readonly parts: MessageParts;
}

/** The limits of the calls of one batch. */
export interface BatchLimits {
  maxCallBytes: number;
  reconnectMs: number;
  attemptsPerRound: number;
}

/** The calls of one batch. `summary` is updated with every outcome. */
export class BatchCalls {
  readonly summary = BatchSummary.fromPartial({ usage: {}, wallTime: {}, totalLatency: {} });
  readonly #startedAt = Date.now();
  readonly #round: Round;
  readonly #hasOthers: boolean;
  readonly #pending: Map<number, CompleteRequest>[] = [];
  #unsent = new Map<number, CompleteRequest>();
  #unsentBytes = 0;
  #count = 0;
  #hasResponse = false;
  #disconnectedAt: number | undefined;
  #pauseMs = FIRST_PAUSE_MS;

  constructor(private readonly limits: BatchLimits) {
    this.#round = new Round(limits.attemptsPerRound);
    this.#hasOthers = limits.attemptsPerRound > 1;
  }

  /** Adds an item and returns whether a call is full and can be made. */
  add(item: CompleteRequest): boolean {
    const bytes = CompleteRequest.encode(item).finish().length + ITEM_BYTES;
    const isFull = this.#unsentBytes + bytes > this.limits.maxCallBytes;
    if (isFull || this.#unsent.size === MAX_ITEMS) this.flush();
    this.#unsent.set(this.#count++, item);
    this.#unsentBytes += bytes;
    return this.#pending.length > 0;
  }

  /** Puts the added items that are in no call yet into one. */
  flush(): void {
    if (this.#unsent.size) this.#pending.push(this.#unsent);
    this.#unsent = new Map();
    this.#unsentBytes = 0;
  }

  /** Returns the next call, or undefined if none is pending. */
  next(): BatchCall | undefined {
    const unfinished = this.#pending.shift();
    const parts = new MessageParts();
    return unfinished && { indexes: [...unfinished.keys()], unfinished, parts };
  }

  /** Returns the outcome in a response, if it has one. An item that is to be repeated has none. */
  handleResponse(call: BatchCall, response: v1.BatchCompleteResponse): BatchOutcome | undefined {
    this.#hasResponse = true;
    if (response.messagePart) call.parts.add(response.messagePart);
    const { result } = response;
    if (!result) return undefined;
    const index = call.indexes[result.index] ?? result.index;
    const { completion, error: failure } = result;
    call.parts.join(completion?.finished);
    // eslint-disable-next-line @typescript-eslint/no-unsafe-enum-assignment -- gRPC's codes
    const error = failure && new RuvdError(failure.code, failure.message, failure.details);
    const isStopping = error?.reason === ErrorReason.SHUTTING_DOWN;
    if (error && (isStopping || (this.#hasOthers && leaves(error)))) return undefined;
    this.#disconnectedAt = undefined;
    this.#pauseMs = FIRST_PAUSE_MS;
    this.#round.begin();
    return this.#record(call, { index, completion, error });
  }

  /**
   * Returns the outcome of the only item of a call that has failed because of its items. Calls with
   * several items are split: the daemon rejects a whole call for its size or for one invalid item.
   * Throws the error if it is final.
   */
  handleFailure(call: BatchCall, error: RuvdError): BatchOutcome | undefined {
    const isLost = error.code === status.UNAVAILABLE;
    if (isLost && this.#hasResponse) return undefined; // `finish` repeats the unfinished items.
    if (this.#hasOthers && (leaves(error) || (isLost && !error.reason))) {
      if (this.#round.isLast) throw error;
      return undefined;
    }
    const isInvalid = error.reason === ErrorReason.INVALID_REQUEST;
    const isAboutCall = error.violations.some(({ field }) => field === "max_concurrency");
    const isAboutItems = isInvalid && !isAboutCall;
    if (!isAboutItems && error.reason !== REQUEST_TOO_LARGE) throw error;
    const items = [...call.unfinished];
    const [only] = items;
    if (only && items.length === 1) {
      return this.#record(call, { index: only[0], completion: undefined, error });
    }
    const half = Math.trunc(items.length / 2);
    this.#pending.unshift(new Map(items.slice(0, half)), new Map(items.slice(half)));
    call.unfinished.clear();
    return undefined;
  }

  /**
   * Schedules the unfinished items again and returns the next attempt. Throws the error if there was
   * no outcome for too long.
   */
  finish(call: BatchCall, failure: RuvdError | undefined): Retry {
    if (!call.unfinished.size) return { step: "stay", pauseMs: 0 };
    const text = "the daemon shut down before every item had an outcome";
    const error = failure ?? new RuvdError(status.UNAVAILABLE, text);
    this.#disconnectedAt ??= Date.now();
    if (Date.now() - this.#disconnectedAt >= this.limits.reconnectMs) throw error;
    this.#pending.unshift(call.unfinished);
    const next = !failure || leaves(failure) ? "leave" : "failOver";
    const step = this.#hasOthers ? next : "stay";
    if (!this.#round.failed()) return { step, pauseMs: 0 };
    const pauseMs = (this.#pauseMs = Math.min(2 * this.#pauseMs, LONGEST_PAUSE_MS));
    return { step, pauseMs };
  }

  #record(call: BatchCall, outcome: BatchOutcome): BatchOutcome {
    call.unfinished.delete(outcome.index);
    const { summary } = this;
    const { finished } = outcome.completion ?? {};
    if (outcome.completion) summary.succeeded++;
    else summary.failed++;
    summary.wallTime = toDuration(Date.now() - this.#startedAt);
    const { seconds = 0, nanos = 0 } = finished?.timings?.total ?? {};
    const latency = summary.totalLatency ?? { seconds: 0, nanos: 0 };
    const total = latency.nanos + nanos;
    summary.totalLatency = {
      seconds: latency.seconds + seconds + Math.trunc(total / 1e9),
      nanos: total % 1e9,
    };
    const usage = summary.usage ?? Usage.fromPartial({});
    const { promptTokens = 0, completionTokens = 0, cachedTokens } = finished?.usage ?? {};
    usage.promptTokens += promptTokens;
    usage.completionTokens += completionTokens;
    if (cachedTokens !== undefined) usage.cachedTokens = (usage.cachedTokens ?? 0) + cachedTokens;
    summary.usage = usage;
    return outcome;
  }
}

function toDuration(milliseconds: number): { seconds: number; nanos: number } {
  return { seconds: Math.trunc(milliseconds / 1000), nanos: (milliseconds % 1000) * 1e6 };
}
