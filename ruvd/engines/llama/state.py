"""One saved KV state, and the names of its files."""

from dataclasses import dataclass

from ruvd.engines.llama.prompt import Prompt
from ruvd.engines.llama.state_directory import PART, SEAL


@dataclass(eq=False, slots=True)
class State:
    """One state file.

    Of a file of an earlier daemon `content` is unknown, and `sha256` has to be verified.
    `session_key` is empty if it belongs to no session. A shared prefix has the whole prompt that it
    was evaluated with, which is of the session `source` unless that is empty. `failures` counts
    connections that broke while the server was to read it.
    """

    name: str
    content: Prompt | None
    session_key: str
    size_bytes: int
    source: str = ""
    sealed: bool = False
    sha256: str = ""
    failures: int = 0
    removed: bool = False


def files_of(name: str) -> tuple[str, ...]:
    """Returns the names of all files that may belong to the state."""
    return name, with_suffix(name, SEAL), with_suffix(name, PART)


def with_suffix(name: str, suffix: str) -> str:
    """Returns the name of another file of the same state."""
    return name.partition(".")[0] + suffix
