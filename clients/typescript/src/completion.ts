/**
 * A completion, received over one or several streams: a broken stream is resumed.
 *
 * The rules are those of clients/CONFORMANCE.md. Nothing runs in the background: reading makes the
 * calls, so an abandoned reader leaves no task behind.
 */

import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";
import type { Metadata } from "@grpc/grpc-js";

import type { Channel } from "./channels.js";
import { withSession } from "./connection.js";
import type { Connection } from "./connection.js";
import { ErrorReason, RuvdError, cancelled } from "./errors.js";
import { Round, leaves } from "./failover.js";
import type { Step } from "./failover.js";
import { MessageParts } from "./parts.js";
import {
  OnDisconnect,
  ResumeCompletionRequest,
  SessionServiceService as service,
} from "./v1/ruvd/v1/session_service.js";
import type * as v1 from "./v1/ruvd/v1/session_service.js";

const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1000;
/** The request that is repeated may be what kills the daemons. */
const MAX_RESTARTS = 3;

/** The codes of calls whose connection was lost or could not be made. */
const RETRYABLE = new Set([status.UNAVAILABLE, status.CANCELLED, status.INTERNAL, status.UNKNOWN]);

/** The deadline of a completion, on the clock, and how long a broken stream is resumed. */
export interface Limits {
  signal: AbortSignal | undefined;
  deadline: number;
  reconnectMs: number;
}

/**
 * A running completion, which is an iterable over its text. It is read once. Throws RuvdError.
 *
 * The call is made when reading starts. A stream that breaks without an error of ruvd's is resumed:
 * each piece of text is delivered once, or there is an error. Leaving the loop, `cancel`, the signal
 * and the timeout cancel the completion and leave the session unchanged, unless the request has
 * ON_DISCONNECT_CONTINUE.
 */
export class Completion implements AsyncIterable<string> {
  /** Set once the engine is available to the turn; it has the completion's id. */
  started: v1.Started | undefined;
  /** Set once the answer has been read to its end; it has the usage and the timings. */
  finished: v1.Finished | undefined;
  /** The sequence number of the last event received, after which to resume. */
  lastSequence: number;

  /** The events, which `#events` hands to the caller. */
  readonly #received = this.#read();
  readonly #events = this.#deliver();
  readonly #controller = new AbortController();
  readonly #metadata: Metadata;
  #failure: RuvdError | undefined;
  /** Whether text, reasoning or a tool call was handed to the caller. */
  #delivered = false;
  /** The text received; undefined if its beginning is unknown. */
  #text: string | undefined;
  /** The text of the whole answer beyond it. */
  #missingText = "";
  #parts = new MessageParts();
  #channel: Channel;
  #restartsLeft = MAX_RESTARTS;

  /** @internal */
  constructor(
    private readonly connection: Connection,
    private readonly request: v1.CompleteRequest | ResumeCompletionRequest,
    private readonly limits: Limits,
  ) {
    this.lastSequence = "afterSequence" in request ? request.afterSequence : 0;
    this.#text = this.lastSequence === 0 ? "" : undefined;
    this.#channel = connection.channels.current;
    this.#metadata = connection.metadata();
  }

  /** Returns the numbered events that have not been read yet. */
  events(): AsyncIterable<v1.CompletionEvent> {
    return this.#events;
  }

  /** Returns the pieces of the text that have not been read yet. */
  async *[Symbol.asyncIterator](): AsyncGenerator<string, void, undefined> {
    for await (const { delta, finished } of this.#events) {
      const text = finished ? this.#missingText : delta?.text;
      if (text) yield text;
    }
  }

