package dev.ruvd.client;

import io.grpc.Status;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CancellationException;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.concurrent.Executor;
import java.util.concurrent.LinkedBlockingQueue;

/** Runs the callbacks of a call on the thread that waits for the call's end. */
final class CallerThread implements Executor {
  private final BlockingQueue<Runnable> tasks = new LinkedBlockingQueue<>();
  private boolean hasLeft; // guarded by this

  @Override
  public void execute(Runnable task) {
    synchronized (this) {
      if (!hasLeft) {
        tasks.add(task);
        return;
      }
    }
    task.run(); // what is left to do for a call that has ended
  }

  /**
   * Runs the callbacks until the end and returns its value. Throws what it has failed with, and
   * RuvdException if it was cancelled or the thread was interrupted, which cancels it.
   */
  <T> T waitFor(CompletableFuture<T> end) {
    end.whenComplete((value, error) -> execute(() -> {})); // wakes this thread
    try {
      while (!end.isDone()) {
        tasks.take().run();
      }
      return end.join();
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
      end.cancel(false);
      throw new RuvdException(Status.CANCELLED, "interrupted");
    } catch (CancellationException cancelled) {
      throw new RuvdException(Status.CANCELLED, "cancelled by this client");
    } catch (CompletionException failed) {
      if (failed.getCause() instanceof Error error) {
        throw error;
      }
      throw (RuntimeException) failed.getCause();
    } finally {
      leave();
    }
  }

  private void leave() {
    synchronized (this) {
      hasLeft = true;
    }
    for (Runnable task = tasks.poll(); task != null; task = tasks.poll()) {
      task.run();
    }
  }
}
