package dev.ruvd.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import dev.ruvd.v1.ErrorReason;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/** The error of a failed call, with the details in its gRPC status. */
public final class RuvdException extends StatusRuntimeException {
  /** The reason of a request that gRPC refused for its size, before ruvd saw it. */
  public static final String REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE";

  // In the daemon's gRPC status for a request far above max_request_bytes, which has no details.
  private static final String TOO_LARGE_TEXT = "message larger than max";
  private static final long serialVersionUID = 1L;

  RuvdException(StatusRuntimeException failed) {
    super(failed.getStatus().withCause(failed), failed.getTrailers());
  }

  RuvdException(Status status, String message) {
    super(status.withDescription(message), null);
  }

  /** Returns a failure of gRPC's as this error. */
  static RuvdException from(Throwable failed) {
    if (failed instanceof RuvdException known) {
      return known;
    }
    return new RuvdException(
        failed instanceof StatusRuntimeException status
            ? status
            : Status.fromThrowable(failed).asRuntimeException());
  }

  /**
   * Converts the status of a batch item to the error of an equivalent single call.
   *
   * @param error the error of a {@code BatchResult}
   * @return the error
   */
  public static RuvdException of(com.google.rpc.Status error) {
    return new RuvdException(StatusProto.toStatusRuntimeException(error));
  }

  /** Returns the error as the status of a batch item. */
  com.google.rpc.Status status() {
    return StatusProto.fromThrowable(this);
  }

  /**
   * Returns the gRPC status code.
   *
   * @return the code, also of an error that does not come from ruvd
   */
  public Code code() {
    return getStatus().getCode();
  }

  /**
   * Returns an {@code ErrorReason} without its prefix, such as {@code SESSION_NOT_FOUND}, or an
   * empty string if the error does not come from ruvd, for example without a daemon. The client
   * itself adds {@link #REQUEST_TOO_LARGE}. A reason that only a later daemon knows is returned as
   * it is.
   *
   * @return the reason, or an empty string
   */
  public String reason() {
    ErrorInfo info = detail(ErrorInfo.getDefaultInstance());
    if (info.getDomain().equals("ruvd")) {
      return info.getReason();
    }
    return isTooLarge() ? REQUEST_TOO_LARGE : "";
  }

  /**
   * Returns {@link #reason()} as an enum: {@code ERROR_REASON_UNSPECIFIED} for an error that does
   * not come from ruvd, and {@code UNRECOGNIZED} for a reason that this version does not know.
   *
   * @return the reason as an enum
   */
  public ErrorReason errorReason() {
    String reason = reason();
    if (reason.isEmpty() || reason.equals(REQUEST_TOO_LARGE)) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
    try {
      return ErrorReason.valueOf("ERROR_REASON_" + reason);
    } catch (IllegalArgumentException unknown) {
      return ErrorReason.UNRECOGNIZED;
    }
  }

  /**
   * Returns the error's description, for humans.
   *
   * @return the description, or an empty string
   */
  public String message() {
    return description() + (isTooLarge() ? " (the daemon's max_request_bytes)" : "");
  }

  private String description() {
    return Optional.ofNullable(getStatus().getDescription()).orElse("");
  }

  private boolean isTooLarge() {
    return code() == Code.RESOURCE_EXHAUSTED && description().contains(TOO_LARGE_TEXT);
  }

  /**
   * Returns all invalid fields of the request, for INVALID_REQUEST.
   *
   * @return the fields and what is wrong with each
   */
  public List<BadRequest.FieldViolation> violations() {
    return detail(BadRequest.getDefaultInstance()).getFieldViolationsList();
  }

  /**
   * Returns the time to wait before a retry; empty if the call is not worth a retry.
   *
   * @return the time
   */
  public Optional<Duration> retryAfter() {
    return Optional.of(detail(RetryInfo.getDefaultInstance()))
        .filter(RetryInfo::hasRetryDelay)
        .map(RetryInfo::getRetryDelay)
        .map(delay -> Duration.ofSeconds(delay.getSeconds(), delay.getNanos()));
  }

  private <T extends Message> T detail(T absent) {
    for (Any detail : StatusProto.fromThrowable(this).getDetailsList()) {
      try {
        if (detail.isSameTypeAs(absent)) {
          return detail.unpackSameTypeAs(absent);
        }
      } catch (InvalidProtocolBufferException malformed) {
        break;
      }
    }
    return absent;
  }
}
