package dev.ruvd.client;

import dev.ruvd.v1.*;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * A client of ruvd, which connects at its first call. Create one and share it between threads.
 *
 * <p>Requests and responses are the generated messages of {@code dev.ruvd.v1}. Every method throws
 * {@link RuvdException}. The deadline and cancellation of the current {@link Context} apply to
 * every call, and the current OpenTelemetry span is its parent.
 */
public final class RuvdClient implements AutoCloseable {
  private static final int PAGE_SIZE = 1000; // the most that the daemon returns at once
  private static final long GRACE_SECONDS = 10;
  private static final long CLOSE_SECONDS = 2;

  final ManagedChannel channel;
  final Duration reconnect;
  final Set<CompletableFuture<Finished>> running = ConcurrentHashMap.newKeySet();

  /** Creates a client with the settings of the environment: see {@link RuvdClientBuilder}. */
  public RuvdClient() {
    this(builder());
  }

  /** Creates a client of the daemon at {@code host:port} or {@code unix:PATH}. */
  public RuvdClient(String address) {
    this(builder().address(address));
  }

  /** Creates a client that tries to resume a broken stream for this time instead of 10 s. */
  public RuvdClient(String address, Duration reconnect) {
    this(builder().address(address).reconnect(reconnect));
  }

  RuvdClient(RuvdClientBuilder settings) {
    reconnect = settings.reconnect;
    channel = settings.channel();
  }

  /** Returns a builder, for a client with a token or TLS. */
  public static RuvdClientBuilder builder() {
    return new RuvdClientBuilder();
  }

  /** Returns a request with one user message, for {@link #complete} or {@link #batch}. */
  public static CompleteRequest.Builder request(String content) {
    var request = CompleteRequest.newBuilder();
    request.addMessagesBuilder().setRole(Role.ROLE_USER).setContent(content);
    return request;
  }

  /** Creates a session before its first turn. */
  public Session createSession(CreateSessionRequest request) {
    return call(stub -> stub.createSession(request)).getSession();
  }

  /** Returns one session, without its messages. */
  public Session getSession(String sessionId) {
    return getSession(sessionId, SessionView.SESSION_VIEW_BASIC);
  }

  /**
   * Returns one session, including its messages with {@code SESSION_VIEW_FULL}. A history is read
   * in as many calls as its size requires. If the session ends meanwhile, SESSION_NOT_FOUND is
   * thrown.
   */
  public Session getSession(String sessionId, SessionView view) {
    var request = GetSessionRequest.newBuilder().setSessionId(sessionId).setView(view);
    if (view == SessionView.SESSION_VIEW_FULL) {
      request.setPageSize(PAGE_SIZE).setAllowMessageParts(true);
    }
    List<Message> messages = new ArrayList<>();
    MessageParts parts = new MessageParts();
    GetSessionResponse page;
    do {
      page = call(stub -> stub.getSession(request.build()));
      messages.addAll(page.getSession().getMessagesList());
      if (page.hasMessagePart()) {
        parts.add(page.getMessagePart());
        if (parts.isWhole()) {
          messages.add(parts.take());
        }
      }
      request.setPageToken(page.getNextPageToken());
    } while (!page.getNextPageToken().isEmpty());
    return page.getSession().toBuilder().clearMessages().addAllMessages(messages).build();
  }

  /** Returns all sessions that match, in the order of their creation, without messages. */
  public List<Session> listSessions(ListSessionsRequest request) {
    List<Session> sessions = new ArrayList<>();
    ListSessionsRequest.Builder next = request.toBuilder();
    ListSessionsResponse page;
    do {
      page = call(stub -> stub.listSessions(next.build()));
      sessions.addAll(page.getSessionsList());
      next.setPageToken(page.getNextPageToken());
    } while (!page.getNextPageToken().isEmpty());
    return sessions;
  }

  /** Creates a session that starts with another one's first exchanges, by default all. */
  public Session forkSession(ForkSessionRequest request) {
    return call(stub -> stub.forkSession(request)).getSession();
  }

  /** Deletes a session and its messages. */
  public void endSession(String sessionId) {
    var request = EndSessionRequest.newBuilder().setSessionId(sessionId).build();
    call(stub -> stub.endSession(request));
  }

  /** Returns the models that the engine offers, and the default model. */
  public ListModelsResponse listModels() {
    return call(stub -> stub.listModels(ListModelsRequest.getDefaultInstance()));
  }

