"""The new messages of a turn are those that the session does not have, and no others."""

from __future__ import annotations

import pytest
from ruvd_client import Client, Message, Role, Session, ToolCall

from ruvd_frameworks import HistoryMismatch
from ruvd_frameworks.history import new_messages, open_turn, split_system


def user(text: str) -> Message:
    return Message(role=Role.ROLE_USER, content=text)


def assistant(text: str) -> Message:
    return Message(role=Role.ROLE_ASSISTANT, content=text)


HISTORY = Session(system_prompt="Be brief.", messages=[user("one"), assistant("1")])


def test_of_a_whole_conversation_only_the_end_is_new() -> None:
    given = [user("one"), assistant("1"), user("two")]
    assert new_messages(HISTORY, "Be brief.", given) == [user("two")]


def test_messages_without_an_answer_are_new() -> None:
    assert new_messages(HISTORY, "", [user("two")]) == [user("two")]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([user("other"), assistant("1"), user("two")], "message 1 differs"),
        ([user("one"), assistant("2"), user("two")], "message 2 differs"),
        ([user("one"), assistant("1")], "no new message"),
        ([assistant("1")], "message 1 differs"),
    ],
)
def test_a_contradicted_history_is_refused(given: list[Message], text: str) -> None:
    with pytest.raises(HistoryMismatch, match=text):
        new_messages(HISTORY, "", given)


def test_another_system_prompt_is_refused() -> None:
    with pytest.raises(HistoryMismatch, match="system prompt"):
        new_messages(HISTORY, "Be long.", [user("two")])


def test_the_arguments_of_a_call_are_compared_by_their_value() -> None:
    def call(arguments: str) -> Message:
        calls = [ToolCall(id="c", name="f", arguments=arguments)]
        return Message(role=Role.ROLE_ASSISTANT, tool_calls=calls)

    result = Message(role=Role.ROLE_TOOL, content="3", tool_call_id="c")
    session = Session(messages=[user("one"), call('{"a":1,"b":2}')])
    given = [user("one"), call('{"b": 2, "a": 1}'), result]
    assert new_messages(session, "", given) == [result]


def test_a_later_system_message_is_refused() -> None:
    late = Message(role=Role.ROLE_SYSTEM, content="Be brief.")
    with pytest.raises(HistoryMismatch, match="message 2 is a system message"):
        split_system([user("one"), late])


def test_examples_begin_a_new_session(client: Client, session_id: str) -> None:
    system = Message(role=Role.ROLE_SYSTEM, content="Be brief.")
    given = [system, user("one"), assistant("1"), user("two")]
    assert open_turn(client, session_id, given) == ("Be brief.", [user("two")])
    assert client.get_session(session_id).message_count == 2
    assert open_turn(client, session_id, given) == ("Be brief.", [user("two")])
