"""A DNS server on loopback, which knows a few names and their IPv4 addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

_HEADER = struct.Struct(">6H")
_A = 1
_ANSWER = 0x8180  # a response, with recursion
_NAME_ERROR = 3
_POINTER = b"\xc0\x0c"  # to the name of the question


class NameServer(asyncio.DatagramProtocol):
    """Answers queries for A records by UDP; other kinds of records do not exist."""

    def __init__(self, records: Mapping[str, Sequence[str]]) -> None:
        self._records = records
        self.address = ""
        self._transport: asyncio.DatagramTransport | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[NameServer]:
        """Listens on a loopback port, which `address` names."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", 0))
        host, port = transport.get_extra_info("sockname")
        self._transport, self.address = transport, f"{host}:{port}"
        try:
            yield self
        finally:
            transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answers one query."""
        labels, end = [], _HEADER.size
        while length := data[end]:
            labels.append(data[end + 1 : end + 1 + length].decode())
            end += 1 + length
        (kind,) = struct.unpack_from(">H", data, end + 1)
        question = data[_HEADER.size : end + 5]
        known = self._records.get(".".join(labels).lower())
        hosts = known if known and kind == _A else ()
        flags = _ANSWER if known else _ANSWER | _NAME_ERROR
        (number,) = struct.unpack_from(">H", data)
        answers = b"".join(
            _POINTER + struct.pack(">HHIH", _A, 1, 0, 4) + ipaddress.IPv4Address(host).packed
            for host in hosts
        )
        assert self._transport is not None
        self._transport.sendto(
            _HEADER.pack(number, flags, 1, len(hosts), 0, 0) + question + answers, addr
        )
