"""The memory that is reserved for a large request, which its handler gives back early.

The reservation covers memory that the request will take. Once it takes that memory, the resident
memory shows it, and a reservation that lasted as long as the call would count it twice.
"""

from collections.abc import Callable
from contextvars import ContextVar

_release: ContextVar[Callable[[], None] | None] = ContextVar("ruvd_reservation", default=None)


def hold(release: Callable[[], None]) -> None:
    """Makes `release` the one of the call that this task handles."""
    _release.set(release)


def give_back() -> None:
    """Gives back the reservation of the call that this task handles, if it has one."""
    if release := _release.get():
        release()
        _release.set(None)
