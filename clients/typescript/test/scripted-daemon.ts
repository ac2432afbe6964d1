/** A gRPC server that follows a script, for behaviour that a real daemon shows only if it is killed. */

import { EventEmitter, once } from "node:events";

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

/** The script of one call: its events and its end. Without `end` it stays open. */
export interface Script {
  events?: CompletionEvent[];
  end?: "ok" | { code: status; reason?: string; domain?: string };
}

/** The headers of a call that the tests look at. */
interface Headers {
  traceparent: string;
  authorization: string;
  session: string;
  tenant: string;
}

/** A received call: its method, its request and its headers. */
export type Received = Headers &
  (
    | { method: "Complete"; request: CompleteRequest }
    | { method: "ResumeCompletion"; request: ResumeCompletionRequest }
    | { method: "CancelCompletion"; request: CancelCompletionRequest }
  );

/** A daemon that answers each streaming call with the next script. */
export class ScriptedDaemon {
  readonly received: Received[] = [];
  /** The number of streams that the client has cancelled. */
  cancelled = 0;
  readonly #changes = new EventEmitter();
  readonly #server = new Server();
  readonly #scripts: Script[];
  address = "";

  constructor(...scripts: Script[]) {
    this.#scripts = scripts;
  }

  /** Listens at `address`, by default at a free port, and sets `this.address`. */
  async listen(address = "127.0.0.1:0"): Promise<this> {
    const implementation: UntypedServiceImplementation = {
      complete: (call: ServerWritableStream<CompleteRequest, CompleteResponse>) => {
        this.#record({ method: "Complete", request: call.request, ...headers(call.metadata) });
        this.#play(call);
      },
      resumeCompletion: (call: ServerWritableStream<ResumeCompletionRequest, CompleteResponse>) => {
        this.#record({
          method: "ResumeCompletion",
          request: call.request,
          ...headers(call.metadata),
        });
        this.#play(call);
      },
      cancelCompletion: (
        call: { request: CancelCompletionRequest; metadata: Metadata },
        answer: (error: null, response: object) => void,
      ) => {
        this.#record({
          method: "CancelCompletion",
          request: call.request,
          ...headers(call.metadata),
        });
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

  /** The methods of the received calls. */
  get calls(): string[] {
    return this.received.map(({ method }) => method);
  }

  /** Waits until a call or a cancellation makes the condition true. Fails after 60 s. */
  async until(condition: () => boolean): Promise<void> {
    const signal = AbortSignal.timeout(60_000);
    while (!condition()) await once(this.#changes, "change", { signal });
  }

  stop(): void {
    this.#server.forceShutdown();
  }

  #record(call: Received): void {
    this.received.push(call);
    this.#changes.emit("change");
  }

  #play<Request>(call: ServerWritableStream<Request, CompleteResponse>): void {
    call.on("cancelled", () => {
      this.cancelled++;
      this.#changes.emit("change");
    });
    const { events = [], end } = this.#scripts.shift() ?? {
      end: { code: status.INTERNAL, reason: "NO_SCRIPT" },
    };
    for (const event of events) call.write({ event });
    if (end === "ok") call.end();
    else if (end) call.emit("error", errorOf(end));
  }
}

/** Returns an error as the daemon sends it, or without a reason, as a proxy would send it. */
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

function headers(metadata: Metadata): Headers {
  const header = (name: string) => metadata.get(name).map(String).join();
  return {
    traceparent: header("traceparent"),
    authorization: header("authorization"),
    session: header("x-ruvd-session-id"),
    tenant: header("x-tenant"),
  };
}
