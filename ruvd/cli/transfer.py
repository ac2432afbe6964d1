"""`ruvd sessions export` and `import`: whole sessions between daemons, a line each.

A line is imported whole or not at all, and a bad one does not keep the others out. What concerns
the daemon and not the line ends the import. A history that is longer than a request may be is
made in several, so others may see the session grow meanwhile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeAlias

from cyclopts import Parameter
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from ruvd_client import Client, Message, RuvdError, Session, SessionView
from ruvd_client.protocol import CreateSessionArguments

from ruvd.cli.session_lines import Conversation, LineRefused, from_line, to_line
from ruvd.cli.terminal import (
    Address,
    complain,
    connected,
    default_address,
    err,
    explain,
    fail,
)

OnConflict: TypeAlias = Literal["fail", "skip", "new-id"]

_STREAM = Path("-")
# Well below the daemon's defaults, max_messages and max_request_bytes.
_MESSAGES_AT_ONCE = 500
_BYTES_AT_ONCE = 1 << 20
# What is wrong with one session, and not with the daemon.
_ABOUT_THE_LINE = {"INVALID_REQUEST", "SESSION_EXISTS", "SESSION_TOO_LARGE"}


def _no_flag(_: type, path: Path) -> None:
    if str(path).startswith("-") and path != _STREAM:
        raise ValueError(f"{path} looks like a flag; a file of that name is ./{path}")


File: TypeAlias = Annotated[Path, Parameter(allow_leading_hyphen=True, validator=_no_flag)]


def export_sessions(
    *session_ids: str,
    out: Annotated[File, Parameter(help="Write there, mode 0600; - is stdout.")] = _STREAM,
    address: Address = default_address,
) -> None:
    """Write sessions as JSON lines: these, or all in the order of their creation.

    A line is {"messages": [{"role", "content"}...], "metadata": {...}}; the system prompt is the
    first message. Tool calls, their results and reasoning are as in OpenAI's message format.
    """
    with connected(address) as client, _output(out) as file:
        busy = out != _STREAM or not sys.stdout.isatty()
        with _progress("exporting", shown=busy) as bar:
            wanted = session_ids or [session.id for session in client.list_sessions()]
            for session_id in bar.track(wanted, description="exporting"):
                session = _read(client, session_id, may_be_gone=not session_ids)
                if session is not None:
                    file.write(f"{to_line(session)}\n".encode())


def import_sessions(
    file: File,
    /,
    *,
    on_conflict: Annotated[
        OnConflict, Parameter(help="What to do with a session whose id is taken.")
    ] = "fail",
    address: Address = default_address,
) -> int:
    """Make a session of each line of FILE (- is stdin), in OpenAI's message format.

    Lines without metadata get ids of their own. A line with what a session cannot hold, such as
    images, is refused and named. Exit code 1 if any line failed.
    """
    with connected(address) as client, _input(file) as lines:
        run = _Import(client, on_conflict, {session.id for session in client.list_sessions()})
        try:
            with _progress("importing", shown=True) as bar:
                run.all(bar.track(lines, description="importing"))
            run.look_back()
        finally:
            err.print(run.summary(), markup=False)
    return 1 if run.failed else 0


@dataclass(slots=True)
class _Import:
    """One run: what became of the lines so far."""

    client: Client
    on_conflict: OnConflict
    before: set[str]
    imported: list[str] = field(default_factory=list)
    skipped: int = 0
    failed: int = 0

    def all(self, lines: Iterable[bytes]) -> None:
        """Import every line that can be; the others are named."""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                self._one(from_line(line))
            except LineRefused as refusal:
                self._refuse(number, str(refusal))
            except RuvdError as error:
                self._refuse(number, explain(error, self.client.address))
                if error.reason not in _ABOUT_THE_LINE:
                    raise SystemExit(1) from error

    def _one(self, conversation: Conversation) -> None:
        try:
            session_id = self._make(conversation)
        except RuvdError as error:
            if error.reason != "SESSION_EXISTS" or self.on_conflict == "fail":
                raise
            if self.on_conflict == "skip":
                self.skipped += 1
                return
            conversation.arguments["session_id"] = ""
            session_id = self._make(conversation)
        self.imported.append(session_id)

    def _make(self, conversation: Conversation) -> str:
        first, *others = _portions(conversation.messages)
        arguments: CreateSessionArguments = {**conversation.arguments, "messages": first}
        session_id = self.client.create_session(**arguments).id
        try:
            for portion in others:
                self.client.append_messages(session_id, portion)
        except BaseException:
            with suppress(RuvdError):  # the first error is the one to tell
                self.client.end_session(session_id, allow_missing=True)
            raise
        return session_id

    def _refuse(self, number: int, reason: str) -> None:
        self.failed += 1
        complain(f"line {number}: {reason}")

    def look_back(self) -> None:
        """Count the sessions that are gone: a daemon keeps within its max_sessions by eviction."""
        now = {session.id for session in self.client.list_sessions()}
        gone = [session_id for session_id in self.imported if session_id not in now]
        self.imported = [session_id for session_id in self.imported if session_id in now]
        self.failed += len(gone)
        if gone:
            complain(f"{_count(len(gone))} are gone again: expired, or in the way of max_sessions")
        if displaced := len(self.before - now):
            complain(f"{_count(displaced)} of before the import expired or had to go for others")

    def summary(self) -> str:
        """What became of the lines."""
        parts = [f"{_count(len(self.imported))} imported"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped, as their ids are taken")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


def _count(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"


def _portions(messages: Sequence[Message]) -> list[list[Message]]:
    """The messages in portions that a request may hold; at least one, if an empty one."""
    portions: list[list[Message]] = [[]]
    size = 0
    for message in messages:
        size += message.ByteSize()
        if portions[-1] and (size > _BYTES_AT_ONCE or len(portions[-1]) == _MESSAGES_AT_ONCE):
            portions.append([])
            size = message.ByteSize()
        portions[-1].append(message)
    return portions


def _read(client: Client, session_id: str, *, may_be_gone: bool) -> Session | None:
    """The session with its messages; None if it ended since it was listed."""
    try:
        return client.get_session(session_id, SessionView.SESSION_VIEW_FULL)
    except RuvdError as error:
        if not may_be_gone or error.reason != "SESSION_NOT_FOUND":
            raise
        return None


def _progress(what: str, *, shown: bool) -> Progress:
    return Progress(
        TextColumn(what),
        MofNCompleteColumn(),
        console=err,
        transient=True,
        disable=not (shown and err.is_terminal),
    )


@contextmanager
def _output(path: Path) -> Iterator[BinaryIO]:
    """Stdout, or a file that has its name only when it is complete."""
    if path == _STREAM:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        return
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        fail(f"{path}: {error.strerror}")


@contextmanager
def _input(path: Path) -> Iterator[BinaryIO]:
    if path == _STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    with file:
        yield file
