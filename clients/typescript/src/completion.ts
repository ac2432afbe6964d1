/**
 * One answer, over as many streams as it takes: a stream that breaks is not its end.
 *
 * The rules are those of clients/CONFORMANCE.md. Nothing runs by itself: the reader's own steps make
 * the calls, so there is nobody to tell when the reader forgets about them.
 */

import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";
import type { ClientReadableStream } from "@grpc/grpc-js";

import { responses } from "./connection.js";
import type { Connection } from "./connection.js";
import { RuvdError, cancelled } from "./errors.js";
import { cancelRequest } from "./requests.js";
import { traced } from "./tracing.js";
import { OnDisconnect, SessionServiceService } from "./v1/ruvd/v1/session_service.js";
import type {
  CompleteRequest,
  CompleteResponse,
  CompletionEvent,
  Finished,
  Message,
  ResumeCompletionRequest,
  Started,
} from "./v1/ruvd/v1/session_service.js";

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1000;
const LONGEST_TIMER_MS = 2 ** 31 - 1;

/** What a connection that breaks, or is not there, ends a call with. */
const BREAKS = new Set([status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN]);

/** What to ask for: a new completion, or the rest of one that somebody else began. */
export interface Asked {
  complete?: CompleteRequest;
  resume?: ResumeCompletionRequest;
  /** How long a stream that broke is taken up again. */
  reconnectMs: number;
  timeoutMs: number | undefined;
  signal: AbortSignal | undefined;
}

/**
 * An answer on its way: iterate for its text, once. Throws RuvdError.
 *
 * The call is made when it is read first. A stream that breaks without an error of ruvd's is taken up
 * where it was: each text comes once, or there is an error. Leaving the loop, `cancel`, the signal,
 * or the time-out stops the daemon, and the session is as it was before the turn; but not if the
 * request said ON_DISCONNECT_CONTINUE, or if somebody else began the completion.
 */
export class Completion implements AsyncIterable<string> {
  readonly #connection: Connection;
  readonly #asked: Asked;
  readonly #trace = traced();
  readonly #deadline: number;
  readonly #events = this.#read();
  readonly #left = new AbortController();

  #started: Started | undefined;
  #finished: Finished | undefined;
  #lastSequence: number;
  #stream: ClientReadableStream<CompleteResponse> | undefined;
  #timer: NodeJS.Timeout | undefined;
  /** What to resume; undefined until that is known. */
  #resume: ResumeCompletionRequest | undefined;
  /** Whether the stream is one of ResumeCompletion. */
  #resumed = false;
  /** The text that was delivered; undefined where its beginning is not known. */
  #text: string | undefined;
  /** Whether text, reasoning or a tool call was. */
  #delivered = false;
  #brokenAt: number | undefined;
  #pauseMs = FIRST_PAUSE_MS;
  #failure: RuvdError | undefined;
  #over = false;

  constructor(connection: Connection, asked: Asked) {
    this.#connection = connection;
    this.#asked = asked;
    this.#resume = asked.resume;
    this.#lastSequence = asked.resume?.afterSequence ?? 0;
    this.#text = this.#lastSequence === 0 ? "" : undefined;
    this.#deadline = performance.now() + (asked.timeoutMs ?? Infinity);
  }

  /** Set once the turn has the engine: the completion's id, among others. */
  get started(): Started | undefined {
    return this.#started;
  }

  /** Set once the answer has been read to its end: usage and timings, among others. */
  get finished(): Finished | undefined {
    return this.#finished;
  }

  /** The number of the last event that has come, to resume after; 0 before the first. */
  get lastSequence(): number {
    return this.#lastSequence;
  }

  /** The numbered events that have not been read yet, instead of their text. */
  events(): AsyncIterable<CompletionEvent> {
    return this.#events;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for await (const { delta } of this.#events) if (delta?.text) yield delta.text;
  }

