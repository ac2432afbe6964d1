"""`ruvd completion SHELL`: prints or installs what completes commands and flags in a shell."""

from typing import Annotated, Literal

from cyclopts import Parameter

from ruvd.cli.commands import app
from ruvd.cli.console import fail, out

# cyclopts' script only defines a function, for a file of the same name in zsh's fpath. With these
# lines it also works if it is sourced, and in a file with the usual name.
_ZSH_END = """
case $funcstack[1] in
  _ruvd|_cyclopts_ruvd) _cyclopts_ruvd "$@" ;;
  *) compdef _cyclopts_ruvd ruvd ;;
esac"""


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="The shell.")],
    /,
    *,
    install: Annotated[
        bool, Parameter(negative=(), help="Write it where the shell finds it, and print the file.")
    ] = False,
) -> None:
    """Runs `ruvd completion`."""
    if not install:
        end = _ZSH_END if shell == "zsh" else ""
        out.out(app.generate_completion(shell=shell).rstrip() + end)
        return
    try:
        out.out(app.install_completion(shell=shell))
    except OSError as error:
        fail(f"cannot write {error.filename}: {error.strerror}")
