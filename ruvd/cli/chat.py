"""`ruvd chat`: a session at the prompt, or one message a line from a pipe.

A turn that is interrupted is cancelled, which leaves the session as it was; leaving the chat
keeps the session, so the way back is told. A session that got no turn is not left behind.
What a model thinks is dim, and on a terminal only. A tool call is a line; nobody answers it here,
and the session goes on without its result.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from typing import Annotated

import grpc
from cyclopts import Parameter
from ruvd_client import Client, Delta, RuvdError, Session
from ruvd_client.protocol import CompleteArguments, to_seconds
from ruvd_client.v1.session_service_pb2 import Finished

from ruvd.cli.terminal import (
    Address,
    complain,
    connected,
    default_address,
    err,
    explain,
    out,
    printable,
    seconds,
    write,
)


def chat(
    *,
    session: Annotated[str, Parameter(help="Continue this session, or begin it.")] = "",
    fork: Annotated[str, Parameter(help="Begin from a fork of this session.")] = "",
    system: Annotated[str, Parameter(help="The system prompt of a new session.")] = "",
    max_tokens: Annotated[int | None, Parameter(help="The most tokens of an answer.")] = None,
    temperature: Annotated[float | None, Parameter(help="0 for the likeliest text.")] = None,
    address: Address = default_address,
) -> None:
    """Talk to the daemon's engine. Ctrl-C cancels an answer, Ctrl-D leaves."""
    arguments: CompleteArguments = {"system_prompt": system}
    if max_tokens is not None:
        arguments["max_tokens"] = max_tokens
    if temperature is not None:
        arguments["temperature"] = temperature
    interactive = sys.stdin.isatty()
    with connected(address) as client:
        if fork:
            begun = client.fork_session(fork, new_session_id=session)
        elif session:
            begun = _find(client, session)
        else:
            begun = client.create_session(system_prompt=system)
        arguments["session_id"] = begun.id or session
        # An id that is unknown is created with its first turn.
        arguments["require_existing"] = bool(begun.id)
        if interactive:
            _greet(begun, fork)
            _converse(client, address, arguments)
            _leave(client, arguments["session_id"], begun, made=bool(fork) or not session)
        else:
            for line in sys.stdin:
                if message := line.strip():
                    _turn(client, message, arguments)
                    out.line()


def _find(client: Client, session_id: str) -> Session:
    """The session; an empty one without an id if there is none."""
    try:
        return client.get_session(session_id)
    except RuvdError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise
        return Session()


def _greet(begun: Session, forked_from: str) -> None:
    if not begun.message_count:
        return
    what = f"{begun.id}, a fork of {forked_from}" if forked_from else begun.id
    out.print(
        f"continuing {what}: {begun.exchange_count} exchanges, {begun.message_count} messages",
        style="dim",
        markup=False,
    )


def _converse(client: Client, address: str, arguments: CompleteArguments) -> None:
    with suppress(ImportError):  # only the comfort of a line editor, and not on every platform
        importlib.import_module("readline")
    while (message := _prompt()) is not None:
        if not message:
            continue
        try:
            finished = _turn(client, message, arguments)
        except RuvdError as error:
            out.line()
            if error.code is grpc.StatusCode.UNAVAILABLE and not error.reason:
                raise
            complain(explain(error, address))
        except KeyboardInterrupt:
            err.print("\ncancelled; the session is as it was before", style="dim")
        else:
            out.line()
            if finished:
                out.print(_figures(finished), style="dim", markup=False)


def _prompt() -> str | None:
    """The next message, None to leave."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        out.line()
        return None


def _turn(client: Client, message: str, arguments: CompleteArguments) -> Finished | None:
    with client.complete(message, **arguments) as answer:
        shown = ""
        for delta in answer.deltas():
            shown = _show(delta, shown)
    for call in answer.finished.message.tool_calls if answer.finished else ():
        if shown:
            out.line()
        write(f"calls {call.name}({call.arguments})")
        shown = "tool_call"
    # From here on the session exists; if it expires, that is told and not papered over.
    arguments["require_existing"] = True
    return answer.finished


def _show(delta: Delta, shown: str) -> str:
    """Write more of an answer; which part of it was written last."""
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


def _leave(client: Client, session_id: str, begun: Session, *, made: bool) -> None:
    """Tell the way back, or take a session away that was made here and got no turn."""
    try:
        messages = client.get_session(session_id).message_count
        if made and messages == begun.message_count:
            client.end_session(session_id, allow_missing=True)
        else:
            out.print(f"come back with: ruvd chat --session {session_id}", markup=False)
    except RuvdError as error:
        if error.reason != "SESSION_NOT_FOUND":
            raise


def _figures(finished: Finished) -> str:
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
