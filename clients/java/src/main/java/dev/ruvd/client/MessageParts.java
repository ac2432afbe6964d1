package dev.ruvd.client;

import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import dev.ruvd.v1.Finished;
import dev.ruvd.v1.Message;
import dev.ruvd.v1.MessagePart;
import io.grpc.Status;

/** The parts of one message that is too large for one response, as they come. */
final class MessageParts {
  private ByteString data = ByteString.EMPTY;
  private long totalBytes;

  /** Adds the next part. Throws DATA_LOSS if one before it is missing. */
  void add(MessagePart part) {
    if (part.getOffset() == 0) {
      data = ByteString.EMPTY;
    }
    if (part.getOffset() != data.size()) {
      throw partIsMissing();
    }
    data = data.concat(part.getData());
    totalBytes = part.getTotalBytes();
  }

  /** Tells whether all parts have come. */
  boolean isWhole() {
    return totalBytes > 0 && data.size() >= totalBytes;
  }

  /** Returns the message and forgets its parts. Throws DATA_LOSS unless all have come. */
  Message take() {
    if (!isWhole()) {
      throw partIsMissing();
    }
    try {
      Message message = Message.parseFrom(data);
      data = ByteString.EMPTY;
      totalBytes = 0;
      return message;
    } catch (InvalidProtocolBufferException invalid) {
      throw partIsMissing();
    }
  }

  /** Returns a Finished with its message, which may have been sent in parts. */
  Finished join(Finished finished) {
    return finished.getMessageInParts()
        ? finished.toBuilder().setMessage(take()).build()
        : finished;
  }

  private static RuvdException partIsMissing() {
    return new RuvdException(Status.DATA_LOSS, "a part of a large message is missing");
  }
}
