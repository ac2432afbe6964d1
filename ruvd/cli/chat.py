"""`ruvd chat`: talks to a session at a prompt, or sends each line of a pipe as a message.

Ctrl-C cancels a turn, which leaves the session as it was. At the end the session is kept, and the
command that continues it is printed; a new session without a turn is deleted. Reasoning is printed
dim, on a terminal only. A tool call is printed as a line; the session goes on without its result.
If the session was evicted or has expired, the user is asked whether to go on in a new one.
"""

import importlib
import sys
from contextlib import suppress
from typing import Annotated

import grpc
from cyclopts import Parameter
from ruvd_client import Client, Delta, RuvdError, Session
from ruvd_client.protocol import CompleteArguments, to_seconds
from ruvd_client.v1.session_service_pb2 import Finished

from ruvd.cli.address import Address, default_address
from ruvd.cli.console import err, out, print_error, printable, seconds, write
from ruvd.cli.terminal import connected, explain

# The reasons for which a session that nobody ended is no longer there.
_GONE = {
    "SESSION_EVICTED": "the session was evicted to make room for another one",
    "SESSION_EXPIRED": "the session was idle for too long and has expired",
}


def chat(
    *,
    session: Annotated[str, Parameter(help="Id of a session to continue, or to create.")] = "",
    fork: Annotated[str, Parameter(help="Id of a session to fork; the chat is in the fork.")] = "",
    system: Annotated[str, Parameter(help="System prompt of a new session.")] = "",
    max_tokens: Annotated[int | None, Parameter(help="Most tokens of an answer.")] = None,
    temperature: Annotated[float | None, Parameter(help="0 for the likeliest text.")] = None,
    address: Address = default_address,
) -> None:
    """Runs `ruvd chat`."""
    arguments: CompleteArguments = {"system_prompt": system}
    if max_tokens is not None:
        arguments["max_tokens"] = max_tokens
    if temperature is not None:
        arguments["temperature"] = temperature
    interactive = sys.stdin.isatty()
    with connected(address) as client:
        if fork:
            opened = client.fork_session(fork, new_session_id=session)
        elif session:
            opened = _find(client, session)
        else:
            opened = client.create_session(system_prompt=system)
        arguments["session_id"] = opened.id or session
        # An unknown id is created with its first turn.
        arguments["require_existing"] = bool(opened.id)
        if interactive:
            _print_resumed(opened, fork)
            _run_prompt(client, address, arguments)
            _close(client, arguments["session_id"], opened, created=bool(fork) or not session)
        else:
            for line in sys.stdin:
                if message := line.strip():
                    _run_turn(client, message, arguments)
                    out.line()


def _find(client: Client, session_id: str) -> Session:
    """Returns the session, or an empty one without an id if it does not exist."""
    try:
        return client.get_session(session_id)
    except RuvdError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
        return Session()


def _print_resumed(opened: Session, forked_from: str) -> None:
    if not opened.message_count:
        return
    name = f"{opened.id}, a fork of {forked_from}" if forked_from else opened.id
    out.print(
        f"continuing {name}: {opened.exchange_count} exchanges, {opened.message_count} messages",
        style="dim",
        markup=False,
    )


def _run_prompt(client: Client, address: Address, arguments: CompleteArguments) -> None:
    with suppress(ImportError):  # line editing, which not every platform has
        importlib.import_module("readline")
    while (message := _read_message()) is not None:
        if not message:
            continue
        try:
            finished = _run_turn_or_ask(client, message, arguments)
        except RuvdError as error:
            out.line()
            if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
                raise
            print_error(explain(error, address))
        except KeyboardInterrupt:
            err.print("\ncancelled; the session is unchanged", style="dim")
        else:
            out.line()
            if finished:
                out.print(_summary(finished), style="dim", markup=False)


def _run_turn_or_ask(client: Client, message: str, arguments: CompleteArguments) -> Finished | None:
    """Runs a turn. If the session has gone, asks whether to run it in a new one of the same id."""
    try:
        return _run_turn(client, message, arguments)
    except RuvdError as error:
        if error.reason not in _GONE:
            raise
        out.print(_GONE[error.reason], style="dim", markup=False)
    answer = _read_message("go on in a new session, without what was said before? [y/N] ")
    if answer is None or answer.lower() not in ("y", "yes"):
        return None
    finished = _run_turn(client, message, {**arguments, "recreate_if_gone": True})
    arguments["require_existing"] = True
    return finished


def _read_message(prompt: str = "> ") -> str | None:
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt):
        out.line()
        return None


def _run_turn(client: Client, message: str, arguments: CompleteArguments) -> Finished | None:
    with client.complete(message, **arguments) as answer:
        shown = ""
        for delta in answer.deltas():
            shown = _print_delta(delta, shown)
    for call in answer.finished.message.tool_calls if answer.finished else ():
        if shown:
            out.line()
        write(f"calls {call.name}({call.arguments})")
        shown = "tool_call"
    # The session exists now. If it expires, the next turn fails instead of starting a new one.
    arguments["require_existing"] = True
    return answer.finished


def _print_delta(delta: Delta, shown: str) -> str:
    """Prints a piece of an answer; returns which part was printed last."""
    part = "text" if delta.text else "reasoning" if delta.reasoning and out.is_terminal else ""
    if not part:
        return shown
    if shown and shown != part:
        out.line()
    if part == "text":
        write(delta.text)
    else:
        out.out(printable(delta.reasoning), style="dim", end="")
    return part


def _close(client: Client, session_id: str, opened: Session, *, created: bool) -> None:
    """Prints how to continue the session, or deletes one that is new and got no turn."""
    try:
        messages = client.get_session(session_id).message_count
        if created and messages == opened.message_count:
            client.end_session(session_id, allow_missing=True)
        else:
            out.print(f"continue with: ruvd chat --session {session_id}", markup=False)
    except RuvdError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise


def _summary(finished: Finished) -> str:
    timings, usage = finished.timings, finished.usage
    known = timings.HasField("time_to_first_token")
    first = to_seconds(timings.time_to_first_token) if known else None
    parts = [
        f"first token {seconds(first)}",
        f"total {seconds(to_seconds(timings.total))}",
        f"{usage.prompt_tokens} prompt tokens",
    ]
    if usage.HasField("cached_tokens"):
        percent = 100 * usage.cached_tokens / max(usage.prompt_tokens, 1)
        parts.append(f"{usage.cached_tokens} cached ({percent:.0f} %)")
    return " · ".join(parts)
