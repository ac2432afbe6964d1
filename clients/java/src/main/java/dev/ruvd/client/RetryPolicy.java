package dev.ruvd.client;

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * The timeout and the retries that the service config sets for a method. They are applied here if
 * the client has several addresses; otherwise gRPC applies them.
 *
 * @param timeout of all attempts together; null for none
 * @param rounds the number of rounds over the addresses, at least 1
 * @param firstPause the pause after the first round
 */
record RetryPolicy(
    Duration timeout, int rounds, Duration firstPause, Duration longestPause, double multiplier) {
  private static final RetryPolicy NONE = new RetryPolicy(null, 1, Duration.ZERO, Duration.ZERO, 1);
  private static final Map<String, RetryPolicy> OF_METHODS = read(ServiceConfig.read());

  /** Returns the policy of a method, by its name without the service. */
  static RetryPolicy of(String method) {
    return OF_METHODS.getOrDefault(method, NONE);
  }

  /** Tells whether the method has a retry policy, as those have that only read. */
  boolean isRead() {
    return rounds > 1;
  }

  /** Returns the pause after this one. */
  Duration after(Duration pause) {
    Duration next = Duration.ofNanos(Math.round(pause.toNanos() * multiplier));
    return next.compareTo(longestPause) < 0 ? next : longestPause;
  }

  private static Map<String, RetryPolicy> read(Map<String, ?> config) {
    Map<String, RetryPolicy> policies = new HashMap<>();
    for (Object each : (List<?>) config.get("methodConfig")) {
      Map<?, ?> method = (Map<?, ?>) each;
      Map<?, ?> retries = (Map<?, ?>) method.get("retryPolicy");
      Duration timeout = duration(method.get("timeout"));
      RetryPolicy policy =
          retries == null
              ? new RetryPolicy(timeout, 1, Duration.ZERO, Duration.ZERO, 1)
              : new RetryPolicy(
                  timeout,
                  ((Number) retries.get("maxAttempts")).intValue(),
                  duration(retries.get("initialBackoff")),
                  duration(retries.get("maxBackoff")),
                  ((Number) retries.get("backoffMultiplier")).doubleValue());
      for (Object name : (List<?>) method.get("name")) {
        policies.put((String) ((Map<?, ?>) name).get("method"), policy);
      }
    }
    return policies;
  }

  /** Parses a Duration in its JSON form, "0.1s". */
  private static Duration duration(Object text) {
    return text == null ? null : Duration.parse("PT" + ((String) text).toUpperCase());
  }
}
