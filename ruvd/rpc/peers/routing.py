"""The state of routing of the call that the current task handles."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(slots=True)
class Routing:
    """The state of one call.

    `may_move` says that the call is given to another replica if that one has its session. A call
    that `may_repeat` has the same effect if it is made twice.
    """

    may_move: bool = True
    may_repeat: bool = False


_current: ContextVar[Routing | None] = ContextVar("ruvd_routing", default=None)


def begin(routing: Routing) -> None:
    """Makes the state that of the current call."""
    _current.set(routing)


def may_move() -> bool:
    """Whether the current call is given to another replica if that one has its session."""
    routing = _current.get()
    return routing is not None and routing.may_move


def allow_repeats() -> None:
    """Says that the current call has the same effect if it is made twice."""
    if routing := _current.get():
        routing.may_repeat = True
