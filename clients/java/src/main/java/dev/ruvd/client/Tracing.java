package dev.ruvd.client;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;

/** The current span as headers, where OpenTelemetry's API, an optional dependency, is installed. */
final class Tracing {
  private static final boolean INSTALLED = isInstalled();

  private Tracing() {}

  /** Empty where OpenTelemetry is not installed or no span is current. */
  static Metadata headers() {
    Metadata headers = new Metadata();
    if (INSTALLED) {
      Propagation.inject(headers);
    }
    return headers;
  }

  private static boolean isInstalled() {
    try {
      Class.forName("io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator");
      return true;
    } catch (ClassNotFoundException absent) {
      return false;
    }
  }

  /** Loaded only where it works. The global propagator does nothing until an SDK has set it. */
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
