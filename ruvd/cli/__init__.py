"""The command line: arguments in, exit code out.

`ruvd health` comes first and does without the rest: a probe runs it every few seconds, and the
other commands take four times its CPU time to import.
"""

from __future__ import annotations

from collections.abc import Sequence

from ruvd.cli.quick_health import quick


def run(arguments: Sequence[str]) -> int:
    """Run one command; its exit code. Raises SystemExit where a command fails."""
    try:
        code = quick(arguments)
        return _run(arguments) if code is None else code
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    import cyclopts  # noqa: PLC0415  # see above

    from ruvd.cli.commands import app  # noqa: PLC0415  # see above

    try:
        result = app(list(arguments), exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError:  # printed already
        return 2
    return result if isinstance(result, int) else 0
