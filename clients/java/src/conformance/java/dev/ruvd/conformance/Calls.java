package dev.ruvd.conformance;

import static dev.ruvd.client.RuvdClient.request;
import static dev.ruvd.conformance.Output.attempt;
import static dev.ruvd.conformance.Output.line;
import static dev.ruvd.conformance.Output.step;
import static dev.ruvd.conformance.Output.withoutPrefix;
import static dev.ruvd.conformance.Output.words;

import com.google.protobuf.Duration;
import com.google.protobuf.FieldMask;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import dev.ruvd.client.CompletionStream;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.v1.*;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.function.Consumer;
import java.util.function.Function;

/**
 * The program {@code calls} of {@code clients/CONFORMANCE.md}: every call of the service, with
 * every field that a caller can set.
 */
final class Calls {
  private static final String SCHEMA =
      "{\"type\": \"object\", \"properties\": {\"name\": {\"type\": \"string\"}}}";

  private final RuvdClient client;

  Calls(RuvdClient client) {
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
    complete();
    tools();
    formats();
    resume();
    cancel();
    batch();
    end();
    server();
    metrics();
    try (RuvdClient nobody = new RuvdClient(System.getenv("RUVD_NOBODY"))) {
      line("health %s", word(nobody.health()));
    }
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
            .setIdleTimeout(seconds(600))
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
    messages("alpha");
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
            .setIdleTimeout(seconds(300))
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

  private void complete() {
    step("complete");
    CompletionStream answer = client.complete(request("four five six").setSessionId("alpha"));
    print(answer);
    Started started = answer.started().orElseThrow();
    line(
        "started created=%s trimmed=%s summarized=%s",
        word(started.getSessionCreated()),
        word(started.getContextTrimmed()),
        word(started.getContextSummarized()));
    line(
        "started session=%s model=%s sent=%d",
        started.getSessionId(), started.getModel(), started.getContextMessages());
    var options =
        CompletionOptions.newBuilder()
            .setModel("echo")
            .setTemperature(0.5)
            .setTopP(0.9)
            .setMaxTokens(2)
            .addStop("never")
            .setSeed(7)
            .setBypassCache(true)
            .setFrequencyPenalty(0.5)
            .setPresencePenalty(-0.5)
            .putLogitBias(5, -1)
            .setExtraBody(
                Struct.newBuilder()
                    .putFields("top_k", Value.newBuilder().setNumberValue(40).build()));
    complete(request("one two three").setOptions(options));
    complete(
        request("seven")
            .setSessionId("gamma")
            .setSystemPrompt("New.")
            .setRecreateIfGone(true)
            .setDisconnectGrace(seconds(1)));
    complete(request("eight").setSessionId("gamma").setSystemPrompt("Other."));
    complete(request("nine").setSessionId("nobody").setRequireExisting(true));
  }

  private void tools() {
    step("tools");
    var weather =
        Tool.newBuilder()
            .setName("weather")
            .setDescription("The weather.")
            .setParameters("{\"type\": \"object\"}")
            .setStrict(false);
    var options = CompletionOptions.newBuilder().addTools(weather).setParallelToolCalls(false);
    var function = ToolChoice.newBuilder().setFunction("weather");
    CompletionStream answer =
        client.complete(
            request("in Oslo")
                .setSessionId("delta")
                .setOptions(options.clone().setToolChoice(function)));
    print(answer);
    var results = CompleteRequest.newBuilder().setSessionId("delta").setOptions(options);
    for (ToolCall call : answer.finished().getMessage().getToolCallsList()) {
      results.addMessages(RuvdClient.toolResult(call, "12 degrees"));
    }
    complete(results);
    var none = ToolChoice.newBuilder().setMode(ToolChoiceMode.TOOL_CHOICE_MODE_NONE);
    complete(
        request("weather").setSessionId("delta").setOptions(options.clone().setToolChoice(none)));
    messages("delta");
  }

  private void formats() {
    step("formats");
    var object = ResponseFormat.newBuilder().setJsonObject(true);
    var person = ResponseFormat.newBuilder().setJsonSchema(SCHEMA).setName("person");
    for (var format : List.of(object, person.setStrict(true))) {
      var options = CompletionOptions.newBuilder().setResponseFormat(format);
      complete(request("ada").setOptions(options));
    }
  }

  private void resume() {
    step("resume");
    CompletionStream answer =
        client.complete(request("one two three").setSessionId("epsilon").setRequestId("resume-1"));
    print(answer);
    String id = answer.started().orElseThrow().getCompletionId();
    var byId = ResumeCompletionRequest.newBuilder().setCompletionId(id);
    for (var request :
        List.of(
            byId,
            ResumeCompletionRequest.newBuilder().setSessionId("epsilon").setRequestId("resume-1"),
            byId.clone().setAfterSequence(answer.lastSequence() - 1),
            ResumeCompletionRequest.newBuilder().setCompletionId("nobody"))) {
      attempt(() -> print(client.resumeCompletion(request.build())));
    }
  }

  private void cancel() {
    step("cancel");
    String text = words(2000);
    var request = request(text).setSessionId("zeta");
    var kept =
        CancelCompletionRequest.newBuilder()
            .setSessionId("zeta")
            .setRequestId("cancel-1")
            .setKeepPartial(true);
    Finished finished =
        cancelAfterText(request.clone().setRequestId("cancel-1"), answer -> kept).finished();
    line(
        "finished %s exchanges=%d",
        withoutPrefix(finished.getFinishReason(), "FINISH_REASON_"), finished.getExchangeCount());
    String content = finished.getMessage().getContent();
    line("partial %s", word(!content.isEmpty() && content.length() < text.length()));

    CompletionStream second = cancelAfterText(request, Calls::byId);
    attempt(second::finished);
    client.cancelCompletion(byId(second).build());
    line("cancelled");
    Output.print(client.getSession("zeta"));
    var nobody = CancelCompletionRequest.newBuilder().setCompletionId("nobody").build();
    attempt(() -> client.cancelCompletion(nobody));
  }

  private CompletionStream cancelAfterText(
      CompleteRequest.Builder request,
      Function<CompletionStream, CancelCompletionRequest.Builder> cancel) {
    CompletionStream answer = client.complete(request);
    answer.iterator().next();
    client.cancelCompletion(cancel.apply(answer).build());
    return answer;
  }

  private static CancelCompletionRequest.Builder byId(CompletionStream answer) {
    String id = answer.started().orElseThrow().getCompletionId();
    return CancelCompletionRequest.newBuilder().setCompletionId(id);
  }

  private void batch() {
    step("batch");
    var hot = request("too hot");
    hot.getOptionsBuilder().setTemperature(3);
    var items =
        BatchCompleteRequest.newBuilder()
            .setMaxConcurrency(2)
            .addItems(request("a"))
            .addItems(request("!fault ENGINE_REJECTED"))
            .addItems(request("b").setSessionId("eta"))
            .addItems(request("c").setSessionId("eta"))
            .addItems(hot);
    batch(items, Output::print);
    Output.print(client.getSession("eta"));

    var large = BatchCompleteRequest.newBuilder().setMaxConcurrency(2);
    for (int number = 0; number < 5; number++) {
      large.addItems(request("x".repeat(1_000_000)));
    }
    batch(
        large,
        result -> line("item %d bytes=%d", result.getIndex(), Output.content(result).length()));
    var wrong = BatchCompleteRequest.newBuilder().setMaxConcurrency(-1).addItems(request("a"));
    attempt(() -> client.batch(wrong, Output::print));
  }

  private void batch(BatchCompleteRequest.Builder items, Consumer<BatchResult> print) {
    List<BatchResult> results = new ArrayList<>();
    BatchSummary summary = client.batch(items, results::add);
    results.sort(Comparator.comparing(BatchResult::getIndex));
    results.forEach(print);
    line(
        "summary succeeded=%d failed=%d prompt=%d answer=%d",
        summary.getSucceeded(),
        summary.getFailed(),
        summary.getUsage().getPromptTokens(),
        summary.getUsage().getCompletionTokens());
  }

  private void end() {
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

  private void server() {
    step("server");
    var models = client.listModels();
    line(
        "models %s default=%s", String.join(" ", models.getModelsList()), models.getDefaultModel());
    var info = client.getServerInfo();
    line(
        "info version=%s instance=%s",
        word(!info.getVersion().isEmpty()), word(!info.getInstanceId().isEmpty()));
    for (String feature :
        List.of("batch", "compaction", "resume", "sessions", "structured_output", "tools")) {
      line("feature %s %s", feature, word(info.getFeaturesList().contains(feature)));
    }
    ServerLimits limits = info.getLimits();
    line("limit max_request_bytes %d", limits.getMaxRequestBytes());
    line("limit max_message_bytes %d", limits.getMaxMessageBytes());
    line("limit max_messages %d", limits.getMaxMessages());
    line("limit max_session_bytes %d", limits.getMaxSessionBytes());
    line("limit max_sessions %d", limits.getMaxSessions());
    line("limit max_inflight %d", limits.getMaxInflight());
    line("limit max_batch_items %d", limits.getMaxBatchItems());
    line("limit max_answer_bytes %d", limits.getMaxAnswerBytes());
    line(
        "limit max_output_tokens %s",
        optional(limits.hasMaxOutputTokens(), limits.getMaxOutputTokens()));
    line("limit idle_timeout %ds", limits.getIdleTimeout().getSeconds());
    line("limit completion_retention %ds", limits.getCompletionRetention().getSeconds());
    for (EngineInfo engine : info.getEnginesList()) {
      line(
          "engine %s ready=%s default=%s models=%s tokens=%s slots=%s",
          engine.getName(),
          word(engine.getReady()),
          engine.getDefaultModel(),
          String.join(" ", engine.getModelsList()),
          optional(engine.hasWindowTokens(), engine.getWindowTokens()),
          optional(engine.hasSlots(), engine.getSlots()));
    }
    line("health %s", word(client.health()));
  }

  private void metrics() {
    step("metrics");
    SessionMetrics metrics = client.getSessionMetrics();
    line("sessions total=%d active=%d", metrics.getTotalSessions(), metrics.getActiveSessions());
    line(
        "completions %d stateless=%d",
        metrics.getSessionCompletions(), metrics.getStatelessCompletions());
    line("messages average=%.2f", metrics.getAvgMessagesPerSession());
    line("measured cache_hit_rate %s", word(metrics.hasCacheHitRate()));
    line("measured avg_session_latency %s", word(metrics.hasAvgSessionLatency()));
    line("measured avg_stateless_latency %s", word(metrics.hasAvgStatelessLatency()));
    line("measured avg_latency_reduction %s", word(metrics.hasAvgLatencyReduction()));
    line("measured avg_prefill_reduction %s", word(metrics.hasAvgPrefillReduction()));
  }

  private static Message message(Role role, String content) {
    return Message.newBuilder().setRole(role).setContent(content).build();
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

  private static Duration seconds(long seconds) {
    return Duration.newBuilder().setSeconds(seconds).build();
  }

  /** Completes, and prints the whole answer or its error. */
  private void complete(CompleteRequest.Builder request) {
    attempt(() -> print(client.complete(request)));
  }

  /** Waits for the whole answer and prints it. */
  private static void print(CompletionStream answer) {
    Finished finished = answer.finished();
    line(
        "answer %s [%s] exchanges=%d",
        withoutPrefix(finished.getFinishReason(), "FINISH_REASON_"),
        finished.getMessage().getContent(),
        finished.getExchangeCount());
    printCalls(finished.getMessage());
    print(finished.getUsage());
  }

  private static void printCalls(Message message) {
    for (ToolCall call : message.getToolCallsList()) {
      line("call %s %s %s", call.getId(), call.getName(), call.getArguments());
    }
  }

  private void messages(String session) {
    for (Message message :
        client.getSession(session, SessionView.SESSION_VIEW_FULL).getMessagesList()) {
      String of = message.getToolCallId();
      line(
          "message %s [%s]%s%s",
          withoutPrefix(message.getRole(), "ROLE_"),
          message.getContent(),
          message.getPinned() ? " pinned" : "",
          of.isEmpty() ? "" : " of=" + of);
      printCalls(message);
    }
  }

  /** Prints all fields of a session but its messages. */
  private static void describe(Session session) {
    Output.print(session);
    line("prompt [%s]", session.getSystemPrompt());
    StringBuilder labels = new StringBuilder();
    new TreeMap<>(session.getLabelsMap())
        .forEach((key, value) -> labels.append(" ").append(key).append("=").append(value));
    line("labels%s", labels);
    ContextWindow window = session.getContextWindow();
    line(
        "window keep=%s max=%s tokens=%s",
        optional(window.hasKeepExchanges(), window.getKeepExchanges()),
        optional(window.hasMaxExchanges(), window.getMaxExchanges()),
        optional(window.hasMaxTokens(), window.getMaxTokens()));
    line(
        "rendering %s first=%s",
        withoutPrefix(window.getRendering(), "RENDERING_"),
        optional(window.hasKeepFirst(), window.getKeepFirst()));
    line(
        "compaction %s at=%s",
        withoutPrefix(window.getCompaction(), "COMPACTION_"),
        optional(window.hasCompactAt(), window.getCompactAt()));
    line("instruction [%s]", session.getCompactionInstruction());
    line("summary [%s] of=%d", session.getSummary(), session.getSummaryExchangeCount());
    line("compactions %d", session.getCompactions());
    String parent = session.getParentId();
    line(
        "settings idle=%ds model=%s parent=%s",
        session.getIdleTimeout().getSeconds(), session.getModel(), parent.isEmpty() ? "-" : parent);
    print(session.getUsage());
    line("create_time %s", word(session.hasCreateTime()));
    line("last_used_time %s", word(session.hasLastUsedTime()));
    line("expire_time %s", word(session.hasExpireTime()));
  }

  private static void print(Usage usage) {
    line(
        "usage prompt=%d cached=%s answer=%d",
        usage.getPromptTokens(),
        optional(usage.hasCachedTokens(), usage.getCachedTokens()),
        usage.getCompletionTokens());
  }

  /** Returns a value, or - if it is not set. */
  private static String optional(boolean isSet, Object value) {
    return isSet ? value.toString() : "-";
  }

  private static String word(boolean value) {
    return value ? "yes" : "no";
  }
}
