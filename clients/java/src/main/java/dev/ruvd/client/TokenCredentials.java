package dev.ruvd.client;

import io.grpc.CallCredentials;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.concurrent.Callable;
import java.util.concurrent.Executor;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import org.jspecify.annotations.Nullable;

/** Adds a token to every call. A call whose token fails is not made; it fails UNAUTHENTICATED. */
final class TokenCredentials extends CallCredentials {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private static final int MAX_THREADS = 64; // of functions that block; other calls wait for one

  /**
   * Runs the callers' functions, which may block. The executor that gRPC offers is the caller's own
   * thread for a blocking call, which could not end at its deadline then.
   */
  private static final Executor THREADS = threads();

  private final Callable<String> token;
  private final Executor executor;

  private TokenCredentials(Callable<String> token, Executor executor) {
    this.token = token;
    this.executor = executor;
  }

  /** Throws IllegalArgumentException if the value cannot be a token. */
  static TokenCredentials of(String value) {
    headers(value);
    return new TokenCredentials(() -> value, Runnable::run);
  }

  static TokenCredentials of(Callable<String> function) {
    return new TokenCredentials(function, THREADS);
  }

  @Override
  public void applyRequestMetadata(RequestInfo call, Executor ignored, MetadataApplier applier) {
    executor.execute(() -> apply(applier));
  }

  private void apply(MetadataApplier applier) {
    String value;
    try {
      value = token.call();
    } catch (Throwable failed) { // Without a result the call would never end.
      fail(applier, failed.toString(), failed);
      return;
    }
    try {
      applier.apply(headers(value));
    } catch (IllegalArgumentException wrong) {
      fail(applier, wrong.getMessage(), wrong);
    }
  }

  private static void fail(MetadataApplier applier, String description, Throwable cause) {
    applier.fail(
        Status.UNAUTHENTICATED.withDescription("no token: " + description).withCause(cause));
  }

  private static Metadata headers(@Nullable String value) {
    String token = value == null ? "" : value.strip();
    if (token.isEmpty()) {
      throw new IllegalArgumentException("the token is empty");
    }
    if (!token.chars().allMatch(character -> character > ' ' && character <= '~')) {
      throw new IllegalArgumentException("the token has a character that is not visible ASCII");
    }
    Metadata headers = new Metadata();
    headers.put(AUTHORIZATION, "Bearer " + token);
    return headers;
  }

  /** Returns threads that end soon after the last call. */
  private static Executor threads() {
    var threads =
        new ThreadPoolExecutor(
            MAX_THREADS,
            MAX_THREADS,
            1,
            TimeUnit.SECONDS,
            new LinkedBlockingQueue<>(),
            task -> {
              Thread thread = new Thread(task, "ruvd-token");
              thread.setDaemon(true);
              return thread;
            });
    threads.allowCoreThreadTimeOut(true);
    return threads;
  }
}
