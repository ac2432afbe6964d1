package dev.ruvd.conformance;

import static dev.ruvd.client.RuvdClient.request;
import static dev.ruvd.conformance.Output.attempt;
import static dev.ruvd.conformance.Output.line;
import static dev.ruvd.conformance.Output.step;
import static dev.ruvd.conformance.Output.withoutPrefix;
import static dev.ruvd.conformance.Output.words;

import dev.ruvd.client.CompletionStream;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.client.RuvdException;
import dev.ruvd.v1.BatchCompleteRequest;
import dev.ruvd.v1.BatchResult;
import dev.ruvd.v1.CompleteRequest;
import dev.ruvd.v1.CompletionEvent;
import dev.ruvd.v1.CreateSessionRequest;
import dev.ruvd.v1.ErrorReason;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.ForkSessionRequest;
import dev.ruvd.v1.IfBusy;
import dev.ruvd.v1.ListSessionsRequest;
import dev.ruvd.v1.Message;
import dev.ruvd.v1.OnDisconnect;
import dev.ruvd.v1.Role;
import dev.ruvd.v1.Session;
import dev.ruvd.v1.SessionView;
import java.io.IOException;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Comparator;
import java.util.Iterator;
import java.util.List;

/** The program of {@code clients/CONFORMANCE.md}, whose output is the same in every language. */
public final class Conformance {
  private static final Duration POLL = Duration.ofMillis(50);
  private static final Duration POLL_TIMEOUT = Duration.ofSeconds(60);

  // A daemon may take long to start on a busy machine.
  private static final Duration RECONNECT_AFTER_RESTART = Duration.ofSeconds(60);

  private final RuvdClient client;

  private Conformance(RuvdClient client) {
    this.client = client;
  }

  /**
   * Runs one of the programs.
   *
   * @param arguments {@code scenario}, {@code calls}, {@code restart}, {@code failover}, or {@code
   *     identity} and its WAY
   */
  public static void main(String[] arguments) throws IOException, InterruptedException {
    if (arguments.length == 2 && arguments[0].equals("identity")) {
      Identity.run(arguments[1]);
      return;
    }
    if (arguments.length == 1 && arguments[0].equals("failover")) {
      Failover.run();
      return;
    }
    String program = arguments.length == 1 ? arguments[0] : "";
    var settings = RuvdClient.builder();
    if (program.equals("restart")) {
      settings.reconnect(RECONNECT_AFTER_RESTART);
    }
    try (RuvdClient client = settings.build()) {
      Conformance conformance = new Conformance(client);
      switch (program) {
        case "scenario" -> conformance.scenario();
        case "calls" -> new Calls(client).run();
        case "restart" -> conformance.restart();
        default ->
            throw new IllegalArgumentException(
                "usage: scenario|calls|restart|failover|identity WAY");
      }
    }
  }

  private void scenario() throws InterruptedException {
    sessions();
    stream();
    unicode();
    requestId();
    cuts();
    cancel();
    busy();
    errors();
    tooLarge();
    fork();
    longHistory();
    batch();
    deadline();
    models();
    nobodyThere();
  }

  private void sessions() {
    step("sessions");
    Output.print(
        client.createSession(
            CreateSessionRequest.newBuilder()
                .setSessionId("alpha")
                .setSystemPrompt("Be brief.")
                .putLabels("team", "a")
                .build()));
    complete(request("one two three").setSessionId("alpha"));
    complete(request("four").setSessionId("alpha"));
    Session alpha = client.getSession("alpha", SessionView.SESSION_VIEW_FULL);
    Output.print(alpha);
    for (Message message : alpha.getMessagesList()) {
      line("message %s [%s]", withoutPrefix(message.getRole(), "ROLE_"), message.getContent());
    }
    client
        .listSessions(ListSessionsRequest.getDefaultInstance())
        .forEach(session -> line("listed %s", session.getId()));
    client.endSession("alpha");
    line("ended");
    get("alpha");
    attempt(() -> client.endSession("alpha"));
  }

