"""The contract of the part of a store that tells of a session's turns, to people who look."""

from collections.abc import Sequence
from typing import Protocol

from ruvd.core.model import Finished
from ruvd.core.values import value


@value(frozen=True, slots=True)
class StoredTurn:
    """The figures of a turn, whose answer is at `position` of the history.

    The message of `finished` is empty, as it may be large and is in the history.
    """

    position: int
    completion_id: str
    finished: Finished


class TurnReads(Protocol):
    """Reads turns. See `Store` for what holds for all its methods."""

    async def turns(self, session_id: str, first: int, end: int) -> Sequence[StoredTurn]:
        """Returns the turns whose answers are at the positions from `first` to before `end`.

        They are in order. An unknown session has none. Nor has the part of a history that a fork
        shares with its parent. The cost depends on the number of the session's turns.
        """
