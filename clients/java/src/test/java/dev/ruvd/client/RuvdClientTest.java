package dev.ruvd.client;

import static dev.ruvd.client.ScriptedDaemon.event;
import static dev.ruvd.client.ScriptedDaemon.finished;
import static dev.ruvd.client.ScriptedDaemon.started;
import static dev.ruvd.client.ScriptedDaemon.text;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.ruvd.v1.*;
import io.grpc.Metadata;
import io.grpc.Status.Code;
import io.grpc.stub.StreamObserver;
import java.time.Duration;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** The calls of a client against a scripted daemon. */
@Timeout(120)
class RuvdClientTest {
  private static final Metadata.Key<String> TEAM =
      Metadata.Key.of("x-team", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> SESSION =
      Metadata.Key.of("x-ruvd-session-id", Metadata.ASCII_STRING_MARSHALLER);

  /** A daemon whose answers have no end, and which can be held up before it answers. */
  private static class Script extends SessionServiceGrpc.SessionServiceImplBase {
    final CountDownLatch released = new CountDownLatch(1);

    @Override
    public void getServerInfo(
        GetServerInfoRequest request, StreamObserver<GetServerInfoResponse> to) {
      to.onNext(GetServerInfoResponse.newBuilder().setVersion("0.3.0").addFeatures("fork").build());
      to.onCompleted();
    }

    @Override
    public void getSession(GetSessionRequest request, StreamObserver<GetSessionResponse> to) {
      await(released);
      var session = Session.newBuilder().setId(request.getSessionId());
      to.onNext(GetSessionResponse.newBuilder().setSession(session).build());
      to.onCompleted();
    }

    @Override
    public void complete(CompleteRequest request, StreamObserver<CompleteResponse> to) {
      to.onNext(event(1, started()));
      to.onNext(event(2, text("one")));
    }

    @Override
    public void cancelCompletion(
        CancelCompletionRequest request, StreamObserver<CancelCompletionResponse> to) {
      to.onNext(CancelCompletionResponse.getDefaultInstance());
      to.onCompleted();
    }
  }

  private static void await(CountDownLatch latch) {
    try {
      assertTrue(latch.await(60, TimeUnit.SECONDS));
    } catch (InterruptedException interrupted) {
      throw new IllegalStateException(interrupted);
    }
  }

  private static void waitUntil(BooleanSupplier state) throws InterruptedException {
    long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
    while (!state.getAsBoolean()) {
      assertTrue(System.nanoTime() < end, "the state within a minute");
      Thread.sleep(10);
    }
  }

  @Test
  void theServerInfoIsWhatTheDaemonTells() {
    try (var daemon = new ScriptedDaemon(new Script());
        var client = new RuvdClient(daemon.address())) {
      assertEquals("0.3.0", client.getServerInfo().getVersion());
      assertEquals(List.of("fork"), client.getServerInfo().getFeaturesList());
    }
  }

  @Test
  void aDaemonFromBeforeTheCallIsToldByTheCode() {
    try (var daemon = new ScriptedDaemon(new SessionServiceGrpc.SessionServiceImplBase() {});
        var client = new RuvdClient(daemon.address())) {
      var error = assertThrows(RuvdException.class, client::getServerInfo);
      assertEquals(Code.UNIMPLEMENTED, error.code());
      assertEquals("", error.reason());
    }
  }

  @Test
  void ownMetadataIsSentWithEveryCallInPlaceOfTheClients() {
    Metadata own = new Metadata();
    own.put(TEAM, "blue");
    try (var daemon = new ScriptedDaemon(new Script())) {
      var builder = RuvdClient.builder().address(daemon.address()).metadata(own);
      own.put(TEAM, "not copied");
      try (var client = builder.build()) {
        assertThrows(RuvdException.class, () -> client.endSession("ada"));
        client.complete(RuvdClient.request("hi")).close();
      }
      var mine = new Metadata();
      mine.put(SESSION, "mine");
      try (var client = builder.metadata(mine).build()) {
        assertThrows(RuvdException.class, () -> client.endSession("ada"));
      }
      for (Metadata call : daemon.metadata) {
        assertEquals(List.of("blue"), all(call, TEAM));
      }
      assertEquals(List.of("ada"), all(daemon.metadata.get(0), SESSION));
      int last = daemon.metadata.size() - 1;
      assertEquals(List.of("mine"), all(daemon.metadata.get(last), SESSION));
    }
  }

  private static List<String> all(Metadata headers, Metadata.Key<String> key) {
    Iterable<String> values = headers.getAll(key);
    return values == null ? List.of() : Stream.of(values).flatMap(RuvdClientTest::stream).toList();
  }

  private static Stream<String> stream(Iterable<String> values) {
    return java.util.stream.StreamSupport.stream(values.spliterator(), false);
  }

  @Test
  void anAsynchronousCallDoesNotWaitForTheDaemon() throws Exception {
    var script = new Script();
    var request = GetSessionRequest.newBuilder().setSessionId("ada").build();
    try (var daemon = new ScriptedDaemon(script);
        var client = new RuvdClient(daemon.address())) {
      var response = client.callAsync(stub -> stub.getSession(request));
      waitUntil(() -> daemon.methods.contains("GetSession"));
      assertFalse(response.isDone());
      script.released.countDown();
      assertEquals("ada", response.get(60, TimeUnit.SECONDS).getSession().getId());
      assertEquals("ada", all(daemon.metadata.get(0), SESSION).get(0));
    }
  }

  @Test
  void anAsynchronousCallGoesOnAtTheAddressThatCanBeReached() throws Exception {
    var request = EndSessionRequest.newBuilder().setSessionId("ada").build();
    try (var daemon = new ScriptedDaemon(new Script());
        var client = new RuvdClient("127.0.0.1:1," + daemon.address())) {
      var info =
          client.callAsync(stub -> stub.getServerInfo(GetServerInfoRequest.getDefaultInstance()));
      assertEquals("0.3.0", info.get(60, TimeUnit.SECONDS).getVersion());
      var failed =
          assertThrows(
              ExecutionException.class,
              () -> client.callAsync(stub -> stub.endSession(request)).get(60, TimeUnit.SECONDS));
      var error = assertInstanceOf(RuvdException.class, failed.getCause());
      assertEquals(Code.UNIMPLEMENTED, error.code());
    }
  }

  @Test
  void anAsynchronousCallWithoutADaemonFails() throws Exception {
    try (var client = new RuvdClient("127.0.0.1:1,127.0.0.1:2")) {
      var info =
          client.callAsync(stub -> stub.getServerInfo(GetServerInfoRequest.getDefaultInstance()));
      var failed = assertThrows(ExecutionException.class, () -> info.get(60, TimeUnit.SECONDS));
      var error = assertInstanceOf(RuvdException.class, failed.getCause());
      assertEquals(Code.UNAVAILABLE, error.code());
    }
  }

  @Test
  void cancellingTheFutureCancelsTheCompletion() throws Exception {
    try (var daemon = new ScriptedDaemon(new Script());
        var client = new RuvdClient(daemon.address())) {
      var received = new CountDownLatch(1);
      var answer = client.completeAsync(RuvdClient.request("hi"), piece -> received.countDown());
      await(received);
      assertFalse(answer.isDone());
      answer.cancel(true);
      waitUntil(() -> daemon.methods.contains("CancelCompletion"));
    }
  }

  @Test
  void anAsynchronousCompletionHasATimeout() {
    try (var daemon = new ScriptedDaemon(new Script());
        var client = new RuvdClient(daemon.address())) {
      var answer =
          client.completeAsync(RuvdClient.request("hi"), Duration.ofMillis(200), piece -> {});
      var failed = assertThrows(ExecutionException.class, () -> answer.get(60, TimeUnit.SECONDS));
      var error = assertInstanceOf(RuvdException.class, failed.getCause());
      assertEquals(Code.DEADLINE_EXCEEDED, error.code());
    }
  }

  /** More events wait than the client asks for, and a reader that pauses gets each of them. */
  @Test
  void eventsWaitForTheReader() throws Exception {
    int count = 500;
    var script =
        new Script() {
          @Override
          public void complete(CompleteRequest request, StreamObserver<CompleteResponse> to) {
            to.onNext(event(1, started()));
            for (int number = 0; number < count; number++) {
              to.onNext(event(2 + number, text(number + " ")));
            }
            var content = new StringBuilder();
            for (int number = 0; number < count; number++) {
              content.append(number).append(' ');
            }
            to.onNext(event(2 + count, finished(content.toString())));
            to.onCompleted();
          }
        };
    try (var daemon = new ScriptedDaemon(script);
        var client = new RuvdClient(daemon.address());
        var answer = client.complete(RuvdClient.request("hi"))) {
      int read = 0;
      for (String piece : answer) {
        assertEquals(read++ + " ", piece);
      }
      assertEquals(count, read);
      assertEquals(count + 2, answer.lastSequence());
    }
  }

  /** A daemon that answers each item of a batch, but the second call never ends. */
  private static final class Batches extends Script {
    private int calls;

    @Override
    public void batchComplete(
        BatchCompleteRequest request, StreamObserver<BatchCompleteResponse> to) {
      for (int index = 0; index < request.getItemsCount(); index++) {
        var finished = finished(request.getItems(index).getMessages(0).getContent()).getFinished();
        var result =
            BatchResult.newBuilder()
                .setIndex(index)
                .setCompletion(Completion.newBuilder().setFinished(finished));
        to.onNext(BatchCompleteResponse.newBuilder().setResult(result).build());
      }
      if (++calls == 1) {
        to.onCompleted();
      }
    }
  }

  private static BatchCompleteRequest.Builder items(String... texts) {
    var items = BatchCompleteRequest.newBuilder();
    Stream.of(texts).forEach(text -> items.addItems(RuvdClient.request(text)));
    return items;
  }

  @Test
  void theResultsOfABatchComeOnTheCallingThread() {
    try (var daemon = new ScriptedDaemon(new Batches());
        var client = new RuvdClient(daemon.address())) {
      var threads = new CopyOnWriteArrayList<Thread>();
      var summary = client.batch(items("a", "b"), result -> threads.add(Thread.currentThread()));
      assertEquals(2, summary.getSucceeded());
      assertEquals(List.of(Thread.currentThread(), Thread.currentThread()), threads);
    }
  }

  @Test
  void anAsynchronousBatchDoesNotWaitForTheDaemon() throws Exception {
    try (var daemon = new ScriptedDaemon(new Batches());
        var client = new RuvdClient(daemon.address())) {
      var held = new CountDownLatch(1);
      var summary = client.batchAsync(items("a", "b"), result -> await(held));
      assertFalse(summary.isDone());
      held.countDown();
      assertEquals(2, summary.get(60, TimeUnit.SECONDS).getSucceeded());
    }
  }

  @Test
  void whatTheCallersFunctionThrowsEndsTheBatch() {
    try (var daemon = new ScriptedDaemon(new Batches());
        var client = new RuvdClient(daemon.address())) {
      var error =
          assertThrows(
              IllegalStateException.class,
              () ->
                  client.batch(
                      items("a", "b"),
                      result -> {
                        throw new IllegalStateException("mine");
                      }));
      assertEquals("mine", error.getMessage());
    }
  }

  @Test
  void closingTheClientEndsItsBatches() throws Exception {
    try (var daemon = new ScriptedDaemon(new Batches())) {
      var client = new RuvdClient(daemon.address());
      client.batch(items("a"), result -> {});
      var asynchronous = client.batchAsync(items("b"), result -> {}); // which never ends
      var begun = new CountDownLatch(1);
      var waiting = new CompletableFuture<RuvdException>();
      new Thread(
              () ->
                  waiting.complete(
                      assertThrows(
                          RuvdException.class,
                          () -> client.batch(items("c"), result -> begun.countDown()))))
          .start();
      await(begun);
      client.close();
      assertTrue(asynchronous.isCancelled());
      assertEquals(Code.CANCELLED, waiting.get(60, TimeUnit.SECONDS).code());
    }
  }

  @Test
  void aClosedClientLeavesNoThread() throws Exception {
    try (var daemon = new ScriptedDaemon(new Script())) {
      var client = RuvdClient.builder().address(daemon.address()).token(() -> "secret").build();
      client.getServerInfo();
      var answer = client.complete(RuvdClient.request("hi"));
      assertEquals("one", answer.iterator().next());
      assertTrue(threads().anyMatch(name -> name.equals("ruvd-token")));
      client.close();
      waitUntil(() -> daemon.methods.contains("CancelCompletion"));
      assertEquals(Code.CANCELLED, assertThrows(RuvdException.class, answer::finished).code());
    }
    waitUntil(() -> threads().findAny().isEmpty());
  }

  /** Returns the names of the threads that the client or gRPC has started. */
  private static Stream<String> threads() {
    return Thread.getAllStackTraces().keySet().stream()
        .map(Thread::getName)
        .filter(name -> name.startsWith("grpc-") || name.startsWith("ruvd-"));
  }

  @Test
  void aClosedClientMakesNoCalls() {
    try (var daemon = new ScriptedDaemon(new Script())) {
      var client = new RuvdClient(daemon.address());
      client.close();
      assertEquals(
          Code.UNAVAILABLE, assertThrows(RuvdException.class, client::getServerInfo).code());
      var answer = client.complete(RuvdClient.request("hi"));
      assertEquals(Code.UNAVAILABLE, assertThrows(RuvdException.class, answer::text).code());
      assertEquals(List.of(), daemon.methods);
    }
  }
}
