package dev.ruvd.client;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.file.Path;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** A client of several addresses is created, or the entry that is wrong is named. */
class AddressesTest {
  @Test
  void aListHasAllFormsOfAddresses() {
    assertEquals(
        List.of("a:7000", "b.example.org:1", "[::1]:7000", "127.0.0.1:65535", "unix:/r.sock"),
        Addresses.split(" a:7000,b.example.org:1 ,[::1]:7000 , 127.0.0.1:65535,unix:/r.sock"));
    assertEquals(
        List.of("unix:///r.sock", "dns:///c:1"), Addresses.split("unix:///r.sock,dns:///c:1"));
  }

  @Test
  void anAddressWithoutACommaIsPassedOnAsItIs() {
    assertEquals(List.of(" odd "), Addresses.split(" odd "));
  }

  @Test
  void theWrongEntryIsNamed() {
    assertWrong("a:1,", "entry 2 of the addresses, \"\", is empty");
    assertWrong("a:1, ,b:1", "entry 2 of the addresses, \"\", is empty");
    assertWrong("a:1,b", "entry 2 of the addresses, \"b\", is neither");
    assertWrong("a:70000,b:1", "entry 1 of the addresses, \"a:70000\", is neither");
    assertWrong("a:1,b:0", "\"b:0\", is neither");
    assertWrong("a:1,:7", "\":7\", is neither");
    assertWrong("a:1,::1:7", "\"::1:7\", is neither");
    assertWrong("a:1,b:http", "\"b:http\", is neither");
    assertWrong("a:1,two words:1", "has a space inside");
    assertWrong("a:1,unix:", "has no path");
    assertWrong("a:1,unix://", "has no path");
    assertWrong("a:1,nothing://b:1", "has an unknown scheme");
  }

  private static void assertWrong(String list, String message) {
    var wrong =
        assertThrows(
            IllegalArgumentException.class, () -> RuvdClient.builder().address(list).build(), list);
    assertTrue(wrong.getMessage().contains(message), wrong.getMessage());
  }

  @Test
  void oneAddressOfADaemonIsNoName() {
    Stream.of("127.0.0.1:1", "[::1]:1", "unix:/r.sock")
        .forEach(one -> assertFalse(Connections.areSeveral(List.of(one)), one));
    Stream.of("localhost:1", "ruvd.prod.svc:1", "dns:///ruvd:1")
        .forEach(one -> assertTrue(Connections.areSeveral(List.of(one)), one));
    assertTrue(Connections.areSeveral(List.of("127.0.0.1:1", "127.0.0.1:2")));
  }

  @Test
  void aTokenIsForEachEntry() {
    String local = "127.0.0.1:1,unix:/r.sock,localhost:1";
    RuvdClient.builder().address(local).token("secret").build().close();
    String remote = local + ",192.0.2.1:1";
    var wrong =
        assertThrows(
            IllegalArgumentException.class,
            () -> RuvdClient.builder().address(remote).token("secret").build());
    assertTrue(wrong.getMessage().contains("192.0.2.1:1"), wrong.getMessage());
    RuvdClient.builder().address(remote).token("secret").tls().build().close();
    assertThrows(
        IllegalArgumentException.class,
        () -> RuvdClient.builder().address(remote).caFile(Path.of("/nowhere")).build());
  }

  @Test
  void readsAreRepeatedByTheServiceConfig() {
    assertTrue(RetryPolicy.of("GetSession").isRead());
    assertEquals(10, RetryPolicy.of("GetSession").timeout().toSeconds());
    assertFalse(RetryPolicy.of("CreateSession").isRead());
    assertFalse(RetryPolicy.of("AppendMessages").isRead());
    assertEquals(4, RetryPolicy.rounds());
    assertEquals(
        List.of(100L, 200L, 400L, 800L, 1000L),
        IntStream.rangeClosed(1, 5).mapToObj(it -> RetryPolicy.pauseAfter(it).toMillis()).toList());
  }
}
