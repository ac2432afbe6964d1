"""The items of a BatchComplete: each runs at the replica that has its session.

An item that is forwarded becomes a Complete there. Nothing of its answer is passed on until it is
whole, so a call that breaks may be made again if the item has a request id.
"""

from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from typing import Any

from ruvd.core.completions.batch import BatchOutcome, Here
from ruvd.core.errors import EngineRateLimited, Overloaded
from ruvd.core.model import Finished
from ruvd.core.ports.replicas import SessionElsewhere
from ruvd.core.tenants import own
from ruvd.rpc import answers
from ruvd.rpc.identity.caller import scoped_id
from ruvd.rpc.peers import routing
from ruvd.rpc.peers.routing import Call, Routing
from ruvd.rpc.ports import Context
from ruvd.rpc.status import ForwardedStatus
from ruvd.v1 import session_service_pb2 as pb

_METHOD = "/ruvd.v1.SessionService/Complete"
# The batch tries again what is refused for these reasons, wherever it was refused.
_TRIED_AGAIN = {each.reason(): each for each in (EngineRateLimited, Overloaded)}

# The items of the call that the current task handles, if they may run at other replicas.
current: "ContextVar[BatchItems | None]" = ContextVar("ruvd_batch_items", default=None)


class BatchItems:
    """The items of one call, which `route` routes. An ItemRouter."""

    def __init__(
        self,
        route: Callable[[Call, Routing], Awaitable[Any]],
        request: pb.BatchCompleteRequest,
        context: Context,
    ) -> None:
        self._route = route
        self._request = request
        self._context = context

    async def run(self, index: int, here: Here, on_text: Callable[[], None]) -> BatchOutcome:
        """See `ItemRouter.run`."""
        item = self._request.items[index]
        answer = _Answer(self._context, on_text)

        async def handle(request: Any, call: Any) -> BatchOutcome:
            try:
                return await here(may_move=routing.may_move())
            except SessionElsewhere as error:
                answer.completion_id = own(error.completion_id)
                raise

        call = Call(_METHOD, handle, item, answer, streams=True, is_batch_item=True)
        session_id = scoped_id(item.session_id)
        try:
            outcome = await self._route(call, Routing(may_repeat=bool(item.request_id)))
        except ForwardedStatus as error:
            if kind := _TRIED_AGAIN.get(error.reason()):
                raise kind(error.message, retry_after_seconds=error.retry_seconds()) from None
            return BatchOutcome(index, session_id=session_id, error=error)
        if isinstance(outcome, BatchOutcome):
            return outcome
        completion_id = scoped_id(answer.completion_id)
        return BatchOutcome(index, completion_id, session_id, answer.model, answer.finished)


class _Answer:
    """Gathers the answer of another replica to an item. A Receiver."""

    def __init__(self, context: Context, on_text: Callable[[], None]) -> None:
        self._context = context
        self._on_text = on_text
        self._parts: list[bytes] = []
        self.completion_id = ""
        self.model = ""
        self.finished: Finished | None = None

    def time_remaining(self) -> float | None:
        """Returns the seconds until the deadline of the batch, or None without one."""
        return self._context.time_remaining()

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns the metadata of the batch."""
        return self._context.invocation_metadata()

    async def write(self, message: bytes) -> None:
        """Takes a serialized CompleteResponse."""
        event = pb.CompleteResponse.FromString(message).event
        match event.WhichOneof("event"):
            case "started":
                self.completion_id, self.model = event.started.completion_id, event.started.model
            case "delta":
                self._on_text()
            case "message_part":
                if not event.message_part.offset:
                    self._parts.clear()
                self._parts.append(event.message_part.data)
            case "finished":
                finished = event.finished
                if finished.message_in_parts:
                    finished.message.ParseFromString(b"".join(self._parts))
                    self._parts.clear()
                self.finished = answers.finished(finished)
