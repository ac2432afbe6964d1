package dev.ruvd.client;

import dev.ruvd.v1.CancelCompletionRequest;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompleteResponse;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.Delta;
import dev.ruvd.v1.ResumeCompletionRequest;
import dev.ruvd.v1.ResumeCompletionResponse;
import dev.ruvd.v1.SessionServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.stub.ClientCalls;
import java.util.OptionalLong;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Function;

/**
 * One completion over as many streams as it takes: a stream that breaks is not its end.
 *
 * <p>It is driven by gRPC's callbacks and blocks nobody; {@link Completion} and {@link
 * CompletionFuture} give it to callers. Signals to the receiver come one after the other, but for
 * the end, which {@link #cancel} may give from another thread. The receiver is never called with
 * the lock held.
 */
final class CompletionCall {
  private final RuvdClient client;
  private final Channel channel;
  private final CompleteRequest request; // null for a completion that somebody else began
  private final Deadline deadline; // null for none
  private final Receiver receiver;
  private final Context context = Context.current();
  private final Context.CancellationListener contextCancelled = this::contextCancelled;
  private final boolean fromTheBeginning;

  // Guarded by this, from here on.
  private ResumeCompletionRequest resume; // null until the completion is known
  private long sequence;
  private final StringBuilder text = new StringBuilder();
  private boolean delivered; // text, reasoning or a tool call
  private ClientCall<?, ?> call;
  private boolean wanted;
  private boolean ended;
  private final Pauses pauses;

  /** Who reads the completion. */
  interface Receiver {
    /** The next event; {@link #pull} asks for one more. */
    void event(CompletionEvent event);

    /** No more events come. The error is null if the last one was Finished. */
    void ended(RuvdException error);
  }

  /** Either of the two requests is null. */
  CompletionCall(
      RuvdClient client,
      CompleteRequest request,
      ResumeCompletionRequest resume,
      Deadline deadline,
      Receiver receiver) {
    this.client = client;
    this.pauses = new Pauses(client.reconnect(), deadline);
    this.channel = client.tracedChannel();
    this.request = request;
    this.resume = resume;
    this.sequence = resume == null ? 0 : resume.getAfterSequence();
    this.fromTheBeginning = sequence == 0;
    this.deadline = deadline;
    this.receiver = receiver;
  }

  void start() {
    client.opened(this);
    context.addListener(contextCancelled, Runnable::run);
    open();
  }

  /** Ask for one event. There is at most one request open. */
  synchronized void pull() {
    wanted = true;
    if (call != null) {
      call.request(1);
    }
  }

  /** The number of the last event that has come. */
  synchronized long lastSequence() {
    return sequence;
  }

  /** Stop generating, in the daemon as well. Does nothing after the end. */
  void cancel() {
    synchronized (this) {
      if (ended) {
        return;
      }
      ended = true;
      if (call != null) {
        call.cancel("cancelled by this client", null);
      }
    }
    stop();
    end(new RuvdException(Status.Code.CANCELLED, "cancelled by this client"));
  }

  private void contextCancelled(Context cancelled) {
    // At its deadline the call ends by itself, with the right code.
    if (!(cancelled.cancellationCause() instanceof TimeoutException)) {
      cancel();
    }
  }

  /**
   * Stops the completion in the daemon, which keeps it for the grace when only its stream goes.
   * Whether this arrives is not waited for, and what ended the call must not end this one.
   */
  private void stop() {
    CancelCompletionRequest asked = cancelRequest();
    Context.ROOT.run(
        () ->
            ClientCalls.futureUnaryCall(
                channel.newCall(
                    SessionServiceGrpc.getCancelCompletionMethod(), CallOptions.DEFAULT),
                asked));
  }

  private synchronized CancelCompletionRequest cancelRequest() {
    CancelCompletionRequest.Builder cancel = CancelCompletionRequest.newBuilder();
    if (resume != null) {
      cancel
          .setCompletionId(resume.getCompletionId())
          .setSessionId(resume.getSessionId())
          .setRequestId(resume.getRequestId());
    } else {
      cancel.setSessionId(request.getSessionId()).setRequestId(request.getRequestId());
    }
    return cancel.build();
  }

  private synchronized void open() {
    if (ended) {
      return;
    }
    if (resume == null) {
      open(SessionServiceGrpc.getCompleteMethod(), request, CompleteResponse::getEvent);
    } else {
      open(
          SessionServiceGrpc.getResumeCompletionMethod(),
          resume.toBuilder().setAfterSequence(sequence).build(),
          ResumeCompletionResponse::getEvent);
    }
  }

