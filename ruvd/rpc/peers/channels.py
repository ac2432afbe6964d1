"""Connections to other replicas: one for each address, with the certificate of this one."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
from grpc import ChannelConnectivity as State

from ruvd.rpc.peers.tls import PeerTls

# A connection that no call has used for so long is closed when another one is made.
_IDLE_SECONDS = 60.0
# The time for a new connection: a share of a lease, after which the session may be taken anyway.
_CONNECT_SHARE = 0.75
_MAX_CONNECT_SECONDS = 5.0
_MIN_PING_SECONDS = 1.0


class PeerUnreachable(Exception):
    """The replica cannot be reached. It has not received the call."""


@dataclass(eq=False, slots=True)
class _Connection:
    channel: grpc.aio.Channel
    credentials: grpc.ChannelCredentials
    calls: int = 0
    used: float = 0.0
    is_retired: bool = False


class PeerChannels:
    """The connections to other replicas.

    A replica that does not answer pings for two thirds of a lease is as good as gone: calls to it
    fail. With a `name` the certificates of replicas have that name, otherwise their host's.
    """

    def __init__(self, tls: PeerTls, name: str, lease_seconds: float) -> None:
        self._tls = tls
        self._connect_seconds = min(_MAX_CONNECT_SECONDS, _CONNECT_SHARE * lease_seconds)
        self._options = _options(name, lease_seconds, self._connect_seconds)
        self._connections: dict[str, _Connection] = {}
        self._unused: list[grpc.aio.Channel] = []  # to be closed

    @asynccontextmanager
    async def channel(self, address: str) -> AsyncIterator[grpc.aio.Channel]:
        """Yields a channel that is connected. Raises PeerUnreachable."""
        connection = self._connections.get(address)
        is_new = connection is None or connection.credentials is not self._tls.client_credentials
        if connection is None or is_new:
            connection = self._connect(address)
        connection.calls += 1
        try:
            if is_new:
                await self._close_unused()
            await self._wait_ready(connection.channel, address)
            yield connection.channel
        finally:
            connection.calls -= 1
            connection.used = time.monotonic()
            if connection.is_retired and not connection.calls:
                await connection.channel.close()

    async def close(self) -> None:
        """Closes all connections. The calls on them end."""
        channels = [*self._unused, *(each.channel for each in self._connections.values())]
        self._connections.clear()
        await asyncio.gather(*(each.close() for each in channels))

    def _connect(self, address: str) -> _Connection:
        """Returns a new connection. The calls on a former one to the address go on."""
        if former := self._connections.get(address):
            former.is_retired = True
            if not former.calls:
                self._unused.append(former.channel)
        credentials = self._tls.client_credentials
        channel = grpc.aio.secure_channel(address, credentials, self._options)
        connection = _Connection(channel, credentials)
        self._connections[address] = connection
        return connection

    async def _close_unused(self) -> None:
        horizon = time.monotonic() - _IDLE_SECONDS
        for address, each in list(self._connections.items()):
            if not each.calls and each.used < horizon:
                del self._connections[address]
                self._unused.append(each.channel)
        while self._unused:
            await self._unused.pop().close()

    async def _wait_ready(self, channel: grpc.aio.Channel, address: str) -> None:
        state = channel.get_state(try_to_connect=True)
        if state is State.READY:
            return
        try:
            async with asyncio.timeout(self._connect_seconds):
                while state is not State.READY:
                    if state is State.TRANSIENT_FAILURE:
                        raise PeerUnreachable(f"{address} cannot be reached")
                    await channel.wait_for_state_change(state)
                    state = channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise PeerUnreachable(f"{address} does not answer") from None


def _options(
    name: str, lease_seconds: float, connect_seconds: float
) -> list[tuple[str, int | str]]:
    ping = int(max(_MIN_PING_SECONDS, lease_seconds / 3) * 1000)
    options: list[tuple[str, int | str]] = [
        ("grpc.keepalive_time_ms", ping),
        ("grpc.keepalive_timeout_ms", ping),
        ("grpc.http2.ping_timeout_ms", ping),  # a minute by default
        ("grpc.http2.max_pings_without_data", 0),  # no limit
        ("grpc.min_reconnect_backoff_ms", int(connect_seconds * 1000)),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # The router decides what is tried again.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    if name:
        options.append(("grpc.ssl_target_name_override", name))
    return options
