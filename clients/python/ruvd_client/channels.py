"""The channels of a client: one for each of its addresses, of which one is used at a time."""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ruvd_client.addresses import Address, count_attempts
from ruvd_client.failover import SERVICE_CONFIG, Step
from ruvd_client.metadata import Metadata
from ruvd_client.protocol import CHANNEL_OPTIONS
from ruvd_client.v1 import session_service_pb2 as pb
from ruvd_client.v1 import session_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from ruvd_client.security import Tls

_CONNECT_MS = 3_000
_PING_AFTER_MS = 20_000
_PING_TIMEOUT_MS = 10_000
# The messages of the health check, encoded by hand because they are so small.
READINESS = b"\x0a\x09readiness"
_SERVING = b"\x08\x01"
# A call may be about to start on a channel that another one replaces.
_RETIRED_SECONDS = 5.0

Options = tuple[tuple[str, Any], ...]


class Channel:
    """A gRPC channel to one address, its stub, and the calls that run on it."""

    def __init__(self, address: Address, grpc_channel: Any) -> None:
        self.address = address
        self.grpc_channel = grpc_channel
        self.stub = pb_grpc.SessionServiceStub(grpc_channel)
        self.check_health = grpc_channel.unary_unary(
            "/grpc.health.v1.Health/Check", response_deserializer=lambda data: data == _SERVING
        )
        self.is_closed = False
        self.retired_at = 0.0
        self.unary_calls = 0
        self.running: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def is_idle(self) -> bool:
        """Whether no call runs on it."""
        return not self.unary_calls and all(call.done() for call in self.running)


class Channels:
    """The channels of one client, which threads may share. They connect at their first call.

    A client begins with an address chosen at random, as many clients may have the same list.
    """

    def __init__(self, addresses: tuple[Address, ...], connect: Callable[[Address], Any]) -> None:
        self.attempts_per_round = count_attempts(addresses)
        self._connect = connect
        self._lock = threading.Lock()
        self._channels = [Channel(address, connect(address)) for address in addresses]
        self._retired: list[Channel] = []
        self._at = random.randrange(len(addresses))  # noqa: S311  # not a secret

    def current(self) -> Channel:
        """Returns the channel that new calls use."""
        return self._channels[self._at]

    def from_current(self) -> list[Channel]:
        """Returns the channel of each address, beginning with the current one."""
        with self._lock:
            return [*self._channels[self._at :], *self._channels[: self._at]]

    def after(self, failed: Channel, step: Step) -> Channel:
        """Returns the channel for the attempt after one that failed."""
        if step is Step.STAY:
            return failed
        with self._lock:
            at = next(
                (at for at, each in enumerate(self._channels) if each.address == failed.address), 0
            )
            following = (at + 1) % len(self._channels)
            asks_again = step is Step.ASK and following == at
            if (step is Step.LEAVE or asks_again) and failed is self._channels[at]:
                self._renew(at)
            if step is not Step.ASK and self._at == at:
                self._at = following
            return self._channels[following]

    def start_stream(
        self, channel: Channel, request: Any, timeout: float | None, metadata: Metadata
    ) -> Any:
        """Starts a streaming call, by the kind of its request."""
        if isinstance(request, pb.CompleteRequest):
            method: Any = channel.stub.Complete
        elif isinstance(request, pb.BatchCompleteRequest):
            method = channel.stub.BatchComplete
        else:
            method = channel.stub.ResumeCompletion
        call = method(request, timeout=timeout, metadata=metadata)
        self.started(channel, call)
        return call

    def started(self, channel: Channel, call: Any) -> None:
        """Records a call, which a new connection to the address must not end."""
        with self._lock:
            channel.running.add(call)

    @contextmanager
    def calling(self, channel: Channel) -> Iterator[None]:
        """Records a unary call while the context lasts."""
        with self._lock:
            channel.unary_calls += 1
        try:
            yield
        finally:
            with self._lock:
                channel.unary_calls -= 1

    def all(self) -> list[Channel]:
        """Returns all channels, to close them."""
        with self._lock:
            return [*self._channels, *self._retired]

    def take_unused(self) -> list[Channel]:
        """Returns the replaced channels whose calls have ended, to close them."""
        if not self._retired:
            return []
        latest = time.monotonic() - _RETIRED_SECONDS
        with self._lock:
            unused = [each for each in self._retired if each.is_idle and each.retired_at < latest]
            self._retired = [each for each in self._retired if each not in unused]
            for each in unused:
                each.is_closed = True
            return unused

    def _renew(self, at: int) -> None:
        """Replaces the channel to a name: a new connection may reach another daemon there."""
        channel = self._channels[at]
        if channel.address.is_name:
            channel.retired_at = time.monotonic()
            self._retired.append(channel)
            self._channels[at] = Channel(channel.address, self._connect(channel.address))


def connector(
    library: Any, addresses: tuple[Address, ...], tls: Tls | None, **arguments: Any
) -> Callable[[Address], Any]:
    """Returns a function that makes a channel to an address with `grpc` or `grpc.aio`.

    The files for TLS are read now. Raises OSError and ValueError if they cannot be used.
    """
    credentials = None if tls is None else tls.credentials()
    several = count_attempts(addresses) > 1

    def connect(address: Address) -> Any:
        options = channel_options(address, tls, several=several)
        if credentials is None or address.is_socket:
            return library.insecure_channel(address.target, options=options, **arguments)
        return library.secure_channel(address.target, credentials, options=options, **arguments)

    return connect


def channel_options(address: Address, tls: Tls | None, *, several: bool) -> Options:
    """Returns the options of the channel to an address."""
    options: Options = (*CHANNEL_OPTIONS, ("grpc.service_config", SERVICE_CONFIG))
    if several:
        options += (
            ("grpc.enable_retries", 0),  # they would come before those at the other addresses
            ("grpc.min_reconnect_backoff_ms", _CONNECT_MS),
            ("grpc.keepalive_time_ms", _PING_AFTER_MS),
            ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ("grpc.http2.max_pings_without_data", 0),
        )
    if address.is_name:  # or else a new channel would use the connection of the old one
        options += (("grpc.use_local_subchannel_pool", 1),)
    return options if tls is None or address.is_socket else (*options, *tls.options())
