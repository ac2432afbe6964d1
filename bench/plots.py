"""Draws pictures of the results: reads the JSON files of a folder, writes SVG files beside them.

`python -m bench` runs this module in an environment that has matplotlib (`plots.txt`), so it
imports nothing of this project. A benchmark without results gets no picture.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import matplotlib as mpl  # type: ignore[import-not-found]  # in an environment of its own
    from matplotlib import pyplot as plt
except ModuleNotFoundError:
    sys.exit("plots: matplotlib is not installed here; use `python -m bench`, which installs it")

_TITLES = {
    "mock": "no relay",
    "litellm": "LiteLLM",
    "smg": "smg",
    "smg-history": "smg, history",
    "ferrogw": "ferrogw",
    "ferrogw-told": "ferrogw, history sent",
    "grpc": "grpc.aio alone",
    "naive": "naive grpc.aio",
    "ruvd": "ruvd",
    "tcp": "ruvd, TCP",
    "sessions": "ruvd, sessions",
}
# ruvd is coloured, all others are grey.
_RUVD, _RUVD_SESSIONS, _OTHERS = "#2a9d8f", "#e76f51", "#9aa5b1"
_Figures = Any


def main() -> int:
    folder = Path(sys.argv[1])
    mpl.rcParams.update(
        {
            "svg.hashsalt": "ruvd",  # the same figures make the same file
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
        }
    )
    for name, (source, draw) in _PLOTS.items():
        path = folder / f"{source}.json"
        if not path.is_file():
            continue
        try:
            figure = draw(json.loads(path.read_text()))
        except (KeyError, IndexError, ValueError) as failure:
            print(f"plots: {name}: {failure!r}", file=sys.stderr)
            continue
        if figure is None:
            continue
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
    return 0


def _colour(name: str) -> str:
    if name == "sessions":
        return _RUVD_SESSIONS
    return _OTHERS if name in _TITLES and name not in ("ruvd", "tcp") else _RUVD


def _bars(axes: _Figures, rows: dict[str, float], *, title: str, form: str, log: bool) -> None:
    """Draws horizontal bars, the first on top, each with its figure."""
    names = list(rows)[::-1]
    values = [rows[name] for name in names]
    drawn = axes.barh(
        [_TITLES.get(name, name) for name in names], values, color=[_colour(name) for name in names]
    )
    axes.bar_label(drawn, [f" {value:{form}}" for value in values])
    axes.set_title(title, loc="left")
    axes.margins(x=0.2)
    if log and min(values) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(values) * 4)


def _measured(case: _Figures, figure: Callable[[_Figures], float]) -> dict[str, float]:
    """Returns one figure of each target that was measured in the case."""
    return {name: figure(row) for name, row in case["targets"].items() if "streams" in row}


def relay_rate(figures: _Figures) -> _Figures:
    cases = {
        case["parallel"]: case
        for case in figures["cases"].values()
        if not (case["paced"] or case.get("clients"))
    }
    if not cases:
        return None
    plot, axes = plt.subplots(figsize=(7, 4))
    names = dict.fromkeys(name for case in cases.values() for name in case["targets"])
    marks = {"mock": ":", "tcp": "--", "smg-history": "--", "grpc": ":", "naive": ":"}
    for name in names:
        points = [
            (parallel, case["targets"][name]["streams_per_second"]["median"])
            for parallel, case in sorted(cases.items())
            if "streams" in case["targets"].get(name, {})
        ]
        if not points:
            continue
        axes.plot(*zip(*points, strict=True), marks.get(name, "-"), marker="o", color=_colour(name))
        axes.annotate(
            _TITLES[name], points[-1], xytext=(6, 0), textcoords="offset points", va="center",
            color=_colour(name),
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted(cases), [str(parallel) for parallel in sorted(cases)])
    axes.margins(x=0.25)
    axes.set_xlabel("parallel streams")
    axes.set_title(f"Streams per second, {figures['tokens']} tokens each", loc="left")
    return plot


def relay_first_token(figures: _Figures) -> _Figures:
    if "alone" not in figures["cases"]:
        return None
    plot, axes = plt.subplots(figsize=(7, 3))
    rows = {
        name: row["added_first_token_ms"]["p50"]["median"]
        for name, row in figures["cases"]["alone"]["targets"].items()
        if "added_first_token_ms" in row
    }
    _bars(axes, rows, title="Time added to the first token, one stream, ms", form=".1f", log=True)
    return plot


def relay_pod(figures: _Figures) -> _Figures:
    if "pod" not in figures["cases"]:
        return None
    case = figures["cases"]["pod"]
    plot, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2), sharey=True)
    plot.suptitle(
        "A pod's load: 64 streams, 50 ms to the first of 64 tokens, 10 ms per token", x=0.01,
        ha="left", fontsize=9,
    )  # fmt: skip
    cpu = _measured(case, lambda row: float(row["cpu_seconds_per_1000"]["median"]))
    _bars(left, cpu, title="CPU seconds per 1,000 streams", form=".1f", log=True)
    first = _measured(case, lambda row: float(row["first_token_ms"]["p99"]))
    _bars(middle, first, title="First token, p99, ms", form=".0f", log=True)
    memory = _measured(case, lambda row: float(row["resident_mib"]))
    _bars(right, memory, title="Resident, MiB", form=".0f", log=False)
    return plot


def multi_turn(figures: _Figures) -> _Figures:
    """Draws the time to the first token by turn: the median of each approach's conversations."""
    cases = {name: case for name, case in figures["cases"].items() if case["arms"]}
    if not cases:
        return None
    columns = min(2, len(cases))
    rows = -(-len(cases) // columns)
    plot, grid = plt.subplots(rows, columns, figsize=(6 * columns, 3.4 * rows), squeeze=False)
    for axes, (name, case) in zip(grid.flat, cases.items(), strict=False):
        for approach, results in case["arms"].items():
            by_turn: dict[int, list[float]] = {}
            for turn in results["turns"]:
                by_turn.setdefault(turn["turn"], []).append(turn["first_ms"])
            points = [(turn, _median(times)) for turn, times in sorted(by_turn.items())]
            if points:
                width = 2.0 if "ruvd" in approach or "daemon" in approach else 1.0
                axes.plot(*zip(*points, strict=True), marker=".", label=approach, linewidth=width)
        axes.set_yscale("log")
        axes.set_title(f"{name}: first token, ms", loc="left")
        axes.set_xlabel("turn")
        axes.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
        axes.legend(fontsize=7)
    for axes in list(grid.flat)[len(cases) :]:
        axes.set_visible(False)
    return plot


def batch(figures: _Figures) -> _Figures:
    if "remote" not in figures:
        return None
    plot, axes = plt.subplots(figsize=(7, 2.2))
    rows = {}
    for tokens, case in figures["remote"].items():
        rows[f"{tokens} tokens, one by one"] = _median(case["one_by_one"])
        rows[f"{tokens} tokens, BatchComplete"] = _median(case["batch"])
        rows[f"{tokens} tokens, ideal"] = case["ideal"]
    _bars(axes, rows, title="Completions per second, 32 at a time", form=".1f", log=False)
    return plot


def telemetry(figures: _Figures) -> _Figures:
    plot, (left, right) = plt.subplots(1, 2, figsize=(8, 2.2), sharey=True)
    rates = {name: row["streams_per_second"]["median"] for name, row in figures["results"].items()}
    _bars(left, rates, title="Streams per second", form=".0f", log=False)
    paced = {
        name: row["paced_cpu_ms_per_stream"]["median"] for name, row in figures["results"].items()
    }
    _bars(right, paced, title="CPU ms per stream at a pod's pace", form=".2f", log=False)
    return plot


def streams(figures: _Figures) -> _Figures:
    plot, axes = plt.subplots(figsize=(7, 2.2))
    axes.plot(*zip(*figures["resident_mib"], strict=True), marker=".", color=_RUVD)
    axes.set_ylim(bottom=0)
    axes.set_title("Resident MiB by number of cancelled streams", loc="left")
    return plot


def soak(figures: _Figures) -> _Figures:
    shown = {
        "resident_mib": "The daemons' resident MiB",
        "open_files": "Open files",
        "tasks": "asyncio tasks",
    }
    plot, grid = plt.subplots(len(shown), 1, figsize=(8, 5.5), sharex=True)
    colours = (_RUVD, _RUVD_SESSIONS)
    for (name, part), colour in zip(figures["parts"].items(), colours, strict=False):
        times = [sample["at"] for sample in part["samples"]]
        for axes, figure in zip(grid, shown, strict=True):
            values = [sample[figure] for sample in part["samples"]]
            axes.plot(times, values, color=colour, label=name)
    for axes, title in zip(grid, shown.values(), strict=True):
        axes.set_ylim(bottom=0)
        axes.set_title(title, loc="left")
    grid[0].legend(fontsize=8)
    grid[-1].set_xlabel("seconds")
    return plot


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


_PLOTS: dict[str, tuple[str, Callable[[_Figures], _Figures]]] = {
    "relay_rate": ("relay", relay_rate),
    "relay_first_token": ("relay", relay_first_token),
    "relay_pod": ("relay", relay_pod),
    "multi_turn": ("multi_turn", multi_turn),
    "batch": ("batch", batch),
    "telemetry": ("telemetry", telemetry),
    "streams": ("streams", streams),
    "soak": ("soak", soak),
}

if __name__ == "__main__":
    sys.exit(main())
