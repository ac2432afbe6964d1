package dev.ruvd.client;

import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.BatchCompleteResponse;
import dev.ruvd.v1.BatchResult;
import dev.ruvd.v1.BatchSummary;
import dev.ruvd.v1.SessionServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Optional;

/**
 * Many requests in one call: iterate for the outcomes as they come, close it early to cancel what
 * has none yet.
 *
 * <p>Iterating throws {@link RuvdException} when the call fails as a whole; the outcomes before
 * that hold, and repeating the call with the same request ids runs only the others.
 */
public final class Batch implements Iterable<BatchOutcome>, AutoCloseable {
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final Iterator<BatchCompleteResponse> responses;
  private BatchSummary summary;

  Batch(Channel channel, BatchCompleteRequest request) {
    Context before = context.attach();
    try {
      responses =
          ClientCalls.blockingServerStreamingCall(
              channel, SessionServiceGrpc.getBatchCompleteMethod(), CallOptions.DEFAULT, request);
    } finally {
      context.detach(before);
    }
  }

  /** The outcomes that have not been read yet, in the order in which they come. */
  @Override
  public Iterator<BatchOutcome> iterator() {
    return new Iterator<>() {
      private BatchOutcome next;

      @Override
      public boolean hasNext() {
        while (next == null && advance()) {
          BatchCompleteResponse response = responses.next();
          summary = response.hasSummary() ? response.getSummary() : summary;
          next = response.hasResult() ? outcome(response.getResult()) : null;
        }
        return next != null;
      }

      @Override
      public BatchOutcome next() {
        if (!hasNext()) {
          throw new NoSuchElementException();
        }
        BatchOutcome taken = next;
        next = null;
        return taken;
      }
    };
  }

  /** What came of all items; empty until every outcome has been read. */
  public Optional<BatchSummary> summary() {
    return Optional.ofNullable(summary);
  }

  /** Stops what runs; what has not begun does not begin. Does nothing after the end. */
  @Override
  public void close() {
    context.cancel(null);
  }

  private boolean advance() {
    try {
      return responses.hasNext();
    } catch (StatusRuntimeException failed) {
      throw RuvdException.of(failed);
    }
  }

  private static BatchOutcome outcome(BatchResult result) {
    return result.hasError()
        ? new BatchOutcome(result.getIndex(), null, RuvdException.of(result.getError()))
        : new BatchOutcome(result.getIndex(), result.getCompletion(), null);
  }
}
