"""Which process is at the other end of a connection, and whether it takes a signal well.

There is no file with a process id: it would outlive its process, and a container may have no place
for it. The kernel knows who listens: for a Unix socket by its credentials, for a port by /proc.
Both give the id as it is in the caller's own PID namespace, whether the daemon is the first
process of a container or any other.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import struct
from pathlib import Path
from typing import TypeAlias

_IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_LISTENING = "0A"  # TCP_LISTEN of include/net/tcp_states.h
_PROC = Path("/proc")


class NoProcess(Exception):
    """The process cannot be found, or must not be signalled."""


def listener(connection: socket.socket) -> int:
    """The id of the process that listens where the connection goes. Raises NoProcess."""
    if connection.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = int(struct.unpack("3i", credentials)[0])
        if pid == 0:
            raise NoProcess("it runs in another PID namespace: run this where it runs")
        return pid
    peer = _unmapped(ipaddress.ip_address(connection.getpeername()[0]))
    if not peer.is_loopback and peer != _unmapped(
        ipaddress.ip_address(connection.getsockname()[0])
    ):
        raise NoProcess("it runs on another machine: run this where it runs")
    pids = _holders(_listening_inodes(peer, connection.getpeername()[1]))
    if len(pids) != 1:
        found = ", ".join(map(str, pids)) if pids else "none that this user may see"
        raise NoProcess(f"its process cannot be told ({found}): name it with --pid")
    return pids[0]


def send_drain(pid: int) -> None:
    """Send SIGUSR1, but not to a process that it would kill. Raises NoProcess."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if not int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            raise NoProcess(f"process {pid} does not handle SIGUSR1: it is no ruvd, or starts yet")
        os.kill(pid, signal.SIGUSR1)
    except PermissionError:
        raise NoProcess(f"process {pid} is another user's") from None
    except (FileNotFoundError, ProcessLookupError):
        raise NoProcess(f"there is no process {pid}") from None


def _listening_inodes(address: _IpAddress, port: int) -> set[str]:
    """The sockets that take connections to this address, see proc(5), /proc/net/tcp."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                host, _, number = fields[1].partition(":")
                if fields[3] != _LISTENING or int(number, 16) != port:
                    continue
                local = _decoded(host)
                if local == address or local.is_unspecified:
                    inodes.add(fields[9])
    return inodes


def _decoded(host: str) -> _IpAddress:
    """The kernel prints an address as words of the machine's byte order."""
    words = bytes.fromhex(host)
    swapped = struct.unpack(f"={len(words) // 4}I", words)
    return _unmapped(ipaddress.ip_address(struct.pack(f">{len(swapped)}I", *swapped)))


def _unmapped(address: _IpAddress) -> _IpAddress:
    """gRPC listens for IPv4 on sockets of both kinds."""
    return getattr(address, "ipv4_mapped", None) or address


def _holders(inodes: set[str]) -> list[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            # It may have ended, or be another user's.
            with contextlib.suppress(OSError):
                if any(_link(each) in wanted for each in (process / "fd").iterdir()):
                    found.append(int(process.name))
    return found


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:  # closed meanwhile
        return ""
