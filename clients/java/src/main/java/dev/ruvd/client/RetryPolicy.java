package dev.ruvd.client;

import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.jspecify.annotations.Nullable;

/**
 * What the service config sets for a method. It is applied here if the client has several
 * addresses; otherwise gRPC applies it.
 *
 * @param isRead whether the method has a retry policy, as those have that only read
 * @param timeout of all attempts together; null for none
 */
record RetryPolicy(boolean isRead, @Nullable Duration timeout) {
  private static final RetryPolicy NONE = new RetryPolicy(false, null);
  private static final Map<String, RetryPolicy> OF_METHODS = new HashMap<>();

  /** The policy of reads. With several addresses all methods have it, as each can be repeated. */
  private static Map<?, ?> retries;

  static {
    for (Object each : (List<?>) ServiceConfig.read().get("methodConfig")) {
      Map<?, ?> method = (Map<?, ?>) each;
      boolean isRead = method.get("retryPolicy") != null;
      if (isRead) {
        retries = (Map<?, ?>) method.get("retryPolicy");
      }
      RetryPolicy policy = new RetryPolicy(isRead, duration(method.get("timeout")));
      for (Object name : (List<?>) method.get("name")) {
        OF_METHODS.put((String) ((Map<?, ?>) name).get("method"), policy);
      }
    }
  }

  /** Returns the policy of a method, by its name without the service. */
  static RetryPolicy of(String method) {
    return OF_METHODS.getOrDefault(method, NONE);
  }

  /** Returns the number of rounds over the addresses. */
  static int rounds() {
    return ((Number) retries.get("maxAttempts")).intValue();
  }

  /** Returns the pause after a round; the first is 1. */
  static Duration pauseAfter(int round) {
    double multiplier = ((Number) retries.get("backoffMultiplier")).doubleValue();
    double factor = Math.pow(multiplier, round - 1);
    Duration pause =
        Duration.ofNanos(Math.round(duration(retries.get("initialBackoff")).toNanos() * factor));
    Duration longest = duration(retries.get("maxBackoff"));
    return pause.compareTo(longest) < 0 ? pause : longest;
  }

  /** Parses a Duration in its JSON form, "0.1s". */
  private static @Nullable Duration duration(@Nullable Object text) {
    return text == null ? null : Duration.parse("PT" + ((String) text).toUpperCase(Locale.ROOT));
  }
}
