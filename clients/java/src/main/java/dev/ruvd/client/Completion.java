package dev.ruvd.client;

import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.Delta;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.Message;
import dev.ruvd.v1.ResumeCompletionRequest;
import dev.ruvd.v1.Started;
import io.grpc.Deadline;
import io.grpc.Status;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.function.Function;

/**
 * One answer on its way: iterate for its text, close it early to cancel it.
 *
 * <p>It is read once, by one thread at a time; text, deltas and events are three views of the same
 * reading. Reading throws {@link RuvdException} when the completion fails or is cancelled, and
 * cancels it when the thread is interrupted.
 */
public final class Completion implements Iterable<String>, AutoCloseable {
  private final CompletionCall call;
  // CompletionEvent, and last an Optional of the error.
  private final BlockingQueue<Object> signals = new LinkedBlockingQueue<>();
  private volatile Started started;
  private Finished finished;
  private boolean over;
  private RuvdException error;

  Completion(
      RuvdClient client,
      CompleteRequest request,
      ResumeCompletionRequest resume,
      Deadline deadline) {
    call = new CompletionCall(client, request, resume, deadline, new Queue());
    call.start();
  }

  /** The texts that have not been read yet, as they come. */
  @Override
  public Iterator<String> iterator() {
    return each(event -> event.getDelta().getText().isEmpty() ? null : event.getDelta().getText());
  }

  /** What has not been read yet of the answer: text, reasoning and tool calls. */
  public Iterator<Delta> deltas() {
    return each(event -> event.hasDelta() ? event.getDelta() : null);
  }

  /** The numbered events that have not been read yet. */
  public Iterator<CompletionEvent> events() {
    return each(Function.identity());
  }

  /** The first event, with the completion's id and the model, once it has been read. */
  public Optional<Started> started() {
    return Optional.ofNullable(started);
  }

  /** The number of the last event that has come, to resume after; 0 before the first. */
  public long lastSequence() {
    return call.lastSequence();
  }

  /** Reads to the end: the whole message, usage and timings. */
  public Finished finished() {
    while (take() != null) {
      // What is passed over is in the message.
    }
    return finished;
  }

  /** Reads to the end: the whole answer, with its tool calls and its reasoning. */
  public Message message() {
    return finished().getMessage();
  }

  /** Reads to the end: the answer's whole text. */
  public String text() {
    return message().getContent();
  }

  /** Stops generating; the session stays as it was. Does nothing after the end. */
  public void cancel() {
    call.cancel();
  }

  /** As {@link #cancel}. */
  @Override
  public void close() {
    cancel();
  }

  private <T> Iterator<T> each(Function<CompletionEvent, T> part) {
    return new Iterator<>() {
      private T next;

      @Override
      public boolean hasNext() {
        while (next == null) {
          CompletionEvent event = take();
          if (event == null) {
            return false;
          }
          next = part.apply(event);
        }
        return true;
      }

      @Override
      public T next() {
        if (!hasNext()) {
          throw new NoSuchElementException();
        }
        T taken = next;
        next = null;
        return taken;
      }
    };
  }

  /** Waits for the next event; null after the last. */
  private CompletionEvent take() {
    if (!over) {
      if (signals.isEmpty()) {
        call.pull();
      }
      if (next() instanceof CompletionEvent event) {
        started = event.hasStarted() ? event.getStarted() : started;
        finished = event.hasFinished() ? event.getFinished() : finished;
        return event;
      }
      over = true;
    }
    if (error != null) {
      throw error;
    }
    return null;
  }

  private Object next() {
    try {
      return signals.take();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      cancel();
      error = new RuvdException(Status.Code.CANCELLED, "interrupted");
      return error;
    }
  }

  private final class Queue implements CompletionCall.Receiver {
    @Override
    public void event(CompletionEvent event) {
      signals.add(event);
    }

    @Override
    public void ended(RuvdException ending) {
      error = ending;
      signals.add(Optional.ofNullable(ending));
    }
  }
}
