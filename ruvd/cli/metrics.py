"""`ruvd metrics`: prints the figures of GetSessionMetrics, or plots them over time.

An unset figure is printed with the reason. The daemon reports means and counts since its start; the
mean of an interval follows from the difference of the sums. The cache hit rate comes without its
sums, so its plot shows the rate since the start.
"""

import json
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any

from cyclopts import Parameter, validators
from google.protobuf.json_format import MessageToDict
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from ruvd_client import Client, SessionMetrics
from ruvd_client.protocol import to_seconds

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import out, seconds
from ruvd.cli.terminal import connected

_UNKNOWN = "-"
_BARS = "▁▂▃▄▅▆▇█"
_POINTS = 60


def metrics(
    *,
    watch: Annotated[bool, Parameter(negative=(), help="Repeat until Ctrl-C, with plots.")] = False,
    interval: Annotated[
        float,
        Parameter(
            validator=validators.Number(gte=0.1, lte=3600), help="Seconds between two readings."
        ),
    ] = 2.0,
    as_json: Annotated[
        bool, Parameter(name="--json", negative=(), help="Print JSON; one line if watching.")
    ] = False,
    address: Address = default_address,
) -> None:
    """Runs `ruvd metrics`."""
    with connected(address) as client:
        if not watch:
            now = client.get_session_metrics()
            out.out(_json(now, indent=2)) if as_json else out.print(table(now))
            return
        with suppress(KeyboardInterrupt):
            _watch(_readings(client, interval), as_json=as_json)


def _readings(client: Client, interval: float) -> Iterator[SessionMetrics]:
    while True:
        yield client.get_session_metrics()
        time.sleep(interval)


def _watch(readings: Iterable[SessionMetrics], *, as_json: bool) -> None:
    plot = Plot()
    if as_json or not out.is_terminal:
        for now in readings:
            plot.add(now)
            out.out(_json(now)) if as_json else out.print(plot.render(now))
            out.file.flush()
        return
    with Live(console=out, auto_refresh=False) as live:
        for now in readings:
            plot.add(now)
            live.update(plot.render(now), refresh=True)


class Plot:
    """Plots of the last intervals, as lines of block characters."""

    def __init__(self) -> None:
        self.hit_rates: deque[float | None] = deque(maxlen=_POINTS)
        self.latencies: deque[float | None] = deque(maxlen=_POINTS)
        self._before: SessionMetrics | None = None

    def add(self, now: SessionMetrics) -> None:
        """Adds a reading; the first has no interval before it."""
        if self._before is not None:
            self.hit_rates.append(now.cache_hit_rate if now.HasField("cache_hit_rate") else None)
            self.latencies.append(interval_latency(self._before, now))
        self._before = now

    def render(self, now: SessionMetrics) -> RenderableType:
        """Returns the table of the latest reading, and the plots below it."""
        lines = Table(box=None, pad_edge=False, show_header=False)
        lines.add_row("cache hit rate since the start, 0 to 100 %", sparkline(self.hit_rates, 100))
        highest = max((each for each in self.latencies if each is not None), default=None)
        lines.add_row(
            f"session latency per interval, 0 to {seconds(highest)}",
            sparkline(self.latencies, highest or 0.0),
        )
        return Group(table(now), "", lines)


def interval_latency(before: SessionMetrics, now: SessionMetrics) -> float | None:
    """Returns the mean seconds of session completions between two readings; None without any.

    If the daemon was restarted in between, only completions after the restart count.
    """
    count, total = now.session_completions, _session_seconds(now)
    if count >= before.session_completions:
        count -= before.session_completions
        total -= _session_seconds(before)
    return max(total, 0.0) / count if count else None


def sparkline(values: Iterable[float | None], top: float) -> str:
    """Draws each value as a block up to height `top`; an unknown value is a space."""
    highest = len(_BARS) - 1
    return "".join(
        " "
        if value is None
        else _BARS[min(highest, max(0, math.floor(value / top * len(_BARS)))) if top else 0]
        for value in values
    )


def table(now: SessionMetrics) -> Table:
    """Returns a table of the figures, each with a note or the reason why it is unset."""
    figures = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    figures.add_column(style="bold")
    figures.add_column(justify="right")
    figures.add_column(style="dim")
    for name, value, note in _rows(now):
        figures.add_row(name, value, note)
    return figures


def _rows(now: SessionMetrics) -> Iterator[tuple[str, str, str]]:
    sessions = "" if now.session_completions else "no session completions yet"
    stateless = "" if now.stateless_completions else "no stateless completions yet"
    messages = f"{now.avg_messages_per_session:.1f}" if now.total_sessions else _UNKNOWN
    yield "sessions", str(now.total_sessions), f"{now.active_sessions} not expired"
    yield "messages per session", messages, "" if now.total_sessions else "no sessions"
    yield "session completions", str(now.session_completions), "all figures below: since the start"
    yield "stateless completions", str(now.stateless_completions), ""
    meaning = "cached prompt tokens / prompt tokens of session completions"
    unset = sessions or "the engine has reported no cached tokens"
    yield "cache hit rate", *_percent(now, "cache_hit_rate", meaning, unset)
    yield "mean session latency", _latency(now, "avg_session_latency"), sessions
    yield "mean stateless latency", _latency(now, "avg_stateless_latency"), stateless
    meaning = "(stateless - session) / stateless mean latency; the prompts may differ"
    unset = sessions or stateless or "the stateless completions took no time"
    yield "latency reduction", *_percent(now, "avg_latency_reduction", meaning, unset)
    meaning = "share of prefill time that cached tokens saved, at the engine's measured rate"
    unset = sessions or "the engine has reported no prefill times"
    yield "prefill reduction", *_percent(now, "avg_prefill_reduction", meaning, unset)


def _percent(now: SessionMetrics, field: Any, meaning: str, unset: str) -> tuple[str, str]:
    if now.HasField(field):
        return f"{getattr(now, field):.1f} %", meaning
    return _UNKNOWN, unset


def _latency(now: SessionMetrics, field: Any) -> str:
    return seconds(to_seconds(getattr(now, field)) if now.HasField(field) else None)


def _session_seconds(now: SessionMetrics) -> float:
    return to_seconds(now.avg_session_latency) * now.session_completions


def _json(now: SessionMetrics, indent: int | None = None) -> str:
    fields = MessageToDict(
        now, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(fields, indent=indent)
