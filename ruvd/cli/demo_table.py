"""The demo's table. All its figures were measured by the daemon and come from `Finished`."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Self

from rich.table import Table
from ruvd_client.protocol import to_seconds
from ruvd_client.v1.session_service_pb2 import Finished

UNKNOWN = "-"

_LEGEND = (
    "cached: prompt tokens from the engine's cache; first: time to the first token; total: time to "
    "the last; both in milliseconds, measured in the daemon."
)
_SESSION_ADVANTAGES = (
    "shows a warm engine whose only client resends everything, so expect the times of the session. "
    "The session has other advantages: it survives a restart, many sessions share an engine "
    "without losing their prefixes, long histories are trimmed in a way that keeps the prefix, and "
    "only the new message is sent."
)
_SAME_PROMPTS = (
    "Each turn had the same history in all three ways; answers may differ in some words, and the "
    "totals with them."
)


@dataclass(frozen=True, slots=True)
class Turn:
    """The figures of one turn; None is a figure that the engine does not report."""

    prompt_tokens: int
    cached_tokens: int | None
    first_token_ms: float | None
    total_ms: float

    @classmethod
    def from_finished(cls, finished: Finished) -> Self:
        """Reads the figures of a completion."""
        usage, timings = finished.usage, finished.timings
        known = timings.HasField("time_to_first_token")
        return cls(
            usage.prompt_tokens,
            usage.cached_tokens if usage.HasField("cached_tokens") else None,
            to_seconds(timings.time_to_first_token) * 1000 if known else None,
            to_seconds(timings.total) * 1000,
        )


@dataclass(slots=True)
class Way:
    """One way to hold the conversation: its turns, and the bytes that the client sent."""

    name: str
    turns: list[Turn] = field(default_factory=list)
    sent_bytes: int = 0
    missing: str = ""


def build(session: Way, uncached: Way, cached: Way) -> Table:
    """Builds the table: a row for each turn, and one for the medians."""
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    table.add_column("\nturn", justify="right")
    table.add_column("prompt\ntokens", justify="right")
    for way in (session, uncached, cached):
        table.add_column(f"{way.name}\n{_cell('cached', 'first', 'total')}", justify="right")
    table.add_column("first token earlier\nthan no cache", justify="right")
    table.add_column("than with\nengine cache", justify="right")
    for index, turn in enumerate(session.turns):
        table.add_row(
            str(index + 1),
            str(turn.prompt_tokens),
            *(_medians(way.turns[index : index + 1]) for way in (session, uncached, cached)),
            *(_percent(reduction(turn, other, index)) for other in (uncached, cached)),
        )
    first = first_counted(session)
    table.add_section()
    table.add_row(
        f"{first + 1}-{len(session.turns)}",
        "median",
        *(_medians(way.turns[first:]) for way in (session, uncached, cached)),
        *(_percent(median_reduction(session, other)) for other in (uncached, cached)),
        style="bold",
    )
    return table


def caption(model: str, engine: str, session: Way, uncached: Way, cached: Way) -> str:
    """Returns the text below the table: legend, bytes sent, and limits of the comparison."""
    ways = (session, uncached, cached)
    sent = ", ".join(f"{way.name} {way.sent_bytes:,}" for way in ways if way.turns)
    lines = [
        f"Model {model or '(unnamed)'}, engine {engine}, {_cores()} cores. {_LEGEND}",
        f"Bytes sent by the client: {sent}.",
        f'"{cached.name}" {_SESSION_ADVANTAGES}',
        _SAME_PROMPTS,
    ]
    lines += [f'No figures for "{way.name}": {way.missing}' for way in ways if way.missing]
    if any(prompts_differ(session, way) for way in ways):
        lines.append("Prompt tokens are the session's; some differed in the other ways.")
    return "\n".join(lines)


def first_counted(way: Way) -> int:
    """Returns the index of the first turn in the medians: the third, if there is one."""
    return 2 if len(way.turns) > 2 else 0


def reduction(turn: Turn, other: Way, index: int) -> float | None:
    """Returns by how many percent the first token came earlier; negative if it came later."""
    if index >= len(other.turns):
        return None
    there = other.turns[index].first_token_ms
    if there is None or turn.first_token_ms is None or there <= 0:
        return None
    return (there - turn.first_token_ms) / there * 100


def median_reduction(session: Way, other: Way) -> float | None:
    """Returns the median reduction over the turns from `first_counted` on."""
    first = first_counted(session)
    return _median(reduction(turn, other, i) for i, turn in enumerate(session.turns) if i >= first)


def prompts_differ(session: Way, other: Way) -> bool:
    """Tells whether a prompt had another length in the other way."""
    return any(
        a.prompt_tokens != b.prompt_tokens for a, b in zip(session.turns, other.turns, strict=False)
    )


def _medians(turns: Sequence[Turn]) -> str:
    if not turns:
        return UNKNOWN
    columns = zip(*((t.cached_tokens, t.first_token_ms, t.total_ms) for t in turns), strict=True)
    return _cell(*(_number(_median(column)) for column in columns))


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _cell(*figures: str) -> str:
    return " ".join(f"{figure:>6}" for figure in figures)


def _number(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.0f} %"


def _cores() -> int:
    # The cores that this process may use, if the system reports them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
