/** A gRPC server that answers as a test says: for what the real daemon does only when it dies. */

import { Metadata, Server, ServerCredentials, status } from "@grpc/grpc-js";
import type { ServerWritableStream, UntypedServiceImplementation } from "@grpc/grpc-js";

import { ErrorInfo } from "../src/v1/google/rpc/error_details.js";
import type { Any } from "../src/v1/google/protobuf/any.js";
import { Status } from "../src/v1/google/rpc/status.js";
import { SessionServiceService } from "../src/v1/ruvd/v1/session_service.js";
import type {
  CancelCompletionRequest,
  CompleteRequest,
  CompletionEvent,
  CompleteResponse,
  ResumeCompletionRequest,
} from "../src/v1/ruvd/v1/session_service.js";

/** What one call sends: events, then how it ends. Without `end` it stays open. */
export interface Script {
  events?: CompletionEvent[];
  end?: "ok" | { code: status; reason?: string; domain?: string };
}

/** A call that came: its method, its request, and the `traceparent` that came with it. */
export type Received = { traceparent: string } & (
  | { method: "Complete"; request: CompleteRequest }
  | { method: "ResumeCompletion"; request: ResumeCompletionRequest }
  | { method: "CancelCompletion"; request: CancelCompletionRequest }
);

/** A daemon that streams one script after the other, whatever is asked. */
export class ScriptedDaemon {
  readonly received: Received[] = [];
  /** Streams whose caller has left. */
  left = 0;
  readonly #server = new Server();
  readonly #scripts: Script[];
  address = "";

  constructor(...scripts: Script[]) {
    this.#scripts = scripts;
  }

  /** Listen at `address`, by default a free port; `this.address` says which. */
  async listening(address = "127.0.0.1:0"): Promise<this> {
    const implementation: UntypedServiceImplementation = {
      complete: (call: ServerWritableStream<CompleteRequest, CompleteResponse>) => {
        const traceparent = traceOf(call.metadata);
        this.received.push({ method: "Complete", request: call.request, traceparent });
        this.#play(call);
      },
      resumeCompletion: (call: ServerWritableStream<ResumeCompletionRequest, CompleteResponse>) => {
        const traceparent = traceOf(call.metadata);
        this.received.push({ method: "ResumeCompletion", request: call.request, traceparent });
        this.#play(call);
      },
      cancelCompletion: (
        call: { request: CancelCompletionRequest; metadata: Metadata },
        answer: (error: null, response: object) => void,
      ) => {
        const traceparent = traceOf(call.metadata);
        this.received.push({ method: "CancelCompletion", request: call.request, traceparent });
        answer(null, {});
      },
    };
    this.#server.addService(SessionServiceService, implementation);
    const port = await new Promise<number>((resolve, reject) => {
      this.#server.bindAsync(address, ServerCredentials.createInsecure(), (error, bound) => {
        if (error) reject(error);
        else resolve(bound);
      });
    });
    this.address = address.startsWith("unix:") ? address : `127.0.0.1:${String(port)}`;
    return this;
  }

  /** The names of the calls that came. */
  get calls(): string[] {
    return this.received.map(({ method }) => method);
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  #play<Request>(call: ServerWritableStream<Request, CompleteResponse>): void {
    call.on("cancelled", () => this.left++);
    const { events = [], end } = this.#scripts.shift() ?? {
      end: { code: status.INTERNAL, reason: "NO_SCRIPT" },
    };
    for (const event of events) call.write({ event });
    if (end === "ok") call.end();
    else if (end) call.emit("error", errorOf(end));
  }
}

/** An error as the daemon sends it; without a reason, as whatever is in between does. */
function errorOf({ code, reason, domain = "ruvd" }: Exclude<Script["end"], "ok" | undefined>) {
  const metadata = new Metadata();
  if (reason !== undefined) {
    const value = ErrorInfo.encode(ErrorInfo.fromPartial({ reason, domain })).finish();
    const details: Any[] = [
      { typeUrl: "type.googleapis.com/google.rpc.ErrorInfo", value: Buffer.from(value) },
    ];
    const raw = Status.encode({ code, message: "as scripted", details }).finish();
    metadata.set("grpc-status-details-bin", Buffer.from(raw));
  }
  return Object.assign(new Error("as scripted"), { code, details: "as scripted", metadata });
}

function traceOf(metadata: Metadata): string {
  return metadata.get("traceparent").map(String).join();
}
