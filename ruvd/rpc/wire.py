"""Parsing of request bytes, bounded before protobuf sees them.

An empty message takes two bytes on the wire and about a hundred in memory, and a Python object when
it is looked at: 3.8 MB of them took 1.8 GB and stalled the event loop for 11 s. So the elements of
a large request (messages, map entries, repeated values) are counted in its bytes first, by hand,
because protobuf has no limit for them. A small request cannot hold enough of them to matter.
"""

from functools import cache
from typing import Any, TypeAlias, TypeVar

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtoMessage

from ruvd.core.errors import FieldViolation, InvalidRequest

# The stubs have a class for each implementation of protobuf.
AnyDescriptor: TypeAlias = "Descriptor | Any"
M = TypeVar("M", bound=ProtoMessage)

MAX_ELEMENTS = 100_000
# A smaller request is not counted, as it has at most half as many elements as bytes. Parsing one of
# this size or more takes long enough to be done in a thread.
LARGE_BYTES = 1 << 16
_VARINT, _LENGTH = 0, 2
_GROUPS = (3, 4)  # their begin and end have no value of their own
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_BYTE = 0x7F  # the largest varint of one byte
_MAX_SHIFT = 63


def parse(kind: type[M], data: bytes, max_bytes: int) -> M:
    """Parses a request.

    Raises InvalidRequest if it has more than `max_bytes` bytes or MAX_ELEMENTS elements, or is no
    message of this kind.
    """
    if len(data) > max_bytes:
        raise _wrong(f"has {len(data)} bytes, the limit is {max_bytes} (max_request_bytes)")
    try:
        if len(data) >= LARGE_BYTES and _count(kind.DESCRIPTOR, data) > MAX_ELEMENTS:
            raise _wrong(f"has more than {MAX_ELEMENTS} messages, map entries and values")
        return kind.FromString(data)
    except (DecodeError, IndexError):
        raise _wrong(f"is not a {kind.DESCRIPTOR.full_name} in protobuf's encoding") from None


def _wrong(description: str) -> InvalidRequest:
    return InvalidRequest([FieldViolation("request", description)])


def _count(descriptor: AnyDescriptor, data: bytes) -> int:
    """Counts the elements in the bytes of a message, and stops above MAX_ELEMENTS.

    Fields that the descriptor does not have count as well, because protobuf keeps them. Raises
    DecodeError or IndexError for bytes that are no message.
    """
    count = 0
    pending: list[tuple[AnyDescriptor, int, int]] = [(descriptor, 0, len(data))]
    while pending:
        descriptor, at, end = pending.pop()
        nested = _nested(descriptor)
        while at < end:
            count += 1
            if count > MAX_ELEMENTS:
                return count
            tag, at = _varint(data, at) if data[at] > _MAX_BYTE else (data[at], at + 1)
            wire_type = tag & 7
            if wire_type == _VARINT:
                _, at = _varint(data, at)
            elif wire_type == _LENGTH:
                size, at = _varint(data, at) if data[at] > _MAX_BYTE else (data[at], at + 1)
                if at + size > end:
                    raise DecodeError
                if size and (inner := nested.get(tag >> 3)):
                    pending.append((inner, at, at + size))
                at += size
            elif wire_type in _FIXED_BYTES:
                at += _FIXED_BYTES[wire_type]
            elif wire_type not in _GROUPS:
                raise DecodeError
    return count


@cache
def _nested(descriptor: AnyDescriptor) -> dict[int, AnyDescriptor]:
    """Returns the message types of a message's fields, by field number."""
    return {
        field.number: field.message_type
        for field in descriptor.fields
        if field.message_type is not None
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte <= _MAX_BYTE:
            return number, at
        shift += 7
        if shift > _MAX_SHIFT:
            raise DecodeError
