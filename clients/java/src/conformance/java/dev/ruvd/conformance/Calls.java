package dev.ruvd.conformance;

import static dev.ruvd.client.RuvdClient.request;
import static dev.ruvd.conformance.CallOutput.optional;
import static dev.ruvd.conformance.CallOutput.seconds;
import static dev.ruvd.conformance.CallOutput.word;
import static dev.ruvd.conformance.Output.attempt;
import static dev.ruvd.conformance.Output.line;
import static dev.ruvd.conformance.Output.step;
import static dev.ruvd.conformance.Output.withoutPrefix;
import static dev.ruvd.conformance.Output.words;

import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import dev.ruvd.client.CompletionStream;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.v1.*;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.List;
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
    SessionCalls sessions = new SessionCalls(client);
    sessions.run();
    complete();
    tools();
    formats();
    resume();
    cancel();
    batch();
    sessions.end();
    server();
    metrics();
    try (RuvdClient nobody = new RuvdClient(System.getenv("RUVD_NOBODY"))) {
      line("health %s", word(nobody.health()));
    }
  }

  private void complete() {
    step("complete");
    CompletionStream answer = client.complete(request("four five six").setSessionId("alpha"));
    CallOutput.print(answer);
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
    CallOutput.print(answer);
    var results = CompleteRequest.newBuilder().setSessionId("delta").setOptions(options);
    for (ToolCall call : answer.finished().getMessage().getToolCallsList()) {
      results.addMessages(RuvdClient.toolResult(call, "12 degrees"));
    }
    complete(results);
    var none = ToolChoice.newBuilder().setMode(ToolChoiceMode.TOOL_CHOICE_MODE_NONE);
    complete(
        request("weather").setSessionId("delta").setOptions(options.clone().setToolChoice(none)));
    CallOutput.messages(client, "delta");
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
    CallOutput.print(answer);
    String id = answer.started().orElseThrow().getCompletionId();
    var byId = ResumeCompletionRequest.newBuilder().setCompletionId(id);
    for (var request :
        List.of(
            byId,
            ResumeCompletionRequest.newBuilder().setSessionId("epsilon").setRequestId("resume-1"),
            byId.clone().setAfterSequence(answer.lastSequence() - 1),
            ResumeCompletionRequest.newBuilder().setCompletionId("nobody"))) {
      attempt(() -> CallOutput.print(client.resumeCompletion(request.build())));
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

  /** Completes, and prints the whole answer or its error. */
  private void complete(CompleteRequest.Builder request) {
    attempt(() -> CallOutput.print(client.complete(request)));
  }
}
