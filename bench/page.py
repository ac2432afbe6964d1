"""The page of results: what each benchmark printed, with its pictures, its date and its machine."""

from __future__ import annotations

import json
import platform
import re
import tempfile
from pathlib import Path
from typing import Any

from bench.suite import STEPS, Step

_ROOT = Path(__file__).parent.parent
_RUNS = "runs.json"
_HEAD = """# Results

Written by `python -m bench` (`make bench`, `make soak`) from what the benchmarks printed; the
figures are in the JSON files beside this page, and what each benchmark does is in its module and in
[bench/README.md](../README.md). Figures of one table are of one run, both sides in turns; between
two runs a shared machine drifts, so read ratios before milliseconds.
"""


def without_names(text: str) -> str:
    """The text without this machine's name and paths."""
    replaced = {
        str(_ROOT): ".",
        str(Path.home()): "~",
        tempfile.gettempdir() + "/": "TMP/",
    }
    for name, by in replaced.items():
        text = re.sub(rf"(?<![\w.]){re.escape(name)}", by, text)
    if host := platform.node():
        text = re.sub(rf"\b{re.escape(host)}\b", "HOST", text)
    return text


def record(folder: Path, name: str, run: dict[str, Any]) -> None:
    """Note how a benchmark was run and what it printed; its figures are in a file of its own."""
    runs = runs_of(folder)
    runs[name] = run
    (folder / _RUNS).write_text(without_names(json.dumps(runs, indent=2)) + "\n")


def runs_of(folder: Path) -> dict[str, Any]:
    """The last run of each benchmark."""
    path = folder / _RUNS
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def write(folder: Path) -> None:
    """Write the page from what is in the folder."""
    runs = runs_of(folder)
    parts = [
        _HEAD,
        *(_section(folder, step, runs[step.name]) for step in STEPS if step.name in runs),
    ]
    (folder / "README.md").write_text("\n".join(parts))


def _section(folder: Path, step: Step, run: dict[str, Any]) -> str:
    ran = (
        f"`{run['command']}`, {run['began']}, {run['seconds']:.0f} s, load average"
        f" {run['load'][0]:.1f} before and {run['load'][1]:.1f} after."
    )
    lines = [f"## {step.title}", "", step.question, "", ran, ""]
    for plot in step.plots:
        if (folder / f"{plot}.svg").is_file():
            lines += [f"![{plot}]({plot}.svg)", ""]
    output = run["output"].rstrip()
    if step.markdown:
        lines.append(re.sub(r"^## ", "### ", output, flags=re.MULTILINE))
    else:
        lines += ["```text", output, "```"]
    return "\n".join([*lines, ""])
