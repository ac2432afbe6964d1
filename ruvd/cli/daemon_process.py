"""Finds the daemon's process by a connection to it, and sends it SIGUSR1 if it handles that.

There is no file with a process id: it would outlive its process, and a container may have no place
for it. The kernel knows the listener: of a Unix socket by its credentials, of a port by /proc. Both
give the id in the caller's PID namespace, also for the first process of a container.
"""

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


class ProcessUnavailable(Exception):
    """The process cannot be found or must not be signalled; the message says what to do."""


def listening_pid(connection: socket.socket) -> int:
    """Returns the id of the process that listens for the connection. Raises ProcessUnavailable."""
    if connection.family == socket.AF_UNIX:
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = int(struct.unpack("3i", credentials)[0])
        if pid == 0:
            raise ProcessUnavailable("the daemon runs in another PID namespace: run this there")
        return pid
    peer = _unmapped(ipaddress.ip_address(connection.getpeername()[0]))
    if not peer.is_loopback and peer != _unmapped(
        ipaddress.ip_address(connection.getsockname()[0])
    ):
        raise ProcessUnavailable("the daemon runs on another machine: run this there")
    pids = _pids_with(_listening_inodes(peer, connection.getpeername()[1]))
    if len(pids) != 1:
        found = ", ".join(map(str, pids)) if pids else "this user may see none"
        raise ProcessUnavailable(f"the daemon's process is not clear ({found}): use --pid")
    return pids[0]


def send_drain(pid: int) -> None:
    """Sends SIGUSR1, but not to a process that it would kill. Raises ProcessUnavailable."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if not int(caught.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1:
            raise ProcessUnavailable(f"process {pid} does not handle SIGUSR1: not a running ruvd")
        os.kill(pid, signal.SIGUSR1)
    except PermissionError:
        raise ProcessUnavailable(f"process {pid} belongs to another user") from None
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessUnavailable(f"there is no process {pid}") from None


def _listening_inodes(address: _IpAddress, port: int) -> set[str]:
    """Returns the inodes of sockets that listen at this address: proc(5), /proc/net/tcp."""
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
    """Decodes an address of /proc/net/tcp: words in the machine's byte order."""
    words = bytes.fromhex(host)
    swapped = struct.unpack(f"={len(words) // 4}I", words)
    return _unmapped(ipaddress.ip_address(struct.pack(f">{len(swapped)}I", *swapped)))


def _unmapped(address: _IpAddress) -> _IpAddress:
    """Returns the IPv4 address of a mapped one: gRPC listens for IPv4 on both kinds of socket."""
    return getattr(address, "ipv4_mapped", None) or address


def _pids_with(inodes: set[str]) -> list[int]:
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for process in _PROC.iterdir():
        if process.name.isdecimal():
            # The process may have ended or belong to another user.
            with contextlib.suppress(OSError):
                if any(_target(link) in wanted for link in (process / "fd").iterdir()):
                    found.append(int(process.name))
    return found


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the descriptor was closed meanwhile
        return ""
