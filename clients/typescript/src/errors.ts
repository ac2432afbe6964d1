/** The error of the client, and its conversion from gRPC's errors. */

import { status } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";

import type { Any } from "./v1/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./v1/google/rpc/error_details.js";
import type { BadRequest_FieldViolation as FieldViolation } from "./v1/google/rpc/error_details.js";
import { Status } from "./v1/google/rpc/status.js";
import { ErrorReason as ProtoReason } from "./v1/ruvd/v1/session_service.js";

export type { FieldViolation };

/** The reason of a request that gRPC refused for its size, before ruvd saw it. */
export const REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE";

const PREFIX = "ERROR_REASON_";
type NameOf<Key> = Key extends `ERROR_REASON_${infer Name}` ? Exclude<Name, "UNSPECIFIED"> : never;

/** A reason that the daemon of this version can send. A later one may send others. */
export type ErrorReason = NameOf<keyof typeof ProtoReason>;

/** The reasons by their names, to compare `RuvdError.reason` with: `ErrorReason.SESSION_BUSY`. */
export const ErrorReason = Object.freeze(
  Object.fromEntries(
    Object.keys(ProtoReason)
      .filter((key) => key.startsWith(PREFIX) && !key.endsWith("_UNSPECIFIED"))
      .map((key) => key.slice(PREFIX.length))
      .map((name) => [name, name]),
  ),
) as { readonly [Name in ErrorReason]: Name };

// In the daemon's gRPC status for a request far above max_request_bytes, which has no details.
const TOO_LARGE_TEXT = "message larger than max";

/** The error of a failed call. `message` is the daemon's description for humans. */
export class RuvdError extends Error {
  override readonly name = "RuvdError";
  /**
   * An `ErrorReason` (`SESSION_NOT_FOUND`); empty if the error does not come from ruvd (no daemon at
   * the address, deadline exceeded, cancelled). The client itself adds `REQUEST_TOO_LARGE`.
   */
  readonly reason: string = "";
  /** All invalid fields, for INVALID_REQUEST: their paths and how to correct them. */
  readonly violations: readonly FieldViolation[] = [];
  /** The milliseconds to wait before a retry; unset if the call is not worth a retry. */
  readonly retryAfterMs: number | undefined;

  constructor(
    /** The gRPC status code. */
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
    if (!this.reason && code === status.RESOURCE_EXHAUSTED && message.includes(TOO_LARGE_TEXT)) {
      this.reason = REQUEST_TOO_LARGE;
      this.message += " (the daemon's max_request_bytes)";
    }
  }

  /** Converts an error of gRPC. Other errors become UNKNOWN. */
  static of(error: unknown): RuvdError {
    if (error instanceof RuvdError) return error;
    const { code = status.UNKNOWN, details, metadata } = error as Partial<ServiceError>;
    const [raw] = metadata?.get("grpc-status-details-bin") ?? [];
    const message = details ?? String(error);
    return new RuvdError(code, message, raw instanceof Buffer ? parseDetails(raw) : [], {
      cause: error,
    });
  }
}

/** Returns the error of a call that this client cancelled. */
export function cancelled(cause?: unknown): RuvdError {
  return new RuvdError(status.CANCELLED, "cancelled by this client", [], { cause });
}

function parseDetails(raw: Buffer): Any[] {
  try {
    return Status.decode(raw).details;
  } catch {
    return []; // Written by a proxy, not by ruvd; the status itself is still valid.
  }
}
