package dev.ruvd.conformance;

import static dev.ruvd.conformance.Output.line;
import static dev.ruvd.conformance.Output.withoutPrefix;

import com.google.protobuf.Duration;
import dev.ruvd.client.CompletionStream;
import dev.ruvd.client.RuvdClient;
import dev.ruvd.v1.*;
import java.util.TreeMap;

/** The lines of the program {@code calls}. */
final class CallOutput {
  private CallOutput() {}

  static void messages(RuvdClient client, String session) {
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

  /** Waits for the whole answer and prints it. */
  static void print(CompletionStream answer) {
    Finished finished = answer.finished();
    line(
        "answer %s [%s] exchanges=%d",
        withoutPrefix(finished.getFinishReason(), "FINISH_REASON_"),
        finished.getMessage().getContent(),
        finished.getExchangeCount());
    printCalls(finished.getMessage());
    print(finished.getUsage());
  }

  static void printCalls(Message message) {
    for (ToolCall call : message.getToolCallsList()) {
      line("call %s %s %s", call.getId(), call.getName(), call.getArguments());
    }
  }

  /** Prints all fields of a session but its messages. */
  static void describe(Session session) {
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

  static void print(Usage usage) {
    line(
        "usage prompt=%d cached=%s answer=%d",
        usage.getPromptTokens(),
        optional(usage.hasCachedTokens(), usage.getCachedTokens()),
        usage.getCompletionTokens());
  }

  /** Returns a value, or - if it is not set. */
  static String optional(boolean isSet, Object value) {
    return isSet ? value.toString() : "-";
  }

  static String word(boolean value) {
    return value ? "yes" : "no";
  }

  static Duration seconds(long seconds) {
    return Duration.newBuilder().setSeconds(seconds).build();
  }
}
