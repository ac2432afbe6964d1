/** Messages that the daemon sends in parts, because they are too large for one response. */

import { status } from "@grpc/grpc-js";

import { RuvdError } from "./errors.js";
import * as v1 from "./v1/ruvd/v1/session_service.js";

/** The parts of one message, as they come. */
export class MessageParts {
  #data: Uint8Array[] = [];
  #size = 0;
  #totalBytes = 0;

  /** Adds the next part. Throws DATA_LOSS if one before it is missing. */
  add({ data, offset, totalBytes }: v1.MessagePart): void {
    if (offset === 0) this.#reset();
    if (offset !== this.#size) throw partIsMissing();
    this.#data.push(data);
    this.#size += data.length;
    this.#totalBytes = totalBytes;
  }

  /** Whether all parts have come. */
  get isWhole(): boolean {
    return this.#totalBytes > 0 && this.#size >= this.#totalBytes;
  }

  /** Returns the message and forgets its parts. Throws DATA_LOSS unless all have come. */
  take(): v1.Message {
    if (!this.isWhole) throw partIsMissing();
    const message = v1.Message.decode(Buffer.concat(this.#data));
    this.#reset();
    return message;
  }

  /** Sets the message of a Finished that was sent in parts. */
  join(finished: v1.Finished | undefined): void {
    if (finished?.messageInParts) finished.message = this.take();
  }

  #reset(): void {
    this.#data = [];
    this.#size = this.#totalBytes = 0;
  }
}

function partIsMissing(): RuvdError {
  return new RuvdError(status.DATA_LOSS, "a part of a large message is missing");
}
