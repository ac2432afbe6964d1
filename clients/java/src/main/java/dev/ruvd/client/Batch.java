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
import io.grpc.stub.StreamObserver;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.ForkJoinPool;
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

  /** Completing this in any way ends the batch. */
  final CompletableFuture<BatchSummary> end = new CompletableFuture<>();

  private final Connections connections;
  private final ClientInterceptor headers;
  private final BatchCompleteRequest request;
  private final Consumer<? super BatchResult> onResult;
  private final @Nullable Executor executor; // of the callbacks; null for gRPC's
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final BatchSummary.Builder summary = BatchSummary.newBuilder();
  private final long startedAtNanos = System.nanoTime();

  // Used by the callbacks of the calls, which run one after the other.
  private final Deque<List<Integer>> pending;
  private boolean isAnswered; // by any daemon
  private @Nullable Long brokenAtNanos; // null while results come
  private int failed; // calls since then
  private long latencyNanos;

  Batch(
      Connections connections,
      ClientInterceptor headers,
      BatchCompleteRequest request,
      Consumer<? super BatchResult> onResult,
      @Nullable Executor executor) {
    this.connections = connections;
    this.headers = headers;
    this.request = request;
    this.onResult = onResult;
    this.executor = executor;
    pending = split();
    end.whenComplete((summary, error) -> context.cancel(null));
  }

  /** Makes the first call. */
  void start() {
    context.run(this::nextCall);
  }

  private void nextCall() {
    if (end.isDone()) {
      return;
    }
    List<Integer> numbers = pending.pollFirst();
    if (numbers == null) {
      end.complete(summary.setWallTime(duration(System.nanoTime() - startedAtNanos)).build());
      return;
    }
    Call call = new Call(connections.now(), numbers);
    var items = BatchCompleteRequest.newBuilder().setMaxConcurrency(request.getMaxConcurrency());
    numbers.forEach(number -> items.addItems(request.getItems(number)));
    var stub = SessionServiceGrpc.newStub(ClientInterceptors.intercept(call.at.channel(), headers));
    (executor == null ? stub : stub.withExecutor(executor)).batchComplete(items.build(), call);
  }

  /** One call. The next response is requested when onResult has returned. */
  private final class Call implements StreamObserver<BatchCompleteResponse> {
    private final Entry at;
    private final List<Integer> numbers;
    private final List<Integer> unfinished;
    private final MessageParts parts = new MessageParts();

    Call(Entry at, List<Integer> numbers) {
      this.at = at;
      this.numbers = List.copyOf(numbers);
      unfinished = new ArrayList<>(numbers);
    }

    @Override
    public void onNext(BatchCompleteResponse response) {
      if (end.isDone()) {
        return;
      }
      isAnswered = true;
      try {
        if (response.hasMessagePart()) {
          parts.add(response.getMessagePart());
        } else if (response.hasResult() && !isRepeated(response.getResult())) {
          Integer number = numbers.get(response.getResult().getIndex());
          unfinished.remove(number);
          brokenAtNanos = null;
          failed = 0;
          deliver(joined(response.getResult(), parts).setIndex(number).build());
        }
      } catch (Throwable error) { // also of onResult
        end.completeExceptionally(error);
      }
    }

    @Override
    public void onError(Throwable error) {
      handleEnd(RuvdException.from(error));
    }

    @Override
    public void onCompleted() {
      handleEnd(
          new RuvdException(
              Status.UNAVAILABLE, "the daemon shut down before every item had a result"));
    }

    private void handleEnd(RuvdException failure) {
      if (end.isDone()) {
        return;
      }
      try {
        long pause = unfinished.isEmpty() ? 0 : after(failure);
        Runnable next = context.wrap(Batch.this::nextCall);
        if (pause == 0) {
          next.run();
        } else {
          CompletableFuture.delayedExecutor(pause, TimeUnit.MILLISECONDS, executorOfPauses())
              .execute(next);
        }
      } catch (Throwable error) { // the failure, or an error of onResult
        end.completeExceptionally(error);
      }
    }

    /** Prepares the calls for the unfinished items, and returns the pause before them. */
    private long after(RuvdException failure) {
      if (isLost(failure)) {
        pending.addFirst(unfinished);
        return pauseAfterLoss(at, failure);
      }
      if (!isAboutItems(failure)) {
        throw failure;
      }
      if (unfinished.size() > 1) { // until the item that the daemon rejects is alone
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
      return 0;
    }
  }

  private Executor executorOfPauses() {
    return executor == null ? ForkJoinPool.commonPool() : executor;
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

  /** Tells whether the unfinished items of a call are sent again. */
  private boolean isLost(RuvdException failure) {
    return connections.areSeveral && RepeatedCall.failsOver(failure, false)
        || RepeatedCall.isUnavailable(failure) && isAnswered;
  }

  /** Returns the pause in milliseconds. Throws the failure if the batch ends with it. */
  private long pauseAfterLoss(Entry at, RuvdException failure) {
    if (brokenAtNanos == null) {
      brokenAtNanos = System.nanoTime();
    }
    if (System.nanoTime() - brokenAtNanos >= RECONNECT_NANOS || connections.areClosed()) {
      throw failure;
    }
    failed++;
    if (connections.areSeveral) {
      connections.leave(at);
      if (!isAnswered && failed == connections.roundLength()) {
        throw failure;
      }
      if (failed % connections.roundLength() != 0) {
        return 0;
      }
    } else {
      at.channel().resetConnectBackoff();
    }
    return Math.min(LONGEST_PAUSE_MILLIS, FIRST_PAUSE_MILLIS << Math.min(failed, 10));
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
