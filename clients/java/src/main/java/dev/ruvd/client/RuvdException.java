package dev.ruvd.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status.Code;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/** A call that failed. {@link #getMessage()} is what the daemon says about it. */
public final class RuvdException extends RuntimeException {
  private static final long serialVersionUID = 1L;

  private final com.google.rpc.Status status;

  private RuvdException(com.google.rpc.Status status, Throwable cause) {
    super(status.getMessage(), cause);
    this.status = status;
  }

  /** The error of one item of a batch: as its own call would have failed. */
  public RuvdException(com.google.rpc.Status status) {
    this(status, null);
  }

  RuvdException(Code code, String message) {
    this(com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage(message).build());
  }

  /** The error of a call that gRPC says has failed. */
  static RuvdException of(Throwable failed) {
    return new RuvdException(StatusProto.fromThrowable(failed), failed);
  }

  /** gRPC's code. */
  public Code code() {
    return io.grpc.Status.fromCodeValue(status.getCode()).getCode();
  }

  /**
   * One of {@code ErrorReason} without its prefix, such as {@code SESSION_NOT_FOUND}; empty if the
   * error is not ruvd's own, as where no daemon is at the address.
   */
  public String reason() {
    ErrorInfo info = detail(ErrorInfo.getDefaultInstance());
    return info.getDomain().equals("ruvd") ? info.getReason() : "";
  }

  /** Every wrong field of the request, for INVALID_REQUEST. */
  public List<BadRequest.FieldViolation> violations() {
    return detail(BadRequest.getDefaultInstance()).getFieldViolationsList();
  }

  /** How long to wait before a repetition; empty where waiting does not help. */
  public Optional<Duration> retryAfter() {
    RetryInfo info = detail(RetryInfo.getDefaultInstance());
    var delay = info.getRetryDelay();
    return info.hasRetryDelay()
        ? Optional.of(Duration.ofSeconds(delay.getSeconds(), delay.getNanos()))
        : Optional.empty();
  }

  @Override
  public String toString() {
    return "RuvdException: " + code() + " " + reason() + ": " + getMessage();
  }

  private <T extends Message> T detail(T absent) {
    for (Any detail : status.getDetailsList()) {
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
