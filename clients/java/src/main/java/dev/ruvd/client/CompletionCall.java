package dev.ruvd.client;

import dev.ruvd.v1.CancelCompletionRequest;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompleteResponse;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.OnDisconnect;
import dev.ruvd.v1.ResumeCompletionRequest;
import dev.ruvd.v1.ResumeCompletionResponse;
import dev.ruvd.v1.SessionServiceGrpc;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status.Code;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.BiConsumer;
import java.util.function.Function;

/**
 * One completion over as many streams as it takes, by the rules of clients/CONFORMANCE.md.
 *
 * <p>It is driven by gRPC's callbacks, one after the other, and blocks nobody. However {@link #end}
 * is completed, and by whom, that is the end.
 */
final class CompletionCall {
  private static final Set<Code> BROKEN =
      EnumSet.of(Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED);
  private static final long FIRST_PAUSE_NANOS = Duration.ofMillis(50).toNanos();
  private static final long LONGEST_PAUSE_NANOS = Duration.ofSeconds(1).toNanos();

  /** Completed with an error that is not ruvd's, it stops the completion in the daemon as well. */
  final CompletableFuture<Finished> end = new CompletableFuture<>();

  private final RuvdClient client;
  private final Channel channel;
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final Deadline deadline; // null for none
  private final CompleteRequest request; // null for a completion that somebody else began
  private final BiConsumer<CompletionEvent, String> reader;
  private final boolean fromTheBeginning;
  private final StringBuilder text = new StringBuilder();

  private volatile ResumeCompletionRequest name; // what the daemon knows the completion by
  private boolean resumed; // by the stream that is open
  private boolean delivered; // text, reasoning or a tool call
  private long sequence;
  private Finished finished;
  private long brokenAtNanos;
  private long pauseNanos; // 0 while the stream is whole

  /** One of the two requests is null. The reader is given each event and the text that it adds. */
  CompletionCall(
      RuvdClient client,
      CompleteRequest request,
      ResumeCompletionRequest resume,
      Duration timeout,
      BiConsumer<CompletionEvent, String> reader) {
    this.client = client;
    this.channel = client.tracedChannel();
    this.request = request;
    this.name = resume == null ? nameOf(request) : resume;
    this.sequence = name.getAfterSequence();
    this.fromTheBeginning = sequence == 0;
    this.reader = reader;
    this.deadline =
        timeout == null
            ? context.getDeadline()
            : Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
    client.open.add(end);
    end.whenComplete(this::ended);
    context.addListener(this::cancelled, Runnable::run);
    context.run(this::open);
  }

  private void open() {
    resumed = request == null || !name.getCompletionId().isEmpty();
    var stub = SessionServiceGrpc.newStub(channel).withDeadline(deadline);
    if (resumed) {
      stub.resumeCompletion(
          name.toBuilder().setAfterSequence(sequence).build(),
          observer(ResumeCompletionResponse::getEvent));
    } else {
      stub.complete(request, observer(CompleteResponse::getEvent));
    }
  }

  private <R> StreamObserver<R> observer(Function<R, CompletionEvent> eventOf) {
    return new StreamObserver<>() {
      @Override
      public void onNext(R response) {
        received(eventOf.apply(response));
      }

      @Override
      public void onError(Throwable failed) {
        closed(RuvdException.of(failed));
      }

      @Override
      public void onCompleted() {
        closed(new RuvdException(Code.UNAVAILABLE, "the stream ended before the answer"));
      }
    };
  }

  private void received(CompletionEvent event) {
    sequence = event.getSequence();
    pauseNanos = 0;
    String more = event.getDelta().getText();
    if (event.hasStarted()) {
      String id = event.getStarted().getCompletionId();
      name = ResumeCompletionRequest.newBuilder().setCompletionId(id).build();
    } else if (event.hasDelta()) {
      delivered = true;
      text.append(more);
    } else if (event.hasFinished()) {
      finished = event.getFinished();
      String whole = finished.getMessage().getContent();
      if (fromTheBeginning && !whole.startsWith(text.toString())) {
        end.completeExceptionally(
            new RuvdException(Code.DATA_LOSS, "the answer does not begin with what came of it"));
        return;
      }
      more = fromTheBeginning ? whole.substring(text.length()) : "";
    }
    try {
      reader.accept(event, more);
    } catch (RuntimeException refused) {
      end.completeExceptionally(refused);
    }
  }

  private void closed(RuvdException error) {
    if (finished != null) {
      end.complete(finished);
    }
    if (end.isDone()) {
      return;
    }
    boolean forgotten = resumed && error.reason().equals("COMPLETION_NOT_FOUND");
    boolean anew = forgotten && request != null && !delivered;
    if (anew) {
      name = nameOf(request);
      sequence = 0;
    }
    if (pauseNanos == 0) {
      brokenAtNanos = System.nanoTime();
      pauseNanos = FIRST_PAUSE_NANOS;
    }
    long left = client.reconnect.toNanos() - (System.nanoTime() - brokenAtNanos);
    boolean broken = error.reason().isEmpty() && BROKEN.contains(error.code());
    if (!anew && !broken || left <= 0 || client.channel.isShutdown()) {
      end.completeExceptionally(error);
      return;
    }
    client.channel.resetConnectBackoff(); // so that it connects during the pause
    long wait = Math.min(pauseNanos, left);
    if (deadline != null) {
      wait = Math.min(wait, deadline.timeRemaining(TimeUnit.NANOSECONDS));
    }
    pauseNanos = Math.min(2 * pauseNanos, LONGEST_PAUSE_NANOS);
    // Once the deadline has passed, the stream that this opens fails with that.
    CompletableFuture.delayedExecutor(wait, TimeUnit.NANOSECONDS).execute(context.wrap(this::open));
  }

  private void cancelled(Context caller) {
    if (caller.cancellationCause() instanceof TimeoutException) {
      end.completeExceptionally(new RuvdException(Code.DEADLINE_EXCEEDED, "out of time"));
    } else {
      end.cancel(false);
    }
  }

  private void ended(Finished finished, Throwable error) {
    context.cancel(null);
    client.open.remove(end);
    boolean left = error != null && !(error instanceof RuvdException);
    boolean continues =
        request != null && request.getOnDisconnect() == OnDisconnect.ON_DISCONNECT_CONTINUE;
    if (left && !continues) {
      var cancel =
          CancelCompletionRequest.newBuilder()
              .setCompletionId(name.getCompletionId())
              .setSessionId(name.getSessionId())
              .setRequestId(name.getRequestId());
      // Not waited for, and not part of what was cancelled.
      Context.ROOT.run(
          () -> SessionServiceGrpc.newFutureStub(channel).cancelCompletion(cancel.build()));
    }
  }

  private static ResumeCompletionRequest nameOf(CompleteRequest request) {
    return ResumeCompletionRequest.newBuilder()
        .setSessionId(request.getSessionId())
        .setRequestId(request.getRequestId())
        .build();
  }
}
