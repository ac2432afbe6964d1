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
    names = [kill["step"] for kill in kills]
    found = [(kill["exchanges"], kill["compactions"]) for kill in kills]
    # Each state comes once the one before it has ended, and none comes back.
    assert found == sorted(found)
    assert set(found) == {(3, 0), (4, 0), (4, 1)}
    # A kill came before and after each of these.
    for name in (
        "CompletionCommitted",
        "request: Summarise",
        "part of an answer: EngineDone",
        "SummaryRequested",
        "evaluation",
        "SQL: COMMIT",
        "SessionCompacted",
        "s+compacted becomes s",
    ):
        assert name in names, names
