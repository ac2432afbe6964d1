package dev.ruvd.client;

import dev.ruvd.client.Connections.Entry;
import dev.ruvd.v1.SessionServiceGrpc;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Deadline;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import java.nio.channels.ClosedChannelException;
import java.time.Duration;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;

/** One call that is no stream. With several addresses it is repeated at the others. */
final class RepeatedCall implements ClientInterceptor {
  private final Connections connections;
  private final ClientInterceptor[] interceptors;
  private RetryPolicy policy; // of the method; null before the first attempt
  private Deadline deadline; // of all attempts; null for none
  private boolean wasLost;

  RepeatedCall(Connections connections, ClientInterceptor tracing) {
    this.connections = connections;
    interceptors =
        connections.areSeveral
            ? new ClientInterceptor[] {tracing, RequestHeaders.ofRepeatedCall(), this}
            : new ClientInterceptor[] {tracing, RequestHeaders.ofRequest()};
  }

  /** Makes the call. Throws RuvdException. */
  <T> T make(Function<SessionServiceBlockingStub, T> method) {
    if (!connections.areSeveral) {
      return makeAt(connections.now(), method);
    }
    for (int round = 1; ; round++) {
      RuvdException failure = null;
      for (int attempt = 0; attempt < connections.roundLength(); attempt++) {
        Entry at = connections.now();
        try {
          return makeAt(at, method);
        } catch (RuvdException failed) {
          if (failed.reason().equals("COMPLETION_NOT_FOUND")) {
            return makeAtOthers(at, failed, method);
          }
          if (!failsOver(failed, isRead())) {
            throw failed;
          }
          failure = failed;
          wasLost |= failed.reason().isEmpty();
          connections.leave(at);
        }
      }
      if (round == RetryPolicy.rounds()) {
        throw failure;
      }
      sleep(RetryPolicy.pauseAfter(round));
    }
  }

  /** Tells whether the connection was lost during an attempt, which may have had its effect. */
  boolean wasLost() {
    return wasLost;
  }

  /** Asks the other daemons for a completion that one does not have. */
  private <T> T makeAtOthers(
      Entry at, RuvdException missing, Function<SessionServiceBlockingStub, T> method) {
    for (Entry other : connections.others(at)) {
      try {
        return makeAt(other, method);
      } catch (RuvdException failed) {
        if (!failed.reason().equals("COMPLETION_NOT_FOUND") && !failsOver(failed, false)) {
          throw failed;
        }
      }
    }
    throw missing;
  }

  private <T> T makeAt(Entry at, Function<SessionServiceBlockingStub, T> method) {
    Channel channel = ClientInterceptors.interceptForward(at.channel(), interceptors);
    try {
      return method.apply(SessionServiceGrpc.newBlockingStub(channel));
    } catch (RuvdException known) {
      throw known;
    } catch (StatusRuntimeException failed) {
      throw new RuvdException(failed);
    }
  }

  /**
   * Tells whether a call that failed so is repeated at another address. Any UNAVAILABLE of a read
   * is.
   */
  static boolean failsOver(RuvdException failed, boolean isRead) {
    return isLeft(failed) || isUnavailable(failed) && (isRead || failed.reason().isEmpty());
  }

  /** Tells whether there was no daemon, or no longer. */
  static boolean isUnavailable(RuvdException failed) {
    if (failed.code() == Code.UNAVAILABLE) {
      return true;
    }
    Throwable cause = failed;
    while (cause != null && !(cause instanceof ClosedChannelException)) {
      cause = cause.getCause();
    }
    return failed.code() == Code.UNKNOWN && cause != null; // as Netty tells of some connections
  }

  /** Tells whether a daemon that gives this reason is left. It has stored nothing. */
  static boolean isLeft(RuvdException failed) {
    return failed.reason().equals("SHUTTING_DOWN") || failed.reason().equals("OWNERSHIP_LOST");
  }

  private boolean isRead() {
    return policy != null && policy.isRead();
  }

  private void sleep(Duration pause) {
    long nanos = pause.toNanos();
    if (deadline != null) { // after which the next attempt fails with DEADLINE_EXCEEDED
      nanos = Math.min(nanos, Math.max(0, deadline.timeRemaining(TimeUnit.NANOSECONDS)));
    }
    try {
      TimeUnit.NANOSECONDS.sleep(nanos);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw new RuvdException(Status.CANCELLED, "interrupted");
    }
  }

  /** Finds the policy of the method, whose timeout is for all attempts together. */
  @Override
  public <Q, R> ClientCall<Q, R> interceptCall(
      MethodDescriptor<Q, R> method, CallOptions options, Channel next) {
    if (policy == null) {
      policy = RetryPolicy.of(method.getBareMethodName());
      if (policy.timeout() != null && options.getDeadline() == null) {
        deadline = Deadline.after(policy.timeout().toNanos(), TimeUnit.NANOSECONDS);
      }
    }
    return next.newCall(method, deadline == null ? options : options.withDeadline(deadline));
  }
}
