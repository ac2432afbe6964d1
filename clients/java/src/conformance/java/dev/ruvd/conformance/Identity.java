package dev.ruvd.conformance;

import dev.ruvd.client.RuvdClient;
import dev.ruvd.client.RuvdClientBuilder;
import dev.ruvd.client.RuvdException;
import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.CancelCompletionRequest;
import dev.ruvd.v1.ResumeCompletionRequest;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Optional;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.Supplier;
import java.util.logging.Level;
import java.util.logging.Logger;

/**
 * The program {@code identity WAY} of {@code clients/CONFORMANCE.md}: the calls of a client with a
 * token and TLS.
 */
final class Identity {
  // Netty warns of every Unix socket, which has no SO_KEEPALIVE, and the program must print
  // nothing.
  private static final Logger NETTY = Logger.getLogger("io.grpc.netty.shaded.io.netty.bootstrap");

  private Identity() {}

  /** Makes the calls for each line of standard input. */
  static void run(String way) throws IOException {
    silenceNetty();
    RuvdClient created;
    try {
      created = builder(way).build();
    } catch (IllegalArgumentException refused) {
      System.out.println("refused");
      return;
    }
    var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (RuvdClient client = created) {
      for (String line = input.readLine(); line != null; line = input.readLine()) {
        calls(client, line);
      }
    }
  }

  static void silenceNetty() {
    NETTY.setLevel(Level.SEVERE);
  }

  private static RuvdClientBuilder builder(String way) {
    RuvdClientBuilder builder = RuvdClient.builder();
    if (way.equals("environment")) {
      return builder;
    }
    builder.address(System.getenv("TEST_ADDRESS"));
    switch (way) {
      case "value" -> builder.token(System.getenv("TEST_TOKEN"));
      case "file" -> builder.tokenFile(tokenFile());
      case "function" -> builder.token(() -> Files.readString(tokenFile()));
      default -> throw new IllegalStateException("unknown way " + way);
    }
    variable("TEST_TLS_CA_FILE").ifPresent(file -> builder.caFile(Path.of(file)));
    var certificate = variable("TEST_TLS_CLIENT_CERT_FILE");
    var key = variable("TEST_TLS_CLIENT_KEY_FILE");
    if (certificate.isPresent() || key.isPresent()) {
      builder.clientCertificate(Path.of(certificate.orElse("")), Path.of(key.orElse("")));
    }
    variable("TEST_TLS_SERVER_NAME").ifPresent(builder::serverName);
    return builder;
  }

  private static Optional<String> variable(String name) {
    return Optional.ofNullable(System.getenv(name));
  }

  private static Path tokenFile() {
    return Path.of(System.getenv("TEST_TOKEN_FILE"));
  }

  private static void calls(RuvdClient client, String line) {
    print(
        "models",
        () -> {
          client.listModels();
          return "ok";
        });
    var request = RuvdClient.request("one two").setSessionId(line).setRequestId(line);
    print("complete", () -> "[" + client.complete(request).text() + "]");
    var resume = ResumeCompletionRequest.newBuilder().setSessionId(line).setRequestId(line).build();
    print("resume", () -> "[" + client.resumeCompletion(resume).text() + "]");
    var cancel = CancelCompletionRequest.newBuilder().setSessionId(line).setRequestId(line).build();
    print(
        "cancel",
        () -> {
          client.cancelCompletion(cancel);
          return "ok";
        });
    print("batch", () -> "[" + batch(client) + "]");
  }

  private static String batch(RuvdClient client) {
    var items = BatchCompleteRequest.newBuilder().addItems(RuvdClient.request("three"));
    var text = new AtomicReference<>("");
    client.batch(
        items, result -> text.set(result.getCompletion().getFinished().getMessage().getContent()));
    return text.get();
  }

  private static void print(String call, Supplier<String> method) {
    String result;
    try {
      result = method.get();
    } catch (RuvdException failed) {
      String reason = failed.reason().isEmpty() ? "-" : failed.reason();
      result = "error " + failed.code() + " " + reason;
    }
    System.out.println(call + " " + result);
  }
}
