"""The command line.

`ruvd health` is tried first and imports nothing of the rest: a probe runs it every few seconds, and
the other commands take four times its CPU time to import. `ruvd serve` is tried without the command
line's libraries, which would stay in the daemon's memory.
"""

from collections.abc import Sequence


def run(arguments: Sequence[str]) -> int:
    """Runs a command; returns its exit code. Raises SystemExit when a command fails."""
    try:
        code = _try_quick(arguments)
        return _run(arguments) if code is None else code
    except KeyboardInterrupt:
        return 130


def _try_quick(arguments: Sequence[str]) -> int | None:
    if arguments[:1] == ["health"]:
        from ruvd.cli import quick_health  # noqa: PLC0415  # see the module's docstring

        return quick_health.try_quick(arguments)
    if arguments[:1] == ["serve"]:
        from ruvd.cli import quick_serve  # noqa: PLC0415

        return quick_serve.try_quick(arguments)
    return None


def _run(arguments: Sequence[str]) -> int:
    import cyclopts  # noqa: PLC0415  # see the module's docstring

    from ruvd.cli.commands import app  # noqa: PLC0415

    try:
        result = app(list(arguments), exit_on_error=False, result_action="return_value")
    except cyclopts.CycloptsError:  # cyclopts has printed it
        return 2
    return result if isinstance(result, int) else 0
