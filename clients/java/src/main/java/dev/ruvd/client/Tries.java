package dev.ruvd.client;

import dev.ruvd.client.Connections.Entry;
import java.time.Duration;
import java.util.ArrayDeque;
import java.util.Queue;
import org.jspecify.annotations.Nullable;

/** The state of a completion between its calls: where the next one is made, and when. */
final class Tries {
  /** The most times that a completion begins again, as its request may be what ends the daemons. */
  static final int MAX_RESTARTS = 3;

  private static final long FIRST_PAUSE_NANOS = Duration.ofMillis(50).toNanos();
  private static final long LONGEST_PAUSE_NANOS = Duration.ofSeconds(1).toNanos();

  private final Connections connections;
  private volatile Entry at; // of the newest call
  private boolean hadEvent; // whether the newest call had one
  private long brokenAtNanos;
  private boolean isBroken;
  private long pauseNanos;
  private int failed; // calls without an event since brokenAtNanos
  private @Nullable RuvdException missing; // while the other addresses are asked for the completion
  private @Nullable Queue<Entry> others; // still to be asked

  /** What the end of a call means for the completion. */
  enum Failure {
    /** The completion ends with the error. */
    FINAL,
    /** The connection broke. */
    LOST,
    /** The daemon has given the completion up, and it begins again elsewhere. */
    LEFT,
    /** The daemon does not know the completion, which begins again. */
    FORGOTTEN,
    /** The daemon does not know the completion, of which something was delivered. */
    MISSING
  }

  Tries(Connections connections) {
    this.connections = connections;
    at = connections.now();
  }

  /** Returns the entry of the newest call. */
  Entry at() {
    return at;
  }

  void eventReceived() {
    hadEvent = true;
    isBroken = false;
  }

  /** Returns the time since the first of the failures without an event between them. */
  long brokenNanos() {
    return System.nanoTime() - brokenAtNanos;
  }

  /**
   * Decides where the next call is made, and returns the pause before it. Throws the error that
   * ends the completion.
   */
  long after(Failure kind, RuvdException error) {
    boolean progressed = hadEvent;
    hadEvent = false;
    if (!isBroken) {
      isBroken = true;
      brokenAtNanos = System.nanoTime();
      pauseNanos = FIRST_PAUSE_NANOS;
      failed = 0;
      missing = null;
    }
    if (kind == Failure.FINAL) {
      throw error;
    }
    if (!connections.areSeveral) {
      if (kind == Failure.MISSING) {
        throw error;
      }
      return nextPause();
    }
    if (kind == Failure.MISSING && missing == null) {
      missing = error;
      others = new ArrayDeque<>(connections.others(at));
    }
    if (missing != null) { // without moving the client
      if (others.isEmpty()) {
        throw missing;
      }
      at = others.remove();
      return 0;
    }
    if (kind == Failure.FORGOTTEN || kind == Failure.LOST && progressed) {
      return 0; // at the same daemon, which may run and then has the completion
    }
    failed++;
    connections.leave(at);
    at = connections.now();
    return failed % connections.roundLength() == 0 ? nextPause() : 0;
  }

  private long nextPause() {
    long pause = pauseNanos;
    pauseNanos = Math.min(2 * pauseNanos, LONGEST_PAUSE_NANOS);
    return pause;
  }
}
