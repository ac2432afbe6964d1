/** The identity of a client: its token, and its TLS files. The rules are in clients/CONFORMANCE.md. */

import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { readFile } from "node:fs/promises";

import { Metadata, credentials, status } from "@grpc/grpc-js";
import type { CallCredentials, ChannelCredentials, ChannelOptions } from "@grpc/grpc-js";

import type { Address } from "./addresses.js";
import { RuvdError } from "./errors.js";

/**
 * A bearer token: a value, a file, or a function. For every call the file is read or the function is
 * called, so that a renewed token is used at once. An empty value means no token.
 */
export type Token = string | { file: string } | (() => string | Promise<string>);

/** The files (PEM) for a daemon that listens with TLS. They are read when the client is created. */
export interface Tls {
  /** The CA certificates to trust. Default: those that Node trusts. */
  caFile?: string | undefined;
  /** The client's own certificate, if the daemon asks for one. */
  certFile?: string | undefined;
  /** The key of that certificate. */
  keyFile?: string | undefined;
  /** The name in the daemon's certificate, if it is not the host of the address. */
  serverName?: string | undefined;
}

/** The token and the TLS files of a client. */
export interface SecurityOptions {
  /**
   * The token that is sent with every call, only over TLS, to loopback or to a Unix socket. Default:
   * the file that `RUVD_TOKEN_FILE` names, or else `RUVD_TOKEN`.
   */
  token?: Token | undefined;
  /**
   * Switches TLS on, except for a Unix socket. Default: the files that `RUVD_TLS_CA_FILE`,
   * `RUVD_TLS_CLIENT_CERT_FILE` and `RUVD_TLS_CLIENT_KEY_FILE` name, and `RUVD_TLS_SERVER_NAME`.
   */
  tls?: Tls | undefined;
}

/** The security of the channels and of their calls, as gRPC takes it. Unix sockets have no TLS. */
export interface Security {
  channel: ChannelCredentials;
  options: ChannelOptions;
  calls: CallCredentials;
}

/** Returns the security of a client. Throws RuvdError if the options cannot be used. */
export function securityOf(addresses: readonly Address[], options: SecurityOptions): Security {
  const token = options.token ?? environmentToken();
  const isSocket = addresses.every((address) => address.isSocket);
  const tls = isSocket ? undefined : (options.tls ?? environmentTls());
  const remote = addresses.find((address) => !address.isLocal);
  if (token && !tls && remote) {
    throw unusable(`a token must not be sent to ${remote.target} in plain text: use TLS`);
  }
  return {
    channel: tls ? encrypted(tls) : credentials.createInsecure(),
    options: tls?.serverName ? { "grpc.ssl_target_name_override": tls.serverName } : {},
    calls: token ? withToken(token) : credentials.createEmpty(),
  };
}

function environmentToken(): Token | undefined {
  const { RUVD_TOKEN_FILE: file, RUVD_TOKEN: value } = process.env;
  return file ? { file } : value;
}

function environmentTls(): Tls | undefined {
  const caFile = process.env.RUVD_TLS_CA_FILE;
  const certFile = process.env.RUVD_TLS_CLIENT_CERT_FILE;
  const keyFile = process.env.RUVD_TLS_CLIENT_KEY_FILE;
  const serverName = process.env.RUVD_TLS_SERVER_NAME;
  return caFile || certFile || keyFile ? { caFile, certFile, keyFile, serverName } : undefined;
}

function encrypted({ caFile, certFile, keyFile }: Tls): ChannelCredentials {
  if (!certFile !== !keyFile) {
    throw unusable("a client certificate needs both its file and the file of its key");
  }
  const [ca, key, certificate] = [read(caFile), read(keyFile), read(certFile)];
  try {
    // Node ignores a file without certificates, so that it would trust nobody.
    if (ca) new X509Certificate(ca);
    return credentials.createSsl(ca, key, certificate);
  } catch (error) {
    const files = [caFile, certFile, keyFile].filter(Boolean).join(", ");
    throw unusable(`the TLS files ${files} cannot be used: ${textOf(error)}`, error);
  }
}

function read(file: string | undefined): Buffer | null {
  if (!file) return null;
  try {
    return readFileSync(file);
  } catch (error) {
    throw unusable(`the TLS file ${file} cannot be read: ${textOf(error)}`, error);
  }
}

/** Returns the credentials of calls that carry a token. Throws RuvdError for a value of no use. */
function withToken(token: Token): CallCredentials {
  if (typeof token === "string") bearer(token);
  return credentials.createFromMetadataGenerator((_, done) => {
    current(token).then(
      (value) => {
        done(null, value);
      },
      (error: unknown) => {
        done(noToken(error));
      },
    );
  });
}

async function current(token: Token): Promise<Metadata> {
  if (typeof token === "string") return bearer(token);
  return bearer(typeof token === "function" ? await token() : await readFile(token.file, "utf8"));
}

/** Returns the metadata that carries a token. */
function bearer(token: string): Metadata {
  const trimmed = token.trim();
  // Checked here, because gRPC's error for a wrong character would contain the token.
  if (!/^[\x21-\x7e]+$/.test(trimmed)) {
    throw unusable(
      `the token ${trimmed ? "has a character that is not visible ASCII" : "is empty"}`,
    );
  }
  const metadata = new Metadata();
  metadata.set("authorization", `Bearer ${trimmed}`);
  return metadata;
}

/** Returns the error of a call whose token failed. gRPC passes on its code and its message. */
function noToken(cause: unknown): RuvdError {
  return new RuvdError(status.UNAUTHENTICATED, `no token: ${textOf(cause)}`, [], { cause });
}

/** Returns the error of a client that cannot be created. */
function unusable(message: string, cause?: unknown): RuvdError {
  return new RuvdError(status.INVALID_ARGUMENT, message, [], { cause });
}

function textOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
