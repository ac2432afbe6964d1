package dev.ruvd.client;

import io.grpc.Deadline;
import java.time.Duration;
import java.util.OptionalLong;
import java.util.concurrent.TimeUnit;

/** When a broken stream is tried again: after 0.05 s, then doubled, at most every second. */
final class Pauses {
  private static final long FIRST_NANOS = Duration.ofMillis(50).toNanos();
  private static final long LONGEST_NANOS = Duration.ofSeconds(1).toNanos();

  private final long reconnectNanos;
  private final Deadline deadline; // null for none
  private boolean broken;
  private long brokenAtNanos;
  private long pauseNanos;

  Pauses(Duration reconnect, Deadline deadline) {
    this.reconnectNanos = reconnect.toNanos();
    this.deadline = deadline;
  }

  /** The stream is not broken, or no longer. */
  void restart() {
    broken = false;
  }

  /** Whether the caller's deadline has passed. */
  boolean isOver() {
    return deadline != null && deadline.isExpired();
  }

  /** How long to wait before the next try, in nanoseconds; empty when it is time to give up. */
  OptionalLong next() {
    long now = System.nanoTime();
    if (!broken) {
      broken = true;
      brokenAtNanos = now;
      pauseNanos = FIRST_NANOS;
    }
    long left = reconnectNanos - (now - brokenAtNanos);
    if (left <= 0) {
      return OptionalLong.empty();
    }
    if (deadline != null) {
      left = Math.min(left, deadline.timeRemaining(TimeUnit.NANOSECONDS));
    }
    long pause = Math.min(pauseNanos, left);
    pauseNanos = Math.min(2 * pauseNanos, LONGEST_NANOS);
    return OptionalLong.of(pause);
  }
}
