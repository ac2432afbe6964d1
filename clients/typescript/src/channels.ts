/** The channels of a client: one for each of its addresses, of which one is used at a time. */

import { Client, connectivityState, credentials, status } from "@grpc/grpc-js";

import { countAttempts } from "./addresses.js";
import type { Address } from "./addresses.js";
import { RuvdError } from "./errors.js";
import type { Step } from "./failover.js";
import type { Security } from "./security.js";
import { serviceConfig } from "./v1/service_config.js";

const CONNECT_MS = 3000;

const OPTIONS = {
  // The daemon limits the sizes, because its error says why a message was rejected.
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
  "grpc.enable_http_proxy": 0,
  // The backoff of the stream's resumption, so that a restarted daemon is found at each attempt.
  "grpc.initial_reconnect_backoff_ms": 50,
  "grpc.max_reconnect_backoff_ms": 1000,
  "grpc.service_config": JSON.stringify(serviceConfig),
};

const OPTIONS_OF_SEVERAL = {
  // gRPC's retries would come before those at the other addresses.
  "grpc.enable_retries": 0,
  "grpc.keepalive_time_ms": 20_000,
  "grpc.keepalive_timeout_ms": 10_000,
};

/** A gRPC channel to one address, and the number of calls that run on it. */
export class Channel {
  readonly grpc: Client;
  isClosed = false;
  #running = 0;
  #isRetired = false;

  constructor(
    readonly address: Address,
    security: Security,
    private readonly hasOthers: boolean,
  ) {
    const isPlain = address.isSocket;
    this.grpc = new Client(
      address.target,
      isPlain ? credentials.createInsecure() : security.channel,
      {
        ...OPTIONS,
        ...(isPlain ? {} : security.options),
        ...(hasOthers ? OPTIONS_OF_SEVERAL : {}),
        // Or else a new channel would use the connection of the old one.
        ...(address.isName ? { "grpc.use_local_subchannel_pool": 1 } : {}),
      },
    );
  }

  /** Runs a call on it, which keeps it open. */
  begin(): void {
    this.#running++;
  }

  /** Ends a call on it. */
  end(): void {
    this.#running--;
    if (this.#isRetired && !this.#running) this.close();
  }

  /** Closes it as soon as no call runs on it. */
  retire(): void {
    this.#isRetired = true;
    if (!this.#running) this.close();
  }

  close(): void {
    this.isClosed = true;
    this.grpc.close();
  }

  /**
   * Waits until it is connected, if there are other addresses to try: grpc-js itself waits as long as
   * the operating system. Throws RuvdError; a refused connection is left to the call's own error.
   */
  async connected(callDeadline: number): Promise<void> {
    if (!this.hasOthers || this.isClosed) return;
    const { READY, TRANSIENT_FAILURE, SHUTDOWN } = connectivityState;
    const channel = this.grpc.getChannel();
    const deadline = Math.min(Date.now() + CONNECT_MS, callDeadline);
    for (;;) {
      const state = channel.getConnectivityState(true);
      if ([READY, TRANSIENT_FAILURE, SHUTDOWN].includes(state)) return;
      const error = await new Promise<Error | undefined>((resolve) => {
        channel.watchConnectivityState(state, deadline, resolve);
      });
      if (error) {
        const text = `${this.address.target} does not answer`;
        throw new RuvdError(status.UNAVAILABLE, text, [], { cause: error });
      }
    }
  }
}

/** The channels of one client. It begins with a random one, as many clients may have the same list. */
export class Channels {
  /** The attempts that a call makes at once; 1 for a client with one address. */
  readonly attemptsPerRound: number;
  readonly #channels: Channel[];
  #at: number;

  constructor(
    addresses: readonly Address[],
    private readonly security: Security,
  ) {
    this.attemptsPerRound = countAttempts(addresses);
    this.#channels = addresses.map((address) => this.#open(address));
    this.#at = Math.floor(Math.random() * addresses.length);
  }

  /** Whether there may be another daemon to fail over to. */
  get hasOthers(): boolean {
    return this.attemptsPerRound > 1;
  }

  /** The channel that new calls use. */
  get current(): Channel {
    return this.#get(this.#at);
  }

  /** The channel of each address, beginning with the current one. */
  get fromCurrent(): Channel[] {
    return [...this.#channels.slice(this.#at), ...this.#channels.slice(0, this.#at)];
  }

  /** Returns the channel for the attempt after one that failed. */
  after(failed: Channel, step: Step): Channel {
    if (step === "stay") return failed;
    const at = this.#channels.findIndex(({ address }) => address === failed.address);
    const next = (at + 1) % this.#channels.length;
    const renews = step === "leave" || (step === "ask" && next === at);
    // A new connection to a name may reach another daemon there.
    if (renews && failed.address.isName && failed === this.#get(at)) {
      this.#channels[at] = this.#open(failed.address);
      failed.retire();
    }
    if (step !== "ask" && this.#at === at) this.#at = next;
    return this.#get(next);
  }

  /** Closes all channels. */
  close(): void {
    for (const channel of this.#channels) channel.close();
  }

  #get(at: number): Channel {
    const channel = this.#channels[at];
    if (!channel) throw new Error(`there is no channel ${String(at)}`);
    return channel;
  }

  #open(address: Address): Channel {
    return new Channel(address, this.security, this.hasOthers);
  }
}