  /** Stops any client's completion and returns when it has ended. */
  public void cancelCompletion(CancelCompletionRequest request) {
    call(stub -> stub.cancelCompletion(request));
  }

  /** Makes any other call with the generated stub: {@code stub.updateSession(...)}. */
  public <T> T call(Function<SessionServiceBlockingStub, T> method) {
    try {
      return method.apply(SessionServiceGrpc.newBlockingStub(tracedChannel()));
    } catch (StatusRuntimeException failed) {
      throw new RuvdException(failed);
    }
  }

  /**
   * Starts a completion of the new messages, stateless if there is no session id. A request id and
   * a disconnect grace of 10 s are added if the request has none.
   */
  public CompletionStream complete(CompleteRequest.Builder request) {
    return complete(request, null);
  }

  /** Like {@link #complete(CompleteRequest.Builder)}, with a timeout for the whole answer. */
  public CompletionStream complete(CompleteRequest.Builder request, Duration timeout) {
    return new CompletionStream(this, resumable(request), null, timeout, null);
  }

  /**
   * Like {@link #complete(CompleteRequest.Builder)}, without blocking: {@code onText} is called
   * with each piece of text, on a gRPC thread. The future fails with {@link RuvdException};
   * cancelling it cancels the completion.
   */
  public CompletableFuture<Finished> completeAsync(
      CompleteRequest.Builder request, Consumer<? super String> onText) {
    return new CompletionStream(this, resumable(request), null, null, onText).end;
  }

  /** Continues to read a completion whose stream broke, or that another client started. */
  public CompletionStream resumeCompletion(ResumeCompletionRequest request) {
    return new CompletionStream(this, null, request, null, null);
  }

  /**
   * Runs many completions in one call and passes each result to {@code onResult} as soon as it is
   * available. A request id is added to each item that has none; with your own ids, repeating a
   * failed batch runs only the unfinished items. An exception of {@code onResult} cancels it.
   */
  public BatchSummary batch(
      BatchCompleteRequest.Builder request, Consumer<? super BatchResult> onResult) {
    BatchCompleteRequest.Builder items = request.clone();
    items.getItemsBuilderList().forEach(RuvdClient::withRequestId);
    try (var context = Context.current().withCancellation()) {
      Context before = context.attach();
      try {
        return call(stub -> read(stub.batchComplete(items.build()), onResult));
      } finally {
        context.detach(before);
      }
    }
  }

  private static BatchSummary read(
      Iterator<BatchCompleteResponse> responses, Consumer<? super BatchResult> onResult) {
    BatchSummary summary = BatchSummary.getDefaultInstance();
    MessageParts parts = new MessageParts();
    while (responses.hasNext()) {
      BatchCompleteResponse response = responses.next();
      if (response.hasMessagePart()) {
        parts.add(response.getMessagePart());
      } else if (response.hasResult()) {
        onResult.accept(joined(response.getResult(), parts));
      } else {
        summary = response.getSummary();
      }
    }
    return summary;
  }

  private static BatchResult joined(BatchResult result, MessageParts parts) {
    if (!result.hasCompletion()) {
      return result;
    }
    var completion = result.getCompletion().toBuilder();
    completion.setFinished(parts.join(completion.getFinished()));
    return result.toBuilder().setCompletion(completion).build();
  }

  /** Closes the connection and cancels the running completions. */
  @Override
  public void close() {
    running.forEach(end -> end.cancel(false));
    channel.shutdown();
    try {
      channel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    channel.shutdownNow();
  }

  /** Returns a channel whose calls carry the trace context of the current span. */
  Channel tracedChannel() {
    return ClientInterceptors.intercept(
        channel, MetadataUtils.newAttachHeadersInterceptor(Tracing.headers()));
  }

  private static CompleteRequest resumable(CompleteRequest.Builder request) {
    CompleteRequest.Builder resumable = withRequestId(request.clone());
    if (!resumable.hasDisconnectGrace()) {
      resumable.getDisconnectGraceBuilder().setSeconds(GRACE_SECONDS);
    }
    return resumable.build();
  }

  private static CompleteRequest.Builder withRequestId(CompleteRequest.Builder request) {
    return request.getRequestId().isEmpty()
        ? request.setRequestId(UUID.randomUUID().toString())
        : request;
  }
}
