/** The one error of the client, and how it is read from what gRPC says. */

import { status } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";

import type { Any } from "./v1/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./v1/google/rpc/error_details.js";
import type { BadRequest_FieldViolation as FieldViolation } from "./v1/google/rpc/error_details.js";
import { Status } from "./v1/google/rpc/status.js";

export type { FieldViolation };

/** A call that failed. `message` is what the daemon says, for people. */
export class RuvdError extends Error {
  override readonly name = "RuvdError";
  /**
   * One of `ErrorReason` without its prefix (`SESSION_NOT_FOUND`); empty where it is not ruvd that
   * says it: no daemon at the address, a deadline, a cancellation.
   */
  readonly reason: string = "";
  /** Every wrong field, for INVALID_REQUEST: its path, and what to do about it. */
  readonly violations: readonly FieldViolation[] = [];
  /** After how many milliseconds another try may help; unset where none does. */
  readonly retryAfterMs: number | undefined;

  constructor(
    /** gRPC's code. */
    readonly code: status,
    message: string,
    details: readonly Any[] = [],
    options?: ErrorOptions,
  ) {
    super(message, options);
    for (const { typeUrl, value } of details) {
      if (typeUrl.endsWith("/google.rpc.ErrorInfo")) {
        const { domain, reason } = ErrorInfo.decode(value);
        if (domain === "ruvd") this.reason = reason;
      } else if (typeUrl.endsWith("/google.rpc.BadRequest")) {
        this.violations = BadRequest.decode(value).fieldViolations;
      } else if (typeUrl.endsWith("/google.rpc.RetryInfo")) {
        const { retryDelay } = RetryInfo.decode(value);
        this.retryAfterMs = retryDelay && retryDelay.seconds * 1000 + retryDelay.nanos / 1e6;
      }
    }
  }

  /** The error of a call that ended with `error`, one of gRPC's. Others become UNKNOWN. */
  static of(error: unknown): RuvdError {
    if (error instanceof RuvdError) return error;
    const { code = status.UNKNOWN, details, metadata } = error as Partial<ServiceError>;
    const [raw] = metadata?.get("grpc-status-details-bin") ?? [];
    const message = details ?? String(error);
    return new RuvdError(code, message, raw instanceof Buffer ? detailsIn(raw) : [], {
      cause: error,
    });
  }
}

/** What a call ends with that the caller has left. */
export function cancelled(cause?: unknown): RuvdError {
  return new RuvdError(status.CANCELLED, "cancelled by this client", [], { cause });
}

function detailsIn(raw: Buffer): Any[] {
  try {
    return Status.decode(raw).details;
  } catch {
    return []; // Whatever is in between wrote this; the status itself still holds.
  }
}
