"""The lines that the conformance programs print."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from ruvd_client import Compaction, Rendering, Role, RuvdError, Session, Usage
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


def print_answer(answer: Any) -> None:
    """Waits for the whole answer and prints it, or its error."""
    attempt(partial(_print_answer, answer))


def _print_answer(answer: Any) -> None:
    message = answer.message()
    finished = answer.finished
    out(f"answer {reason_of(finished)} [{message.content}] exchanges={finished.exchange_count}")
    print_calls(message.tool_calls)
    out(usage_line(finished.usage))


def print_calls(calls: Iterable[pb.ToolCall]) -> None:
    for call in calls:
        out(f"call {call.id} {call.name} {call.arguments}")


def show_messages(session: Session) -> None:
    for message in session.messages:
        role = Role.Name(message.role).removeprefix("ROLE_")
        notes = " pinned" if message.pinned else ""
        notes += f" of={message.tool_call_id}" if message.tool_call_id else ""
        out(f"message {role} [{message.content}]{notes}")
        print_calls(message.tool_calls)


def describe(session: Session) -> None:
    """Prints all fields of a session but its messages."""
    out(shown(session))
    out(f"prompt [{session.system_prompt}]")
    out(f"labels {' '.join(f'{key}={session.labels[key]}' for key in sorted(session.labels))}")
    sent = session.context_window
    counts = (optional(sent, f"{name}_exchanges") for name in ("keep", "max"))
    out("window keep={} max={} ".format(*counts) + f"tokens={optional(sent, 'max_tokens')}")
    rendering = Rendering.Name(sent.rendering).removeprefix("RENDERING_")
    out(f"rendering {rendering} first={optional(sent, 'keep_first')}")
    compaction = Compaction.Name(sent.compaction).removeprefix("COMPACTION_")
    out(f"compaction {compaction} at={optional(sent, 'compact_at')}")
    out(f"instruction [{session.compaction_instruction}]")
    out(f"summary [{session.summary}] of={session.summary_exchange_count}")
    out(f"compactions {session.compactions}")
    parent = session.parent_id or "-"
    out(f"settings idle={session.idle_timeout.seconds}s model={session.model} parent={parent}")
    out(usage_line(session.usage))
    for field in ("create_time", "last_used_time", "expire_time"):
        out(f"{field} {word(session.HasField(field))}")


def usage_line(usage: Usage) -> str:
    cached = optional(usage, "cached_tokens")
    return f"usage prompt={usage.prompt_tokens} cached={cached} answer={usage.completion_tokens}"


def print_summary(summary: Any) -> None:
    usage = summary.usage
    counts = f"succeeded={summary.succeeded} failed={summary.failed}"
    out(f"summary {counts} prompt={usage.prompt_tokens} answer={usage.completion_tokens}")


def optional(message: Any, field: str) -> object:
    """Returns the field's value, `-` if it is not set."""
    return getattr(message, field) if message.HasField(field) else "-"


def reason_of(finished: pb.Finished) -> str:
    return pb.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_")


def word(value: bool) -> str:  # noqa: FBT001 -- the value to print
    return "yes" if value else "no"
