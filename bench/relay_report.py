"""What `bench/relay.py` says: its figures as JSON, its tables, its criteria.

A figure of several rounds is their median, with the least and the most. Ratios and added times are
of the same round; a p99 is of the streams of all rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.relay_targets import ALONE, CASES, FAST, POD, Case, Run, Target

TITLES = {
    "mock": "no relay",
    "litellm": "LiteLLM",
    "smg": "smg",
    "smg-history": "smg, history in memory",
    "ferrogw": "ferrogw",
    "ferrogw-told": "ferrogw, told the history",
    "naive": "naive grpc.aio",
    "ruvd": "ruvd, Unix socket",
    "tcp": "ruvd, TCP",
    "sessions": "ruvd, sessions on sqlite",
}
# What is asked of the daemon with sessions, each answer durable before its stream ends.
_MOST_ADDED_MS = 2.5
_LEAST_OF_FERROGW = 0.5
_MOST_POD_CPU = 2.0
_MOST_POD_P99_MS = 15.0
_LEAST_OF_LITELLM = 20.0
_MOST_OF_LITELLM = 1 / 6


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, and the range."""
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def results(targets: Sequence[Target]) -> dict[str, Any]:
    """The figures of every case and target."""
    base = next((target for target in targets if target.name == "mock"), None)
    found: dict[str, Any] = {}
    for case in CASES:
        rows = {
            target.name: _row(target, base, case)
            for target in targets
            if target.all(case) or case.name in target.failed
        }
        if rows:
            found[case.name] = {"parallel": case.parallel, "paced": case.paced, "targets": rows}
    return found


def _row(target: Target, base: Target | None, case: Case) -> dict[str, Any]:
    runs = target.all(case)
    row: dict[str, Any] = {}
    if case.name in target.failed:
        row["failed"] = target.failed[case.name].splitlines()[0]
    if not runs:
        return row
    row |= {
        "rounds": len(runs),
        "streams": sum(run.streams for run in runs),
        "streams_per_second": spread([run.rate for run in runs]),
        "cpu_seconds_per_1000": spread([run.cpu_per_1000 for run in runs]),
        "first_token_ms": _first(runs),
        "resident_mib": round(max(run.resident_mib for run in runs)),
    }
    if base and target is not base and base.all(case):
        row["added_first_token_ms"] = _added(target, base, case)
    return row


def _first(runs: Sequence[Run]) -> dict[str, float]:
    pooled = [value for run in runs for value in run.first_ms]
    return {"p50": round(percentile(pooled, 0.5), 3), "p99": round(percentile(pooled, 0.99), 3)}


def _added(target: Target, base: Target, case: Case) -> dict[str, Any]:
    pairs = target.beside(base, case)
    mine, its = _first([run for run, _ in pairs]), _first([run for _, run in pairs])
    return {
        "p50": spread([run.median_ms - other.median_ms for run, other in pairs]),
        "p99": round(mine["p99"] - its["p99"], 3),
    }


