"""The new messages of a turn, for frameworks that send the whole conversation with each request.

ruvd keeps the history of a session, so only the messages that it does not have are sent. What a
framework sends is compared with the history first: a turn never continues another conversation than
the one that the framework believes in.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ruvd_client import (
    AsyncClient,
    AsyncCompletion,
    Client,
    Completion,
    ErrorReason,
    Finished,
    Message,
    Role,
    RuvdError,
    Session,
    SessionView,
)


class HistoryMismatch(ValueError):
    """The messages of a request contradict the history of the session; the text says where."""


def open_turn(
    client: Client, session_id: str, messages: Sequence[Message]
) -> tuple[str, Sequence[Message]]:
    """Returns the system prompt and the new messages of a turn.

    The session is created if it is missing and the messages have answers, for example examples that
    come before the first question. Raises HistoryMismatch and RuvdError.
    """
    system_prompt, rest = split_system(messages)
    try:
        session = client.get_session(session_id, SessionView.SESSION_VIEW_FULL)
    except RuvdError as error:
        if error.reason != ErrorReason.SESSION_NOT_FOUND:
            raise
        earlier, new = split_answered(rest)
        if earlier:
            client.create_session(
                session_id=session_id, system_prompt=system_prompt, messages=earlier
            )
        return system_prompt, new
    return system_prompt, new_messages(session, system_prompt, rest)


async def open_turn_async(
    client: AsyncClient, session_id: str, messages: Sequence[Message]
) -> tuple[str, Sequence[Message]]:
    """Does what `open_turn` does."""
    system_prompt, rest = split_system(messages)
    try:
        session = await client.get_session(session_id, SessionView.SESSION_VIEW_FULL)
    except RuvdError as error:
        if error.reason != ErrorReason.SESSION_NOT_FOUND:
            raise
        earlier, new = split_answered(rest)
        if earlier:
            await client.create_session(
                session_id=session_id, system_prompt=system_prompt, messages=earlier
            )
        return system_prompt, new
    return system_prompt, new_messages(session, system_prompt, rest)


def ended(completion: Completion | AsyncCompletion) -> Finished:
    """Returns the end of a completion whose answer was read. Raises RuntimeError before that."""
    if completion.finished is None:
        raise RuntimeError("the answer was not read to its end")
    return completion.finished


def split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    """Returns the system prompt and the other messages. Raises HistoryMismatch for a later one."""
    count = 0
    while count < len(messages) and messages[count].role == Role.ROLE_SYSTEM:
        count += 1
    for position, message in enumerate(messages):
        if position >= count and message.role == Role.ROLE_SYSTEM:
            raise HistoryMismatch(
                f"message {position + 1} is a system message: ruvd has them at the beginning only"
            )
    return "\n\n".join(each.content for each in messages[:count]), messages[count:]


def split_answered(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """Returns the messages up to the last answer, and those after it."""
    for position in range(len(messages), 0, -1):
        if messages[position - 1].role == Role.ROLE_ASSISTANT:
            return messages[:position], messages[position:]
    return (), messages


def new_messages(
    session: Session, system_prompt: str, messages: Sequence[Message]
) -> Sequence[Message]:
    """Returns the messages that the session does not have.

    The messages either begin with the whole history of the session, or are new ones without any
    answer. Raises HistoryMismatch otherwise.
    """
    if system_prompt and system_prompt != session.system_prompt:
        raise HistoryMismatch("the system prompt is not the one with which the session was created")
    if all(each.role != Role.ROLE_ASSISTANT for each in messages) and session.messages:
        return messages
    history = session.messages
    for position, stored in enumerate(history):
        if position >= len(messages):
            raise HistoryMismatch(
                f"the session has {len(history)} messages and the request only {len(messages)}:"
                " send all of them, or only the new ones"
            )
        if _said(messages[position]) != _said(stored):
            raise HistoryMismatch(
                f"message {position + 1} differs from the one in the session: a history cannot be"
                " changed; use another session, or ForkSession"
            )
    if len(messages) == len(history):
        raise HistoryMismatch("there is no new message: the session has all of them already")
    return messages[len(history) :]


def _said(message: Message) -> tuple[object, ...]:
    calls = tuple((call.id, call.name, _value(call.arguments)) for call in message.tool_calls)
    return message.role, message.content, calls, message.tool_call_id


def _value(arguments: str) -> object:
    """Returns the value of JSON text, because frameworks parse arguments and write them anew."""
    try:
        return json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except ValueError:
        return arguments
