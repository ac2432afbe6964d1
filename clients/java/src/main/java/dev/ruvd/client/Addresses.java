package dev.ruvd.client;

import io.grpc.NameResolverRegistry;
import java.net.InetAddress;
import java.net.URI;
import java.net.URISyntaxException;
import java.net.UnknownHostException;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import org.jspecify.annotations.Nullable;

/** The forms of the client's address: one entry, or a list of them with commas. */
final class Addresses {
  private static final Pattern HOST_AND_PORT =
      Pattern.compile("([^\\[\\]:/]+|\\[[^\\[\\]]+]):(\\d{1,5})");
  private static final int MAX_PORT = 65_535;

  private Addresses() {}

  /**
   * Returns the entries of a list. Throws IllegalArgumentException, which names the entry that is
   * wrong. An address without a comma is not checked here.
   */
  static List<String> split(String list) {
    if (!list.contains(",")) {
      return List.of(list);
    }
    List<String> entries = new ArrayList<>();
    for (String part : list.split(",", -1)) {
      String entry = part.strip();
      entries.add(entry);
      String problem = problem(entry);
      if (problem != null) {
        throw new IllegalArgumentException(
            "entry " + entries.size() + " of the addresses, \"" + entry + "\", " + problem);
      }
    }
    return entries;
  }

  /** Returns what is wrong with an entry, or null. */
  private static @Nullable String problem(String entry) {
    if (entry.isEmpty()) {
      return "is empty";
    }
    if (entry.chars().anyMatch(Character::isWhitespace)) {
      return "has a space inside";
    }
    if (isSocket(entry)) {
      return entry.matches("unix:/*") ? "has no path" : null;
    }
    if (hasScheme(entry)) {
      String scheme = entry.substring(0, entry.indexOf(':'));
      boolean isKnown =
          NameResolverRegistry.getDefaultRegistry().getProviderForScheme(scheme) != null;
      return isKnown ? null : "has an unknown scheme";
    }
    Matcher parts = HOST_AND_PORT.matcher(entry);
    int port = parts.matches() ? Integer.parseInt(parts.group(2)) : 0;
    return port >= 1 && port <= MAX_PORT
        ? null
        : "is neither host:port, with a port from 1 to 65535, nor unix:PATH";
  }

  /** Returns gRPC's name of an entry. */
  static String target(String entry) {
    if (isSocket(entry) || hasScheme(entry)) {
      return entry;
    }
    try {
      return new URI("dns", "", "/" + entry, null).toString(); // escapes the brackets of IPv6
    } catch (URISyntaxException wrong) {
      throw new IllegalArgumentException(entry + " is neither host:port nor unix:PATH", wrong);
    }
  }

  static boolean isSocket(String entry) {
    return entry.startsWith("unix:");
  }

  private static boolean hasScheme(String entry) {
    return entry.contains("://");
  }

  /** Tells whether an entry may stand for several daemons. */
  static boolean isName(String entry) {
    return !isSocket(entry) && address(entry) == null;
  }

  /** Tells whether an entry is surely on this machine. */
  static boolean isLocal(String entry) {
    InetAddress address = address(entry);
    return isSocket(entry)
        || (address == null
            ? host(entry).equalsIgnoreCase("localhost")
            : address.isLoopbackAddress());
  }

  private static String host(String entry) {
    return entry.replaceFirst(":\\d+$", "");
  }

  /** Returns the entry's IP address, or null if it has a name. No name is looked up. */
  private static @Nullable InetAddress address(String entry) {
    String host = host(entry);
    if (!host.matches("\\d+(\\.\\d+){3}|\\[[0-9a-fA-F:.]+]")) {
      return null;
    }
    try {
      return InetAddress.getByName(host);
    } catch (UnknownHostException noAddress) {
      return null;
    }
  }
}