  private void stream() {
    step("stream");
    events(client, request("alpha beta gamma"));
  }

  private void unicode() {
    step("unicode");
    complete(request("Grüße aus Köln"));
    complete(request("世界 👩‍🚀 ok"));
    complete(request("नमस्ते दुनिया"));
    complete(request("e\u0301 A\u030A"));
  }

  private void requestId() {
    step("request id");
    complete(request("once only").setSessionId("beta").setRequestId("r-1"));
    complete(request("once only").setSessionId("beta").setRequestId("r-1"));
    complete(request("other").setSessionId("beta").setRequestId("r-1"));
    get("beta");
  }

  private void cuts() {
    step("cut after the third event");
    try (RuvdClient cut = at("RUVD_CUT_THIRD")) {
      events(cut, request("a b c d e f").setSessionId("gamma"));
      get(cut, "gamma");
    }
    step("cut always");
    try (RuvdClient cut = at("RUVD_CUT_ALWAYS")) {
      complete(cut, request("a b c d e f g h").setSessionId("delta"));
      get(cut, "delta");
    }
    step("cut before the first event");
    try (RuvdClient cut = at("RUVD_CUT_FIRST")) {
      complete(cut, request("x y z").setSessionId("epsilon"));
      get("epsilon");
    }
  }

  private void cancel() throws InterruptedException {
    step("cancel");
    create("zeta");
    try (CompletionStream answer = client.complete(request(words(200)).setSessionId("zeta"))) {
      Iterator<String> texts = answer.iterator();
      for (int i = 0; i < 3; i++) {
        line("text [%s]", texts.next());
      }
    }
    line(waitUntilIdle("zeta") ? "cancelled" : "still running");
    get("zeta");
  }

  private void busy() {
    step("busy");
    create("eta");
    try (CompletionStream first = client.complete(request(words(200)).setSessionId("eta"))) {
      first.iterator().next();
      complete(request("no").setSessionId("eta").setIfBusy(IfBusy.IF_BUSY_REJECT));
      complete(request("mine").setSessionId("eta").setIfBusy(IfBusy.IF_BUSY_INTERRUPT));
      attempt(first::finished);
    }
    get("eta");
  }

  private void errors() {
    step("errors");
    for (ErrorReason reason : ErrorReason.values()) {
      if (reason != ErrorReason.ERROR_REASON_UNSPECIFIED && reason != ErrorReason.UNRECOGNIZED) {
        String name = withoutPrefix(reason, "ERROR_REASON_");
        line("fault %s", name);
        complete(request("!fault " + name));
      }
    }
    step("error after text");
    complete(request("!fault ENGINE_UNAVAILABLE one two").setSessionId("theta"));
    get("theta");
    step("wrong fields");
    CompleteRequest.Builder invalid = request("hi").setSessionId("no spaces");
    invalid.getOptionsBuilder().setTemperature(3);
    complete(invalid);
  }

  private void tooLarge() {
    step("too large");
    complete(request("x".repeat(5 << 20)));
  }

  private void longHistory() {
    step("long history");
    var history = CreateSessionRequest.newBuilder().setSessionId("mu");
    for (int number = 1; number <= 1000; number++) {
      history.addMessagesBuilder().setRole(Role.ROLE_USER).setContent("m" + number);
    }
    client.createSession(history.build());
    complete(request("end").setSessionId("mu"));
    Session session = client.getSession("mu", SessionView.SESSION_VIEW_FULL);
    Output.print(session);
    int count = session.getMessagesCount();
    String first = session.getMessages(0).getContent();
    line("history %d [%s] [%s]", count, first, session.getMessages(count - 1).getContent());
  }

  private void fork() {
    step("fork");
    complete(request("first").setSessionId("iota"));
    complete(request("second").setSessionId("iota"));
    Output.print(
        client.forkSession(
            ForkSessionRequest.newBuilder()
                .setSessionId("iota")
                .setExchangeCount(1)
                .setNewSessionId("iota-fork")
                .build()));
    complete(request("third").setSessionId("iota-fork"));
    get("iota");
    get("iota-fork");
  }

