package dev.ruvd.client;

import dev.ruvd.v1.*;
import io.grpc.BindableService;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import java.io.IOException;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;

/** A server on a free port of loopback, which answers by a test's script and records the calls. */
final class ScriptedDaemon implements AutoCloseable {
  /** The names of the called methods and the metadata of the calls, in their order. */
  final List<String> methods = new CopyOnWriteArrayList<>();

  final List<Metadata> metadata = new CopyOnWriteArrayList<>();

  // Not gRPC's own threads, which tests count.
  private final ExecutorService threads = Executors.newCachedThreadPool(this::thread);
  private final Server server;

  ScriptedDaemon(BindableService script) {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .executor(threads)
            .addService(script)
            .intercept(recorder())
            .build();
    try {
      server.start();
    } catch (IOException failed) {
      throw new IllegalStateException(failed);
    }
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  private ServerInterceptor recorder() {
    return new ServerInterceptor() {
      @Override
      public <Q, R> ServerCall.Listener<Q> interceptCall(
          ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
        metadata.add(headers);
        methods.add(call.getMethodDescriptor().getBareMethodName());
        return next.startCall(call, headers);
      }
    };
  }

  private Thread thread(Runnable task) {
    Thread thread = new Thread(task, "daemon");
    thread.setDaemon(true);
    return thread;
  }

  @Override
  public void close() {
    try {
      server.shutdownNow().awaitTermination(60, TimeUnit.SECONDS);
    } catch (InterruptedException interrupted) {
      Thread.currentThread().interrupt();
    }
    threads.shutdown(); // not before the callbacks of the last calls
  }

  static CompleteResponse event(long sequence, CompletionEvent.Builder event) {
    return CompleteResponse.newBuilder().setEvent(event.setSequence(sequence)).build();
  }

  static CompletionEvent.Builder started() {
    return CompletionEvent.newBuilder().setStarted(Started.newBuilder().setCompletionId("c-1"));
  }

  static CompletionEvent.Builder text(String text) {
    return CompletionEvent.newBuilder().setDelta(Delta.newBuilder().setText(text));
  }

  static CompletionEvent.Builder finished(String content) {
    var message = Message.newBuilder().setRole(Role.ROLE_ASSISTANT).setContent(content);
    return CompletionEvent.newBuilder().setFinished(Finished.newBuilder().setMessage(message));
  }
}
