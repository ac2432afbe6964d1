package dev.ruvd.conformance;

import static dev.ruvd.conformance.Output.line;

import com.google.protobuf.FieldMask;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.client.RuvdException;
import dev.ruvd.v1.AppendMessagesRequest;
import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.BatchResult;
import dev.ruvd.v1.CancelCompletionRequest;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CreateSessionRequest;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.ForkSessionRequest;
import dev.ruvd.v1.UpdateSessionRequest;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;

/**
 * The program {@code failover} of {@code clients/CONFORMANCE.md}: one call for each line of input.
 */
final class Failover {
  private final RuvdClient client;

  private Failover(RuvdClient client) {
    this.client = client;
  }

  static void run() throws IOException {
    Identity.silenceNetty();
    RuvdClient created;
    try {
      created = new RuvdClient();
    } catch (IllegalArgumentException refused) {
      System.out.println("refused " + refused.getMessage().replace('\n', ' '));
      return;
    }
    var input = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    try (RuvdClient client = created) {
      var program = new Failover(client);
      for (String line = input.readLine(); line != null; line = input.readLine()) {
        program.answer(line.split(" ", 3));
      }
    }
  }

  /** Makes the call of a line: its name and up to two words or texts. */
  private void answer(String[] words) {
    try {
      String session = words.length > 1 && !words[1].equals("-") ? words[1] : "";
      call(words[0], session, words.length > 2 ? words[2] : "");
    } catch (RuvdException failed) {
      line("error %s", Output.details(failed));
    }
  }

  private void call(String name, String session, String text) {
    switch (name) {
      case "complete" -> complete(turn(session, text));
      case "collect" -> line("collected [%s]", client.complete(turn(session, text)).text());
      case "batch" -> batch((session + " " + text).strip().split(" "));
      case "create" -> {
        var request = CreateSessionRequest.newBuilder().setSessionId(session).build();
        line("created %s", client.createSession(request).getId());
      }
      case "append" -> {
        var message = RuvdClient.request(text).getMessages(0);
        var request =
            AppendMessagesRequest.newBuilder().setSessionId(session).addMessages(message).build();
        line("appended messages=%d", client.appendMessages(request).getMessageCount());
      }
      case "update" -> {
        client.updateSession(
            UpdateSessionRequest.newBuilder()
                .setSessionId(session)
                .putLabels("value", text)
                .setUpdateMask(FieldMask.newBuilder().addPaths("labels"))
                .build());
        line("updated");
      }
      case "fork" -> {
        var request =
            ForkSessionRequest.newBuilder().setSessionId(session).setNewSessionId(text).build();
        line("forked exchanges=%d", client.forkSession(request).getExchangeCount());
      }
      case "get" -> Output.print(client.getSession(session));
      case "end" -> {
        client.endSession(session);
        line("ended");
      }
      case "models" -> {
        client.listModels();
        line("models ok");
      }
      case "cancel" -> {
        client.cancelCompletion(
            CancelCompletionRequest.newBuilder().setSessionId(session).setRequestId(text).build());
        line("cancelled");
      }
      default -> line("unknown call %s", name);
    }
  }

  /** Returns the request of a turn, from its session and from its request id and text. */
  private static CompleteRequest.Builder turn(String session, String rest) {
    String[] words = rest.split(" ", 2);
    return RuvdClient.request(words[1]).setRequestId(words[0]).setSessionId(session);
  }

  private void complete(CompleteRequest.Builder request) {
    try (var answer = client.complete(request)) {
      answer.forEach(text -> line("text [%s]", text));
      Finished end = answer.finished();
      String reason = end.getFinishReason().name().substring("FINISH_REASON_".length());
      line("finished %s exchanges=%d", reason, end.getExchangeCount());
    }
  }

  private void batch(String[] words) {
    var items = BatchCompleteRequest.newBuilder();
    for (String word : words) {
      items.addItems(RuvdClient.request(word));
    }
    List<BatchResult> results = new ArrayList<>();
    client.batch(items, results::add);
    results.sort(Comparator.comparing(BatchResult::getIndex));
    results.forEach(Output::print);
  }
}
