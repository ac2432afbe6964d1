"""A call that is routed, and the state of routing of the one that the current task handles."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from google.protobuf.message import Message

from ruvd.rpc.ports import Receiver


class Call(NamedTuple):
    """A call with its request, the handler of this replica, and the receiver of the answer.

    The request is as it came, or a message that is serialized if it is forwarded. An item of a
    batch is a call of its own. Its receiver gives nothing away until the answer is whole.
    """

    method: str
    handle: Callable[[Any, Any], Awaitable[Any]]
    request: bytes | Message
    receiver: Receiver
    streams: bool
    is_batch_item: bool = False

    def data(self) -> bytes:
        """Returns the serialized request."""
        if isinstance(self.request, bytes):
            return self.request
        return self.request.SerializeToString()


@dataclass(slots=True)
class Routing:
    """The state of one call.

    `may_move` says that the call is given to another replica if that one has its session. A call
    that `may_repeat` has the same effect if it is made twice.
    """

    may_move: bool = True
    may_repeat: bool = False


# Whether the current call is an item of a batch, which another replica has forwarded.
batch_item: ContextVar[bool] = ContextVar("ruvd_batch_item", default=False)
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
