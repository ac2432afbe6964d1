package dev.ruvd.client;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;

/** The current span as headers, where OpenTelemetry's API, an optional dependency, is installed. */
final class Tracing {
  private Tracing() {}

  static Metadata headers() {
    Metadata headers = new Metadata();
    try {
      Propagation.inject(headers);
    } catch (NoClassDefFoundError notInstalled) {
      // There is no trace then.
    }
    return headers;
  }

  /** Loaded when it is used. The global propagator does nothing until an SDK has set it. */
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
