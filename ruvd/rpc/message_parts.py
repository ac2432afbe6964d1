"""Messages that are too large for one response, sent as the parts of a serialized message.

A client with gRPC's default limits takes responses of 4 MiB. The text of a completion's message is
serialized piece by piece, so that a client which reads slowly takes the memory of one part, and not
of one more copy of the message.
"""

from collections.abc import Iterator
from dataclasses import replace

from ruvd.core.model import CompletionEvent, Finished, Message
from ruvd.rpc import convert
from ruvd.v1 import session_service_pb2 as pb

PART_BYTES = 1 << 20
_PIECE_CHARACTERS = PART_BYTES // 4  # a character has four bytes at most
_LENGTH_DELIMITED = 2
_CONTENT = pb.Message.DESCRIPTOR.fields_by_name["content"].number
_REASONING = pb.Message.DESCRIPTOR.fields_by_name["reasoning"].number


def before(event: CompletionEvent) -> Iterator[pb.CompletionEvent]:
    """Yields the events with the parts of the message of Finished, if it is too large for it."""
    finished = event.event
    if isinstance(finished, Finished) and convert.is_too_large(finished.message):
        for each in parts(finished.message):
            yield pb.CompletionEvent(sequence=event.sequence - 1, message_part=each)


def parts(message: Message) -> Iterator[pb.MessagePart]:
    """Yields the parts of a message, each serialized when it is asked for."""
    rest = pb.Message()
    convert.message(replace(message, content="", reasoning=""), rest)
    # The fields of a serialized message may have any order, so the long texts come last.
    head, texts = rest.SerializeToString(), []
    total = len(head)
    for field, text in ((_CONTENT, message.content), (_REASONING, message.reasoning)):
        size = len(text) if text.isascii() else sum(len(piece) for piece in _encoded(text))
        tag = _varint(field << 3 | _LENGTH_DELIMITED) + _varint(size)
        texts.append((tag, text))
        total += len(tag) + size
    offset = 0
    for data in _pieces(head, texts):
        yield pb.MessagePart(data=data, offset=offset, total_bytes=total)
        offset += len(data)


def part(message: pb.Message, offset: int, max_bytes: int) -> pb.MessagePart:
    """Returns the part of a message that begins at `offset`."""
    data = message.SerializeToString(deterministic=True)
    return pb.MessagePart(
        data=data[offset : offset + max_bytes], offset=offset, total_bytes=len(data)
    )


def _pieces(head: bytes, texts: list[tuple[bytes, str]]) -> Iterator[bytes]:
    while len(head) > PART_BYTES:
        yield head[:PART_BYTES]
        head = head[PART_BYTES:]
    for tag, text in texts:
        head += tag
        for piece in _encoded(text):
            yield head + piece
            head = b""
    if head:
        yield head


def _encoded(text: str) -> Iterator[bytes]:
    for start in range(0, len(text), _PIECE_CHARACTERS):
        yield text[start : start + _PIECE_CHARACTERS].encode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
