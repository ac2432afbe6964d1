package dev.ruvd.client;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import dev.ruvd.v1.*;
import dev.ruvd.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Context;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * A connection to ruvd, made when the first call needs it. Make one and share it between threads.
 *
 * <p>Requests and answers are the messages of the contract, {@code dev.ruvd.v1}. Every method
 * throws {@link RuvdException}; deadline and cancellation of the current {@link Context} hold for
 * every call, and the current OpenTelemetry span is its parent.
 */
public final class RuvdClient implements AutoCloseable {
  private static final String DEFAULT_ADDRESS = "127.0.0.1:50051";
  private static final int MAX_METADATA_BYTES = 65_536;
  private static final long GRACE_SECONDS = 10;
  private static final long CLOSE_SECONDS = 2;

  final ManagedChannel channel;
  final Duration reconnect;
  final Set<CompletableFuture<Finished>> open = ConcurrentHashMap.newKeySet();

  /** A connection to RUVD_ADDRESS, else 127.0.0.1:50051. */
  public RuvdClient() {
    this(
        Optional.ofNullable(System.getenv("RUVD_ADDRESS"))
            .filter(address -> !address.isEmpty())
            .orElse(DEFAULT_ADDRESS));
  }

  /** A connection to {@code host:port} or {@code unix:PATH}. */
  public RuvdClient(String address) {
    this(address, Duration.ofSeconds(10));
  }

  /** A connection that tries to resume a broken completion for so long; otherwise it is 10 s. */
  public RuvdClient(String address, Duration reconnect) {
    String target = address.startsWith("unix:") ? address : "dns:///" + address;
    this.reconnect = reconnect;
    this.channel =
        Grpc.newChannelBuilder(target, InsecureChannelCredentials.create())
            // Sizes are the daemon's to limit: its refusal says why, and may name many fields.
            .maxInboundMessageSize(Integer.MAX_VALUE)
            .maxInboundMetadataSize(MAX_METADATA_BYTES)
            .proxyDetector(server -> null)
            .defaultServiceConfig(serviceConfig())
            .build();
  }

  /** A request with one message of the user, for {@link #complete} or an item of {@link #batch}. */
  public static CompleteRequest.Builder request(String content) {
    var request = CompleteRequest.newBuilder();
    request.addMessagesBuilder().setRole(Role.ROLE_USER).setContent(content);
    return request;
  }

  /** Makes a session before its first turn. */
  public Session createSession(CreateSessionRequest request) {
    return call(stub -> stub.createSession(request)).getSession();
  }

  /** Reads one session, without its messages. */
  public Session getSession(String sessionId) {
    return getSession(sessionId, SessionView.SESSION_VIEW_BASIC);
  }

  /** Reads one session. */
  public Session getSession(String sessionId, SessionView view) {
    var request = GetSessionRequest.newBuilder().setSessionId(sessionId).setView(view).build();
    return call(stub -> stub.getSession(request)).getSession();
  }

  /** All sessions that the request asks for, in the order of their creation, without messages. */
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

  /** Makes a session that begins with the first exchanges of another one, by default all. */
  public Session forkSession(ForkSessionRequest request) {
    return call(stub -> stub.forkSession(request)).getSession();
  }

  /** Deletes a session with its messages. */
  public void endSession(String sessionId) {
    var request = EndSessionRequest.newBuilder().setSessionId(sessionId).build();
    call(stub -> stub.endSession(request));
  }

  /** Which models the engine offers, and the one that answers where a call names none. */
  public ListModelsResponse listModels() {
    return call(stub -> stub.listModels(ListModelsRequest.getDefaultInstance()));
  }

  /** Stops a completion, whoever began it, and returns when it has ended. */
  public void cancelCompletion(CancelCompletionRequest request) {
    call(stub -> stub.cancelCompletion(request));
  }

  /** Any other call of the service, by its generated stub: {@code stub.updateSession(...)}. */
  public <T> T call(Function<SessionServiceBlockingStub, T> method) {
    try {
      return method.apply(SessionServiceGrpc.newBlockingStub(tracedChannel()));
    } catch (StatusRuntimeException failed) {
      throw new RuvdException(failed);
    }
  }

  /**
   * Answers the new messages, in a session or, without a session id, stateless. A request id and a
   * grace of 10 s are added where the request has none.
   */
  public Completion complete(CompleteRequest.Builder request) {
    return complete(request, null);
  }

  /** As {@link #complete(CompleteRequest.Builder)}, with a time-out for the whole answer. */
  public Completion complete(CompleteRequest.Builder request, Duration timeout) {
    return new Completion(this, resumable(request), null, timeout, null);
  }

  /**
   * As {@link #complete(CompleteRequest.Builder)}, without waiting: {@code onText} is given each
   * text, on a thread of gRPC's. The future fails with {@link RuvdException}; cancelling it cancels
   * the completion.
   */
  public CompletableFuture<Finished> completeAsync(
      CompleteRequest.Builder request, Consumer<? super String> onText) {
    return new Completion(this, resumable(request), null, null, onText).end;
  }

  /** Reads on a completion whose stream was cut, or that somebody else began. */
  public Completion resumeCompletion(ResumeCompletionRequest request) {
    return new Completion(this, null, request, null, null);
  }

  /**
   * Answers many requests in one call and gives each outcome, an answer or an error, as soon as it
   * is there. A request id is added to each item that has none: with ids of your own, repeating a
   * batch that failed runs only what was not finished. What {@code onResult} throws cancels it.
   */
  public BatchSummary batch(
      BatchCompleteRequest.Builder request, Consumer<? super BatchResult> onResult) {
    BatchCompleteRequest.Builder named = request.clone();
    named.getItemsBuilderList().forEach(RuvdClient::name);
    try (var context = Context.current().withCancellation()) {
      Context before = context.attach();
      try {
        return call(stub -> read(stub.batchComplete(named.build()), onResult));
      } finally {
        context.detach(before);
      }
    }
  }

  private static BatchSummary read(
      Iterator<BatchCompleteResponse> responses, Consumer<? super BatchResult> onResult) {
    BatchSummary summary = BatchSummary.getDefaultInstance();
    while (responses.hasNext()) {
      BatchCompleteResponse response = responses.next();
      if (response.hasResult()) {
        onResult.accept(response.getResult());
      } else {
        summary = response.getSummary();
      }
    }
    return summary;
  }

  /** Closes the connection; completions that run are cancelled. */
  @Override
  public void close() {
    open.forEach(end -> end.cancel(false));
    channel.shutdown();
    try {
      channel.awaitTermination(CLOSE_SECONDS, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    channel.shutdownNow();
  }

  /** The channel for calls of the span that is current now. */
  Channel tracedChannel() {
    return ClientInterceptors.intercept(
        channel, MetadataUtils.newAttachHeadersInterceptor(Tracing.headers()));
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

  private static Map<String, Object> serviceConfig() {
    try (Reader json =
        new InputStreamReader(
            RuvdClient.class.getResourceAsStream("service_config.json"), StandardCharsets.UTF_8)) {
      return new Gson().fromJson(json, new TypeToken<Map<String, Object>>() {});
    } catch (IOException broken) {
      throw new UncheckedIOException(broken);
    }
  }
}
