package dev.ruvd.client;

import io.grpc.Metadata;
import io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator;
import io.opentelemetry.context.Context;

/**
 * The trace that the caller is in, as headers of its calls.
 *
 * <p>OpenTelemetry's API is an optional dependency: {@link Propagation} is loaded only where it is
 * on the class path. The W3C propagator is used itself and not the global one, which does nothing
 * until an SDK has set it.
 */
final class Tracing {
  private static final boolean INSTALLED = installed();

  private Tracing() {}

  /** Empty where OpenTelemetry is not installed or no span is current. */
  static Metadata headers() {
    Metadata headers = new Metadata();
    if (INSTALLED) {
      Propagation.inject(headers);
    }
    return headers;
  }

  private static boolean installed() {
    try {
      Class.forName("io.opentelemetry.api.trace.propagation.W3CTraceContextPropagator");
      return true;
    } catch (ClassNotFoundException absent) {
      return false;
    }
  }

  private static final class Propagation {
    static void inject(Metadata headers) {
      W3CTraceContextPropagator.getInstance()
          .inject(
              Context.current(),
              headers,
              (carrier, name, value) ->
                  carrier.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value));
    }
  }
}
