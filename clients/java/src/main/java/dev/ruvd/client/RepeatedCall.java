package dev.ruvd.client;

import com.google.common.util.concurrent.ListenableFuture;
import dev.ruvd.v1.SessionServiceGrpc;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceFutureStub;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import java.nio.channels.ClosedChannelException;
import java.time.Duration;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

/** One call that is no stream. With several addresses it is repeated at the others. */
final class RepeatedCall implements ClientInterceptor {
  private final Attempts attempts;
  private final ClientInterceptor[] interceptors;
  private volatile @Nullable RetryPolicy policy; // of the method; null before the first attempt
  private volatile @Nullable Deadline deadline; // of all attempts; null for none

  RepeatedCall(Connections connections, ClientInterceptor headers) {
    attempts = new Attempts(connections);
    interceptors =
        connections.areSeveral
            ? new ClientInterceptor[] {headers, RequestHeaders.ofRepeatedCall(), this}
            : new ClientInterceptor[] {headers, RequestHeaders.ofRequest()};
  }

  /** Makes the call. Throws RuvdException. */
  <T> T make(Function<SessionServiceBlockingStub, T> method) {
    while (true) {
      try {
        return method.apply(SessionServiceGrpc.newBlockingStub(channel()));
      } catch (StatusRuntimeException failed) {
        sleep(attempts.after(RuvdException.from(failed), isRead()));
      }
    }
  }

  /**
   * Makes the call without blocking. The future fails with RuvdException, and cancelling it cancels
   * the call.
   */
  <T> CompletableFuture<T> makeAsync(
      Function<SessionServiceFutureStub, ListenableFuture<T>> method) {
    CompletableFuture<T> result = new CompletableFuture<>();
    Context.CancellableContext context = Context.current().withCancellation();
    result.whenComplete((response, error) -> context.cancel(null));
    context.run(() -> attempt(method, context, result));
    return result;
  }

  private <T> void attempt(
      Function<SessionServiceFutureStub, ListenableFuture<T>> method,
      Context context,
      CompletableFuture<T> result) {
    if (result.isDone()) {
      return;
    }
    try {
      ListenableFuture<T> call = method.apply(SessionServiceGrpc.newFutureStub(channel()));
      call.addListener(() -> handle(method, call, context, result), Runnable::run);
    } catch (RuntimeException failed) { // of the caller's function
      result.completeExceptionally(failed);
    }
  }

  private <T> void handle(
      Function<SessionServiceFutureStub, ListenableFuture<T>> method,
      ListenableFuture<T> call,
      Context context,
      CompletableFuture<T> result) {
    try {
      result.complete(call.get()); // which has ended
    } catch (ExecutionException failed) {
      try {
        Duration pause = attempts.after(RuvdException.from(failed.getCause()), isRead());
        Runnable next = context.wrap(() -> attempt(method, context, result));
        CompletableFuture.delayedExecutor(remaining(pause), TimeUnit.NANOSECONDS).execute(next);
      } catch (RuvdException last) {
        result.completeExceptionally(last);
      }
    } catch (InterruptedException | CancellationException cancelled) {
      result.completeExceptionally(new RuvdException(Status.CANCELLED, "cancelled"));
    }
  }

  /** Tells whether the connection was lost during an attempt, which may have had its effect. */
  boolean wasLost() {
    return attempts.wasLost();
  }

  private Channel channel() {
    return ClientInterceptors.interceptForward(attempts.at().channel(), interceptors);
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
    RetryPolicy found = policy;
    return found != null && found.isRead();
  }

  /** Returns a pause, after whose end the deadline may have passed, in nanoseconds. */
  private long remaining(Duration pause) {
    Deadline end = deadline; // after which the next attempt fails with DEADLINE_EXCEEDED
    return end == null
        ? pause.toNanos()
        : Math.min(pause.toNanos(), Math.max(0, end.timeRemaining(TimeUnit.NANOSECONDS)));
  }

  private void sleep(Duration pause) {
    try {
      TimeUnit.NANOSECONDS.sleep(remaining(pause));
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
      RetryPolicy found = RetryPolicy.of(method.getBareMethodName());
      if (found.timeout() != null && options.getDeadline() == null) {
        deadline = Deadline.after(found.timeout().toNanos(), TimeUnit.NANOSECONDS);
      }
      policy = found;
    }
    return next.newCall(method, deadline == null ? options : options.withDeadline(deadline));
  }
}
