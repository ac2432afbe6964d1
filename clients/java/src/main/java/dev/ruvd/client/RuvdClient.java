package dev.ruvd.client;

import com.google.common.util.concurrent.ListenableFuture;
import dev.ruvd.v1.*;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceFutureStub;
import io.grpc.ClientInterceptor;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Metadata;
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
import java.util.concurrent.Executor;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;
import org.jspecify.annotations.Nullable;

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
  private final Metadata metadata = new Metadata(); // the caller's own
  final Set<CompletableFuture<?>> running = ConcurrentHashMap.newKeySet();

  /** Creates a client with the settings of the environment: see {@link RuvdClientBuilder}. */
  public RuvdClient() {
    this(builder());
  }

  /**
   * Creates a client of one address or of several, with all other settings from the environment.
   *
   * @param address {@code host:port}, {@code unix:PATH}, or a list of them with commas
   * @throws IllegalArgumentException as {@link RuvdClientBuilder#build} does
   */
  public RuvdClient(String address) {
    this(builder().address(address));
  }

  /**
   * Creates a client of one address or of several, which resumes broken streams for another time
   * than 10 s.
   *
   * @param address {@code host:port}, {@code unix:PATH}, or a list of them with commas
   * @param reconnect how long the client tries to resume a broken stream
   * @throws IllegalArgumentException as {@link RuvdClientBuilder#build} does
   */
  public RuvdClient(String address, Duration reconnect) {
    this(builder().address(address).reconnect(reconnect));
  }

  RuvdClient(RuvdClientBuilder settings) {
    reconnect = settings.reconnect;
    metadata.merge(settings.metadata);
    connections = settings.connections();
  }

  /**
   * Returns a builder, for a client with a token, TLS or metadata of its own.
   *
   * @return the builder
   */
  public static RuvdClientBuilder builder() {
    return new RuvdClientBuilder();
  }

  /**
   * Returns a request with one user message, for {@link #complete} or {@link #batch}.
   *
   * @param content the message's text
   * @return the request, to which other fields may be added
   */
  public static CompleteRequest.Builder request(String content) {
    var request = CompleteRequest.newBuilder();
    request.addMessagesBuilder().setRole(Role.ROLE_USER).setContent(content);
    return request;
  }

  /**
   * Returns the message with a tool call's result, for the next turn.
   *
   * @param call the tool call
   * @param content the result
   * @return the message
   */
  public static Message toolResult(ToolCall call, String content) {
    return Message.newBuilder()
        .setRole(Role.ROLE_TOOL)
        .setToolCallId(call.getId())
        .setContent(content)
        .build();
  }

  /**
   * Creates a session before its first turn.
   *
   * @param request the session's id, system prompt, history and settings
   * @return the session
   */
  public Session createSession(CreateSessionRequest request) {
    return call(stub -> stub.createSession(request)).getSession();
  }

  /**
   * Returns one session, without its messages.
   *
   * @param sessionId the session's id
   * @return the session
   */
  public Session getSession(String sessionId) {
    return getSession(sessionId, SessionView.SESSION_VIEW_BASIC);
  }

  /**
   * Returns one session, including its messages with {@code SESSION_VIEW_FULL}. A history is read
   * in as many calls as its size requires. If the session ends meanwhile, SESSION_NOT_FOUND is
   * thrown.
   *
   * @param sessionId the session's id
   * @param view the parts of the session to return
   * @return the session
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

  /**
   * Returns all sessions that match, in the order of their creation, without messages.
   *
   * @param request the labels that a session must have, and the page size of the calls
   * @return the sessions
   */
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

  /**
   * Creates a session that starts with another one's first exchanges, by default all.
   *
   * @param request the session to fork, and the number of exchanges to keep
   * @return the fork
   */
  public Session forkSession(ForkSessionRequest request) {
    return call(stub -> stub.forkSession(request)).getSession();
  }

  /**
   * Changes the labels, the idle timeout, the context window or the compaction instruction of a
   * session, after the turns before it.
   *
   * @param request the session's id and the new values
   * @return the session after the change
   */
  public Session updateSession(UpdateSessionRequest request) {
    return call(stub -> stub.updateSession(request)).getSession();
  }

  /**
   * Commits messages without generating an answer, after the turns before it.
   *
   * @param request the session's id and the messages
   * @return the session after the change
   */
  public Session appendMessages(AppendMessagesRequest request) {
    return call(stub -> stub.appendMessages(request)).getSession();
  }

  /**
   * Summarises the exchanges before the last ones, which later prompts no longer have. A dry run
   * only says what that would do.
   *
   * @param request the session's id
   * @return the session, and what was or would be summarised
   */
  public CompactSessionResponse compactSession(CompactSessionRequest request) {
    return call(stub -> stub.compactSession(request));
  }

  /**
   * Deletes a session and its messages. Its running completions fail with SESSION_ENDED.
   *
   * @param sessionId the session's id
   */
  public void endSession(String sessionId) {
    endSession(EndSessionRequest.newBuilder().setSessionId(sessionId).build());
  }

  /**
   * Deletes a session and its messages, which may be missing if the request allows that.
   *
   * @param request the session's id
   */
  public void endSession(EndSessionRequest request) {
    var calls = new RepeatedCall(connections, headers());
    try {
      calls.make(stub -> stub.endSession(request));
    } catch (RuvdException failed) {
      // An attempt whose answer was lost has ended it.
      if (!calls.wasLost() || !failed.reason().equals("SESSION_NOT_FOUND")) {
        throw failed;
      }
    }
  }

  /**
   * Returns the models that the engine offers, and the default model.
   *
   * @return the models
   */
  public ListModelsResponse listModels() {
    return call(stub -> stub.listModels(ListModelsRequest.getDefaultInstance()));
  }

  /**
   * Returns the daemon's version, features, limits and engines. A daemon from before this call
   * fails with UNIMPLEMENTED.
   *
   * @return what the daemon tells of itself
   */
  public GetServerInfoResponse getServerInfo() {
    return call(stub -> stub.getServerInfo(GetServerInfoRequest.getDefaultInstance()));
  }

  /**
   * Returns the daemon's measurements since it started.
   *
   * @return the measurements
   */
  public SessionMetrics getSessionMetrics() {
    var request = GetSessionMetricsRequest.getDefaultInstance();
    return call(stub -> stub.getSessionMetrics(request)).getMetrics();
  }

  /**
   * Stops any client's completion and returns when it has ended.
   *
   * @param request the completion, and whether to commit the part generated so far
   */
  public void cancelCompletion(CancelCompletionRequest request) {
    call(stub -> stub.cancelCompletion(request));
  }

  /**
   * Makes any call with the generated stub: {@code stub -> stub.updateSession(request)}. With
   * several addresses the function is called again for each attempt.
   *
   * @param <T> the type of the response
   * @param method makes the call
   * @return the response
   */
  public <T> T call(Function<SessionServiceBlockingStub, T> method) {
    return new RepeatedCall(connections, headers()).make(method);
  }

  /**
   * Like {@link #call}, without blocking: {@code stub -> stub.getSession(request)}. With several
   * addresses the function is called again for each attempt.
   *
   * @param <T> the type of the response
   * @param method makes the call
   * @return the response, on a gRPC thread. It fails with {@link RuvdException}, and cancelling it
   *     cancels the call
   */
  public <T> CompletableFuture<T> callAsync(
      Function<SessionServiceFutureStub, ListenableFuture<T>> method) {
    return new RepeatedCall(connections, headers()).makeAsync(method);
  }

  /**
   * Starts a completion of the new messages, stateless if there is no session id. A request id and
   * a disconnect grace of 10 s are added if the request has none.
   *
   * @param request the session's id, the new messages and options
   * @return the running completion, which is to be closed
   */
  public CompletionStream complete(CompleteRequest.Builder request) {
    return complete(request, null);
  }

  /**
   * Like {@link #complete(CompleteRequest.Builder)}, with a timeout for the whole answer.
   *
   * @param request the session's id, the new messages and options
   * @param timeout the time after which the completion fails with DEADLINE_EXCEEDED; null for none
   * @return the running completion, which is to be closed
   */
  public CompletionStream complete(CompleteRequest.Builder request, @Nullable Duration timeout) {
    return new CompletionStream(this, resumable(request), null, timeout, null);
  }

  /**
   * Like {@link #complete(CompleteRequest.Builder)}, without blocking.
   *
   * @param request the session's id, the new messages and options
   * @param onText is called with each piece of text, one after the other, on a gRPC thread. The
   *     daemon waits while it runs
   * @return the end of the completion. It fails with {@link RuvdException}, or with what {@code
   *     onText} has thrown; cancelling it cancels the completion
   */
  public CompletableFuture<Finished> completeAsync(
      CompleteRequest.Builder request, Consumer<? super String> onText) {
    return completeAsync(request, null, onText);
  }

  /**
   * Like {@link #completeAsync(CompleteRequest.Builder, Consumer)}, with a timeout for the whole
   * answer.
   *
   * @param request the session's id, the new messages and options
   * @param timeout the time after which the completion fails with DEADLINE_EXCEEDED; null for none
   * @param onText is called with each piece of text
   * @return the end of the completion
   */
  public CompletableFuture<Finished> completeAsync(
      CompleteRequest.Builder request,
      @Nullable Duration timeout,
      Consumer<? super String> onText) {
    return new CompletionStream(this, resumable(request), null, timeout, onText).end;
  }

  /**
   * Continues to read a completion whose stream broke, or that another client started.
   *
   * @param request the completion, and the last event received
   * @return the running completion, which is to be closed
   */
  public CompletionStream resumeCompletion(ResumeCompletionRequest request) {
    return new CompletionStream(this, null, request, null, null);
  }

  /**
   * Runs many completions and passes each result to {@code onResult} as soon as it is available.
   * There may be any number of items: they are split into calls of a size that the daemon accepts.
   * When the connection breaks, the unfinished items are sent again, for up to a minute without a
   * result. A request id is added to each item that has none. An exception of {@code onResult}
   * cancels the batch. The calling thread waits for the end.
   *
   * @param request the items
   * @param onResult is called with each result, on the calling thread
   * @return the totals
   */
  public BatchSummary batch(
      BatchCompleteRequest.Builder request, Consumer<? super BatchResult> onResult) {
    CallerThread thread = new CallerThread();
    return thread.waitFor(startBatch(request, onResult, thread));
  }

  /**
   * Like {@link #batch}, without blocking.
   *
   * @param request the items
   * @param onResult is called with each result, one after the other, on a gRPC thread. The daemon
   *     waits while it runs
   * @return the totals. It fails with {@link RuvdException}, or with what {@code onResult} has
   *     thrown; cancelling it cancels the unfinished items
   */
  public CompletableFuture<BatchSummary> batchAsync(
      BatchCompleteRequest.Builder request, Consumer<? super BatchResult> onResult) {
    return startBatch(request, onResult, null);
  }

  private CompletableFuture<BatchSummary> startBatch(
      BatchCompleteRequest.Builder request,
      Consumer<? super BatchResult> onResult,
      @Nullable Executor executor) {
    BatchCompleteRequest.Builder items = request.clone();
    items.getItemsBuilderList().forEach(RuvdClient::withRequestId);
    var batch = new Batch(connections, headers(), items.build(), onResult, executor);
    running.add(batch.end);
    batch.end.whenComplete((summary, error) -> running.remove(batch.end));
    batch.start();
    return batch.end;
  }

  /**
   * Tells whether a daemon is ready for turns: one of those at the client's addresses. A daemon
   * that cannot be reached is not. One that does not answer within 10 s is an error.
   *
   * @return whether one is ready
   */
  public boolean health() {
    Connections.Entry at = connections.now();
    return isReady(at) || connections.others(at).stream().anyMatch(this::isReady);
  }

  private boolean isReady(Connections.Entry at) {
    var readiness = HealthCheckRequest.newBuilder().setService("readiness").build();
    try {
      return HealthGrpc.newBlockingStub(ClientInterceptors.intercept(at.channel(), headers()))
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

  /**
   * Cancels the running completions and batches, waits up to 2 s for other calls, and closes the
   * connection.
   */
  @Override
  public void close() {
    running.forEach(end -> end.cancel(false));
    connections.close(CLOSE_SECONDS);
  }

  /** Returns an interceptor that adds the caller's metadata and the trace of the current span. */
  ClientInterceptor headers() {
    Metadata headers = Tracing.headers();
    metadata.keys().forEach(key -> headers.discardAll(key(key)));
    headers.merge(metadata);
    return MetadataUtils.newAttachHeadersInterceptor(headers);
  }

  private static Metadata.Key<?> key(String name) {
    return name.endsWith(Metadata.BINARY_HEADER_SUFFIX)
        ? Metadata.Key.of(name, Metadata.BINARY_BYTE_MARSHALLER)
        : Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER);
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
