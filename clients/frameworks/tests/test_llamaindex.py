"""LlamaIndex runs its turns in a session of the daemon."""

from __future__ import annotations

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.tools import FunctionTool
from ruvd_client import Client

from ruvd_frameworks.llamaindex import RuvdLLM


def lookup(text: str) -> str:
    """Looks something up."""
    return f"found {len(text)} characters"


def test_a_turn_has_the_one_before_it(address: str, session_id: str, client: Client) -> None:
    llm = RuvdLLM(address=address, session_id=session_id)
    system = ChatMessage("Be brief.", role=MessageRole.SYSTEM)
    first = llm.chat([system, ChatMessage("hello there")])
    assert first.message.content == "hello there"
    whole = [system, ChatMessage("hello there"), first.message, ChatMessage("again")]
    assert llm.chat(whole).message.content == "again"
    session = client.get_session(session_id)
    assert (session.exchange_count, session.system_prompt) == (2, "Be brief.")


async def test_streams_have_the_text(address: str, session_id: str, client: Client) -> None:
    llm = RuvdLLM(address=address, session_id=session_id)
    parts = list(llm.stream_chat([ChatMessage("one two three")]))
    assert "".join(part.delta or "" for part in parts) == "one two three"
    assert parts[-1].message.content == "one two three"
    stream = await llm.astream_chat([ChatMessage("four five")])
    assert [part async for part in stream][-1].message.content == "four five"
    assert (await llm.achat([ChatMessage("six")])).message.content == "six"
    assert client.get_session(session_id).exchange_count == 3


async def test_completions_have_no_session(address: str, session_id: str, client: Client) -> None:
    llm = RuvdLLM(address=address, session_id=session_id)
    assert llm.complete("one").text == "one"
    assert [part.text for part in llm.stream_complete("one two")][-1] == "one two"
    assert (await llm.acomplete("three")).text == "three"
    stream = await llm.astream_complete("four")
    assert [part.text async for part in stream][-1] == "four"
    assert session_id not in {session.id for session in client.list_sessions()}


def test_a_tool_is_called_and_its_result_answers(
    address: str, session_id: str, client: Client
) -> None:
    llm = RuvdLLM(address=address, session_id=session_id)
    tools = [FunctionTool.from_defaults(lookup)]
    response = llm.chat_with_tools(tools, user_msg="please lookup this")
    (call,) = llm.get_tool_calls_from_response(response)
    assert (call.tool_name, call.tool_kwargs) == ("lookup", {"text": "please lookup this"})
    result = ChatMessage(
        lookup(**call.tool_kwargs),
        role=MessageRole.TOOL,
        additional_kwargs={"tool_call_id": call.tool_id},
    )
    history = [ChatMessage("please lookup this"), response.message, result]
    assert llm.chat_with_tools(tools, chat_history=history).message.content
    assert client.get_session(session_id).message_count == 4
