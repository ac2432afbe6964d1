package dev.ruvd.client;

import dev.ruvd.v1.*;
import io.grpc.Channel;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Status;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import java.time.Duration;
import java.util.EnumSet;
import java.util.Iterator;
import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ArrayBlockingQueue;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/**
 * A running completion, which is an iterable over its text. Closing it early cancels it. A broken
 * stream is resumed by the rules of clients/CONFORMANCE.md.
 *
 * <p>It can be read once, by one thread at a time; texts and events are two views of one stream.
 * Reading throws {@link RuvdException} when the completion fails or is cancelled. Interrupting the
 * reading thread cancels the completion.
 */
public final class CompletionStream implements Iterable<String>, AutoCloseable {
  private static final Set<Code> CONNECTION_ERRORS =
      EnumSet.of(Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.CANCELLED);
  private static final Step END = new Step(CompletionEvent.getDefaultInstance(), "");
  private static final int MAX_STEPS = 32; // to be read; beyond, the daemon has to wait

  /** Completing this in any way ends the completion; cancelling it also cancels the daemon's. */
  final CompletableFuture<Finished> end = new CompletableFuture<>();

  private final RuvdClient client;
  private final ClientInterceptor headers;
  private final Tries tries;
  private final Context.CancellableContext context = Context.current().withCancellation();
  private final @Nullable Deadline deadline; // null for no deadline
  private final @Nullable CompleteRequest request; // null for a resumed completion
  // Has room for END, and for the event in place of one that the reader takes as a call begins.
  private final BlockingQueue<Step> steps = new ArrayBlockingQueue<>(MAX_STEPS + 2);
  private final Object requestLock = new Object();
  private @Nullable ClientCallStreamObserver<?> stream; // the newest; guarded by requestLock
  private final @Nullable Consumer<? super String> onText; // null if the caller iterates
  private long lastSequence;

  // Used by gRPC's callbacks, which run one after the other.
  private volatile ResumeCompletionRequest target; // identifies the completion
  private volatile String session; // empty if there is none or it is not known
  private volatile boolean collects; // whether the caller gets nothing before the end
  private int restarts;
  private boolean resumed;
  private long sequence;
  private final @Nullable StringBuilder text; // received; null if its beginning is unknown
  private final MessageParts parts = new MessageParts();
  private volatile @Nullable Started started;
  private @Nullable Finished finished;

  /** An event and the text that it adds. */
  private record Step(CompletionEvent event, String text) {}

  /** Either request or resume is null. */
  CompletionStream(
      RuvdClient client,
      @Nullable CompleteRequest request,
      @Nullable ResumeCompletionRequest resume,
      @Nullable Duration timeout,
      @Nullable Consumer<? super String> onText) {
    this.client = client;
    this.headers = client.headers();
    this.tries = new Tries(client.connections);
    this.request = request;
    target = resume == null ? identify(request) : resume;
    session = target.getSessionId();
    sequence = target.getAfterSequence();
    text = sequence == 0 ? new StringBuilder() : null;
    this.onText = onText;
    deadline =
        timeout == null
            ? context.getDeadline()
            : Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
    client.running.add(end);
    end.whenComplete(this::onEnd);
    context.addListener(this::contextCancelled, Runnable::run);
    context.run(this::openStream);
  }

  /**
   * Returns the pieces of text that have not been read yet.
   *
   * @return an iterator, which waits for the next piece
   */
  @Override
  public Iterator<String> iterator() {
    return steps().map(Step::text).filter(text -> !text.isEmpty()).iterator();
  }

  /**
   * Returns the numbered events that have not been read yet: text, reasoning, tool calls, and the
   * first and the last event.
   *
   * @return an iterator, which waits for the next event
   */
  public Iterator<CompletionEvent> events() {
    return steps().map(Step::event).iterator();
  }

  /**
   * Returns the sequence number of the last event read, after which to resume.
   *
   * @return the number; 0 if no event was read
   */
  public long lastSequence() {
    return lastSequence;
  }

