/** The one call of grpc.health.v1 that is needed, written by hand: two messages of one field. */

import { BinaryReader, BinaryWriter, WireType } from "@bufbuild/protobuf/wire";

import type { Method } from "./connection.js";

const FIELD = 1;
const SERVING = 1;

/** Whether the service of this name serves. */
export const check: Method<string, boolean> = {
  path: "/grpc.health.v1.Health/Check",
  requestSerialize: (service) => {
    const writer = new BinaryWriter().tag(FIELD, WireType.LengthDelimited).string(service);
    return Buffer.from(writer.finish());
  },
  responseDeserialize: (bytes) => {
    const reader = new BinaryReader(bytes);
    let found = 0;
    while (reader.pos < reader.len) {
      const [field, type] = reader.tag();
      if (field === FIELD) found = reader.int32();
      else reader.skip(type);
    }
    return found === SERVING;
  },
};
