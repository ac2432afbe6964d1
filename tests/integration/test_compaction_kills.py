"""A process that is killed at any step of a summary leaves the old window or the new one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "compaction_kills.py"


def test_a_kill_at_every_step_leaves_the_old_window_or_the_new_one(tmp_path: Path) -> None:
    # The script ends with an error if what a kill leaves is neither.
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert not run.returncode, run.stderr
    kills = [json.loads(line) for line in run.stdout.splitlines()]
    found = {(kill["exchanges"], kill["compactions"]) for kill in kills}
    assert found == {(3, 0), (4, 0), (4, 1)}
    # The order of the other steps differs from run to run, as the store has threads.
    for name, state in {
        "CompletionBegan": (3, 0),
        "CompletionCommitted": (4, 0),
        "request: Summarise": (4, 0),
        "SummaryRequested": (4, 0),
        "evaluation": (4, 0),
        "SessionCompacted": (4, 1),
        "s+compacted becomes s": (4, 1),
    }.items():
        after = {(each["exchanges"], each["compactions"]) for each in kills if each["step"] == name}
        assert after == {state}, name
