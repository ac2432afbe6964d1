"""Ports for programs that cannot choose one themselves, or that have to get the same one again."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

# Below the ports that the kernel gives to other sockets meanwhile (net.ipv4.ip_local_port_range).
_PORTS = range(20_000, 32_000)


def free_port(hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """Returns a port that is free at all hosts, and that no other program gets by chance."""
    while True:
        port = random.choice(_PORTS)
        if all(_is_free(host, port) for host in hosts):
            return port


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
