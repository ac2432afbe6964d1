"""`ruvd sessions export` and `import`: copies whole sessions between daemons, one on a line.

A line is imported as a whole or not at all, but for the parts that `--lenient` leaves out, and an
invalid one does not stop the others. An error that concerns the daemon and not a line ends the
import. A history that is larger than a request is sent in several, so others may see the session
grow meanwhile.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, TypeAlias

from cyclopts import Parameter
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from ruvd_client import Client, Message, RuvdError, Session, SessionView
from ruvd_client.protocol import CreateSessionArguments

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import err, fail, print_error
from ruvd.cli.session_lines import Conversation, LineRefused, Reading, from_line, to_line
from ruvd.cli.terminal import STREAM, File, connected, explain

OnConflict: TypeAlias = Literal["fail", "skip", "new-id"]

# Well below the daemon's defaults of max_messages and max_request_bytes.
_MESSAGES_AT_ONCE = 500
_BYTES_AT_ONCE = 1 << 20
# Named parts of a line; a long conversation may have the same quirk in every message.
_MAX_NAMED = 20
# Error reasons that concern one session and not the daemon.
_ABOUT_THE_LINE = {"INVALID_REQUEST", "SESSION_EXISTS", "SESSION_TOO_LARGE"}


def export_sessions(
    *session_ids: Annotated[str, Parameter(help="Ids of sessions; without any, all.")],
    out: Annotated[File, Parameter(help="File to write, with mode 0600; - is stdout.")] = STREAM,
    address: Address = default_address,
) -> None:
    """Runs `ruvd sessions export`."""
    with connected(address) as client, _output(out) as file:
        busy = out != STREAM or not sys.stdout.isatty()
        with _progress("exporting", shown=busy) as bar:
            wanted = session_ids or [session.id for session in client.list_sessions()]
            for session_id in bar.track(wanted, description="exporting"):
                session = _read(client, session_id, may_be_gone=not session_ids)
                if session is not None:
                    file.write(f"{to_line(session)}\n".encode())


def import_sessions(
    file: Annotated[File, Parameter(help="File with a session on each line; - is stdin.")],
    /,
    *,
    on_conflict: Annotated[
        OnConflict, Parameter(help="Action for a session whose id exists.")
    ] = "fail",
    lenient: Annotated[
        bool,
        Parameter(
            negative=(), help="Leave out and name the parts of a line that ruvd cannot keep."
        ),
    ] = False,
    address: Address = default_address,
) -> int:
    """Runs `ruvd sessions import`; returns its exit code."""
    with connected(address) as client, _input(file) as lines:
        before = {session.id for session in client.list_sessions()}
        job = _Import(client, on_conflict, before, lenient=lenient)
        try:
            with _progress("importing", shown=True) as bar:
                job.run(bar.track(lines, description="importing"))
            job.count_evicted()
        finally:
            err.print(job.summary(), markup=False)
    return 1 if job.failed else 0


@dataclass(slots=True)
class _Import:
    """One import: its options, and counts of the lines so far."""

    client: Client
    on_conflict: OnConflict
    before: set[str]
    _: KW_ONLY
    lenient: bool
    imported: list[str] = field(default_factory=list)
    skipped: int = 0
    failed: int = 0
    left_out: int = 0

    def run(self, lines: Iterable[bytes]) -> None:
        """Imports every valid line, and prints an error for each other one."""
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            reading = Reading(lenient=True)  # to name every part that cannot be kept
            try:
                conversation = from_line(line, reading)
                if reading.left_out and not self.lenient:
                    self._refuse(number, *reading.left_out)
                    continue
                self._import(conversation)
            except LineRefused as refusal:
                self._refuse(number, str(refusal))
            except RuvdError as error:
                self._refuse(number, explain(error, self.client.address))
                if error.reason not in _ABOUT_THE_LINE:
                    raise SystemExit(1) from error
            else:
                self.left_out += len(reading.left_out)
                _name(number, *(f"left out: {part}" for part in reading.left_out))

    def _import(self, conversation: Conversation) -> None:
        try:
            session_id = self._create(conversation)
        except RuvdError as error:
            if error.reason != "SESSION_EXISTS" or self.on_conflict == "fail":
                raise
            if self.on_conflict == "skip":
                self.skipped += 1
                return
            conversation.arguments["session_id"] = ""
            session_id = self._create(conversation)
        self.imported.append(session_id)

    def _create(self, conversation: Conversation) -> str:
        first, *others = _portions(conversation.messages)
        arguments: CreateSessionArguments = {**conversation.arguments, "messages": first}
        # The summary may be of exchanges that come with later portions.
        summary = arguments.pop("summary", "")
        count = arguments.pop("summary_exchange_count", None)
        session_id = self.client.create_session(**arguments).id
        try:
            for portion in others:
                self.client.append_messages(session_id, portion)
            if summary:
                self.client.append_messages(
                    session_id, summary=summary, summary_exchange_count=count
                )
        except BaseException:
            with suppress(RuvdError):  # the first error is the one to report
                self.client.end_session(session_id, allow_missing=True)
            raise
        return session_id

    def _refuse(self, number: int, *reasons: str) -> None:
        self.failed += 1
        _name(number, *reasons)

    def count_evicted(self) -> None:
        """Counts imported sessions that are gone, as the daemon evicts beyond max_sessions."""
        now = {session.id for session in self.client.list_sessions()}
        gone = [session_id for session_id in self.imported if session_id not in now]
        self.imported = [session_id for session_id in self.imported if session_id in now]
        self.failed += len(gone)
        if gone:
            print_error(
                f"{_sessions(len(gone))} imported but gone: expired, or evicted by max_sessions"
            )
        if displaced := len(self.before - now):
            print_error(f"{_sessions(displaced)} from before the import expired or were evicted")

    def summary(self) -> str:
        """Returns a line with the counts."""
        parts = [f"{_sessions(len(self.imported))} imported"]
        if self.skipped:
            parts.append(f"{self.skipped} skipped, as their ids exist")
        if self.left_out:
            parts.append(f"{self.left_out} part{'' if self.left_out == 1 else 's'} left out")
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


def _name(number: int, *parts: str) -> None:
    """Prints an error for each part of a line, or for the first ones of very many."""
    for part in parts[:_MAX_NAMED]:
        print_error(f"line {number}: {part}")
    if len(parts) > _MAX_NAMED:
        print_error(f"line {number}: and {len(parts) - _MAX_NAMED} more parts")


def _sessions(number: int) -> str:
    return f"{number} session{'' if number == 1 else 's'}"


def _portions(messages: Sequence[Message]) -> list[list[Message]]:
    """Splits the messages into portions that fit a request; returns at least one, maybe empty."""
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
    """Returns the session with its messages, or None if it ended since it was listed."""
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
    """Opens stdout, or a file that gets its name only when it is complete."""
    if path == STREAM:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # the reader has closed the pipe
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
    if path == STREAM:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    with file:
        yield file
