/** The one error of the client, and how it is read from what gRPC says. */

import { status } from "@grpc/grpc-js";
import type { ServiceError } from "@grpc/grpc-js";

import type { Duration } from "./v1/google/protobuf/duration.js";
import type { Any } from "./v1/google/protobuf/any.js";
import { BadRequest, ErrorInfo, RetryInfo } from "./v1/google/rpc/error_details.js";
import { Status } from "./v1/google/rpc/status.js";

const CODES = new Map<number, status>(
  Object.values(status).flatMap((code) => (typeof code === "number" ? [[code, code]] : [])),
);
const TYPES = "type.googleapis.com/google.rpc.";

/** One wrong field of a request: its path, and what to do about it. */
export interface FieldViolation {
  field: string;
  description: string;
}

/** A call that failed. `message` is what the daemon says, for people. */
export class RuvdError extends Error {
  override readonly name = "RuvdError";

  constructor(
    /** gRPC's code. */
    readonly code: status,
    /**
     * One of `ErrorReason` without its prefix (`SESSION_NOT_FOUND`); empty where it is not ruvd that
     * says it: no daemon at the address, a deadline, a cancellation.
     */
    readonly reason: string,
    message: string,
    /** Every wrong field, for INVALID_REQUEST. */
    readonly violations: readonly FieldViolation[] = [],
    /** After how many milliseconds another try may help; unset where none does. */
    readonly retryAfterMs?: number,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }

  /** The error of a call that ended with `error`, one of gRPC's. Others become UNKNOWN. */
  static of(error: unknown): RuvdError {
    if (error instanceof RuvdError) return error;
    if (!isServiceError(error)) {
      const message = error instanceof Error ? error.message : String(error);
      return new RuvdError(status.UNKNOWN, "", message, [], undefined, { cause: error });
    }
    const [raw] = error.metadata.get("grpc-status-details-bin");
    return build(error.code, error.details, raw instanceof Buffer ? detailsIn(raw) : [], error);
  }

  /** The error of one item of a batch: as its own call would have failed. */
  static ofStatus({ code, message, details }: Status): RuvdError {
    return build(CODES.get(code) ?? status.UNKNOWN, message, details);
  }
}

/** What a call ends with that the caller has left. */
export function cancelled(cause?: unknown): RuvdError {
  const message = "cancelled by this client";
  return new RuvdError(status.CANCELLED, "", message, [], undefined, { cause });
}

function build(code: status, message: string, details: Any[], cause?: unknown): RuvdError {
  let reason = "";
  let violations: FieldViolation[] = [];
  let retryAfterMs: number | undefined;
  for (const { typeUrl, value } of details) {
    if (typeUrl === `${TYPES}ErrorInfo`) {
      const info = ErrorInfo.decode(value);
      if (info.domain === "ruvd") reason = info.reason;
    } else if (typeUrl === `${TYPES}BadRequest`) {
      violations = BadRequest.decode(value).fieldViolations.map(({ field, description }) => ({
        field,
        description,
      }));
    } else if (typeUrl === `${TYPES}RetryInfo`) {
      retryAfterMs = milliseconds(RetryInfo.decode(value).retryDelay);
    }
  }
  return new RuvdError(code, reason, message, violations, retryAfterMs, { cause });
}

function detailsIn(raw: Buffer): Any[] {
  try {
    return Status.decode(raw).details;
  } catch {
    return []; // Whatever is in between wrote this; the status itself still holds.
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function milliseconds(duration: Duration | undefined): number | undefined {
  return duration && duration.seconds * 1000 + duration.nanos / 1e6;
}