  /**
   * Returns the first event, with the completion's id.
   *
   * @return the event; empty until it has come, and for an answer of which only the end is left
   */
  public Optional<Started> started() {
    return Optional.ofNullable(started);
  }

  /**
   * Reads to the end.
   *
   * @return the whole message, the usage and the timings
   */
  public Finished finished() {
    if (lastSequence == 0) { // otherwise something was delivered
      collects = true;
    }
    steps().forEach(ignored -> {});
    return end.join();
  }

  /**
   * Reads to the end.
   *
   * @return the answer's whole text
   */
  public String text() {
    return finished().getMessage().getContent();
  }

  /** Cancels the completion, leaving the session unchanged. Has no effect after the end. */
  @Override
  public void close() {
    end.cancel(false);
  }

  private Stream<Step> steps() {
    return Stream.generate(this::nextStep).takeWhile(step -> step != END);
  }

  private Step nextStep() {
    try {
      Step step = steps.take();
      if (step == END) {
        steps.add(END); // for the next read
        end.join();
      } else {
        lastSequence = step.event().getSequence();
        synchronized (requestLock) {
          stream.request(1);
        }
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

  private void openStream() {
    resumed = request == null || !target.getCompletionId().isEmpty();
    var stub = SessionServiceGrpc.newStub(channel()).withDeadline(deadline);
    // The reader must not request an event of a stream that has not started, nor of an older one.
    synchronized (requestLock) {
      if (resumed) {
        var resume = target.toBuilder().setAfterSequence(sequence).build();
        stub.resumeCompletion(resume, new Responses<>(ResumeCompletionResponse::getEvent));
      } else {
        stub.complete(request, new Responses<>(CompleteResponse::getEvent));
      }
    }
  }

  /** Returns the channel of the newest call, with the headers of all calls. */
  private Channel channel() {
    return ClientInterceptors.interceptForward(
        tries.at().channel(), headers, RequestHeaders.ofSession(session));
  }

  /** The responses of one call, of which no more are requested than the reader has room for. */
  private final class Responses<R> implements ClientResponseObserver<Object, R> {
    private final Function<R, CompletionEvent> eventOf;

    Responses(Function<R, CompletionEvent> eventOf) {
      this.eventOf = eventOf;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<Object> call) {
      stream = call;
      if (onText == null) { // Otherwise the next event is requested when onText returns.
        call.disableAutoRequestWithInitial(Math.max(0, MAX_STEPS - steps.size()));
      }
    }

    @Override
    public void onNext(R response) {
      handleEvent(eventOf.apply(response));
    }

    @Override
    public void onError(Throwable failed) {
      handleFailure(new RuvdException((StatusRuntimeException) failed));
    }

    @Override
    public void onCompleted() {
      handleFailure(new RuvdException(Status.UNAVAILABLE, "the stream ended without Finished"));
    }
  }

  private void handleEvent(CompletionEvent received) {
    CompletionEvent event = received;
    tries.eventReceived();
    try {
      if (event.hasMessagePart()) {
        handlePart(event.getMessagePart());
        return;
      }
      if (event.hasFinished()) {
        event = event.toBuilder().setFinished(parts.join(event.getFinished())).build();
      }
    } catch (RuvdException partIsMissing) {
      end.completeExceptionally(partIsMissing);
      return;
    }
    sequence = event.getSequence();
    String addition = event.getDelta().getText();
    if (event.hasStarted()) {
      started = event.getStarted();
      String id = event.getStarted().getCompletionId();
      target = ResumeCompletionRequest.newBuilder().setCompletionId(id).build();
      session = orElse(event.getStarted().getSessionId(), session);
    } else if (event.hasFinished()) {
      finished = event.getFinished();
      String content = finished.getMessage().getContent();
      if (text != null && !content.startsWith(text.toString())) {
        end.completeExceptionally(
            new RuvdException(Status.DATA_LOSS, "the answer contradicts the text received before"));
        return;
      }
      addition = text == null ? "" : content.substring(text.length());
    }
    if (text != null) {
      text.append(addition);
    }
    try {
      if (onText == null) {
        steps.add(new Step(event, addition));
      } else if (!addition.isEmpty()) {
        onText.accept(addition);
      }
    } catch (RuntimeException callbackError) {
      end.completeExceptionally(callbackError);
    }
  }

  private void handlePart(MessagePart part) {
    parts.add(part);
    if (onText == null) { // A part is no step, after which the reader would request the next one.
      synchronized (requestLock) {
        stream.request(1);
      }
    }
  }

  private void handleFailure(RuvdException error) {
    if (finished != null) {
      end.complete(finished);
    }
    if (end.isDone()) {
      return;
    }
    Tries.Failure kind = kindOf(error);
    long pause;
    try {
      pause = tries.after(kind, error);
    } catch (RuvdException last) {
      end.completeExceptionally(last);
      return;
    }
    long remainingNanos = client.reconnect.toNanos() - tries.brokenNanos();
    if (remainingNanos <= 0 || client.connections.areClosed()) {
      end.completeExceptionally(error);
      return;
    }
    if (kind == Tries.Failure.LEFT || kind == Tries.Failure.FORGOTTEN) {
      restart();
    }
    tries.at().channel().resetConnectBackoff(); // connects during the pause
    pause = Math.min(pause, remainingNanos);
    if (deadline != null) {
      // A stream that is opened after the deadline fails with DEADLINE_EXCEEDED.
      pause = Math.min(pause, deadline.timeRemaining(TimeUnit.NANOSECONDS));
    }
    CompletableFuture.delayedExecutor(pause, TimeUnit.NANOSECONDS)
        .execute(context.wrap(this::openStream));
  }

  private Tries.Failure kindOf(RuvdException error) {
    boolean delivered = sequence > 1 && !collects; // the first event is Started
    boolean canRestart = request != null && !delivered && restarts < Tries.MAX_RESTARTS;
    boolean isMissing =
        resumed && error.errorReason() == ErrorReason.ERROR_REASON_COMPLETION_NOT_FOUND;
    if (error.reason().isEmpty() && CONNECTION_ERRORS.contains(error.code())) {
      return Tries.Failure.LOST;
    }
    if (RepeatedCall.isLeft(error) && client.connections.areSeveral && canRestart) {
      return Tries.Failure.LEFT;
    }
    if (isMissing) {
      return canRestart ? Tries.Failure.FORGOTTEN : Tries.Failure.MISSING;
    }
    return Tries.Failure.FINAL;
  }

  /** Forgets the events so far, none of which was delivered, to make the same request again. */
  private void restart() {
    if (sequence > 0) {
      restarts++;
    }
    target = identify(request);
    started = null;
    sequence = 0;
    text.setLength(0);
  }

  private void contextCancelled(Context caller) {
    // At the deadline the call itself ends with DEADLINE_EXCEEDED.
    if (!(caller.cancellationCause() instanceof TimeoutException)) {
      end.cancel(false);
    }
  }

  private void onEnd(@Nullable Finished finished, @Nullable Throwable error) {
    context.cancel(null);
    client.running.remove(end);
    steps.add(END);
    boolean cancelled = error != null && !(error instanceof RuvdException);
    boolean continues =
        request != null && request.getOnDisconnect() == OnDisconnect.ON_DISCONNECT_CONTINUE;
    if (cancelled && !continues) {
      var cancel =
          CancelCompletionRequest.newBuilder()
              .setCompletionId(target.getCompletionId())
              .setSessionId(target.getSessionId())
              .setRequestId(target.getRequestId());
      // The root context, because the current one is cancelled. The response is not waited for.
      Context.ROOT.run(
          () -> SessionServiceGrpc.newFutureStub(channel()).cancelCompletion(cancel.build()));
    }
  }

  private static String orElse(String text, String other) {
    return text.isEmpty() ? other : text;
  }

  private static ResumeCompletionRequest identify(CompleteRequest request) {
    return ResumeCompletionRequest.newBuilder()
        .setSessionId(request.getSessionId())
        .setRequestId(request.getRequestId())
        .build();
  }
}
