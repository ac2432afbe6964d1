"""LangChain and LangGraph run their turns in a session of the daemon."""

from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from ruvd_client import Client, RuvdError

from ruvd_frameworks import HistoryMismatch
from ruvd_frameworks.langchain import ChatRuvd, RuvdChatMessageHistory


@tool
def lookup(text: str) -> str:
    """Looks something up."""
    return f"found {len(text)} characters"


def test_a_turn_has_the_one_before_it(address: str, session_id: str, client: Client) -> None:
    model = ChatRuvd(address=address, session_id=session_id)
    first = model.invoke([SystemMessage("Be brief."), HumanMessage("hello there")])
    assert first.content == "hello there"
    second = model.invoke("and again")
    session = client.get_session(session_id)
    assert (session.exchange_count, session.system_prompt) == (2, "Be brief.")
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_token_details"]["cache_read"] > 0
    assert second.response_metadata["finish_reason"] == "stop"


def test_a_stream_has_the_text_and_the_usage(address: str, session_id: str) -> None:
    model = ChatRuvd(address=address, session_id=session_id)
    chunks = list(model.stream("one two three"))
    assert "".join(str(chunk.content) for chunk in chunks) == "one two three"
    assert any(chunk.usage_metadata for chunk in chunks)


async def test_calls_may_be_asynchronous(address: str, session_id: str, client: Client) -> None:
    model = ChatRuvd(address=address).bind(session_id=session_id)
    assert (await model.ainvoke("one two")).content == "one two"
    texts = [str(chunk.content) async for chunk in model.astream("three four")]
    assert "".join(texts) == "three four"
    assert client.get_session(session_id).exchange_count == 2


def test_a_graph_sends_its_whole_state_and_the_daemon_gets_the_new_messages(
    address: str, session_id: str, client: Client
) -> None:
    model = ChatRuvd(address=address, session_id=session_id).bind_tools([lookup])
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    graph.add_node("tools", ToolNode([lookup]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    state = graph.compile().invoke({"messages": [HumanMessage("please lookup this")]})
    kinds = [type(message) for message in state["messages"]]
    assert kinds == [HumanMessage, AIMessage, ToolMessage, AIMessage]
    session = client.get_session(session_id)
    assert (session.message_count, session.exchange_count) == (4, 1)


def test_a_changed_history_is_refused(address: str, session_id: str) -> None:
    model = ChatRuvd(address=address, session_id=session_id)
    model.invoke("one")
    with pytest.raises(HistoryMismatch, match="message 1 differs"):
        model.invoke([HumanMessage("two"), AIMessage("one"), HumanMessage("three")])


def test_an_error_of_the_daemon_is_passed_on(address: str) -> None:
    with pytest.raises(RuvdError, match="temperature"):
        ChatRuvd(address=address, temperature=-5).invoke("one")


def test_a_history_is_that_of_the_session(address: str, session_id: str) -> None:
    with Client(address) as client:
        history = RuvdChatMessageHistory(session_id, client=client)
        assert history.messages == []
        history.add_messages([HumanMessage("one"), AIMessage("1")])
        history.add_messages([HumanMessage("two"), AIMessage("2")])
        assert [message.content for message in history.messages] == ["one", "1", "two", "2"]
        history.clear()
        assert history.messages == []
