package dev.ruvd.conformance;

import static dev.ruvd.conformance.CallOutput.describe;
import static dev.ruvd.conformance.CallOutput.word;
import static dev.ruvd.conformance.Output.attempt;
import static dev.ruvd.conformance.Output.line;
import static dev.ruvd.conformance.Output.step;

import com.google.protobuf.FieldMask;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.v1.*;
import java.util.List;
import java.util.Map;

/** The calls for sessions of the program {@code calls}. */
final class SessionCalls {
  private final RuvdClient client;

  SessionCalls(RuvdClient client) {
    this.client = client;
  }

  void run() {
    create();
    get();
    list();
    update();
    append();
    fork();
    compact();
  }

  private void create() {
    step("create");
    var request =
        CreateSessionRequest.newBuilder()
            .setSessionId("alpha")
            .setSystemPrompt("Be brief.")
            .addMessages(message(Role.ROLE_USER, "one").toBuilder().setPinned(true))
            .addMessages(message(Role.ROLE_ASSISTANT, "uno"))
            .addMessages(message(Role.ROLE_USER, "two"))
            .addMessages(message(Role.ROLE_ASSISTANT, "dos"))
            .putLabels("user", "ada")
            .putLabels("team", "a")
            .setContextWindow(window(1, 4))
            .setIdleTimeout(CallOutput.seconds(600))
            .setModel("echo")
            .setRequestId("create-1")
            .setCompactionInstruction("Keep numbers.")
            .setSummary("uno came first")
            .setSummaryExchangeCount(1);
    describe(client.createSession(request.build()));
    attempt(() -> Output.print(client.createSession(request.build())));
    attempt(() -> Output.print(client.createSession(request.clone().clearLabels().build())));
    var taken = CreateSessionRequest.newBuilder().setSessionId("alpha").build();
    attempt(() -> Output.print(client.createSession(taken)));
    Session made = client.createSession(CreateSessionRequest.getDefaultInstance());
    line("made %s", word(!made.getId().isEmpty()));
    client.endSession(made.getId());
  }

  private void get() {
    step("get");
    CallOutput.messages(client, "alpha");
    line("messages %d", client.getSession("alpha").getMessagesCount());
    attempt(() -> Output.print(client.getSession("nobody")));
  }

  private void list() {
    step("list");
    for (int number = 1; number <= 105; number++) {
      var request = CreateSessionRequest.newBuilder().setSessionId("p" + number);
      client.createSession(request.putLabels("page", "yes").build());
    }
    for (Map<String, String> labels :
        List.of(
            Map.of("page", "yes"), Map.of("team", "a", "user", "ada"), Map.of("team", "none"))) {
      var request = ListSessionsRequest.newBuilder().putAllLabelFilter(labels).build();
      List<Session> found = client.listSessions(request);
      if (found.isEmpty()) {
        line("listed 0");
      } else {
        Session last = found.get(found.size() - 1);
        line("listed %d %s %s", found.size(), found.get(0).getId(), last.getId());
      }
    }
  }

  private void update() {
    step("update");
    var settings =
        UpdateSessionRequest.newBuilder()
            .setSessionId("alpha")
            .putLabels("team", "b")
            .setIdleTimeout(CallOutput.seconds(300))
            .setContextWindow(window(2, 6))
            .setCompactionInstruction("Keep names.");
    var mask =
        FieldMask.newBuilder().addPaths("idle_timeout").addPaths("compaction_instruction").build();
    var defaults = UpdateSessionRequest.newBuilder().setSessionId("alpha").setUpdateMask(mask);
    var nobody = UpdateSessionRequest.newBuilder().setSessionId("nobody").putLabels("a", "b");
    for (var request : List.of(settings, defaults, nobody)) {
      attempt(() -> describe(client.updateSession(request.build())));
    }
  }

  private void append() {
    step("append");
    for (String text : List.of("three", "three", "other")) {
      var request = appended("alpha", Role.ROLE_USER, text).setRequestId("append-1").build();
      attempt(() -> Output.print(client.appendMessages(request)));
    }
    var summary = appended("alpha", Role.ROLE_ASSISTANT, "tres").setSummary("uno, then dos");
    attempt(() -> describe(client.appendMessages(summary.setSummaryExchangeCount(2).build())));
    var nobody = appended("nobody", Role.ROLE_USER, "hi").build();
    attempt(() -> Output.print(client.appendMessages(nobody)));
  }

  private void fork() {
    step("fork");
    var fork =
        ForkSessionRequest.newBuilder()
            .setSessionId("alpha")
            .setExchangeCount(1)
            .setNewSessionId("alpha-fork")
            .setRequestId("fork-1");
    attempt(() -> describe(client.forkSession(fork.build())));
    var alpha = ForkSessionRequest.newBuilder().setSessionId("alpha");
    for (var request :
        List.of(
            fork,
            alpha.clone().setNewSessionId("alpha"),
            alpha.clone().setExchangeCount(99),
            ForkSessionRequest.newBuilder().setSessionId("nobody"))) {
      attempt(() -> Output.print(client.forkSession(request.build())));
    }
  }

  private void compact() {
    step("compact");
    var window = ContextWindow.newBuilder().setKeepExchanges(1).setMaxExchanges(10);
    var beta = CreateSessionRequest.newBuilder().setSessionId("beta").setContextWindow(window);
    for (int number = 1; number <= 3; number++) {
      beta.addMessages(message(Role.ROLE_USER, "question " + number));
      beta.addMessages(message(Role.ROLE_ASSISTANT, "answer " + number));
    }
    client.createSession(beta.build());
    var request = CompactSessionRequest.newBuilder().setSessionId("beta");
    for (boolean isDryRun : List.of(true, false)) {
      var done = client.compactSession(request.setDryRun(isDryRun).build());
      line(
          "compaction exchanges=%d kept=%d before=%d after=%s",
          done.getSummarizedExchanges(),
          done.getKeptExchanges(),
          done.getBytesBefore(),
          word(done.hasBytesAfter()));
      Session session = done.getSession();
      boolean hasSummary = !session.getSummary().isEmpty();
      line("summary %s of=%d", word(hasSummary), session.getSummaryExchangeCount());
      line("compactions %d usage=%s", session.getCompactions(), word(done.hasUsage()));
    }
    var again = client.compactSession(request.build());
    line("again exchanges=%d", again.getSummarizedExchanges());
    attempt(() -> client.compactSession(request.setSessionId("nobody").build()));
  }

  void end() {
    step("end");
    client.appendMessages(appended("alpha", Role.ROLE_USER, "bye").build());
    describe(client.getSession("alpha"));
    var request = EndSessionRequest.newBuilder().setSessionId("alpha");
    for (boolean allowMissing : List.of(false, false, true)) {
      attempt(
          () -> {
            client.endSession(request.setAllowMissing(allowMissing).build());
            line("ended");
          });
    }
  }

  private static AppendMessagesRequest.Builder appended(String session, Role role, String text) {
    return AppendMessagesRequest.newBuilder()
        .setSessionId(session)
        .addMessages(message(role, text));
  }

  private static ContextWindow window(int keep, int max) {
    return ContextWindow.newBuilder()
        .setKeepExchanges(keep)
        .setMaxExchanges(max)
        .setMaxTokens(100)
        .setRendering(Rendering.RENDERING_MESSAGES)
        .setCompaction(Compaction.COMPACTION_NONE)
        .setKeepFirst(1)
        .setCompactAt(0.5)
        .build();
  }

  private static Message message(Role role, String content) {
    return Message.newBuilder().setRole(role).setContent(content).build();
  }
}
