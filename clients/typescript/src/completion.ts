/**
 * One answer, over as many streams as it takes: a stream that breaks is not its end.
 *
 * The rules are those of clients/CONFORMANCE.md. Nothing runs by itself: the reader's own steps make
 * the calls, so there is nobody to tell when the reader forgets about them.
 */

import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";

import { traced } from "./connection.js";
import type { Connection } from "./connection.js";
import { RuvdError, cancelled } from "./errors.js";
import {
  OnDisconnect,
  ResumeCompletionRequest,
  SessionServiceService as service,
} from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1000;

/** What a connection that breaks, or is not there, ends a call with. */
const BREAKS = new Set([status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN]);

/** Until when, on the clock, and how long after a break an answer is tried to be read. */
export interface Limits {
  signal: AbortSignal | undefined;
  deadline: number;
  reconnectMs: number;
}

/**
 * An answer on its way: iterate for its text, once. Throws RuvdError.
 *
 * The call is made when it is read first. A stream that breaks without an error of ruvd's is taken up
 * where it was: each text comes once, or there is an error. Leaving the loop, `cancel`, the signal,
 * or the time-out stops the daemon, and the session is as it was before the turn; but not if the
 * request said ON_DISCONNECT_CONTINUE.
 */
export class Completion implements AsyncIterable<string> {
  /** Set once the turn has the engine: the completion's id, among others. */
  started: v1.Started | undefined;
  /** Set once the answer has been read to its end: usage and timings, among others. */
  finished: v1.Finished | undefined;
  /** The number of the last event that has come, to resume after. */
  lastSequence: number;

  readonly #events = this.#read();
  readonly #left = new AbortController();
  readonly #metadata = traced();
  #failure: RuvdError | undefined;
  /** Whether text, reasoning or a tool call was delivered. */
  #delivered = false;
  /** The text that was; undefined where its beginning is not known here. */
  #text: string | undefined;
  /** What the answer has beyond it. */
  #rest = "";

  constructor(
    private readonly connection: Connection,
    private readonly request: v1.CompleteRequest | ResumeCompletionRequest,
    private readonly limits: Limits,
  ) {
    this.lastSequence = "afterSequence" in request ? request.afterSequence : 0;
    this.#text = this.lastSequence === 0 ? "" : undefined;
  }

  /** The numbered events that have not been read yet, instead of their text. */
  events(): AsyncIterable<v1.CompletionEvent> {
    return this.#events;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for await (const { delta, finished } of this.#events) {
      const text = finished ? this.#rest : delta?.text;
      if (text) yield text;
    }
  }

  /** Wait for the end: the whole answer, with its tool calls and its reasoning. */
  async message(): Promise<v1.Message> {
    while (!(await this.#events.next()).done);
    if (this.finished?.message) return this.finished.message;
    throw this.#failure ?? new RuvdError(status.UNKNOWN, "the answer has no message");
  }

  /** Wait for the end: the answer's whole text, also what was read before. */
  async text(): Promise<string> {
    return (await this.message()).content;
  }

  /** Stop it; who reads gets a RuvdError CANCELLED. Nothing happens after the end. */
  cancel(): void {
    if (!this.finished && !this.#failure) this.#left.abort(cancelled());
  }

  async *#read(): AsyncGenerator<v1.CompletionEvent, void, undefined> {
    const { signal } = this.#left;
    const forget = this.connection.stopWith(this.#left, this.limits.signal);
    try {
      signal.throwIfAborted();
      signal.addEventListener("abort", this.#leave);
      yield* this.#readOn(signal);
    } catch (error) {
      this.#failure ??= RuvdError.of(error);
      throw this.#failure;
    } finally {
      forget();
      this.cancel(); // Leaving the loop ends here.
    }
  }

  /** The events of as many calls as it takes. */
  async *#readOn(signal: AbortSignal): AsyncGenerator<v1.CompletionEvent, void, undefined> {
    const { reconnectMs, deadline } = this.limits;
    let brokenAt: number | undefined;
    let pauseMs = FIRST_PAUSE_MS;
    for (;;) {
      const resumed = this.started !== undefined;
      let broken = new RuvdError(status.UNAVAILABLE, "the stream ended before the answer");
      try {
        for await (const { event } of this.#call(signal)) {
          if (!event || event.sequence <= this.lastSequence) continue;
          brokenAt = undefined;
          pauseMs = FIRST_PAUSE_MS;
          this.#take(event);
          yield event;
        }
      } catch (error) {
        broken = RuvdError.of(error);
      }
      if (this.finished) return;
      signal.throwIfAborted();
      const forgotten = resumed && broken.reason === "COMPLETION_NOT_FOUND";
      if (forgotten && "messages" in this.request && !this.#delivered) {
        // The daemon was started anew. Nothing was delivered, so another answer is as good.
        this.started = undefined;
        this.lastSequence = 0;
      } else if (broken.reason || !BREAKS.has(broken.code)) throw broken;
      const now = Date.now();
      brokenAt ??= now;
      const leftMs = brokenAt + reconnectMs - now;
      if (leftMs <= 0) throw broken;
      const waitMs = Math.max(0, Math.min(pauseMs, leftMs, deadline - now));
      await sleep(waitMs, undefined, { signal }).catch(() => undefined);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  #call(signal: AbortSignal): AsyncIterable<{ event: v1.CompletionEvent | undefined }> {
    const options = { deadline: this.limits.deadline, metadata: this.#metadata.clone(), signal };
    if ("messages" in this.request && !this.started) {
      return this.connection.stream(service.complete, this.request, options);
    }
    const rest = { ...this.#name(), afterSequence: this.lastSequence };
    const request = ResumeCompletionRequest.fromPartial(rest);
    return this.connection.stream(service.resumeCompletion, request, options);
  }

  #take({ sequence, started, delta, finished }: v1.CompletionEvent): void {
    this.lastSequence = sequence;
    if (started) this.started = started;
    if (delta) {
      this.#delivered = true;
      if (this.#text !== undefined) this.#text += delta.text ?? "";
    }
    if (finished) {
      const content = finished.message?.content ?? "";
      const delivered = this.#text ?? content;
      if (!content.startsWith(delivered)) {
        throw new RuvdError(status.DATA_LOSS, "the answer does not begin with what came of it");
      }
      this.#rest = content.slice(delivered.length);
      this.finished = finished;
    }
  }

  /** What names the completion, for other calls. */
  #name(): { completionId?: string; sessionId?: string; requestId?: string } {
    if (this.started) return { completionId: this.started.completionId };
    const { sessionId, requestId } = this.request;
    return "completionId" in this.request ? this.request : { sessionId, requestId };
  }

  /** The caller does not want it any longer, so the daemon need not wait for a reader. */
  readonly #leave = (): void => {
    this.#failure = RuvdError.of(this.#left.signal.reason);
    if ("messages" in this.request) {
      if (this.request.onDisconnect === OnDisconnect.ON_DISCONNECT_CONTINUE) return;
    }
    this.connection.cancel(this.#name(), this.#metadata.clone());
  };
}
