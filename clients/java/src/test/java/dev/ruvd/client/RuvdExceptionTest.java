package dev.ruvd.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertNotNull;

import com.google.protobuf.Any;
import com.google.rpc.ErrorInfo;
import com.google.rpc.Status;
import dev.ruvd.v1.ErrorReason;
import io.grpc.Status.Code;
import io.grpc.StatusRuntimeException;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.TreeSet;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** An error has the reason that the daemon has sent. */
class RuvdExceptionTest {
  private static final Pattern ROW = Pattern.compile("(?m)^\\| `([A-Z_]+)`");

  private static RuvdException error(String domain, String reason) {
    var info = ErrorInfo.newBuilder().setDomain(domain).setReason(reason).build();
    return RuvdException.of(
        Status.newBuilder().setCode(Code.ABORTED.value()).addDetails(Any.pack(info)).build());
  }

  /** Those that only administrators can get are not among them. */
  @Test
  void theReasonsOfTheEnumAreThoseOfTheDocuments() throws IOException {
    String page = Files.readString(Path.of("../../docs/errors.md"));
    Set<String> listed =
        ROW.matcher(page)
            .results()
            .map((MatchResult row) -> row.group(1))
            .filter(reason -> !reason.startsWith("BACKUP_"))
            .collect(Collectors.toCollection(TreeSet::new));
    Set<String> known =
        Stream.of(ErrorReason.values())
            .filter(reason -> reason != ErrorReason.ERROR_REASON_UNSPECIFIED)
            .filter(reason -> reason != ErrorReason.UNRECOGNIZED)
            .map(reason -> reason.name().substring("ERROR_REASON_".length()))
            .collect(Collectors.toCollection(TreeSet::new));
    assertEquals(listed, known);
    for (String reason : listed) {
      assertNotEquals(ErrorReason.UNRECOGNIZED, error("ruvd", reason).errorReason(), reason);
    }
  }

  @Test
  void aReasonOfALaterDaemonIsKept() {
    assertEquals("MOON_IS_FULL", error("ruvd", "MOON_IS_FULL").reason());
    assertEquals(ErrorReason.UNRECOGNIZED, error("ruvd", "MOON_IS_FULL").errorReason());
  }

  @Test
  void aReasonOfAnotherDomainIsNotRuvds() {
    assertEquals("", error("example.com", "SESSION_BUSY").reason());
    assertEquals(
        ErrorReason.ERROR_REASON_UNSPECIFIED, error("example.com", "SESSION_BUSY").errorReason());
  }

  @Test
  void anErrorHasGrpcsAsItsCause() {
    try (var client = new RuvdClient("127.0.0.1:1")) {
      client.endSession("ada");
    } catch (RuvdException failed) {
      assertInstanceOf(StatusRuntimeException.class, failed.getCause());
      assertNotNull(failed.getCause().getCause(), "the connection's error");
      return;
    }
    throw new AssertionError("there is no daemon");
  }
}
