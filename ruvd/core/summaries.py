"""The parts of a prompt that stand for the exchanges that have left a context window."""

from ruvd.core.values import value


@value(frozen=True, slots=True)
class Summary:
    """A text that is sent in place of the first `exchange_count` exchanges of a history."""

    text: str
    exchange_count: int

    @property
    def size_bytes(self) -> int:
        """The size of the text."""
        return len(self.text.encode())


@value(frozen=True, slots=True)
class PinnedExchange:
    """An exchange before the window's start that is sent in every turn.

    `position` is that of its first message in the history, which has `message_count` of them.
    """

    exchange: int
    position: int
    message_count: int