def criteria(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """What is asked, what was measured, whether it is met; None where a side is not there."""
    by_name = {target.name: target for target in targets}

    def ratios(other: str, case: Case, of: Callable[[Run], float]) -> float | None:
        if other not in by_name or "sessions" not in by_name:
            return None
        pairs = by_name["sessions"].beside(by_name[other], case)
        return statistics.median(of(mine) / of(its) for mine, its in pairs) if pairs else None

    def added(name: str, case: Case, which: str) -> float | None:
        if name not in by_name or "mock" not in by_name:
            return None
        if not by_name[name].beside(by_name["mock"], case):
            return None
        figure = _added(by_name[name], by_name["mock"], case)[which]
        return float(figure["median"] if which == "p50" else figure)

    mine, lite = added("sessions", ALONE, "p50"), added("litellm", ALONE, "p50")
    share = mine / lite if mine is not None and lite else None
    asked: list[tuple[str, float | None, str, float]] = [
        ("one stream: ms added to the first token", mine, "at most", _MOST_ADDED_MS),
        (
            "16 streams: rate, of ferrogw's",
            ratios("ferrogw", FAST[1], lambda run: run.rate),
            "at least",
            _LEAST_OF_FERROGW,
        ),
        (
            "16 streams: rate, of ferrogw's that is told the history",
            ratios("ferrogw-told", FAST[1], lambda run: run.rate),
            "at least",
            _LEAST_OF_FERROGW,
        ),
        (
            "pod: CPU seconds per 1,000 streams, of ferrogw's",
            ratios("ferrogw", POD, lambda run: run.cpu_per_1000),
            "at most",
            _MOST_POD_CPU,
        ),
        (
            "pod: p99 of the first token, ms above no relay",
            added("sessions", POD, "p99"),
            "at most",
            _MOST_POD_P99_MS,
        ),
        (
            "16 streams: rate, of LiteLLM's",
            ratios("litellm", FAST[1], lambda run: run.rate),
            "at least",
            _LEAST_OF_LITELLM,
        ),
        ("one stream: added time, of LiteLLM's", share, "at most", _MOST_OF_LITELLM),
    ]
    return [
        {"what": what, "value": value, "aim": f"{sign} {limit:.3g}", "verdict": verdict}
        for what, value, sign, limit in asked
        for verdict in [_verdict(value, sign, limit)]
    ]


def _verdict(value: float | None, sign: str, limit: float) -> str:
    if value is None:
        return "not measured"
    return "met" if (value >= limit if sign == "at least" else value <= limit) else "not met"


def show(figures: Mapping[str, Any]) -> None:
    """The tables and the criteria, as Markdown."""
    cases = figures["cases"]
    versions = ", ".join(f"{TITLES[name]} {of}" for name, of in figures["versions"].items())
    print(f"{figures['rounds']} rounds, medians (least to most). {versions or 'No other gateway.'}")
    for name, why in figures["left_out"].items():
        print(f"\nLeft out: {TITLES[name]}: {why}")
    pace = figures["paced_ms"]
    print(
        f"\nOne stream after the other, {pace['first']:g} ms to the first of"
        f" {figures['tokens']} tokens, {pace['token']:g} ms a token:\n"
    )
    _table(cases, [ALONE], ("added p50", "added p99", "CPU"))
    print(f"\nStreams of {figures['tokens']} tokens, the mock not paced; streams a second:\n")
    _table(cases, FAST, ("rate",))
    print("\nThe same, CPU seconds per 1,000 streams:\n")
    _table(cases, FAST, ("CPU",))
    print("\nThe same, ms added to the first token, median and p99:\n")
    _table(cases, FAST, ("added p50", "added p99"))
    print("\nAs a pod sees it: 64 streams, 50 ms to the first of 64 tokens, 10 ms a token:\n")
    _table(cases, [POD], ("added p50", "added p99", "CPU", "rate", "resident"))
    print("\nAsked of ruvd with sessions, each answer committed before its stream ends:\n")
    print("| | | aim | |\n|---|---|---|---|")
    for each in figures["criteria"]:
        value = "" if each["value"] is None else f"{each['value']:.3g}"
        print(f"| {each['what']} | {value} | {each['aim']} | **{each['verdict']}** |")


_CELLS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "rate": ("streams/s", lambda row: _range(row["streams_per_second"], 0)),
    "CPU": ("CPU s per 1,000", lambda row: _range(row["cpu_seconds_per_1000"], 2)),
    "resident": ("resident", lambda row: f"{row['resident_mib']} MiB"),
    "added p50": ("first token", lambda row: _time(row, "p50")),
    "added p99": ("p99", lambda row: _time(row, "p99")),
}


def _table(cases: Mapping[str, Any], of: Sequence[Case], cells: Sequence[str]) -> None:
    of = [case for case in of if case.name in cases]
    if not of:
        print("(not measured)")
        return
    names = list(dict.fromkeys(name for case in of for name in cases[case.name]["targets"]))
    heads = [
        f"{case.parallel}: {_CELLS[cell][0]}" if len(of) > 1 else _CELLS[cell][0]
        for case in of
        for cell in cells
    ]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in names:
        texts = []
        for case in of:
            row = cases[case.name]["targets"].get(name, {})
            texts += [_CELLS[cell][1](row) if "streams" in row else "" for cell in cells]
        print(f"| {TITLES[name]} | {' | '.join(texts)} |")


def _time(row: Mapping[str, Any], which: str) -> str:
    """Added, or in brackets the whole of it where there is no relay."""
    added = row.get("added_first_token_ms")
    if added is None:
        return f"({row['first_token_ms'][which]:.1f} ms)"
    if which == "p99":
        return f"{added['p99']:+.1f} ms"
    return f"{_range(added['p50'], 1)} ms"


def _range(of: Mapping[str, float], digits: int) -> str:
    if of["min"] == of["max"]:
        return f"{of['median']:.{digits}f}"
    return f"{of['median']:.{digits}f} ({of['min']:.{digits}f} to {of['max']:.{digits}f})"
