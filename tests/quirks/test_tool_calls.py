"""Tool calls as servers stream them: kept apart, answerable, and sent back as they came.

Each row goes the whole way: the answer is read, stored, returned to a client, exported, imported
and sent back with a result for each call.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import pytest
from answers import Answer as Response
from answers import text
from quirk import delta, end, reply, say, stream
from ruvd_client import Message as ClientMessage
from ruvd_client import Role as ClientRole
from upstream import Upstream, serving

from ruvd.cli.openai_conversation import read_conversation
from ruvd.cli.openai_messages import Reading, to_openai
from ruvd.core.completions.answer import Answer
from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role, ToolCall, ToolCallDelta
from ruvd.core.options import CompletionOptions, Tool
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineRequest, EngineText
from ruvd.core.sessions import window
from ruvd.core.sessions.tool_results import check_results
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.messages import SendBack
from ruvd.engines.http.factory import transport_factory
from ruvd.engines.openai.engine import OpenAIEngine
from ruvd.engines.openai.send_back import SendBackPreset, send_back
from ruvd.rpc import convert
from ruvd.rpc.requests import complete
from ruvd.rpc.validation import RequestLimits
from ruvd.stores.sqlite.rows import extra_column, to_message
from ruvd.v1 import session_service_pb2 as pb

ASKED = Message(Role.USER, "How warm is it?")
LONG = "call_1__thought__" + "QUJD" * 500
OPTIONS = CompletionOptions(tools=(Tool("f"), Tool("g")))
SIGNATURE = {"google": {"thought_signature": "c2ln"}}


@dataclass(frozen=True)
class Calls:
    """A row: `sent` are the ids that the server gets back, None for one that ruvd makes."""

    name: str
    answer: Response
    _: KW_ONLY
    calls: Sequence[tuple[str, str]]
    sent: Sequence[str | None]
    kept: Sequence[int] = ()  # the calls whose ids the caller gets unchanged
    message: Mapping[str, Any] = field(default_factory=dict)  # what else is sent back
    fields: Sequence[Mapping[str, Any]] = ()  # what else is sent back with each call
    settings: Mapping[str, Any] = field(default_factory=dict)


def call(
    id_: str | None = None, name: str | None = None, arguments: Any = None, **fields: Any
) -> Any:
    """A fragment of a call without what is None."""
    function = {"name": name, "arguments": arguments}
    value: dict[str, Any] = {"function": {k: v for k, v in function.items() if v is not None}}
    return value | ({} if id_ is None else {"id": id_}) | fields


def calls(*chunks: Any, **parts: Any) -> Response:
    """An answer of these chunks, each with a list of fragments."""
    deltas = [delta(tool_calls=each if isinstance(each, list) else [each]) for each in chunks]
    head = [delta(**parts)] if parts else []
    return stream(*head, *deltas, end("tool_calls"))


F, G = ("f", '{"a":1}'), ("g", "{}")
ROWS = [
    Calls(
        "OpenAI: two calls",
        calls(
            call("a", "f", "", index=0),
            call(None, None, '{"a":1}', index=0),
            call("b", "g", "{}", index=1),
        ),
        calls=[F, G],
        sent=["a", "b"],
        kept=[0, 1],
    ),
    Calls(
        "Kimi: one id for two calls",
        calls(call("x:3", "f", '{"a":1}', index=0), call("x:3", "g", "{}", index=1)),
        calls=[F, G],
        sent=["x:3", "x:3"],
        kept=[0],
    ),
    Calls(
        "Kimi: one id, and fragments of each call",
        calls(
            call("x:3", "f", "", index=0),
            call(None, None, '{"a":1}', index=0),
            call("x:3", "f", "", index=1),
            call(None, None, '{"a":2}', index=1),
        ),
        calls=[F, ("f", '{"a":2}')],
        sent=["x:3", "x:3"],
        kept=[0],
    ),
    Calls(
        "a proxy: one id and one index for two whole calls",
        calls(call("x", "f", '{"a":1}', index=0), call("x", "f", '{"a":2}', index=0)),
        calls=[F, ("f", '{"a":2}')],
        sent=["x", "x"],
        kept=[0],
    ),
    Calls(
        "a proxy: one id, no index, in one chunk",
        calls([call("x", "f", '{"a":1}'), call("x", "f", '{"a":1}')]),
        calls=[F, F],
        sent=["x", "x"],
        kept=[0],
    ),
    Calls(
        "Gemini: index 0 on all of them, and no ids",
        calls([call(None, "f", '{"a":1}', index=0), call(None, "g", "{}", index=0)]),
        calls=[F, G],
        sent=[None, None],
    ),
    Calls(
        "Gemini: index 0 on all of them, with ids",
        calls(call("a", "f", '{"a":1}', index=0), call("b", "f", '{"a":1}', index=0)),
        calls=[F, F],
        sent=["a", "b"],
        kept=[0, 1],
    ),
    Calls(
        "a proxy: index 0, no ids, and fragments of each call",
        calls(
            call(None, "f", "", index=0),
            call(None, None, '{"a"', index=0),
            call(None, None, ":1}", index=0),
            call(None, "f", "", index=0),
            call(None, None, '{"a":2}', index=0),
        ),
        calls=[F, ("f", '{"a":2}')],
        sent=[None, None],
    ),
    Calls(
        "a proxy: index 0, no ids, and functions without arguments",
        calls([call(None, "f", "", index=0), call(None, "g", "", index=0)]),
        calls=[("f", ""), ("g", "")],
        sent=[None, None],
    ),
    Calls(
        "Ollama: no index, empty ids, arguments as objects",
        calls(call("", "f", {"a": 1}), call("", "g", {})),
        calls=[F, G],
        sent=[None, None],
    ),
    Calls(
        "LiteLLM: ids of 2 kB",
        calls(call(LONG, "f", '{"a":1}', index=0), call(LONG + "x", "g", "{}", index=1)),
        calls=[F, G],
        sent=[LONG, LONG + "x"],
    ),
    Calls(
        "a proxy: ids with odd characters",
        calls(call("a b", "f", '{"a":1}', index=0), call("é\n\x00", "g", "{}", index=1)),
        calls=[F, G],
        sent=["a b", "é\n\x00"],
    ),
    Calls(
        "a proxy: ids that are numbers",
        calls(call(7, "f", '{"a":1}', index=0), call(8, "g", "{}", index="1")),  # type: ignore[arg-type]
        calls=[F, G],
        sent=["7", "8"],
        kept=[0, 1],
    ),
    Calls(
        "vLLM: the id and the name in every fragment",
        calls(
            call("a", "f", "", index=0),
            call("a", "f", '{"a"', index=0),
            call("a", "f", ":1}", index=0),
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "a proxy: the id comes after the name",
        calls(call(None, "f", "", index=0), call("late", None, '{"a":1}', index=0)),
        calls=[F],
        sent=["late"],
    ),
    Calls(
        "a proxy: a name repeated at the end",
        calls(call("a", "f", '{"a":1}', index=0), call("a", "f", "", index=0)),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "llama.cpp: arguments that end in a later chunk",
        calls(call("a", "f", "{", index=0), call(None, None, '"a":1}', index=0)),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "a proxy: one call that is no list, without a function's object",
        stream(delta(tool_calls={"id": "a", "name": "f", "arguments": {"a": 1}}), end()),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "an old server: function_call",
        stream(
            delta(function_call={"name": "f", "arguments": ""}),
            delta(function_call={"arguments": '{"a":1}'}),
            end("function_call"),
        ),
        calls=[F],
        sent=[None],
    ),
    Calls(
        "a proxy: fragments that say nothing, and what is no fragment",
        stream(
            delta(tool_calls=7, function_call="auto"),
            delta(tool_calls=[{}, None, "x", {"index": 0}, {"index": 3, "function": {}}]),
            delta(tool_calls=[call("a", "f", '{"a":1}', index=0)]),
            delta(tool_calls=[{"index": 0, "function": {"name": None, "arguments": None}}]),
            end("tool_calls"),
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "Gemini: a signature with the first of two calls",
        calls(
            call("a", "f", '{"a":1}', index=0, extra_content=SIGNATURE),
            call("b", "g", "{}", index=1),
        ),
        calls=[F, G],
        sent=["a", "b"],
        kept=[0, 1],
        fields=[{"extra_content": SIGNATURE}, {}],
    ),
    Calls(
        "a proxy: signatures in the function, and in a later fragment",
        calls(
            {"id": "a", "index": 0, "function": {"name": "f", "arguments": "", "signature": "s"}},
            call(None, None, '{"a":1}', index=0, thought_signature="t"),
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        fields=[
            {
                "thought_signature": "t",
                "function": {"name": "f", "arguments": '{"a":1}', "signature": "s"},
            }
        ],
    ),
    Calls(
        "LiteLLM: fields of the provider and blocks of thoughts",
        calls(
            call("a", "f", '{"a":1}', index=0, provider_specific_fields={"thought_signature": "s"}),
            thinking_blocks=[{"type": "thinking", "thinking": "Hm.", "signature": "s"}],
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        fields=[{"provider_specific_fields": {"thought_signature": "s"}}],
        message={"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "s"}]},
    ),
    Calls(
        "OpenRouter: details of the reasoning in parts",
        stream(
            delta(
                reasoning="H",
                reasoning_details=[{"type": "reasoning.text", "index": 0, "text": "H"}],
            ),
            delta(
                reasoning="m",
                reasoning_details=[
                    {"type": "reasoning.text", "index": 0, "text": "m", "signature": "s"}
                ],
            ),
            delta(reasoning_details=[{"type": "reasoning.encrypted", "index": 1, "data": "x"}]),
            delta(content="", extra_content=SIGNATURE),
            delta(tool_calls=[call("a", "f", '{"a":1}', index=0)]),
            end("tool_calls"),
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={
            "reasoning_details": [
                {"type": "reasoning.text", "index": 0, "text": "Hm", "signature": "s"},
                {"type": "reasoning.encrypted", "index": 1, "data": "x"},
            ],
            "extra_content": SIGNATURE,
        },
    ),
    Calls(
        "LiteLLM: blocks of thoughts in parts, without an index",
        stream(
            delta(thinking_blocks=[{"type": "thinking", "thinking": "H", "signature": ""}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "m", "signature": None}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "", "signature": "s"}]),
            delta(thinking_blocks=[{"type": "thinking", "thinking": "B", "signature": "t"}]),
            delta(tool_calls=[call("a", "f", '{"a":1}', index=0)]),
            end("tool_calls"),
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={
            "thinking_blocks": [
                {"type": "thinking", "thinking": "Hm", "signature": "s"},
                {"type": "thinking", "thinking": "B", "signature": "t"},
            ]
        },
    ),
    Calls(
        "OpenRouter: encrypted parts without an index",
        calls(
            call("a", "f", '{"a":1}', index=0),
            reasoning_details=[
                {"type": "reasoning.encrypted", "data": "x"},
                {"type": "reasoning.encrypted", "data": "y"},
            ],
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={
            "reasoning_details": [
                {"type": "reasoning.encrypted", "data": "x"},
                {"type": "reasoning.encrypted", "data": "y"},
            ]
        },
    ),
    Calls(
        "a proxy: one complete message instead of a stream",
        reply(
            {
                "choices": [
                    {
                        "finish_reason": "tool_calls",
                        "message": {
                            "role": "assistant",
                            "content": None,
                            "tool_calls": [
                                call("x", "f", '{"a":1}', type="function", extra_content=SIGNATURE),
                                call("x", "g", "{}", type="function"),
                            ],
                        },
                    }
                ]
            }
        ),
        calls=[F, G],
        sent=["x", "x"],
        kept=[0],
        fields=[{"extra_content": SIGNATURE}, {}],
    ),
    Calls(
        "a proxy: a stream, and then the whole message again",
        stream(
            delta(tool_calls=[call("a", "f", '{"a":1}', index=0)], reasoning_details=[{"a": 1}]),
            {
                "choices": [
                    {
                        "finish_reason": "tool_calls",
                        "message": {
                            "tool_calls": [call("a", "f", '{"a":1}')],
                            "reasoning_details": [{"a": 1}],
                        },
                    }
                ]
            },
        ),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={"reasoning_details": [{"a": 1}]},
    ),
    Calls(
        "DeepSeek: reasoning with calls, by the setting",
        calls(call("a", "f", '{"a":1}', index=0), reasoning_content="Hm."),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={"reasoning_content": "Hm."},
        settings={"send_back": "reasoning_content"},
    ),
    Calls(
        "vLLM: reasoning with calls, under its other name",
        calls(call("a", "f", '{"a":1}', index=0), reasoning_content="Hm."),
        calls=[F],
        sent=["a"],
        kept=[0],
        message={"reasoning": "Hm."},
        settings={"send_back": "reasoning"},
    ),
    Calls(
        "any server: the default leaves reasoning out",
        calls(call("a", "f", '{"a":1}', index=0), reasoning_content="Hm."),
        calls=[F],
        sent=["a"],
        kept=[0],
    ),
    Calls(
        "any server: nothing but ids is sent back, by the setting",
        calls(
            call("a b", "f", '{"a":1}', index=0, extra_content=SIGNATURE),
            reasoning_details=[{"text": "Hm."}],
        ),
        calls=[F],
        sent=["a b"],
        settings={"send_back": "none"},
    ),
]


def engine(*urls: str, **settings: Any) -> OpenAIEngine:
    seconds = {"connect_seconds": 60.0, "read_seconds": 60.0, "retries": 0}
    return OpenAIEngine(
        observer=lambda _: None, base_urls=urls, model="m", **{**seconds, **settings}
    )


@asynccontextmanager
async def aclosing_engine(engine: OpenAIEngine) -> AsyncIterator[OpenAIEngine]:
    try:
        yield engine
    finally:
        await engine.close()


def call_of(data: str) -> ToolCall:
    return ToolCall("a", "f", "{}", data)


async def answered(engine: OpenAIEngine, messages: Sequence[Message]) -> Message:
    """Returns the answer as the core makes it."""
    answer = Answer(0.0)
    async with aclosing(engine.generate(EngineRequest(messages, OPTIONS))) as chunks:
        async for chunk in chunks:
            match chunk:
                case EngineText():
                    answer.text.append(chunk.text)
                case EngineReasoning():
                    answer.reasoning.append(chunk.text)
                case ToolCallDelta():
                    answer.tool_calls.setdefault(chunk.index, []).append(chunk)
                case EngineDone():
                    answer.done = chunk
    return answer.message


def transferred(message: Message) -> Message:
    """Returns the message after a store, a stateless caller, and an export with its import."""
    text = message.role.value, message.content, extra_column(message)
    stored = to_message("s", (1, 0, 0, *text, None))
    assert stored == message
    proto = pb.Message()
    convert.message(message, proto)
    line = [to_openai(ClientMessage(role=ClientRole.ROLE_USER, content="hi"))]
    line.append(
        json.loads(json.dumps(to_openai(ClientMessage.FromString(proto.SerializeToString()))))
    )
    imported = read_conversation(line, "messages", Reading()).messages[1]
    assert imported.SerializeToString() == proto.SerializeToString()
    results = [
        pb.Message(role=pb.ROLE_TOOL, tool_call_id=each.id, content="x")
        for each in proto.tool_calls
    ]
    asked = pb.Message(role=pb.ROLE_USER, content="hi")
    tools = [pb.Tool(name="f")]
    request = pb.CompleteRequest(
        messages=[asked, proto, *results], options=pb.CompletionOptions(tools=tools)
    )
    received = complete(request, RequestLimits()).messages[1]
    assert received == message
    return received


def prompt(*messages: Message) -> Sequence[Message]:
    """Returns the messages as the context window gives them to an engine."""
    return [window._without_reasoning(message) for message in messages]


def sent(server: Upstream) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = server.requests[-1].body["messages"]
    return messages


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_calls_are_kept_apart_answerable_and_sent_back(row: Calls) -> None:
    async with serving() as server, aclosing_engine(engine(server.url, **row.settings)) as it:
        server.scripts.append(row.answer)
        server.answer = lambda _: text("Warm.")
        message = await answered(it, [ASKED])
        assert [(each.name, each.arguments) for each in message.tool_calls] == [*row.calls]
        ids = [each.id for each in message.tool_calls]
        assert len(set(ids)) == len(ids)
        assert all(0 < len(each) <= 256 and each.isascii() and each.isprintable() for each in ids)
        message = transferred(message)
        # The results come in another order than the calls.
        results = [
            Message(Role.TOOL, f"result {number}", tool_call_id=each)
            for number, each in reversed([*enumerate(ids)])
        ]
        check_results([ASKED, message], results)
        await answered(it, prompt(ASKED, message, *results))
        _, asking, *answers = sent(server)
        own = [known or made for known, made in zip(row.sent, ids, strict=True)]
        assert [each["id"] for each in asking["tool_calls"]] == own
        assert [ids[n] for n in row.kept] == [own[n] for n in row.kept]
        assert sorted((each["tool_call_id"], each["content"]) for each in answers) == sorted(
            (each, f"result {number}") for number, each in enumerate(own)
        )
        if len(set(own)) < len(own):
            contents = [each["content"] for each in answers]
            assert contents == sorted(contents), "equal ids are told apart by their order"
        assert {k: v for k, v in asking.items() if k not in PLAIN} == row.message
        for number, each in enumerate(asking["tool_calls"]):
            plain = {"type": "function", "id": own[number]}
            name, arguments = row.calls[number]
            given = row.fields[number] if row.fields else {}
            function = {"name": name, "arguments": arguments or "{}"}
            assert each == {**plain, "function": function, **given}


PLAIN = ("role", "content", "tool_calls")


async def test_what_one_server_gave_is_not_sent_to_another() -> None:
    answer = calls(call("a b", "f", "{}", index=0, extra_content=SIGNATURE), reasoning="Hm.")
    async with serving() as first, serving() as second:
        async with aclosing_engine(engine(first.url, send_back="reasoning")) as it:
            first.scripts.append(answer)
            message = await answered(it, [ASKED])
        result = Message(Role.TOOL, "x", tool_call_id=message.tool_calls[0].id)
        messages = prompt(ASKED, message, result)
        async with aclosing_engine(engine(second.url, send_back="reasoning")) as it:
            second.answer = lambda _: text("Warm.")
            await answered(it, messages)
        (asking,) = [each for each in sent(second) if each["role"] == "assistant"]
        assert asking.keys() == {"role", "content", "tool_calls"}
        assert asking["tool_calls"][0].keys() == {"id", "type", "function"}
        assert asking["tool_calls"][0]["id"] == message.tool_calls[0].id


async def test_what_the_embedded_engine_gave_is_not_sent_to_a_server() -> None:
    """A session may change its model, and its engine with it."""
    answer = calls(call("a b", "f", "{}", index=0, extra_content=SIGNATURE))
    async with serving() as embedded, serving() as second:
        client = ChatCompletionsClient(
            transport=transport_factory(None, None, None)(embedded.url), base_url=embedded.url
        )
        embedded.scripts.append(answer)
        request = EngineRequest([ASKED])
        chunks = [each async for each in client.complete(request, model="m")]
        assert isinstance(chunks[-1], EngineDone)
        data = chunks[-1].call_data[0]
        call_id = next(each.id for each in chunks if isinstance(each, ToolCallDelta))
        asking = Message(Role.ASSISTANT, "", (ToolCall(call_id, "f", "{}", data),))
        messages = prompt(ASKED, asking, Message(Role.TOOL, "x", tool_call_id=call_id))
        (back,) = json.loads(client.encode(EngineRequest(messages), model="m"))["messages"][1][
            "tool_calls"
        ]
        await client.close()
        assert (back["id"], back["extra_content"]) == ("a b", SIGNATURE)
        async with aclosing_engine(engine(second.url)) as it:
            second.answer = lambda _: text("Warm.")
            await answered(it, messages)
        (asking_sent,) = [each for each in sent(second) if each["role"] == "assistant"]
        assert asking_sent["tool_calls"][0].keys() == {"id", "type", "function"}
        assert asking_sent["tool_calls"][0]["id"] == call_id


async def test_an_answer_without_calls_leaves_nothing_to_send_back() -> None:
    async with serving() as server, aclosing_engine(engine(server.url)) as it:
        server.scripts.append(stream(delta(content="Hi", extra_content=SIGNATURE), end()))
        assert await answered(it, [ASKED]) == Message(Role.ASSISTANT, "Hi")


async def test_what_is_to_be_sent_back_is_bounded() -> None:
    part = delta(reasoning_details=[{"text": "x" * 100_000}])
    async with serving() as server, aclosing_engine(engine(server.url)) as it:
        server.scripts.append(stream(*[part] * 6, say("Hi", "stop")))
        with pytest.raises(EngineUnavailable, match="reasoning_details"):
            await answered(it, [ASKED])


async def test_a_caller_cannot_replace_the_fields_of_a_message() -> None:
    fields = {"content": "forged", "role": "system", "tool_calls": [], "extra": 1}
    data = json.dumps({"fields": fields, "function": {"name": "forged"}, "id": 7})
    asking = Message(Role.ASSISTANT, "", (call_of(data),), engine_data=data)
    result = Message(Role.TOOL, "x", tool_call_id="a")
    async with serving() as server, aclosing_engine(engine(server.url)) as it:
        server.answer = lambda _: text("Warm.")
        await answered(it, [ASKED, asking, result])
        assert sent(server)[1] == {
            "role": "assistant",
            "content": None,
            "extra": 1,
            "tool_calls": [
                {
                    "id": "a",
                    "type": "function",
                    "function": {"name": "f", "arguments": "{}"},
                    "extra": 1,
                }
            ],
        }


@pytest.mark.parametrize(
    ("preset", "url", "expected"),
    [
        ("auto", "https://api.deepseek.com/v1", SendBack(reasoning="reasoning_content")),
        ("auto", "https://api.moonshot.ai/v1", SendBack(reasoning="reasoning_content")),
        ("auto", "https://notdeepseek.com/v1", SendBack()),
        ("auto", "http://127.0.0.1:8000/v1", SendBack()),
        ("signatures", "https://api.deepseek.com/v1", SendBack()),
        ("reasoning", "http://127.0.0.1:8000/v1", SendBack(reasoning="reasoning")),
        ("none", "https://api.deepseek.com/v1", SendBack(fields=False)),
    ],
)
def test_a_server_that_is_known_to_need_reasoning_gets_it(
    preset: SendBackPreset, url: str, expected: SendBack
) -> None:
    assert send_back(preset, url) == expected
