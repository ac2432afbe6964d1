package dev.ruvd.client;

import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.Finished;
import io.grpc.Deadline;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;

/** A completion for callers who do not wait; cancelling the future cancels it. */
final class CompletionFuture extends CompletableFuture<Finished>
    implements CompletionCall.Receiver {
  private final CompletionCall call;
  private final Consumer<? super String> onText;
  private Finished finished;

  CompletionFuture(
      RuvdClient client,
      CompleteRequest request,
      Deadline deadline,
      Consumer<? super String> onText) {
    this.call = new CompletionCall(client, request, null, deadline, this);
    this.onText = onText;
    call.pull();
    call.start();
  }

  @Override
  public void event(CompletionEvent event) {
    String text = event.getDelta().getText();
    try {
      if (!text.isEmpty()) {
        onText.accept(text);
      }
    } catch (RuntimeException refused) {
      completeExceptionally(refused);
      call.cancel();
      return;
    }
    if (event.hasFinished()) {
      finished = event.getFinished();
    }
    call.pull();
  }

  @Override
  public void ended(RuvdException error) {
    if (error == null) {
      complete(finished);
    } else {
      completeExceptionally(error);
    }
  }

  @Override
  public boolean cancel(boolean mayInterruptIfRunning) {
    boolean cancelled = super.cancel(mayInterruptIfRunning);
    call.cancel();
    return cancelled;
  }
}
