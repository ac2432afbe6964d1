"""Repeats the tests that failed in the last run of pytest, alone, if they are few.

The tests start hundreds of daemons on a shared machine. A test that fails among them and passes
alone is named as unsteady and does not fail CI, but has to be mended: it may show a race in ruvd.
If more than a few tests failed, or one fails again, or pytest failed for another reason, CI fails.

    make test || .venv/bin/python .ci/repeat_failed.py
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAST_FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"
MOST = 3


def main() -> int:
    """Returns 0 if few tests failed and all of them pass now."""
    if not LAST_FAILED.exists():
        print("no test failed, so there is nothing to repeat", file=sys.stderr)
        return 1
    failed = sorted(json.loads(LAST_FAILED.read_text()))
    if not 0 < len(failed) <= MOST:
        print(f"{len(failed)} tests failed: too many to repeat", file=sys.stderr)
        return 1
    command = (sys.executable, "-m", "pytest", "--no-cov", *failed)
    if subprocess.run(command, cwd=ROOT, check=False).returncode:  # noqa: S603  # pytest's own ids
        return 1
    for test in failed:
        print(f"UNSTEADY: {test} failed among the others and passed alone", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
