package dev.ruvd.client;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;

/** The current trace context as headers, if OpenTelemetry's API (optional) is installed. */
final class Tracing {
  private Tracing() {}

  static Metadata headers() {
    Metadata headers = new Metadata();
    try {
      Propagation.inject(headers);
    } catch (NoClassDefFoundError notInstalled) {
      // Without the API there is no trace context.
    }
    return headers;
  }

  /** Loaded at its first use. The global propagator would have no effect without an SDK. */
  private static final class Propagation {
    static void inject(Metadata headers) {
      W3CTraceContextPropagator.getInstance()
          .inject(
              Context.current(),
              headers,
              (to, name, value) ->
                  to.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
    }
  }
}
