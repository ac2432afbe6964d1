package dev.ruvd.client;

import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.ResumeCompletionRequest;
import io.grpc.Status.Code;
import java.time.Duration;
import java.util.Iterator;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.stream.Stream;

/**
 * One answer on its way: iterate for its text, close it early to cancel it.
 *
 * <p>It is read once, by one thread at a time; texts and events are two views of the same reading.
 * Reading throws {@link RuvdException} when the completion fails or is cancelled, and cancels it
 * when the thread is interrupted.
 */
public final class Completion implements Iterable<String>, AutoCloseable {
  private static final Step END = new Step(null, "");

  private final BlockingQueue<Step> steps = new LinkedBlockingQueue<>();
  private final CompletionCall call;
  private long lastSequence;

  private record Step(CompletionEvent event, String text) {}

  Completion(
      RuvdClient client, CompleteRequest request, ResumeCompletionRequest resume, Duration timeout) {
    call =
        new CompletionCall(
            client, request, resume, timeout, (event, text) -> steps.add(new Step(event, text)));
    call.end.whenComplete((finished, error) -> steps.add(END));
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
    while (take() != END) {
      // What is passed over is in the message.
    }
    return outcome();
  }

  /** Reads to the end: the answer's whole text. */
  public String text() {
    return finished().getMessage().getContent();
  }

  /** Stops generating; the session stays as it was. Does nothing after the end. */
  @Override
  public void close() {
    call.end.cancel(false);
  }

  private Stream<Step> steps() {
    return Stream.generate(this::take).takeWhile(step -> step != END);
  }

  private Step take() {
    try {
      Step step = steps.take();
      if (step == END) {
        steps.add(END); // for who reads again
        outcome();
      } else {
        lastSequence = step.event().getSequence();
      }
      return step;
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      close();
      throw new RuvdException(Code.CANCELLED, "interrupted");
    }
  }

  private Finished outcome() {
    try {
      return call.end.join();
    } catch (CancellationException cancelled) {
      throw new RuvdException(Code.CANCELLED, "cancelled by this client");
    } catch (CompletionException failed) {
      throw (RuvdException) failed.getCause();
    }
  }
}
