package dev.ruvd.client;

import dev.ruvd.v1.*;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.StatusRuntimeException;
import io.grpc.health.v1.HealthCheckRequest;
import io.grpc.health.v1.HealthCheckResponse;
import io.grpc.health.v1.HealthGrpc;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.ArrayList;
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
  private static final long HEALTH_SECONDS = 10;

  final Connections connections;
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
    connections = settings.connections();
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

  /** Returns the message with a tool call's result, for the next turn. */
  public static Message toolResult(ToolCall call, String content) {
    return Message.newBuilder()
        .setRole(Role.ROLE_TOOL)
        .setToolCallId(call.getId())
        .setContent(content)
        .build();
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

  /**
   * Changes the labels, the idle timeout or the context window of a session, after the turns before
   * it.
   */
  public Session updateSession(UpdateSessionRequest request) {
    return call(stub -> stub.updateSession(request)).getSession();
  }

  /** Commits messages without generating an answer, after the turns before it. */
  public Session appendMessages(AppendMessagesRequest request) {
    return call(stub -> stub.appendMessages(request)).getSession();
  }

  /**
   * Summarises the exchanges before the last ones, which later prompts no longer have. A dry run
   * only says what that would do.
   */
  public CompactSessionResponse compactSession(CompactSessionRequest request) {
    return call(stub -> stub.compactSession(request));
  }

  /** Deletes a session and its messages. */
  public void endSession(String sessionId) {
    endSession(EndSessionRequest.newBuilder().setSessionId(sessionId).build());
  }

  /** Deletes a session and its messages, which may be missing if the request allows that. */
  public void endSession(EndSessionRequest request) {
    var calls = new RepeatedCall(connections, tracing());
    try {
      calls.make(stub -> stub.endSession(request));
    } catch (RuvdException failed) {
      // An attempt whose answer was lost has ended it.
      if (!calls.wasLost() || !failed.reason().equals("SESSION_NOT_FOUND")) {
        throw failed;
      }
    }
  }

  /** Returns the models that the engine offers, and the default model. */
  public ListModelsResponse listModels() {
    return call(stub -> stub.listModels(ListModelsRequest.getDefaultInstance()));
  }

  /** Returns the daemon's measurements since it started. */
  public SessionMetrics getSessionMetrics() {
    var request = GetSessionMetricsRequest.getDefaultInstance();
    return call(stub -> stub.getSessionMetrics(request)).getMetrics();
  }

  /** Stops any client's completion and returns when it has ended. */
  public void cancelCompletion(CancelCompletionRequest request) {
    call(stub -> stub.cancelCompletion(request));
  }

  /**
   * Makes any other call with the generated stub: {@code stub.updateSession(...)}. With several
   * addresses the function is called again for each attempt.
   */
  public <T> T call(Function<SessionServiceBlockingStub, T> method) {
    return new RepeatedCall(connections, tracing()).make(method);
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
   * Runs many completions and passes each result to {@code onResult} as soon as it is available.
   * There may be any number of items: they are split into calls of a size that the daemon accepts.
   * When the connection breaks, the unfinished items are sent again, for up to a minute without a
   * result. A request id is added to each item that has none. An exception of {@code onResult}
   * cancels the batch.
   */
  public BatchSummary batch(
      BatchCompleteRequest.Builder request, Consumer<? super BatchResult> onResult) {
    BatchCompleteRequest.Builder items = request.clone();
    items.getItemsBuilderList().forEach(RuvdClient::withRequestId);
    return new Batch(connections, tracing(), items.build(), onResult).run();
  }

  /**
   * Tells whether a daemon is ready for turns: one of those at the client's addresses. A daemon
   * that cannot be reached is not.
   */
  public boolean health() {
    Connections.Entry at = connections.now();
    return isReady(at) || connections.others(at).stream().anyMatch(this::isReady);
  }

  private boolean isReady(Connections.Entry at) {
    var readiness = HealthCheckRequest.newBuilder().setService("readiness").build();
    try {
      return HealthGrpc.newBlockingStub(ClientInterceptors.intercept(at.channel(), tracing()))
          .withDeadlineAfter(HEALTH_SECONDS, TimeUnit.SECONDS)
          .check(readiness)
          .getStatus()
          .equals(HealthCheckResponse.ServingStatus.SERVING);
    } catch (StatusRuntimeException failed) {
      RuvdException error = new RuvdException(failed);
      if (RepeatedCall.isUnavailable(error)) {
        return false;
      }
      throw error;
    }
  }

  /** Closes the connection and cancels the running completions. */
  @Override
  public void close() {
    running.forEach(end -> end.cancel(false));
    connections.close(CLOSE_SECONDS);
  }

  /** Returns an interceptor that adds the trace context of the current span. */
  ClientInterceptor tracing() {
    return MetadataUtils.newAttachHeadersInterceptor(Tracing.headers());
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
