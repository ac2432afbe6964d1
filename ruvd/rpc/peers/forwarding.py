"""One call at another replica: the caller's bytes there, and its answer's bytes back.

Messages are passed on one by one, each when the caller has taken the one before, so that gRPC's
flow control reaches from the caller to the owner and nothing is gathered in between.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from ruvd.core.errors import ShuttingDown
from ruvd.core.ports.events import CallForwarded, Observer
from ruvd.core.ports.replicas import Replica
from ruvd.rpc.identity import caller
from ruvd.rpc.peers import marks
from ruvd.rpc.peers.channels import PeerChannels, PeerUnreachable
from ruvd.rpc.peers.routing import Call
from ruvd.rpc.ports import Receiver, RpcMeasurements
from ruvd.rpc.status import DETAILS, ForwardedStatus

# Codes that gRPC gives to a call whose connection breaks. Those of a daemon's errors have details.
_BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
)


class PeerStale(Exception):
    """The replica answers that the session or completion is not there."""


class PeerLeaving(Exception):
    """The replica is shutting down and begins no more turns."""


class PeerBroken(Exception):
    """The connection broke while the replica handled the call.

    `delivered` says whether the caller has received a message.
    """

    def __init__(self, message: str, *, delivered: bool) -> None:
        super().__init__(message)
        self.delivered = delivered


class Forwarding:
    """Forwards calls to other replicas."""

    def __init__(
        self, channels: PeerChannels, observer: Observer, rpcs: RpcMeasurements | None
    ) -> None:
        self._channels = channels
        self._observer = observer
        self._rpcs = rpcs

    async def forward(self, call: Call, replica: Replica) -> Any:
        """Makes the call at the replica, and passes the answer on.

        Returns the response of a unary call; the receiver gets the messages of a stream. Raises
        ForwardedStatus if the replica answers with an error, PeerUnreachable if it has not received
        the call, PeerStale, PeerLeaving and PeerBroken.
        """
        began, outcome = time.perf_counter(), "cancelled"
        try:
            response = await self._call(call, replica)
            outcome = "ok"
        except ForwardedStatus:
            outcome = "failed"
            raise
        except (PeerUnreachable, PeerStale, PeerLeaving, PeerBroken) as error:
            outcome = _OUTCOMES[type(error)]
            raise
        else:
            return response
        finally:
            name = call.method.rpartition("/")[2]
            self._observer(CallForwarded(name, outcome, time.perf_counter() - began))

    async def _call(self, call: Call, replica: Replica) -> Any:
        method, streams, receiver = call.method, call.streams, call.receiver
        identity = caller.current.get()
        metadata = marks.mark(replica.id, identity, is_batch_item=call.is_batch_item)
        metadata += self._trace(receiver)
        timeout = receiver.time_remaining()
        async with self._channels.channel(replica.address) as channel:
            rpc: Any = channel.unary_stream(method) if streams else channel.unary_unary(method)
            peer_call = rpc(call.data(), timeout=timeout, metadata=metadata)
            delivered = False
            try:
                if not streams:
                    return await peer_call
                async for message in peer_call:
                    await receiver.write(message)
                    delivered = True
            except grpc.aio.AioRpcError as error:
                raise _translated(method, error, delivered=delivered) from None
            except asyncio.CancelledError:
                if peer_call.done() and peer_call.cancelled() and not _is_cancelled():
                    raise PeerBroken("the call was cancelled", delivered=delivered) from None
                raise
            finally:
                peer_call.cancel()
            return None

    def _trace(self, receiver: Receiver) -> list[tuple[str, str | bytes]]:
        headers: Mapping[str, str] = self._rpcs.trace_headers() if self._rpcs else {}
        if headers:
            return list(headers.items())
        return [
            pair for pair in receiver.invocation_metadata() or () if pair[0] in marks.TRACE_HEADERS
        ]


_OUTCOMES: Mapping[type[Exception], str] = {
    PeerUnreachable: "unreachable",
    PeerStale: "stale",
    PeerLeaving: "leaving",
    PeerBroken: "broken",
}


def _translated(method: str, error: grpc.aio.AioRpcError, *, delivered: bool) -> Exception:
    trailing: Sequence[tuple[str, str | bytes]] = tuple(error.trailing_metadata() or ())
    if not delivered and marks.is_stale(trailing):
        return PeerStale()
    has_details = any(name == DETAILS for name, _ in trailing)
    text = error.details() or ""
    if not has_details and error.code() in _BROKEN:
        return PeerBroken(text, delivered=delivered)
    answer = ForwardedStatus(error.code(), text, trailing)
    begins_turn = method.endswith("/Complete")
    if begins_turn and not delivered and answer.reason() == ShuttingDown.reason():
        return PeerLeaving()
    return answer


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
