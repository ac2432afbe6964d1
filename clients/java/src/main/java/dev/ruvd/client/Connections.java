package dev.ruvd.client;

import io.grpc.ManagedChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;

/**
 * A connection to each of the client's addresses. All calls use the current one until a call fails
 * over to the next, by the rules of clients/CONFORMANCE.md.
 */
final class Connections {
  /** False for one daemon, of which gRPC takes care alone. */
  final boolean areSeveral;

  private final List<Entry> entries = new ArrayList<>();
  private final AtomicInteger current = new AtomicInteger();

  /**
   * An address and its connection.
   *
   * @param position in the list
   */
  record Entry(int position, ManagedChannel channel) {}

  Connections(
      List<String> addresses, boolean areSeveral, Function<String, ManagedChannel> channel) {
    this.areSeveral = areSeveral;
    try {
      for (String address : addresses) {
        entries.add(new Entry(entries.size(), channel.apply(address)));
      }
    } catch (IllegalArgumentException unusable) {
      entries.forEach(entry -> entry.channel().shutdownNow());
      throw unusable;
    }
    // Otherwise all clients that have the same list would use its first address.
    current.set(ThreadLocalRandom.current().nextInt(entries.size()));
  }

  /** Tells whether a client of these addresses may have several daemons. */
  static boolean areSeveral(List<String> addresses) {
    return addresses.size() > 1 || Addresses.isName(addresses.get(0));
  }

  /** Returns the current entry. */
  Entry now() {
    return entries.get(current.get());
  }

  /** Returns the entries after this one, in the order in which they are tried. */
  List<Entry> others(Entry at) {
    List<Entry> others = new ArrayList<>(entries.subList(at.position() + 1, entries.size()));
    others.addAll(entries.subList(0, at.position()));
    return others;
  }

  /** Returns the number of attempts after which to pause. */
  int roundLength() {
    return Math.max(2, entries.size());
  }

  /** Moves on from the entry of a call that failed, unless another call has moved on before. */
  void leave(Entry failed) {
    current.compareAndSet(failed.position(), (failed.position() + 1) % entries.size());
    // The next call there connects anew: at once, and perhaps to another daemon of the same name.
    // Calls that run on the old connection go on there.
    failed.channel().enterIdle();
  }

  boolean areClosed() {
    return entries.get(0).channel().isShutdown();
  }

  /** Lets running calls end for a while, then ends them. */
  void close(long seconds) {
    entries.forEach(entry -> entry.channel().shutdown());
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
    try {
      for (Entry entry : entries) {
        entry.channel().awaitTermination(end - System.nanoTime(), TimeUnit.NANOSECONDS);
      }
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    entries.forEach(entry -> entry.channel().shutdownNow());
  }
}