  private <Q, R> void open(
      MethodDescriptor<Q, R> method, Q asked, Function<R, CompletionEvent> event) {
    ClientCall<Q, R> stream = channel.newCall(method, CallOptions.DEFAULT.withDeadline(deadline));
    stream.start(
        new ClientCall.Listener<>() {
          @Override
          public void onMessage(R response) {
            received(event.apply(response));
          }

          @Override
          public void onClose(Status status, Metadata trailers) {
            closed(status, trailers, method);
          }
        },
        new Metadata());
    stream.sendMessage(asked);
    stream.halfClose();
    if (wanted) {
      stream.request(1);
    }
    call = stream;
  }

  private void received(CompletionEvent event) {
    String rest = "";
    RuvdException error = null;
    synchronized (this) {
      if (ended) {
        return;
      }
      if (event.getSequence() <= sequence) {
        call.request(1);
        return;
      }
      sequence = event.getSequence();
      wanted = false;
      pauses.restart();
      switch (event.getEventCase()) {
        case STARTED -> {
          String id = event.getStarted().getCompletionId();
          resume = ResumeCompletionRequest.newBuilder().setCompletionId(id).build();
        }
        case DELTA -> {
          delivered = true;
          text.append(event.getDelta().getText());
        }
        case FINISHED -> {
          ended = true;
          String whole = event.getFinished().getMessage().getContent();
          if (fromTheBeginning && whole.startsWith(text.toString())) {
            rest = whole.substring(text.length());
          } else if (fromTheBeginning) {
            error =
                new RuvdException(
                    Status.Code.DATA_LOSS, "the answer does not begin with what came of it");
          }
        }
        default -> {} // An event of a later version.
      }
    }
    if (error != null) {
      end(error);
      return;
    }
    if (!rest.isEmpty()) {
      // The events that brought it are no longer kept. They had numbers before this one.
      receiver.event(
          CompletionEvent.newBuilder()
              .setSequence(event.getSequence() - 1)
              .setDelta(Delta.newBuilder().setText(rest))
              .build());
    }
    receiver.event(event);
    if (event.hasFinished()) {
      end(null);
    }
  }

  private void closed(Status status, Metadata trailers, MethodDescriptor<?, ?> method) {
    RuvdException error =
        status.isOk()
            ? new RuvdException(Status.Code.UNAVAILABLE, "the stream ended before the answer")
            : RuvdException.of(status, trailers);
    synchronized (this) {
      if (ended) {
        return;
      }
      boolean forgotten =
          error.reason().equals("COMPLETION_NOT_FOUND")
              && method == SessionServiceGrpc.getResumeCompletionMethod()
              && request != null
              && !delivered;
      if (forgotten) {
        // The daemon was restarted. Nothing was delivered, so that another answer is as good.
        resume = null;
        sequence = 0;
      }
      if (pauses.isOver()) {
        error = error.reason().isEmpty() ? late() : error;
        ended = true;
      } else if (!forgotten && !error.reason().isEmpty()) {
        ended = true;
      } else {
        ended = client.closed() || !reopenLater();
      }
      if (!ended) {
        return;
      }
    }
    if (error.code() == Status.Code.DEADLINE_EXCEEDED && error.reason().isEmpty()) {
      stop();
    }
    end(error);
  }

  /** Whether there is still time for another try. */
  private boolean reopenLater() {
    OptionalLong pauseNanos = pauses.next();
    if (pauseNanos.isEmpty()) {
      return false;
    }
    // The connection is made during the pause.
    client.connectNow();
    CompletableFuture.delayedExecutor(pauseNanos.getAsLong(), TimeUnit.NANOSECONDS)
        .execute(context.wrap(this::reopen));
    return true;
  }

  private void reopen() {
    if (!pauses.isOver()) {
      client.connectNow();
      open();
      return;
    }
    synchronized (this) {
      if (ended) {
        return;
      }
      ended = true;
    }
    stop();
    end(late());
  }

  private static RuvdException late() {
    return new RuvdException(Status.Code.DEADLINE_EXCEEDED, "the deadline has passed");
  }

  private void end(RuvdException error) {
    context.removeListener(contextCancelled);
    client.ended(this);
    receiver.ended(error);
  }
}
