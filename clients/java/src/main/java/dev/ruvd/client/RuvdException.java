package dev.ruvd.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/** A call that failed, with the details that ruvd puts into gRPC's status. */
public final class RuvdException extends StatusRuntimeException {
  private static final long serialVersionUID = 1L;

  RuvdException(StatusRuntimeException failed) {
    super(failed.getStatus().withCause(failed), failed.getTrailers());
  }

  RuvdException(Status status, String message) {
    super(status.withDescription(message), null);
  }

  /** The error of one item of a batch: as its own call would have failed. */
  public static RuvdException of(com.google.rpc.Status error) {
    return new RuvdException(StatusProto.toStatusRuntimeException(error));
  }

  /** gRPC's code. */
  public Code code() {
    return getStatus().getCode();
  }

  /**
   * One of {@code ErrorReason} without its prefix, such as {@code SESSION_NOT_FOUND}; empty if the
   * error is not ruvd's own, as where no daemon is at the address.
   */
  public String reason() {
    ErrorInfo info = detail(ErrorInfo.getDefaultInstance());
    return info.getDomain().equals("ruvd") ? info.getReason() : "";
  }

  /** What the daemon says about it. */
  public String message() {
    return Optional.ofNullable(getStatus().getDescription()).orElse("");
  }

  /** Every wrong field of the request, for INVALID_REQUEST. */
  public List<BadRequest.FieldViolation> violations() {
    return detail(BadRequest.getDefaultInstance()).getFieldViolationsList();
  }

  /** How long to wait before a repetition; empty where waiting does not help. */
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
      } catch (InvalidProtocolBufferException notOurs) {
        break;
      }
    }
    return absent;
  }
}
