package dev.ruvd.client;

import dev.ruvd.v1.AppendMessagesRequest;
import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.CancelCompletionRequest;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CreateSessionRequest;
import dev.ruvd.v1.EndSessionRequest;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.ForkSessionRequest;
import dev.ruvd.v1.GetSessionMetricsRequest;
import dev.ruvd.v1.GetSessionRequest;
import dev.ruvd.v1.ListModelsRequest;
import dev.ruvd.v1.ListModelsResponse;
import dev.ruvd.v1.ListSessionsRequest;
import dev.ruvd.v1.ListSessionsResponse;
import dev.ruvd.v1.Message;
import dev.ruvd.v1.ResumeCompletionRequest;
import dev.ruvd.v1.Role;
import dev.ruvd.v1.Session;
import dev.ruvd.v1.SessionMetrics;
import dev.ruvd.v1.SessionServiceGrpc;
import dev.ruvd.v1.SessionView;
import dev.ruvd.v1.ToolCall;
import dev.ruvd.v1.UpdateSessionRequest;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Deadline;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.Objects;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.Stream;

/**
 * A connection to ruvd, made when the first call needs it. Make one and share it between threads.
 *
 * <p>Requests and answers are the messages of the contract, {@code dev.ruvd.v1}. Every method
 * throws {@link RuvdException}; deadline and cancellation of the current {@link Context} hold for
 * every call, and the current OpenTelemetry span is its parent.
 */
public final class RuvdClient implements AutoCloseable {
  private static final long GRACE_SECONDS = 10;
  private static final Duration RECONNECT = Duration.ofSeconds(10);
  private static final long CLOSE_SECONDS = 2;

  private final ManagedChannel channel;
  private final Duration reconnect;
  private final Set<CompletionCall> open = ConcurrentHashMap.newKeySet();

  /** A connection to RUVD_ADDRESS, else 127.0.0.1:50051. */
  public RuvdClient() {
    this(Channels.defaultAddress());
  }

  /** A connection to {@code host:port} or {@code unix:PATH}. */
  public RuvdClient(String address) {
    this(address, RECONNECT);
  }

  /** A connection that tries to resume a broken completion for so long; otherwise it is 10 s. */
  public RuvdClient(String address, Duration reconnect) {
    this.channel = Channels.open(address);
    this.reconnect = reconnect;
  }

  /** A message of the user. */
  public static Message user(String content) {
    return Message.newBuilder().setRole(Role.ROLE_USER).setContent(content).build();
  }

  /** What came of a tool call: a message of the next turn, as is that of every other call. */
  public static Message toolResult(ToolCall call, String content) {
    return Message.newBuilder()
        .setRole(Role.ROLE_TOOL)
        .setToolCallId(call.getId())
        .setContent(content)
        .build();
  }

  /** A request with one message of the user, for {@link #complete} or an item of {@link #batch}. */
  public static CompleteRequest.Builder request(String content) {
    return CompleteRequest.newBuilder().addMessages(user(content));
  }

  /** Makes a session before its first turn. */
  public Session createSession(CreateSessionRequest request) {
    return call(SessionServiceGrpc.getCreateSessionMethod(), request).getSession();
  }

  /** Reads one session, without its messages. */
  public Session getSession(String sessionId) {
    return getSession(sessionId, SessionView.SESSION_VIEW_BASIC);
  }

  /** Reads one session. */
  public Session getSession(String sessionId, SessionView view) {
    GetSessionRequest request =
        GetSessionRequest.newBuilder().setSessionId(sessionId).setView(view).build();
    return call(SessionServiceGrpc.getGetSessionMethod(), request).getSession();
  }

  /**
   * All sessions that the request asks for, in the order of their creation, without messages. Pages
   * are read as the stream needs them.
   */
  public Stream<Session> listSessions(ListSessionsRequest request) {
    return Stream.iterate(page(request), Objects::nonNull, page -> nextPage(request, page))
        .flatMap(page -> page.getSessionsList().stream());
  }

  /** Changes what is given of a session, once the turns before it are done. */
  public Session updateSession(UpdateSessionRequest request) {
    return call(SessionServiceGrpc.getUpdateSessionMethod(), request).getSession();
  }

  /** Commits messages without generating, once the turns before it are done. */
  public Session appendMessages(AppendMessagesRequest request) {
    return call(SessionServiceGrpc.getAppendMessagesMethod(), request).getSession();
  }

  /** Makes a session that begins with the first exchanges of another one, by default all. */
  public Session forkSession(ForkSessionRequest request) {
    return call(SessionServiceGrpc.getForkSessionMethod(), request).getSession();
  }