  /** Waits for the end and returns the whole answer with its tool calls and reasoning. */
  async message(): Promise<v1.Message> {
    while (!(await this.#received.next()).done);
    if (this.finished?.message) return this.finished.message;
    throw this.#failure ?? new RuvdError(status.UNKNOWN, "the answer has no message");
  }

  /** Waits for the end and returns the whole text, including the parts read before. */
  async text(): Promise<string> {
    return (await this.message()).content;
  }

  /** Cancels it; the reader gets a RuvdError CANCELLED. Has no effect after the end. */
  cancel(): void {
    if (!this.finished && !this.#failure) this.#controller.abort(cancelled());
  }

  async *#deliver(): AsyncGenerator<v1.CompletionEvent, void, undefined> {
    for await (const event of this.#received) {
      if (event.delta) this.#delivered = true;
      yield event;
    }
  }

  async *#read(): AsyncGenerator<v1.CompletionEvent, void, undefined> {
    const { signal } = this.#controller;
    const detach = this.connection.abortWith(this.#controller, this.limits.signal);
    try {
      signal.throwIfAborted();
      signal.addEventListener("abort", this.#onAbort);
      yield* this.#readCalls(signal);
    } catch (error) {
      this.#failure ??= RuvdError.of(error);
      throw this.#failure;
    } finally {
      detach();
      this.cancel(); // Leaving the loop ends here.
    }
  }

  /** Yields the events, over as many calls as are needed. */
  async *#readCalls(signal: AbortSignal): AsyncGenerator<v1.CompletionEvent, void, undefined> {
    const { reconnectMs, deadline } = this.limits;
    const { channels } = this.connection;
    const round = new Round(channels.attemptsPerRound);
    let brokenAt: number | undefined;
    let pauseMs = FIRST_PAUSE_MS;
    let notFound: RuvdError | undefined; // in this round
    for (;;) {
      const isResuming = this.started !== undefined || !("messages" in this.request);
      let hasEvent = false;
      let failure = new RuvdError(status.UNAVAILABLE, "the stream ended without Finished");
      try {
        for await (const { event } of this.#call(signal)) {
          if (event?.messagePart) this.#parts.add(event.messagePart);
          if (!event || event.sequence <= this.lastSequence || event.messagePart) continue;
          this.#parts.join(event.finished);
          brokenAt = notFound = undefined;
          pauseMs = FIRST_PAUSE_MS;
          hasEvent = true;
          round.begin();
          this.#handleEvent(event);
          yield event;
        }
      } catch (error) {
        failure = RuvdError.of(error);
      }
      if (this.finished) return;
      signal.throwIfAborted();
      const step = this.#stepAfter(failure, isResuming, hasEvent);
      if (step === "ask") notFound = failure;
      const isRoundOver = step !== "stay" && round.failed();
      if (isRoundOver && notFound) throw notFound;
      const now = Date.now();
      brokenAt ??= now;
      const remainingMs = brokenAt + reconnectMs - now;
      if (remainingMs <= 0) throw failure;
      if (isRoundOver || !channels.hasOthers) {
        const waitMs = Math.max(0, Math.min(pauseMs, remainingMs, deadline - now));
        await sleep(waitMs, undefined, { signal }).catch(() => undefined);
        pauseMs = Math.min(2 * pauseMs, LONGEST_PAUSE_MS);
      }
      this.#channel = channels.after(this.#channel, step);
    }
  }

  /** Returns the address of the attempt after a failed one. Throws the error if it is final. */
  #stepAfter(failure: RuvdError, isResuming: boolean, hasEvent: boolean): Step {
    const { hasOthers } = this.connection.channels;
    if (!failure.reason && RETRYABLE.has(failure.code)) {
      // A daemon that was reached may still run, and only it has the running completion.
      return hasEvent || !hasOthers ? "stay" : "failOver";
    }
    if (isResuming && failure.reason === ErrorReason.COMPLETION_NOT_FOUND) {
      if (this.#restart()) return "stay";
      if (hasOthers) return "ask";
    } else if (hasOthers && leaves(failure) && this.#restart()) return "leave";
    throw failure;
  }

  /** Forgets an answer that was lost; returns false if a new one may not follow it. */
  #restart(): boolean {
    if (this.#delivered || !("messages" in this.request)) return false;
    if (this.started && this.#restartsLeft-- <= 0) return false;
    this.started = undefined;
    this.lastSequence = 0;
    this.#text = "";
    this.#parts = new MessageParts();
    return true;
  }

  #call(signal: AbortSignal): AsyncIterable<{ event: v1.CompletionEvent | undefined }> {
    const options = { deadline: this.limits.deadline, metadata: this.#callMetadata(), signal };
    if ("messages" in this.request && !this.started) {
      return this.connection.stream(this.#channel, service.complete, this.request, options);
    }
    const fields = { ...this.#identify(), afterSequence: this.lastSequence };
    const request = ResumeCompletionRequest.fromPartial(fields);
    return this.connection.stream(this.#channel, service.resumeCompletion, request, options);
  }

  #callMetadata(): Metadata {
    const sessionId = this.request.sessionId || (this.started?.sessionId ?? "");
    return withSession(this.#metadata.clone(), sessionId);
  }

  #handleEvent({ sequence, started, delta, finished }: v1.CompletionEvent): void {
    this.lastSequence = sequence;
    if (started) this.started = started;
    if (delta && this.#text !== undefined) this.#text += delta.text ?? "";
    if (finished) {
      const content = finished.message?.content ?? "";
      const delivered = this.#text ?? content;
      if (!content.startsWith(delivered)) {
        throw new RuvdError(status.DATA_LOSS, "the answer contradicts the text received before");
      }
      this.#missingText = content.slice(delivered.length);
      this.finished = finished;
    }
  }

  /** Returns the fields that identify the completion in other calls. */
  #identify(): { completionId?: string; sessionId?: string; requestId?: string } {
    if (this.started) return { completionId: this.started.completionId };
    const { sessionId, requestId } = this.request;
    return "completionId" in this.request ? this.request : { sessionId, requestId };
  }

  /** Sends CancelCompletion, because the daemon would otherwise wait for a reader to return. */
  readonly #onAbort = (): void => {
    this.#failure = RuvdError.of(this.#controller.signal.reason);
    if ("messages" in this.request) {
      if (this.request.onDisconnect === OnDisconnect.ON_DISCONNECT_CONTINUE) return;
    }
    this.connection.cancel(this.#channel, this.#identify(), this.#callMetadata());
  };
}
