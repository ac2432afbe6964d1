package dev.ruvd.client;

import dev.ruvd.v1.*;
import io.grpc.Channel;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Iterator;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Stream;

/**
 * One answer on its way: iterate for its text, close it early to cancel it. A stream that breaks is
 * taken up again by the rules of clients/CONFORMANCE.md.
 *
 * <p>It is read once, by one thread at a time; texts and events are two views of the same reading.
 * Reading throws {@link RuvdException} when the completion fails or is cancelled, and cancels it
 * when the thread is interrupted.
 */
public final class Completion implements Iterable<String>, AutoCloseable {
  private static final Set<Code> BROKEN =
      EnumSet.of(Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED);
  private static final long FIRST_PAUSE_NANOS = Duration.ofMillis(50).toNanos();
  private static final long LONGEST_PAUSE_NANOS = Duration.ofSeconds(1).toNanos();
  private static final Step END = new Step(null, "");

  /** However this is completed, that ends the completion; cancelled, in the daemon as well. */
  final CompletableFuture<Finished> end = new CompletableFuture<>();

  private final RuvdClient client;
  private final Channel channel;
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final Deadline deadline; // null for none
  private final CompleteRequest request; // null for a completion that somebody else began
  private final BlockingQueue<Step> steps = new LinkedBlockingQueue<>();
  private final Consumer<? super String> onText; // null for who iterates
  private long lastSequence;

  // What gRPC's callbacks know, which come one after the other.
  private volatile ResumeCompletionRequest name; // what the daemon knows the completion by
  private boolean resumed;
  private long sequence;
  private final StringBuilder text; // what was delivered; null if it is not known from the start
  private Finished finished;
  private Long brokenAtNanos; // null while the stream is whole

  /** An event, and what it adds to the text. */
  private record Step(CompletionEvent event, String text) {}

  /** Either request or resume is null; so are timeout for none, and onText for who iterates. */
  Completion(
      RuvdClient client,
      CompleteRequest request,
      ResumeCompletionRequest resume,
      Duration timeout,
      Consumer<? super String> onText) {
    this.client = client;
    this.channel = client.tracedChannel();
    this.request = request;
    name = resume == null ? nameOf(request) : resume;
    sequence = name.getAfterSequence();
    text = sequence == 0 ? new StringBuilder() : null;
    this.onText = onText;
    deadline =
        timeout == null
            ? context.getDeadline()
            : Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
    client.open.add(end);
    end.whenComplete(this::ended);
    context.addListener(this::contextCancelled, Runnable::run);
    context.run(this::open);
  }

  /** The texts that have not been read yet, as they come. */
  @Override
  public Iterator<String> iterator() {
    return steps().map(Step::text).filter(text -> !text.isEmpty()).iterator();
  }

  /** The numbered events that have not been read yet, as the daemon sends them. */
  public Iterator<CompletionEvent> events() {
    return steps().map(Step::event).iterator();
  }

  /** The number of the last event that was read, to resume after; 0 before the first. */
  public long lastSequence() {
    return lastSequence;
  }

  /** Reads to the end: the whole message with reasoning and tool calls, usage and timings. */
  public Finished finished() {
    steps().forEach(passedOver -> {});
    return end.join();
  }

  /** Reads to the end: the answer's whole text. */
  public String text() {
    return finished().getMessage().getContent();
  }

  /** Stops generating; the session stays as it was. Does nothing after the end. */
  @Override
  public void close() {
    end.cancel(false);
  }

  private Stream<Step> steps() {
    return Stream.generate(this::take).takeWhile(step -> step != END);
  }

  private Step take() {
    try {
      Step step = steps.take();
      if (step == END) {
        steps.add(END); // for who reads again
        end.join();
      } else {
        lastSequence = step.event().getSequence();
      }
      return step;
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      close();
      throw new RuvdException(Status.CANCELLED, "interrupted");
    } catch (CancellationException cancelled) {
      throw new RuvdException(Status.CANCELLED, "cancelled by this client");
    } catch (CompletionException failed) {
      throw (RuvdException) failed.getCause();
    }
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
        closed(new RuvdException((StatusRuntimeException) failed));
      }

      @Override
      public void onCompleted() {
        closed(new RuvdException(Status.UNAVAILABLE, "the stream ended before the answer"));
      }
    };
  }

  private void received(CompletionEvent event) {
    sequence = event.getSequence();
    brokenAtNanos = null;
    String more = event.getDelta().getText();
    if (event.hasStarted()) {
      String id = event.getStarted().getCompletionId();
      name = ResumeCompletionRequest.newBuilder().setCompletionId(id).build();
    } else if (event.hasFinished()) {
      finished = event.getFinished();
      String whole = finished.getMessage().getContent();
      if (text != null && !whole.startsWith(text.toString())) {
        end.completeExceptionally(
            new RuvdException(Status.DATA_LOSS, "the answer does not begin with what came of it"));
        return;
      }
      more = text == null ? "" : whole.substring(text.length());
    }
    if (text != null) {
      text.append(more);
    }
    try {
      if (onText == null) {
        steps.add(new Step(event, more));
      } else if (!more.isEmpty()) {
        onText.accept(more);
      }
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
    boolean delivered = sequence > 1; // the first event is Started
    boolean anew = forgotten && request != null && !delivered;
    if (anew) {
      name = nameOf(request);
      sequence = 0;
    }
    if (brokenAtNanos == null) {
      brokenAtNanos = System.nanoTime();
    }
    long sinceNanos = System.nanoTime() - brokenAtNanos;
    long leftNanos = client.reconnect.toNanos() - sinceNanos;
    boolean broken = error.reason().isEmpty() && BROKEN.contains(error.code());
    if (!anew && !broken || leftNanos <= 0 || client.channel.isShutdown()) {
      end.completeExceptionally(error);
      return;
    }
    client.channel.resetConnectBackoff(); // so that it connects during the pause
    // What it has been broken for and 0.05 s: doubled each time, as tries fail at once.
    long pause = Math.min(sinceNanos + FIRST_PAUSE_NANOS, LONGEST_PAUSE_NANOS);
    pause = Math.min(pause, leftNanos);
    if (deadline != null) {
      // What is opened after the deadline fails with DEADLINE_EXCEEDED.
      pause = Math.min(pause, deadline.timeRemaining(TimeUnit.NANOSECONDS));
    }
    CompletableFuture.delayedExecutor(pause, TimeUnit.NANOSECONDS)
        .execute(context.wrap(this::open));
  }

  private void contextCancelled(Context caller) {
    // At its deadline the call ends by itself, with the right code.
    if (!(caller.cancellationCause() instanceof TimeoutException)) {
      end.cancel(false);
    }
  }

  private void ended(Finished finished, Throwable error) {
    context.cancel(null);
    client.open.remove(end);
    steps.add(END);
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
