/** The addresses of a client, which the user gives as one text with commas. */

import { BlockList, isIP } from "node:net";

import { status } from "@grpc/grpc-js";

import { RuvdError } from "./errors.js";

const SOCKET = /^(?:unix:(?!\/\/).+|unix:\/\/\/.+|unix-abstract:.+)$/;
const HOST_AND_PORT =
  /^(?:(?:ipv4|ipv6):|dns:(?:\/\/[^/]*\/)?)?(?:\[([^[\]]+)\]|([^[\]:/]+)):(\d+)$/;
const HIGHEST_PORT = 65_535;

const LOOPBACK = new BlockList();
LOOPBACK.addSubnet("127.0.0.0", 8);
LOOPBACK.addAddress("::1", "ipv6");

/** One entry of the list, as gRPC takes it. */
export class Address {
  constructor(readonly target: string) {}

  /** Whether it is a Unix socket, which has no TLS. */
  get isSocket(): boolean {
    return this.target.startsWith("unix:");
  }

  /** Whether it is surely on this machine. */
  get isLocal(): boolean {
    if (this.isSocket) return true;
    const [, name = "", ipv6] = /^(?:([^:[\]]+)|\[(.+)\])(?::\d+)?$/.exec(this.target) ?? [];
    if (ipv6) return isIP(ipv6) === 6 && LOOPBACK.check(ipv6, "ipv6");
    return name.toLowerCase() === "localhost" || (isIP(name) === 4 && LOOPBACK.check(name));
  }

  /** Whether it is the name of a host, which may have several records. */
  get isName(): boolean {
    if (/^unix(-abstract)?:/.test(this.target)) return false;
    const [, ipv6, host] = HOST_AND_PORT.exec(this.target) ?? [];
    return !isIP(ipv6 ?? host ?? this.target);
  }
}

/**
 * Returns the addresses in a text. Throws RuvdError if an entry of a list is wrong. A text without a
 * comma is not checked: gRPC takes more forms than a list may have.
 */
export function parseAddresses(text: string): Address[] {
  if (!text.includes(",")) return [new Address(text)];
  return text.split(",").map((part, index) => {
    const entry = part.trim();
    if (isValid(entry)) return new Address(entry);
    throw new RuvdError(
      status.INVALID_ARGUMENT,
      `entry ${String(index + 1)} of the addresses "${text}" is "${entry}",` +
        " which is not host:port, [IPv6]:port or unix:PATH",
    );
  });
}

/** Returns the attempts that a call makes at once: one each, and two at a single DNS name. */
export function countAttempts(addresses: readonly Address[]): number {
  return addresses.length === 1 && addresses[0]?.isName ? 2 : addresses.length;
}

function isValid(entry: string): boolean {
  if (/\s/.test(entry)) return false;
  if (SOCKET.test(entry)) return true;
  const port = Number(HOST_AND_PORT.exec(entry)?.[3]);
  return port >= 1 && port <= HIGHEST_PORT;
}
