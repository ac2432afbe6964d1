"""Process-wide tuning: every setting of the interpreter, the event loop and gRPC that is not the
default, each with its reason. Figures are from bench/README.md, "What a stream costs".

Importing this module changes one environment variable and nothing else; the daemon applies the
rest explicitly, so that tests and commands run with the defaults.
"""

import asyncio
import ctypes
import gc
import os
import sys
from typing import TYPE_CHECKING, TypeAlias

import uvloop

if TYPE_CHECKING:
    import grpc

# gRPC's fork handlers run when uvloop forks to start the engine, unless a thread is calling into
# gRPC just then. In the child they shut down sockets that still belong to the parent: clients saw
# "Socket closed" whenever an engine came up. The daemon never forks without exec, so it does not
# need them. gRPC reads the variable when it is imported, so this module must not import it, and
# the package `ruvd.server` imports this module first.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# Allocations between two collections of the youngest generation (the default is 700). A stream
# makes some hundred objects, nearly all of which are freed by reference counting.
_GC_THRESHOLD = 20_000
# How long the store's and gRPC's threads wait for the interpreter lock while the event loop is busy
# (the default is 5 ms). Of 0.1, 0.5, 2, 5 and 50 ms no value was better.
_SWITCH_SECONDS = 0.0005
# Options of glibc's malloc: the variable that sets it, too, its number in malloc.h, and its value.
# Each thread of gRPC's had an arena of its own, whose free memory no other one used: with all
# attacks of bench/attackers.py at once, 200 MB of 250 in malloc's heaps were free, in pieces too
# small to be given back. Blocks from 128 KiB on, such as requests and answers, are mapped each; by
# default the size from which that is done grows with them, up to 32 MiB.
_MALLOC_OPTIONS = (
    ("MALLOC_ARENA_MAX", -8, 2),
    ("MALLOC_MMAP_THRESHOLD_", -3, 128 << 10),
)
Options: TypeAlias = tuple[tuple[str, int], ...]
_MAX_PENDING = 50_000
_RECEIVE_SLACK_BYTES = 64 << 10


def tune_interpreter() -> None:
    """Sets the garbage collector and the thread switch interval, once everything is imported.

    Imported modules live as long as the process, so they are exempt from collection. Together with
    the higher threshold this lowered the CPU time of 1,000 streams from 15.2 to 14.3 s.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)
    sys.setswitchinterval(_SWITCH_SECONDS)


def tune_allocator() -> None:
    """Makes glibc give large blocks back to the kernel, and share its free memory among threads.

    Has to be called before threads start, and has no effect with another C library. A variable of
    glibc's that sets the same comes first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for variable, parameter, setting in _MALLOC_OPTIONS:
        if variable not in os.environ:
            mallopt(parameter, setting)


def event_loop_runner() -> asyncio.Runner:
    """Returns a runner on uvloop, whose transports and timers are C code on libuv."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def untrack_async_generators() -> None:
    """Stops the running event loop from registering every asynchronous generator.

    asyncio keeps a weak set of them to close those that are left at its end. Every reader of a
    generator in ruvd closes it, so this bookkeeping for each stream buys nothing.
    """
    sys.set_asyncgen_hooks(firstiter=None)


def server_options(max_request_bytes: int, max_connection_calls: int | None = None) -> Options:
    """Returns the gRPC options of the main server."""
    by_connection: Options = ()
    if max_connection_calls:
        # The protection refuses calls without a reason while those before them are being freed,
        # also to clients that keep to the limit.
        by_connection = (
            ("grpc.max_concurrent_streams", max_connection_calls),
            ("grpc.http.overload_protection", 0),
        )
    return (
        *by_connection,
        # Slightly above ruvd's own limit, so that a slightly oversized request gets ruvd's error
        # with its reason. gRPC refuses a larger one while it receives or decompresses it, with a
        # RESOURCE_EXHAUSTED that has no details. A compressed request cannot grow beyond this.
        ("grpc.max_receive_message_length", max_request_bytes + _RECEIVE_SLACK_BYTES),
        # Responses are bounded by ruvd, usually by the 4 MiB that a client takes by default.
        ("grpc.max_send_message_length", -1),
        # Calls that gRPC has received and the daemon has not looked at yet. Beyond its defaults
        # (1,000, and 3,000 at most) gRPC cancels calls without a reason; the daemon refuses those
        # that are too many with one. 5,000 calls at once ended 1,831 of them as bare CANCELLED.
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
        # Without probes for bandwidth gRPC buffers 64 KiB of a request that the daemon does not
        # receive yet, instead of all of it: 150 requests of 600 kB took 90 MB at once.
        ("grpc.http2.bdp_probe", 0),
        # Clients check a silent connection every 20 s. By default gRPC takes that for abuse, and
        # closes the connection of a stream that waits for its engine for more than a minute.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # A second daemon must fail to bind the port, not silently share it.
        ("grpc.so_reuseport", 0),
    )


def peer_server_options(max_request_bytes: int) -> Options:
    """Returns the gRPC options of the server for other replicas, which ping to see if it lives."""
    return (
        *server_options(max_request_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.http2.max_ping_strikes", 0),
    )


# Anyone who reaches the health port may call it, so a caller can take little: the requests are
# small, and few run at once on a connection.
HEALTH_SERVER_OPTIONS = (
    ("grpc.max_receive_message_length", 4096),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.so_reuseport", 0),
)


def skip_method_registration(server: "grpc.aio.Server") -> None:
    """Patches the server to find handlers by method name instead of registering each method.

    grpc.aio (1.85) waits anew on every registered method whenever one of them is called: about 10 %
    of the streams per second with 16 clients. Generated code registers each method twice, and the
    generic handler is enough. tests/unit/test_runtime_tuning.py fails if grpcio changes this.
    """
    server.add_registered_method_handlers = _ignore_registration  # type: ignore[method-assign]


def _ignore_registration(service_name: str, method_handlers: object) -> None:
    pass
