package dev.ruvd.client;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.util.Map;

/** The service config of all clients, which is a file of the jar. */
final class ServiceConfig {
  private ServiceConfig() {}

  static Map<String, Object> read() {
    try (Reader json =
        new InputStreamReader(
            ServiceConfig.class.getResourceAsStream("service_config.json"),
            StandardCharsets.UTF_8)) {
      return new Gson().fromJson(json, new TypeToken<Map<String, Object>>() {});
    } catch (IOException failure) {
      throw new UncheckedIOException(failure);
    }
  }
}
