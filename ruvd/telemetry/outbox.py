"""Spans that have ended, until they are exported: a thread of its own sends them, many at a time.

The queue is bounded: what does not fit is dropped, the oldest first, and told once until there is
room again. So a collector that is slow, hangs or is gone costs no request anything. It goes by the
OTEL_BSP_* variables, as the SDK's BatchSpanProcessor does.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ruvd.telemetry.spans import Span

_log = logging.getLogger("ruvd.telemetry")


@dataclass(frozen=True, slots=True)
class Pace:
    """At most `batch` spans in an export, and one at least every `delay_seconds` if there are
    any; at most `capacity` wait."""

    delay_seconds: float = 5.0
    batch: int = 512
    capacity: int = 2048

    @classmethod
    def chosen(cls, environment: Mapping[str, str]) -> Pace:
        """What the environment asks for. Raises ValueError."""

        def number(name: str, default: int) -> int:
            text = environment.get(name, "").strip()
            value = int(text) if text else default
            if value <= 0:
                raise ValueError(f"{name} must be positive")
            return value

        delay = number("OTEL_BSP_SCHEDULE_DELAY", 5000) / 1000
        capacity = number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)
        batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, capacity))
        if batch > capacity:
            raise ValueError("OTEL_BSP_MAX_EXPORT_BATCH_SIZE is above OTEL_BSP_MAX_QUEUE_SIZE")
        return cls(delay, batch, capacity)


class Outbox:
    """Exports spans by `export`, which may block, and says whether they were exported."""

    def __init__(self, export: Callable[[Sequence[Span]], bool], pace: Pace) -> None:
        self._export = export
        self._pace = pace
        self._queue: deque[Span] = deque(maxlen=pace.capacity)
        self._batch = pace.batch
        self._crowd = pace.batch - 1
        self._awake = threading.Event()
        self._closing = False
        self._full = False
        self._thread = threading.Thread(target=self._work, name="ruvd-spans", daemon=True)
        self._thread.start()

    def put(self, span: Span) -> None:
        """Take a span, and return at once. Called from one thread."""
        waiting = len(self._queue)
        self._queue.append(span)
        if waiting >= self._crowd:
            self._crowded(waiting)

    def close(self) -> None:
        """Export what is left. Blocks while the collector does."""
        self._closing = True
        self._awake.set()
        self._thread.join()

    def _crowded(self, waiting: int) -> None:
        if waiting == self._pace.capacity and not self._full:
            self._full = True
            _log.warning("spans are dropped: more have ended than the collector takes")
        if not self._awake.is_set():
            self._awake.set()

    def _work(self) -> None:
        while not self._closing:
            in_time = self._awake.wait(self._pace.delay_seconds)
            self._awake.clear()
            # Woken up by a whole batch, it leaves the rest for the next one.
            least = self._batch if in_time else 1
            while len(self._queue) >= least:
                self._send()
        while self._queue:
            self._send()

    def _send(self) -> None:
        queue = self._queue
        spans = [queue.popleft() for _ in range(min(self._batch, len(queue)))]
        try:
            exported = self._export(spans)
        except Exception:  # noqa: BLE001  # the thread has to go on
            _log.exception("spans could not be exported")
            return
        if exported and len(queue) < self._batch:
            self._full = False
