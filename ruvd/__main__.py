"""The entry point. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import sys

from ruvd.cli import run


def main() -> int:
    """Runs the command of `sys.argv`; returns its exit code."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
