package dev.ruvd.conformance;

import static java.util.stream.Collectors.joining;

import dev.ruvd.client.RuvdException;
import dev.ruvd.v1.BatchResult;
import dev.ruvd.v1.ErrorReason;
import dev.ruvd.v1.Session;
import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Locale;
import java.util.stream.IntStream;

/** The lines that the programs print. */
final class Output {
  private static final PrintStream OUT =
      new PrintStream(new FileOutputStream(FileDescriptor.out), true, StandardCharsets.UTF_8);

  private Output() {}

  static void step(String name) {
    line("# %s", name);
  }

  static void line(String format, Object... values) {
    OUT.print(String.format(Locale.ROOT, format, values) + "\n");
  }

  /** Makes the call, and prints its error if it fails. */
  static void attempt(Runnable call) {
    try {
      call.run();
    } catch (RuvdException error) {
      print(error);
    }
  }

  static void print(RuvdException error) {
    line("error %s", details(error));
    for (var violation : error.violations()) {
      line("violation %s: %s", violation.getField(), violation.getDescription());
    }
  }

  /** Returns an error's code, its reason, and the delay of a retry. */
  static String details(RuvdException error) {
    String retry = error.retryAfter().map(it -> " retry=" + it.toMillis() + "ms").orElse("");
    return codeAndReason(error) + retry;
  }

  static void print(Session session) {
    line(
        "session %s messages=%d exchanges=%d",
        session.getId(), session.getMessageCount(), session.getExchangeCount());
  }

  static void print(BatchResult result) {
    line(
        "item %d %s",
        result.getIndex(),
        result.hasError()
            ? "error " + codeAndReason(RuvdException.of(result.getError()))
            : "[" + content(result) + "]");
  }

  static String content(BatchResult result) {
    return result.getCompletion().getFinished().getMessage().getContent();
  }

  static String codeAndReason(RuvdException error) {
    ErrorReason reason = error.errorReason();
    if (reason != ErrorReason.ERROR_REASON_UNSPECIFIED) {
      return error.code() + " " + withoutPrefix(reason, "ERROR_REASON_");
    }
    return error.code() + " " + (error.reason().isEmpty() ? "-" : error.reason());
  }

  static String withoutPrefix(Enum<?> value, String prefix) {
    return value.name().substring(prefix.length());
  }

  /** Returns {@code w1 w2 ...}. */
  static String words(int count) {
    return IntStream.rangeClosed(1, count).mapToObj(i -> "w" + i).collect(joining(" "));
  }
}
