"""The lines that the conformance programs print."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from ruvd_client import RuvdError
from ruvd_client.v1 import session_service_pb2 as pb


def out(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_error(failure: RuvdError, *, with_reason: bool = True) -> None:
    line = f"error {failure.code.name}"
    if with_reason:
        line += f" {failure.reason or '-'}"
        if failure.retry_after_seconds is not None:
            line += f" retry={round(failure.retry_after_seconds * 1000)}ms"
    out(line)
    for violation in failure.violations:
        out(f"violation {violation.field}: {violation.description}")


def attempt(call: Callable[[], object]) -> bool:
    """Makes the call and returns whether it succeeded; its error is printed."""
    try:
        call()
    except RuvdError as failure:
        print_error(failure)
        return False
    return True


def shown(session: pb.Session) -> str:
    messages, exchanges = session.message_count, session.exchange_count
    return f"session {session.id} messages={messages} exchanges={exchanges}"


def show(session: pb.Session) -> None:
    out(shown(session))
    for message in session.messages:
        out(f"message {pb.Role.Name(message.role).removeprefix('ROLE_')} [{message.content}]")


def batched(batch: Any) -> str:
    for outcome in sorted(batch, key=lambda outcome: int(outcome.index)):
        if failure := outcome.error:
            out(f"item {outcome.index} error {failure.code.name} {failure.reason}")
        else:
            out(f"item {outcome.index} [{outcome.text()}]")
    return ""
