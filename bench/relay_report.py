"""The report of `bench/relay.py`: figures for JSON, tables and criteria.

A figure of several rounds is their median, with the smallest and the largest. Ratios and added
times compare the two sides in the same round. A p99 is over the streams of all rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bench.relay_targets import ALONE, CASES, CLIENTS, FAST, POD, Case, Run, Target
from bench.report import Criterion, percentile, spread

TITLES = {
    "mock": "no relay",
    "litellm": "LiteLLM",
    "smg": "smg",
    "smg-history": "smg, history kept in memory",
    "agentic": "agentic-api, sessions on sqlite",
    "vllm": "vllm-router",
    "nginx": "nginx",
    "ferrogw": "ferrogw",
    "ferrogw-told": "ferrogw, history sent by the client",
    "go": "Go server of the same API",
    "go-sessions": "Go server, sessions in memory",
    "grpc": "grpc.aio, answers from memory",
    "naive": "naive grpc.aio",
    "ruvd": "ruvd, Unix socket",
    "tcp": "ruvd, TCP",
    "sessions": "ruvd, sessions on sqlite",
}


def results(targets: Sequence[Target]) -> dict[str, Any]:
    """Returns the figures of every case and target."""
    base = next((target for target in targets if target.name == "mock"), None)
    found: dict[str, Any] = {}
    for case in CASES:
        rows = {
            target.name: _row(target, base, case)
            for target in targets
            if target.all(case) or case.name in target.failed
        }
        if rows:
            found[case.name] = {
                "parallel": case.parallel,
                "paced": case.paced,
                "clients": case.clients,
                "targets": rows,
            }
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
        "first_token_ms": _first_token(runs),
        "resident_mib": round(max(run.resident_mib for run in runs)),
    }
    if base and target is not base and base.all(case):
        row["added_first_token_ms"] = _added(target, base, case)
    return row


def _first_token(runs: Sequence[Run]) -> dict[str, float]:
    pooled = [value for run in runs for value in run.first_ms]
    return {"p50": round(percentile(pooled, 0.5), 3), "p99": round(percentile(pooled, 0.99), 3)}


def _added(target: Target, base: Target, case: Case) -> dict[str, Any]:
    pairs = target.beside(base, case)
    own_p99, base_p99 = (_first_token(runs)["p99"] for runs in zip(*pairs, strict=True))
    return {
        "p50": spread([own_run.median_ms - base_run.median_ms for own_run, base_run in pairs]),
        "p99": round(own_p99 - base_p99, 3),
    }


def criteria(targets: Sequence[Target]) -> list[dict[str, Any]]:
    """Returns the aims for the daemon with sessions, each answer durable before its stream ends.

    The figure of an aim is None if it was not measured.
    """
    by_name = {target.name: target for target in targets}

    def ratio(other: str, case: Case, figure: Callable[[Run], float]) -> float | None:
        if other not in by_name or "sessions" not in by_name:
            return None
        pairs = by_name["sessions"].beside(by_name[other], case)
        if not pairs:
            return None
        return statistics.median(figure(own) / figure(others) for own, others in pairs)

    def added(name: str, case: Case, percentile_name: str) -> float | None:
        if name not in by_name or "mock" not in by_name:
            return None
        if not by_name[name].beside(by_name["mock"], case):
            return None
        figure = _added(by_name[name], by_name["mock"], case)[percentile_name]
        return float(figure["median"] if percentile_name == "p50" else figure)

    def rate(run: Run) -> float:
        return run.rate

    own, litellm = added("sessions", ALONE, "p50"), added("litellm", ALONE, "p50")
    share = own / litellm if own is not None and litellm else None
    by_clients = None
    if "sessions" in by_name:
        one, each = (by_name["sessions"].runs.get(name, {}) for name in ("64", "64-clients"))
        if pairs := [(each[number], one[number]) for number in each.keys() & one.keys()]:
            by_clients = statistics.median(own.rate / others.rate for own, others in pairs)
    multiple = "16 streams: rate, as a multiple of"
    pod_cpu = ratio("ferrogw", POD, lambda run: run.cpu_per_1000)
    aims = [
        Criterion("one stream: time added to the first token, ms", own, 1.0),
        Criterion(f"{multiple} ferrogw's", ratio("ferrogw", FAST[1], rate), 1.0, at_least=True),
        Criterion(
            f"{multiple} the Go server's, which stores nothing",
            ratio("go-sessions", FAST[1], rate), 0.5, at_least=True,
        ),
        Criterion(f"{multiple} agentic-api's", ratio("agentic", FAST[1], rate), 1.0, at_least=True),
        Criterion(
            f"{multiple} ferrogw's with the history sent by the client",
            ratio("ferrogw-told", FAST[1], rate), 0.5, at_least=True,
        ),
        Criterion("pod: CPU per stream, as a multiple of ferrogw's", pod_cpu, 1.15),
        Criterion(
            "pod: time added to the p99 of the first token, ms", added("sessions", POD, "p99"), 5.0
        ),
        Criterion(f"{multiple} LiteLLM's", ratio("litellm", FAST[1], rate), 20.0, at_least=True),
        Criterion("one stream: added time, as a multiple of LiteLLM's", share, 1 / 6),
        Criterion(
            "64 clients: rate, of 64 streams on one connection", by_clients, 0.8, at_least=True
        ),
    ]  # fmt: skip
    return [
        {"what": aim.what, "value": aim.value, "aim": aim.aim, "verdict": aim.verdict}
        for aim in aims
    ]


def show(figures: Mapping[str, Any]) -> None:
    """Prints the tables and the criteria as Markdown."""
    cases = figures["cases"]
    versions = ", ".join(f"{TITLES[name]} {pin}" for name, pin in figures["versions"].items())
    print(f"Rounds: {figures['rounds']}. Each figure is the median (smallest to largest).")
    print("Times in brackets are total times to the first token, where there is no relay.")
    print(f"Gateways: {versions or 'none'}.")
    for name, why in figures["left_out"].items():
        print(f"\nLeft out: {TITLES.get(name, name)}: {why}")
    pace = figures["paced_ms"]
    print(
        f"\nOne stream at a time, {pace['first']:g} ms to the first of {figures['tokens']} tokens,"
        f" {pace['token']:g} ms per token; time added to the first token:\n"
    )
    _table(cases, [ALONE], ("added p50", "added p99", "CPU"))
    print(f"\nStreams of {figures['tokens']} tokens, without pace; streams per second:\n")
    _table(cases, FAST, ("rate",))
    print("\nThe same streams, CPU seconds per 1,000:\n")
    _table(cases, FAST, ("CPU",))
    print("\nThe same streams, time added to the first token, median and p99:\n")
    _table(cases, FAST, ("added p50", "added p99"))
    print("\nClients with a connection each; streams per second, and CPU seconds per 1,000:\n")
    _table(cases, CLIENTS, ("rate", "CPU"))
    print(
        "\nA pod's load: 64 parallel streams, 50 ms to the first of 64 tokens, 10 ms per token;"
        " time added to the first token:\n"
    )
    _table(cases, [POD], ("added p50", "added p99", "CPU", "rate", "resident"))
    print("\nAims for ruvd with sessions, each answer committed before its stream ends:\n")
    print("| figure | measured | aim | |\n|---|---|---|---|")
    for aim in figures["criteria"]:
        value = "" if aim["value"] is None else f"{aim['value']:.3g}"
        print(f"| {aim['what']} | {value} | {aim['aim']} | **{aim['verdict']}** |")


_CELLS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "rate": ("streams/s", lambda row: _range(row["streams_per_second"], 0)),
    "CPU": ("CPU s per 1,000", lambda row: _range(row["cpu_seconds_per_1000"], 2)),
    "resident": ("resident", lambda row: f"{row['resident_mib']} MiB"),
    "added p50": ("first token", lambda row: _time(row, "p50")),
    "added p99": ("p99", lambda row: _time(row, "p99")),
}


def _table(cases: Mapping[str, Any], shown: Sequence[Case], cells: Sequence[str]) -> None:
    shown = [case for case in shown if case.name in cases]
    if not shown:
        print("(not measured)")
        return
    names = list(dict.fromkeys(name for case in shown for name in cases[case.name]["targets"]))
    heads = [
        f"{case.parallel}: {_CELLS[cell][0]}" if len(shown) > 1 else _CELLS[cell][0]
        for case in shown
        for cell in cells
    ]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for name in names:
        texts = []
        for case in shown:
            row = cases[case.name]["targets"].get(name, {})
            texts += [_CELLS[cell][1](row) if "streams" in row else "" for cell in cells]
        print(f"| {TITLES[name]} | {' | '.join(texts)} |")


def _time(row: Mapping[str, Any], percentile_name: str) -> str:
    """Formats the added time, or in brackets the whole time where there is no relay."""
    added = row.get("added_first_token_ms")
    if added is None:
        return f"({row['first_token_ms'][percentile_name]:.1f} ms)"
    if percentile_name == "p99":
        return f"{added['p99']:+.1f} ms"
    return f"{_range(added['p50'], 1)} ms"


def _range(values: Mapping[str, float], digits: int) -> str:
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return median if values["min"] == values["max"] else f"{median} ({low} to {high})"
