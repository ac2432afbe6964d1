package dev.ruvd.client;

import dev.ruvd.client.Connections.Entry;
import java.time.Duration;
import java.util.Iterator;
import org.jspecify.annotations.Nullable;

/**
 * Decides at which address a call that is no stream is made, and whether and where it is made again
 * after an error, by the rules of clients/CONFORMANCE.md.
 */
final class Attempts {
  private final Connections connections;
  private Entry at;
  private int round = 1;
  private int failedInRound;
  private boolean wasLost;
  private @Nullable RuvdException missing; // while the other addresses are asked
  private @Nullable Iterator<Entry> others; // still to be asked

  Attempts(Connections connections) {
    this.connections = connections;
    at = connections.now();
  }

  /** Returns the entry of the next attempt. */
  Entry at() {
    return at;
  }

  /** Tells whether the connection was lost during an attempt, which may have had its effect. */
  boolean wasLost() {
    return wasLost;
  }

  /**
   * Returns the pause before the next attempt. Throws the error with which the call ends.
   *
   * @param isRead whether the call only reads
   */
  Duration after(RuvdException failed, boolean isRead) {
    if (!connections.areSeveral) {
      throw failed;
    }
    if (missing == null && failed.reason().equals("COMPLETION_NOT_FOUND")) {
      missing = failed;
      others = connections.others(at).iterator();
    }
    if (missing != null) {
      return nextOfOthers(failed);
    }
    if (!RepeatedCall.failsOver(failed, isRead)) {
      throw failed;
    }
    wasLost |= failed.reason().isEmpty();
    connections.leave(at);
    failedInRound++;
    boolean isRoundOver = failedInRound == connections.roundLength();
    if (isRoundOver && round == RetryPolicy.rounds()) {
      throw failed;
    }
    at = connections.now();
    if (!isRoundOver) {
      return Duration.ZERO;
    }
    failedInRound = 0;
    return RetryPolicy.pauseAfter(round++);
  }

  /** Asks the next of the other daemons for a completion that one does not have. */
  private Duration nextOfOthers(RuvdException failed) {
    boolean isMissing = failed.reason().equals("COMPLETION_NOT_FOUND");
    if (!isMissing && !RepeatedCall.failsOver(failed, false)) {
      throw failed;
    }
    if (!others.hasNext()) {
      throw missing;
    }
    at = others.next(); // without moving the client
    return Duration.ZERO;
  }
}
