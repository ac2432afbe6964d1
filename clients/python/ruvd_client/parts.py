"""Messages that the daemon sends in parts, because they are too large for one response."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from ruvd_client.protocol import RuvdError
from ruvd_client.v1 import session_service_pb2 as pb


class MessageParts:
    """The parts of one message, as they come."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._total_bytes = 0

    def add(self, part: pb.MessagePart) -> None:
        """Adds the next part. Raises DATA_LOSS if one before it is missing."""
        if part.offset == 0:
            self._data.clear()
        if part.offset != len(self._data):
            raise _part_is_missing()
        self._data += part.data
        self._total_bytes = part.total_bytes

    @property
    def is_whole(self) -> bool:
        """Whether all parts have come."""
        return 0 < self._total_bytes <= len(self._data)

    def take(self) -> pb.Message:
        """Returns the message and forgets its parts. Raises DATA_LOSS unless all have come."""
        if not self.is_whole:
            raise _part_is_missing()
        message = pb.Message.FromString(bytes(self._data))
        self._data.clear()
        self._total_bytes = 0
        return message


def join_pages(pages: Sequence[pb.GetSessionResponse]) -> pb.Session:
    """Returns the session of the last page with the messages of all pages.

    Raises DATA_LOSS if a part of a message is missing.
    """
    last = pages[-1].session
    if len(pages) > 1:
        messages: list[pb.Message] = []
        parts = MessageParts()
        for page in pages:
            messages += page.session.messages
            if page.HasField("message_part"):
                parts.add(page.message_part)
                if parts.is_whole:
                    messages.append(parts.take())
        del last.messages[:]
        last.messages.extend(messages)
    return last


def _part_is_missing() -> RuvdError:
    return RuvdError(grpc.StatusCode.DATA_LOSS, "", "a part of a large message is missing")