  /** Deletes a session with its messages. */
  public void endSession(String sessionId) {
    EndSessionRequest request = EndSessionRequest.newBuilder().setSessionId(sessionId).build();
    call(SessionServiceGrpc.getEndSessionMethod(), request);
  }

  /** Which models the engine offers, and the one that answers where a call names none. */
  public ListModelsResponse listModels() {
    return call(SessionServiceGrpc.getListModelsMethod(), ListModelsRequest.getDefaultInstance());
  }

  /** What the daemon has measured since it started. */
  public SessionMetrics getSessionMetrics() {
    var request = GetSessionMetricsRequest.getDefaultInstance();
    return call(SessionServiceGrpc.getGetSessionMetricsMethod(), request).getMetrics();
  }

  /**
   * Answers the new messages, in a session or, without a session id, stateless. A request id and a
   * grace of 10 s are added where the request has none.
   */
  public Completion complete(CompleteRequest.Builder request) {
    return complete(request, null);
  }

  /**
   * As {@link #complete(CompleteRequest.Builder)}, with a time-out for the whole answer; null for
   * none.
   */
  public Completion complete(CompleteRequest.Builder request, Duration timeout) {
    return new Completion(this, resumable(request), null, deadline(timeout));
  }

  /**
   * As {@link #complete(CompleteRequest.Builder)}, without waiting: {@code onText} is given each
   * text, on a thread of gRPC's, and holds the daemon back while it runs. The future fails with
   * {@link RuvdException}; cancelling it cancels the completion.
   */
  public CompletableFuture<Finished> completeAsync(
      CompleteRequest.Builder request, Consumer<? super String> onText) {
    return new CompletionFuture(this, resumable(request), deadline(null), onText);
  }

  /** Reads on a completion whose stream was cut, or that somebody else began. */
  public Completion resumeCompletion(ResumeCompletionRequest request) {
    return new Completion(this, null, request, deadline(null));
  }

  /** Stops a completion, whoever began it, and returns when it has ended. */
  public void cancelCompletion(CancelCompletionRequest request) {
    call(SessionServiceGrpc.getCancelCompletionMethod(), request);
  }

  /**
   * Answers many requests in one call; each outcome comes as soon as it is there. A request id is
   * added to each item that has none.
   */
  public Batch batch(BatchCompleteRequest.Builder request) {
    BatchCompleteRequest.Builder named = request.clone();
    named.getItemsBuilderList().forEach(RuvdClient::name);
    return new Batch(tracedChannel(), named.build());
  }

  /** Closes the connection; completions that run are cancelled. */
  @Override
  public void close() {
    open.forEach(CompletionCall::cancel);
    channel.shutdown();
    try {
      channel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    channel.shutdownNow();
  }

  void opened(CompletionCall call) {
    open.add(call);
  }

  void ended(CompletionCall call) {
    open.remove(call);
  }

  boolean closed() {
    return channel.isShutdown();
  }

  Duration reconnect() {
    return reconnect;
  }

  /** Connects, without the channel's own pause between attempts. */
  void connectNow() {
    channel.resetConnectBackoff();
    channel.getState(true);
  }

  /** The channel for calls of the span that is current now. */
  Channel tracedChannel() {
    return ClientInterceptors.intercept(
        channel, MetadataUtils.newAttachHeadersInterceptor(Tracing.headers()));
  }

  private <Q, R> R call(MethodDescriptor<Q, R> method, Q request) {
    try {
      return ClientCalls.blockingUnaryCall(tracedChannel(), method, CallOptions.DEFAULT, request);
    } catch (StatusRuntimeException failed) {
      throw RuvdException.of(failed);
    }
  }

  private ListSessionsResponse page(ListSessionsRequest request) {
    return call(SessionServiceGrpc.getListSessionsMethod(), request);
  }

  private ListSessionsResponse nextPage(ListSessionsRequest request, ListSessionsResponse page) {
    String token = page.getNextPageToken();
    return token.isEmpty() ? null : page(request.toBuilder().setPageToken(token).build());
  }

  private static CompleteRequest resumable(CompleteRequest.Builder request) {
    CompleteRequest.Builder resumable = name(request.clone());
    if (!resumable.hasDisconnectGrace()) {
      resumable.getDisconnectGraceBuilder().setSeconds(GRACE_SECONDS);
    }
    return resumable.build();
  }

  private static CompleteRequest.Builder name(CompleteRequest.Builder request) {
    return request.getRequestId().isEmpty()
        ? request.setRequestId(UUID.randomUUID().toString())
        : request;
  }

  private static Deadline deadline(Duration timeout) {
    Deadline outer = Context.current().getDeadline();
    if (timeout == null) {
      return outer;
    }
    Deadline own = Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
    return outer == null ? own : own.minimum(outer);
  }
}
