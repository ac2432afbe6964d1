"""The text of an answer while it grows, in little more memory than its size."""

from itertools import chain

# Short pieces of text take many times their size, so they are joined when there are so many.
_MAX_PIECES = 1024


class GrowingText:
    """A text that grows by short pieces. It is true if it has any."""

    __slots__ = ("_joined", "_pieces")

    def __init__(self) -> None:
        self._joined: list[str] = []
        self._pieces: list[str] = []

    def append(self, piece: str) -> None:
        """Adds a piece at the end."""
        self._pieces.append(piece)
        if len(self._pieces) == _MAX_PIECES:
            self._joined.append("".join(self._pieces))
            self._pieces.clear()

    def __bool__(self) -> bool:
        return bool(self._pieces or self._joined)

    @property
    def pieces(self) -> int:
        """The number of pieces that were added."""
        return len(self._joined) * _MAX_PIECES + len(self._pieces)

    def tail(self, characters: int) -> str:
        """Returns the end of the text, without joining all of it."""
        found, missing = [], characters
        for part in chain(reversed(self._pieces), reversed(self._joined)):
            if missing <= 0:
                break
            found.append(part[-missing:])
            missing -= len(part)
        return "".join(reversed(found))

    def joined(self) -> str:
        """Returns the whole text."""
        return "".join((*self._joined, *self._pieces))
