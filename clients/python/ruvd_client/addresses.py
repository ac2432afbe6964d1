"""The addresses of a client, which the user gives as one text with commas.

A client with several of them fails over, by the rules of `clients/CONFORMANCE.md`. A DNS name
counts as several, because it may stand for several daemons.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

_SOCKET = re.compile(r"unix:(?!//).+|unix:///.+|unix-abstract:.+")
_HOST_AND_PORT = re.compile(r"(?:(?:ipv4|ipv6):|dns:(?://[^/]*/)?)?(\[[^\[\]]+\]|[^\[\]:/]+):(\d+)")
_HIGHEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Address:
    """One entry of the list, as gRPC takes it."""

    target: str

    @property
    def is_socket(self) -> bool:
        """Whether it is a Unix socket, which has no TLS."""
        return self.target.startswith("unix:")

    @property
    def is_local(self) -> bool:
        """Whether nothing that is sent to it leaves this machine."""
        host = self.target.rpartition(":")[0].removeprefix("[").removesuffix("]")
        if self.is_socket or host.lower() == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def is_name(self) -> bool:
        """Whether it is the name of a host, which may have several records."""
        if self.target.startswith(("unix:", "unix-abstract:")):
            return False
        match = _HOST_AND_PORT.fullmatch(self.target)
        host = match[1] if match else self.target
        try:
            ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        except ValueError:
            return True
        return False


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Returns the addresses in a text. Raises ValueError if an entry of a list is wrong.

    A text without a comma is not checked: gRPC takes more forms than a list may have.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if len(entries) == 1:
        return (Address(text),)
    for number, entry in enumerate(entries, start=1):
        if not _is_valid(entry):
            raise ValueError(
                f"entry {number} of the addresses {text!r} is {entry!r},"
                " which is not host:port, [IPv6]:port or unix:PATH"
            )
    return tuple(map(Address, entries))


def count_attempts(addresses: tuple[Address, ...]) -> int:
    """Returns the attempts that a call makes at once: one each, and two at a single DNS name."""
    if len(addresses) == 1:
        return 2 if addresses[0].is_name else 1
    return len(addresses)


def _is_valid(entry: str) -> bool:
    if re.search(r"\s", entry):
        return False
    if _SOCKET.fullmatch(entry):
        return True
    match = _HOST_AND_PORT.fullmatch(entry)
    return match is not None and 1 <= int(match[2]) <= _HIGHEST_PORT