  /** Wait for the end: the whole answer, with its tool calls and its reasoning. */
  async message(): Promise<Message> {
    while (!(await this.#events.next()).done);
    if (this.#finished?.message) return this.#finished.message;
    throw this.#failure ?? new RuvdError(status.UNKNOWN, "", "the answer has no message");
  }

  /** Wait for the end: the answer's whole text, also what was read before. */
  async text(): Promise<string> {
    return (await this.message()).content;
  }

  /** Stop it; who reads gets a RuvdError CANCELLED. Nothing happens after the end. */
  cancel(): void {
    this.#stop(cancelled());
  }

  async *#read(): AsyncGenerator<CompletionEvent, void, undefined> {
    this.#begin();
    try {
      while (!this.#failure) {
        const broken = yield* this.#readStream();
        if (this.#finished) return;
        await this.#pause(broken);
      }
      throw this.#failure;
    } finally {
      this.#leave();
    }
  }

  readonly #closed = (): void => {
    this.cancel();
  };
  readonly #aborted = (): void => {
    this.#stop(cancelled(this.#asked.signal?.reason));
  };

  #begin(): void {
    const { signal } = this.#asked;
    this.#connection.track(this.#closed);
    signal?.addEventListener("abort", this.#aborted);
    if (signal?.aborted) this.#aborted();
    if (this.#failure || this.#deadline === Infinity) return;
    const expire = () => {
      const message = "the answer was not complete in time";
      this.#stop(new RuvdError(status.DEADLINE_EXCEEDED, "", message));
    };
    this.#timer = setTimeout(expire, Math.min(this.#leftMs(), LONGEST_TIMER_MS));
  }

  /** The events of one call; what ended it. */
  async *#readStream(): AsyncGenerator<CompletionEvent, RuvdError, undefined> {
    try {
      this.#stream = this.#open();
      for await (const { event } of responses(this.#stream)) {
        if (this.#failure) return this.#failure;
        if (!event || event.sequence <= this.#lastSequence) continue;
        yield* this.#take(event);
      }
      return new RuvdError(status.UNAVAILABLE, "", "the stream ended before the answer");
    } catch (error) {
      return RuvdError.of(error);
    }
  }

  #open(): ClientReadableStream<CompleteResponse> {
    const left = this.#leftMs();
    const timeoutMs = left === Infinity ? undefined : left;
    const options = { timeoutMs, metadata: this.#trace.clone() };
    const { complete } = this.#asked;
    this.#resumed = this.#resume !== undefined;
    if (this.#resume) {
      const request = { ...this.#resume, afterSequence: this.#lastSequence };
      return this.#connection.stream(SessionServiceService.resumeCompletion, request, options);
    }
    if (!complete) throw new RuvdError(status.INTERNAL, "", "nothing is asked");
    return this.#connection.stream(SessionServiceService.complete, complete, options);
  }

  /** Note an event, and give it. */
  *#take(event: CompletionEvent): Generator<CompletionEvent, void, undefined> {
    const { started, delta, finished, sequence } = event;
    this.#lastSequence = sequence;
    this.#brokenAt = undefined;
    this.#pauseMs = FIRST_PAUSE_MS;
    if (started) {
      this.#started = started;
      const { completionId } = started;
      this.#resume = { completionId, sessionId: "", requestId: "", afterSequence: sequence };
    } else if (delta) {
      this.#delivered = true;
      if (this.#text !== undefined) this.#text += delta.text ?? "";
    } else if (finished) {
      this.#over = true;
      const rest = this.#rest(finished);
      this.#finished = finished;
      // The call should end by itself rather than cancelled, but nobody waits long for that.
      setTimeout(() => this.#stream?.cancel(), LONGEST_PAUSE_MS).unref();
      // The events that brought it are no longer kept. They had numbers before this one.
      if (rest) yield { sequence: sequence - 1, delta: { text: rest } };
    }
    yield event;
  }

  /** What the answer has beyond the text that was delivered. */
  #rest({ message }: Finished): string {
    if (this.#text === undefined) return "";
    const content = message?.content ?? "";
    if (content.startsWith(this.#text)) return content.slice(this.#text.length);
    throw new RuvdError(status.DATA_LOSS, "", "the answer does not begin with what came of it");
  }

  /** Wait before another try, or throw what ends the completion. */
  async #pause(broken: RuvdError): Promise<void> {
    if (this.#failure) return;
    const lost = broken.reason === "COMPLETION_NOT_FOUND" && this.#resumed;
    if (lost && this.#asked.complete && !this.#delivered) {
      // The daemon was started anew. Nothing was delivered, so another answer is as good.
      this.#resume = undefined;
      this.#started = undefined;
      this.#lastSequence = 0;
    } else if (broken.code === status.DEADLINE_EXCEEDED && !broken.reason) {
      this.#stop(broken);
      return;
    } else if (broken.reason || !BREAKS.has(broken.code)) {
      this.#fail(broken);
      return;
    }
    const now = performance.now();
    this.#brokenAt ??= now;
    const left = this.#brokenAt + this.#asked.reconnectMs - now;
    if (left <= 0) {
      this.#fail(broken);
      return;
    }
    const { signal } = this.#left;
    await sleep(Math.min(this.#pauseMs, left), undefined, { signal }).catch(() => undefined);
    this.#pauseMs = Math.min(2 * this.#pauseMs, LONGEST_PAUSE_MS);
  }

  #leftMs(): number {
    return Math.max(0, this.#deadline - performance.now());
  }

  /** It has failed by itself. */
  #fail(error: RuvdError): void {
    this.#over = true;
    this.#failure = error;
  }

  /** The caller does not want it any longer. */
  #stop(error: RuvdError): void {
    if (this.#over || this.#failure) return;
    this.#failure = error;
    this.#leave();
  }

  /** Let go of everything, and have the daemon stop unless it has. */
  #leave(): void {
    const over = this.#over;
    this.#over = true;
    this.#failure ??= this.#finished ? undefined : cancelled();
    this.#left.abort();
    clearTimeout(this.#timer);
    this.#connection.forget(this.#closed);
    this.#asked.signal?.removeEventListener("abort", this.#aborted);
    if (!this.#stream || over) return;
    this.#stream.cancel();
    const { complete } = this.#asked;
    const goesOn = complete?.onDisconnect === OnDisconnect.ON_DISCONNECT_CONTINUE;
    const grace = complete?.disconnectGrace;
    if (!complete || goesOn || !(grace?.seconds || grace?.nanos)) return;
    const { sessionId, requestId } = complete;
    const request = cancelRequest(this.#started?.completionId ?? { sessionId, requestId });
    this.#connection.lastWord(SessionServiceService.cancelCompletion, request, this.#trace.clone());
  }
}
