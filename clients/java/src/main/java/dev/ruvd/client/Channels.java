package dev.ruvd.client;

import com.google.gson.Gson;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.reflect.TypeToken;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.net.URI;
import java.net.URISyntaxException;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** Where the daemon is, and how a channel to it is set up. */
final class Channels {
  private static final String DEFAULT_ADDRESS = "127.0.0.1:50051";
  private static final int MAX_METADATA_BYTES = 65_536;

  private Channels() {}

  /** RUVD_ADDRESS, or 127.0.0.1:50051. */
  static String defaultAddress() {
    String address = System.getenv("RUVD_ADDRESS");
    return address == null || address.isEmpty() ? DEFAULT_ADDRESS : address;
  }

  /** A channel that connects with its first call. */
  static ManagedChannel open(String address) {
    return Grpc.newChannelBuilder(target(address), InsecureChannelCredentials.create())
        // Sizes are the daemon's to limit: its refusal says why.
        .maxInboundMessageSize(Integer.MAX_VALUE)
        // An error that names many wrong fields is longer than gRPC's 8 KiB.
        .maxInboundMetadataSize(MAX_METADATA_BYTES)
        // The daemon is on this machine.
        .proxyDetector(server -> null)
        .disableServiceConfigLookUp()
        .defaultServiceConfig(serviceConfig())
        .enableRetry()
        .build();
  }

  private static String target(String address) {
    if (!address.startsWith("unix:")) {
      return "dns:///" + address;
    }
    try {
      return new URI("unix", address.substring("unix:".length()), null).toString();
    } catch (URISyntaxException wrong) {
      throw new IllegalArgumentException("not an address: " + address, wrong);
    }
  }

  private static Map<String, ?> serviceConfig() {
    try (Reader json =
        new InputStreamReader(
            Channels.class.getResourceAsStream("service_config.json"), StandardCharsets.UTF_8)) {
      Gson gson = new Gson();
      JsonObject config = gson.fromJson(json, JsonObject.class);
      for (JsonElement method : config.getAsJsonArray("methodConfig")) {
        JsonObject policy = method.getAsJsonObject().getAsJsonObject("retryPolicy");
        if (policy != null) {
          // Netty's word for a connection that is found closed when the call is written to it.
          policy.getAsJsonArray("retryableStatusCodes").add("UNKNOWN");
        }
      }
      return gson.fromJson(config, new TypeToken<Map<String, Object>>() {}.getType());
    } catch (IOException broken) {
      throw new UncheckedIOException(broken);
    }
  }
}