  private void batch() {
    step("batch");
    var items =
        BatchCompleteRequest.newBuilder()
            .addItems(request("b0"))
            .addItems(request("!fault ENGINE_REJECTED"))
            .addItems(request("b2").setSessionId("kappa"))
            .addItems(request("b3").setSessionId("kappa"));
    List<BatchResult> results = new ArrayList<>();
    var summary = client.batch(items, results::add);
    results.sort(Comparator.comparing(BatchResult::getIndex));
    results.forEach(Output::print);
    line("summary succeeded=%d failed=%d", summary.getSucceeded(), summary.getFailed());
    get("kappa");
  }

  private void deadline() throws InterruptedException {
    step("deadline");
    create("lambda");
    var request = request(words(200)).setSessionId("lambda");
    try (CompletionStream answer = client.complete(request, Duration.ofMillis(400))) {
      answer.finished();
    } catch (RuvdException error) {
      line("error %s", error.code());
    }
    line(waitUntilIdle("lambda") ? "over" : "still running");
    get("lambda");
  }

  private void models() {
    step("models");
    var models = client.listModels();
    models.getModelsList().forEach(name -> line("model %s", name));
    line("default %s", models.getDefaultModel());
  }

  private void nobodyThere() {
    step("nobody there");
    try (RuvdClient nobody = at("RUVD_NOBODY")) {
      attempt(nobody::listModels);
      attempt(() -> nobody.complete(request("hi"), Duration.ofMillis(500)).finished());
    }
  }

  private void restart() {
    StringBuilder text = new StringBuilder();
    var request =
        request(words(40))
            .setSessionId("omega")
            .setOnDisconnect(OnDisconnect.ON_DISCONNECT_CONTINUE);
    attempt(
        () -> {
          for (String piece : client.complete(request)) {
            if (text.isEmpty()) {
              line("ready");
            }
            text.append(piece);
          }
          line("text [%s]", text);
        });
    get("omega");
  }

  private void complete(CompleteRequest.Builder request) {
    complete(client, request);
  }

  private void complete(RuvdClient client, CompleteRequest.Builder request) {
    attempt(
        () -> {
          CompletionStream answer = client.complete(request);
          for (String text : answer) {
            line("text [%s]", text);
          }
          Finished finished = answer.finished();
          line(
              "finished %s sequence=%d exchanges=%d",
              withoutPrefix(finished.getFinishReason(), "FINISH_REASON_"),
              answer.lastSequence(),
              finished.getExchangeCount());
        });
  }

  private void events(RuvdClient client, CompleteRequest.Builder request) {
    attempt(() -> client.complete(request).events().forEachRemaining(this::print));
  }

  private void create(String id) {
    client.createSession(CreateSessionRequest.newBuilder().setSessionId(id).build());
  }

  private void get(String id) {
    get(client, id);
  }

  private void get(RuvdClient client, String id) {
    attempt(() -> Output.print(client.getSession(id)));
  }

  private boolean waitUntilIdle(String id) throws InterruptedException {
    long deadline = System.nanoTime() + POLL_TIMEOUT.toNanos();
    while (!client.getSession(id).getRunningCompletionId().isEmpty()) {
      if (System.nanoTime() > deadline) {
        return false;
      }
      Thread.sleep(POLL.toMillis());
    }
    return true;
  }

  private void print(CompletionEvent event) {
    String details =
        switch (event.getEventCase()) {
          case STARTED -> "started";
          case DELTA -> "delta [" + event.getDelta().getText() + "]";
          case FINISHED ->
              "finished "
                  + withoutPrefix(event.getFinished().getFinishReason(), "FINISH_REASON_")
                  + " ["
                  + event.getFinished().getMessage().getContent()
                  + "]";
          default -> throw new IllegalArgumentException("an unknown event");
        };
    line("event %d %s", event.getSequence(), details);
  }

  private static RuvdClient at(String variable) {
    return new RuvdClient(System.getenv(variable));
  }
}
