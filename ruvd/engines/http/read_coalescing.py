"""Reads many streams less often and together, as a network card coalesces interrupts under load.

Most of a token's cost between the engine's socket and the caller's is waking: the event loop, the
stream's reader, the reader of its event log, gRPC's threads; and what wakes alone finds cold
caches. While few streams are active, arriving data wakes its reader at once. With more, a stream
rests after each read, and all that rest are read together, about `_READS_PER_SECOND` streams a
second in all and at most `_MAX_INTERVAL_SECONDS` apart. The first reads of an answer and a lost
connection are never delayed. Meanwhile the kernel keeps the data and does not wake the event loop
for it (SO_RCVLOWAT, see socket(7)), so the end of an answer waits for the next read, too. Where the
kernel does not do that, as with Unix sockets, data that arrives in a rest waits in the connection,
and the end of an answer is not delayed.

Measured with 64 streams of 10 ms a token by `bench.stream_profile --case pod`, beside readers that
were woken one by one, at most 30 ms apart: 0.70 of the CPU time. That was 14.3 to about 11 CPU
seconds per 1,000 streams beside none of this (bench/README.md).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

_FEW_STREAMS = 8
_READS_PER_SECOND = 1280
_MAX_INTERVAL_SECONDS = 0.050
# The role and the first token.
_IMMEDIATE_READS = 2
# More than the tokens of an interval. With so much, the kernel wakes the event loop all the same.
_LOW_WATER_BYTES = 16 << 10


class CoalescedStream:
    """One stream of a `ReadCoalescer`. `wake` wakes its reader."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self.reads = 0
        self.is_resting = False
        self.has_data = False
        self._transport: asyncio.BaseTransport | None = None
        self._socket: socket.socket | None = None

    def connected(self, transport: asyncio.BaseTransport) -> None:
        """Takes the connection's transport."""
        self._transport = transport

    def disconnected(self) -> None:
        """Forgets the connection."""
        self._transport = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def rest(self) -> None:
        """Begins a rest, in which the kernel keeps what arrives."""
        self.is_resting, self.has_data = True, False
        self._set_low_water(_LOW_WATER_BYTES)

    def end_rest(self) -> None:
        """Ends a rest, if there is one: arriving data wakes the event loop again."""
        if self.is_resting:
            self.is_resting = False
            self._set_low_water(1)

    def _set_low_water(self, size: int) -> None:
        # Not every kernel has it, and the connection may just have failed.
        with contextlib.suppress(OSError):
            if self._socket is None:
                if self._transport is None:
                    return
                owned = self._transport.get_extra_info("socket")
                if owned is None:
                    return
                # The transport's descriptor may be closed, and its number used for another
                # connection, before `disconnected` is called. A duplicate is ours until then.
                self._socket = socket.socket(fileno=os.dup(owned.fileno()))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)


class ReadCoalescer:
    """Wakes the readers of one server's streams. `active_streams` counts those in mid-answer.

    Streams whose data has arrived faster than it is read take `turn`s.
    """

    def __init__(self) -> None:
        self.active_streams = 0
        self.turn = asyncio.Lock()
        self._resting: list[CoalescedStream] = []
        self._timer: asyncio.TimerHandle | None = None

    def start_answer(self, stream: CoalescedStream) -> None:
        """Prepares for the stream's next answer, whose first reads are immediate again."""
        stream.end_rest()
        stream.reads = 0

    def data_arrived(self, stream: CoalescedStream) -> None:
        """Wakes the stream's reader now, or when its rest is over."""
        if stream.is_resting:
            stream.has_data = True
            return
        if self.active_streams > _FEW_STREAMS:
            stream.reads += 1
            if stream.reads > _IMMEDIATE_READS:
                self._rest(stream)
        stream.wake()

    def close(self) -> None:
        """Ends the coalescing: no reader is woken any more when its rest is over."""
        if self._timer is not None:
            self._timer.cancel()

    def _rest(self, stream: CoalescedStream) -> None:
        stream.rest()
        self._resting.append(stream)
        if self._timer is None:
            interval = min(self.active_streams / _READS_PER_SECOND, _MAX_INTERVAL_SECONDS)
            self._timer = asyncio.get_running_loop().call_later(interval, self._end_rests)

    def _end_rests(self) -> None:
        self._timer = None
        resting, self._resting = self._resting, []
        for stream in resting:
            if not stream.is_resting:
                continue  # its answer has ended
            if stream.has_data:
                self._rest(stream)
                stream.wake()
            else:
                stream.end_rest()
