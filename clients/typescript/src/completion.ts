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
import { OnDisconnect, SessionServiceService as service } from "./v1/ruvd/v1/session_service.js";
import type {
  CompleteRequest,
  CompletionEvent,
  Finished,
  Message,
  ResumeCompletionRequest,
  Started,
} from "./v1/ruvd/v1/session_service.js";

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1000;

/** What a connection that breaks, or is not there, ends a call with. */
const BREAKS = new Set([status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN]);

/** A new completion, or the rest of one that has begun. */
export type Asked = { complete: CompleteRequest } | { resume: ResumeCompletionRequest };

/** How long it may take, and how long a stream that broke is taken up again. */
export interface Limits {
  signal?: AbortSignal | undefined;
  timeoutMs?: number | undefined;
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
  started: Started | undefined;
  /** Set once the answer has been read to its end: usage and timings, among others. */
  finished: Finished | undefined;
  /** The number of the last event that has come, to resume after. */
  lastSequence: number;

  readonly #connection: Connection;
  readonly #asked: Asked;
  readonly #limits: Limits;
  readonly #deadline: number;
  readonly #metadata = traced();
  readonly #left = new AbortController();
  readonly #events = this.#read();
  /** The call to make next. */
  #next: Asked;
  #called = false;
  #failure: RuvdError | undefined;
  /** The text that was delivered; undefined where its beginning is not known here. */
  #text: string | undefined;
  /** What the answer has beyond it. */
  #rest = "";
  /** Whether text, reasoning or a tool call was. */
  #delivered = false;

  constructor(connection: Connection, asked: Asked, limits: Limits) {
    this.#connection = connection;
    this.#asked = this.#next = asked;
    this.#limits = limits;
    this.#deadline = Date.now() + (limits.timeoutMs ?? Infinity);
    this.lastSequence = "resume" in asked ? asked.resume.afterSequence : 0;
    if (this.lastSequence === 0) this.#text = "";
  }

  /** The numbered events that have not been read yet, instead of their text. */
  events(): AsyncIterable<CompletionEvent> {
    return this.#events;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for await (const { delta, finished } of this.#events) {
      const text = finished ? this.#rest : delta?.text;
      if (text) yield text;
    }
  }

  /** Wait for the end: the whole answer, with its tool calls and its reasoning. */
  async message(): Promise<Message> {
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
    this.#leave(cancelled());
  }

  async *#read(): AsyncGenerator<CompletionEvent, void, undefined> {
    const leave = (error: RuvdError) => {
      this.#leave(error);
    };
    const forget = this.#connection.stopWith(leave, this.#limits.signal);
    try {
      yield* this.#readOn();
    } catch (error) {
      this.#failure ??= RuvdError.of(error);
      throw this.#failure;
    } finally {
      forget();
      this.cancel();
    }
  }

  /** The events of as many calls as it takes. */
  async *#readOn(): AsyncGenerator<CompletionEvent, void, undefined> {
    const { signal } = this.#left;
    let brokenAt: number | undefined;
    let pauseMs = FIRST_PAUSE_MS;
    for (;;) {
      let broken = new RuvdError(status.UNAVAILABLE, "the stream ended before the answer");
      try {
        for await (const { event } of this.#call()) {
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
      if (!this.#beginsAnew(broken) && (broken.reason || !BREAKS.has(broken.code))) throw broken;
      const now = Date.now();
      brokenAt ??= now;
      const leftMs = brokenAt + this.#limits.reconnectMs - now;
      if (leftMs <= 0) throw broken;
      const waitMs = Math.max(0, Math.min(pauseMs, leftMs, this.#deadline - now));
      await sleep(waitMs, undefined, { signal }).catch(() => undefined);
      pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
    }
  }

  #call(): AsyncIterable<{ event?: CompletionEvent | undefined }> {
    this.#called = true;
    const { signal } = this.#left;
    const options = { deadline: this.#deadline, metadata: this.#metadata.clone() };
    if ("complete" in this.#next) {
      return this.#connection.stream(service.complete, this.#next.complete, signal, options);
    }
    const request = { ...this.#next.resume, afterSequence: this.lastSequence };
    return this.#connection.stream(service.resumeCompletion, request, signal, options);
  }

  #take({ sequence, started, delta, finished }: CompletionEvent): void {
    this.lastSequence = sequence;
    if (started) {
      const { completionId } = started;
      this.started = started;
      this.#next = { resume: { completionId, sessionId: "", requestId: "", afterSequence: 0 } };
    } else if (delta) {
      this.#delivered = true;
      if (this.#text !== undefined) this.#text += delta.text ?? "";
    } else if (finished) {
      const content = finished.message?.content ?? "";
      const delivered = this.#text ?? content;
      if (!content.startsWith(delivered)) {
        throw new RuvdError(status.DATA_LOSS, "the answer does not begin with what came of it");
      }
      this.#rest = content.slice(delivered.length);
      this.finished = finished;
    }
  }

  /** Whether the daemon was started anew and nothing was delivered: another answer is as good. */
  #beginsAnew({ reason }: RuvdError): boolean {
    const forgotten = reason === "COMPLETION_NOT_FOUND" && "resume" in this.#next;
    if (!forgotten || this.#delivered || "resume" in this.#asked) return false;
    this.#next = this.#asked;
    this.started = undefined;
    this.lastSequence = 0;
    return true;
  }

  /** The caller does not want it any longer. */
  #leave(error: RuvdError): void {
    if (this.finished || this.#failure) return;
    this.#failure = error;
    this.#left.abort(error);
    const asked = "complete" in this.#asked ? this.#asked.complete : undefined;
    const goesOn = asked?.onDisconnect === OnDisconnect.ON_DISCONNECT_CONTINUE;
    if (!this.#called || goesOn) return;
    const named = "complete" in this.#next ? this.#next.complete : this.#next.resume;
    this.#connection.cancel(named, this.#metadata.clone());
  }
}
