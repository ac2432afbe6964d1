package dev.ruvd.client;

import com.google.protobuf.Duration;
import dev.ruvd.client.Connections.Entry;
import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.BatchCompleteResponse;
import dev.ruvd.v1.BatchResult;
import dev.ruvd.v1.BatchSummary;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.SessionServiceGrpc;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import org.jspecify.annotations.Nullable;

/** The calls of one batch, which are made one after the other. */
final class Batch {
  private static final int MAX_CALL_BYTES = 3 << 20; // below the daemon's default limit of 4 MiB
  private static final int MAX_CALL_ITEMS = 10_000;
  private static final int ITEM_BYTES = 8; // the most that an item adds beside its own size
  private static final long RECONNECT_NANOS = TimeUnit.MINUTES.toNanos(1);
  private static final long FIRST_PAUSE_MILLIS = 50;
  private static final long LONGEST_PAUSE_MILLIS = 2_000;

  private final Connections connections;
  private final ClientInterceptor headers;
  private final BatchCompleteRequest request;
  private final Consumer<? super BatchResult> onResult;
  private final BatchSummary.Builder summary = BatchSummary.newBuilder();
  private final long startedAtNanos = System.nanoTime();

  private boolean isAnswered; // by any daemon
  private @Nullable Long brokenAtNanos; // null while results come
  private int failed; // calls since then
  private long latencyNanos;

  Batch(
      Connections connections,
      ClientInterceptor headers,
      BatchCompleteRequest request,
      Consumer<? super BatchResult> onResult) {
    this.connections = connections;
    this.headers = headers;
    this.request = request;
    this.onResult = onResult;
  }

  /** Makes the calls and returns the totals. Throws RuvdException. */
  BatchSummary run() {
    Deque<List<Integer>> pending = split();
    while (!pending.isEmpty()) {
      List<Integer> unfinished = new ArrayList<>(pending.removeFirst());
      Entry at = connections.now();
      RuvdException failure = call(at, unfinished);
      if (unfinished.isEmpty()) {
        continue;
      }
      if (isLost(failure)) {
        handleLoss(at, failure);
        pending.addFirst(unfinished);
      } else if (!isAboutItems(failure)) {
        throw failure;
      } else if (unfinished.size() > 1) { // until the item that the daemon rejects is alone
        int half = unfinished.size() / 2;
        pending.addFirst(unfinished.subList(half, unfinished.size()));
        pending.addFirst(unfinished.subList(0, half));
      } else {
        deliver(
            BatchResult.newBuilder()
                .setIndex(unfinished.get(0))
                .setError(failure.status())
                .build());
      }
    }
    return summary.setWallTime(duration(System.nanoTime() - startedAtNanos)).build();
  }

  /** Returns the numbers of the items of each call. */
  private Deque<List<Integer>> split() {
    Deque<List<Integer>> calls = new ArrayDeque<>();
    int size = 0;
    int number = 0;
    for (CompleteRequest item : request.getItemsList()) {
      int bytes = item.getSerializedSize() + ITEM_BYTES;
      List<Integer> last = calls.peekLast();
      if (last == null || size + bytes > MAX_CALL_BYTES || last.size() == MAX_CALL_ITEMS) {
        last = new ArrayList<>();
        calls.addLast(last);
        size = 0;
      }
      last.add(number++);
      size += bytes;
    }
    return calls;
  }

  /** Makes one call, removes the items that have a result, and returns the error of the rest. */
  private RuvdException call(Entry at, List<Integer> unfinished) {
    List<Integer> numbers = List.copyOf(unfinished);
    var items = BatchCompleteRequest.newBuilder().setMaxConcurrency(request.getMaxConcurrency());
    numbers.forEach(number -> items.addItems(request.getItems(number)));
    MessageParts parts = new MessageParts();
    try (var context = Context.current().withCancellation()) { // when onResult throws
      Context before = context.attach();
      try {
        Iterator<BatchCompleteResponse> responses =
            SessionServiceGrpc.newBlockingStub(ClientInterceptors.intercept(at.channel(), headers))
                .batchComplete(items.build());
        while (hasNext(responses)) {
          BatchCompleteResponse response = responses.next();
          isAnswered = true;
          if (response.hasMessagePart()) {
            parts.add(response.getMessagePart());
          } else if (response.hasResult() && !isRepeated(response.getResult())) {
            Integer number = numbers.get(response.getResult().getIndex());
            unfinished.remove(number);
            brokenAtNanos = null;
            failed = 0;
            deliver(joined(response.getResult(), parts).setIndex(number).build());
          }
        }
      } catch (CallFailed failure) {
        return failure.error;
      } finally {
        context.detach(before);
      }
    }
    return shutDown();
  }

