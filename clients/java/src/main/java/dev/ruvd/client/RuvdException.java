package dev.ruvd.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.io.Serializable;
import java.nio.channels.ClosedChannelException;
import java.time.Duration;
import java.util.List;
import java.util.Optional;

/** A call that failed. {@link #getMessage()} is what the daemon says about it. */
public final class RuvdException extends RuntimeException {
  private static final long serialVersionUID = 1L;
  private static final Metadata.Key<byte[]> DETAILS =
      Metadata.Key.of("grpc-status-details-bin", Metadata.BINARY_BYTE_MARSHALLER);

  private final Status.Code code;
  private String reason = "";
  private Violation[] violations = {};
  private Duration retryAfter;

  /**
   * One wrong field of a request.
   *
   * @param field its path
   * @param description what to do about it
   */
  public record Violation(String field, String description) implements Serializable {}

  private RuvdException(Status.Code code, String message, List<Any> details, Throwable cause) {
    super(message, cause);
    this.code = code;
    for (Any detail : details) {
      try {
        read(detail);
      } catch (InvalidProtocolBufferException notOurs) {
        // Whatever is in between wrote this; the status itself still holds.
      }
    }
  }

  RuvdException(Status.Code code, String message) {
    this(code, message, List.of(), null);
  }

  /** The error of a call that ended with this status. */
  static RuvdException of(Status status, Metadata trailers) {
    String message = status.getDescription() == null ? "" : status.getDescription();
    // Netty may say UNKNOWN where the connection has gone.
    boolean gone = status.getCause() instanceof ClosedChannelException;
    Status.Code code = gone ? Status.Code.UNAVAILABLE : status.getCode();
    return new RuvdException(code, message, details(trailers), status.getCause());
  }

  /** The error of a blocking call. */
  static RuvdException of(StatusRuntimeException error) {
    return of(error.getStatus(), error.getTrailers());
  }

  /** The error of one item of a batch: as its own call would have failed. */
  static RuvdException of(com.google.rpc.Status status) {
    Status.Code code = Status.fromCodeValue(status.getCode()).getCode();
    return new RuvdException(code, status.getMessage(), status.getDetailsList(), null);
  }

  /** gRPC's code. */
  public Status.Code code() {
    return code;
  }

  /**
   * One of {@code ErrorReason} without its prefix, such as {@code SESSION_NOT_FOUND}; empty if the
   * error is not ruvd's own, as where no daemon is at the address.
   */
  public String reason() {
    return reason;
  }

  /** Every wrong field of the request, for INVALID_REQUEST. */
  public List<Violation> violations() {
    return List.of(violations);
  }

  /** How long to wait before a repetition; empty where waiting does not help. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(retryAfter);
  }

  @Override
  public String toString() {
    return RuvdException.class.getName()
        + ": "
        + (reason.isEmpty() ? code : reason)
        + ": "
        + getMessage();
  }

  private void read(Any detail) throws InvalidProtocolBufferException {
    if (detail.is(ErrorInfo.class)) {
      ErrorInfo info = detail.unpack(ErrorInfo.class);
      reason = info.getDomain().equals("ruvd") ? info.getReason() : reason;
    } else if (detail.is(BadRequest.class)) {
      violations =
          detail.unpack(BadRequest.class).getFieldViolationsList().stream()
              .map(each -> new Violation(each.getField(), each.getDescription()))
              .toArray(Violation[]::new);
    } else if (detail.is(RetryInfo.class)) {
      var delay = detail.unpack(RetryInfo.class).getRetryDelay();
      retryAfter = Duration.ofSeconds(delay.getSeconds(), delay.getNanos());
    }
  }

  private static List<Any> details(Metadata trailers) {
    byte[] raw = trailers == null ? null : trailers.get(DETAILS);
    try {
      return raw == null ? List.of() : com.google.rpc.Status.parseFrom(raw).getDetailsList();
    } catch (InvalidProtocolBufferException notOurs) {
      return List.of();
    }
  }
}
