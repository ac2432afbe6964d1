/**
 * The caller's trace goes out with every call, where OpenTelemetry's API is installed.
 *
 * It is required rather than imported: an import that may fail would have to be awaited, at the top of
 * a module that some load with `require`. The API keeps its globals across both forms.
 */

import { createRequire } from "node:module";

import { Metadata } from "@grpc/grpc-js";

type Api = Pick<typeof import("@opentelemetry/api"), "context" | "propagation">;

const api = installed();

/** The metadata of a call that is made now: `traceparent`, by the global propagator. */
export function traced(): Metadata {
  const metadata = new Metadata();
  api?.propagation.inject(api.context.active(), metadata, {
    set: (carrier, key, value) => {
      carrier.set(key, value);
    },
  });
  return metadata;
}

function installed(): Api | undefined {
  try {
    return createRequire(import.meta.url)("@opentelemetry/api") as Api;
  } catch {
    return undefined;
  }
}