  /** The error of the call, which is to be told from one of the caller's function. */
  private static final class CallFailed extends Exception {
    private static final long serialVersionUID = 1L;
    private final transient RuvdException error;

    CallFailed(RuvdException error) {
      super(error);
      this.error = error;
    }
  }

  private static boolean hasNext(Iterator<?> responses) throws CallFailed {
    try {
      return responses.hasNext();
    } catch (StatusRuntimeException failed) {
      throw new CallFailed(new RuvdException(failed));
    }
  }

  private static BatchResult.Builder joined(BatchResult result, MessageParts parts) {
    BatchResult.Builder joined = result.toBuilder();
    if (result.hasCompletion()) {
      Finished finished = parts.join(result.getCompletion().getFinished());
      joined.getCompletionBuilder().setFinished(finished);
    }
    return joined;
  }

  /** Tells whether an item has no result yet, because its daemon has given it up. */
  private boolean isRepeated(BatchResult result) {
    if (!result.hasError()) {
      return false;
    }
    RuvdException error = RuvdException.of(result.getError());
    return error.reason().equals("SHUTTING_DOWN")
        || connections.areSeveral && RepeatedCall.isLeft(error);
  }

  private static RuvdException shutDown() {
    return new RuvdException(
        Status.UNAVAILABLE, "the daemon shut down before every item had a result");
  }

  /** Tells whether the unfinished items of a call are sent again. */
  private boolean isLost(RuvdException failure) {
    return connections.areSeveral && RepeatedCall.failsOver(failure, false)
        || RepeatedCall.isUnavailable(failure) && isAnswered;
  }

  private void handleLoss(Entry at, RuvdException failure) {
    if (brokenAtNanos == null) {
      brokenAtNanos = System.nanoTime();
    }
    if (System.nanoTime() - brokenAtNanos >= RECONNECT_NANOS) {
      throw failure;
    }
    failed++;
    if (connections.areSeveral) {
      connections.leave(at);
      if (!isAnswered && failed == connections.roundLength()) {
        throw failure;
      }
      if (failed % connections.roundLength() != 0) {
        return;
      }
    } else {
      at.channel().resetConnectBackoff();
    }
    try {
      TimeUnit.MILLISECONDS.sleep(
          Math.min(LONGEST_PAUSE_MILLIS, FIRST_PAUSE_MILLIS << Math.min(failed, 10)));
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      throw new RuvdException(Status.CANCELLED, "interrupted");
    }
  }

  /** Tells whether a call was rejected for one of its items, or for its size. */
  private static boolean isAboutItems(RuvdException failure) {
    boolean isAboutCall =
        failure.violations().stream().anyMatch(each -> each.getField().equals("max_concurrency"));
    return failure.reason().equals("INVALID_REQUEST") && !isAboutCall
        || failure.reason().equals(RuvdException.REQUEST_TOO_LARGE);
  }

  /** Counts a result and passes it on. */
  private void deliver(BatchResult result) {
    if (result.hasError()) {
      summary.setFailed(summary.getFailed() + 1);
    } else {
      Finished finished = result.getCompletion().getFinished();
      summary.setSucceeded(summary.getSucceeded() + 1);
      latencyNanos += nanos(finished.getTimings().getTotal());
      summary.setTotalLatency(duration(latencyNanos));
      var usage = summary.getUsageBuilder();
      var more = finished.getUsage();
      usage.setPromptTokens(usage.getPromptTokens() + more.getPromptTokens());
      usage.setCompletionTokens(usage.getCompletionTokens() + more.getCompletionTokens());
      if (more.hasCachedTokens()) {
        usage.setCachedTokens(usage.getCachedTokens() + more.getCachedTokens());
      }
    }
    onResult.accept(result);
  }

  private static long nanos(Duration duration) {
    return TimeUnit.SECONDS.toNanos(duration.getSeconds()) + duration.getNanos();
  }

  private static Duration duration(long nanos) {
    long second = TimeUnit.SECONDS.toNanos(1);
    return Duration.newBuilder()
        .setSeconds(nanos / second)
        .setNanos((int) (nanos % second))
        .build();
  }
}
