package dev.ruvd.client;

import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.channels.ClosedChannelException;
import org.junit.jupiter.api.Test;

/** An error tells whether its call is repeated at another address. */
class RepeatedCallTest {
  private static RuvdException error(Status status) {
    return new RuvdException(new StatusRuntimeException(status));
  }

  @Test
  void aLostConnectionIsRepeated() {
    assertTrue(RepeatedCall.failsOver(error(Status.UNAVAILABLE), false));
    // Netty's status of a connection that was closed while a call began.
    var closed = Status.UNKNOWN.withCause(new ClosedChannelException());
    assertTrue(RepeatedCall.failsOver(error(closed), false));
  }

  @Test
  void otherErrorsAreFinal() {
    assertFalse(RepeatedCall.failsOver(error(Status.UNKNOWN), true));
    assertFalse(RepeatedCall.failsOver(error(Status.DEADLINE_EXCEEDED), true));
    assertFalse(RepeatedCall.failsOver(error(Status.INTERNAL), true));
  }
}
