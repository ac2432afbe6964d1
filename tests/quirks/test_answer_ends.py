"""An answer's end: a finish reason counts once it is confirmed, and means what its server means."""

from __future__ import annotations

from answers import STALL
from quirk import Ask, Quirk, check, delta, end, reply, say, stream, table, used

from ruvd.core.errors import ContextTooLong, EngineRejected, EngineTimeout, EngineUnavailable
from ruvd.core.options import ResponseFormat

IMPATIENT = {"read_seconds": 0.3}


def message(content: object, finish: str | None = None, **fields: object) -> dict[str, object]:
    """A chunk with a whole message in place of a delta."""
    whole = {"role": "assistant", "content": content, **fields}
    return {"choices": [{"index": 0, "message": whole, "finish_reason": finish}]}


def legacy(text: str, finish: str | None = None) -> dict[str, object]:
    """A chunk of the older completions API."""
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


@table(
    Quirk("OpenAI: text, end, usage, [DONE]", stream(say("Hi"), end(), used()), text="Hi"),
    Quirk(
        "Mistral: usage beside the finish reason",
        stream(say("Hi"), end(usage={"prompt_tokens": 5, "completion_tokens": 1})),
        text="Hi",
        usage=(5, None, 1),
    ),
    Quirk(
        "Moonshot: usage inside the choice",
        stream(
            say("Hi"),
            {"choices": [{"delta": {}, "finish_reason": "stop", "usage": {"prompt_tokens": 5}}]},
        ),
        text="Hi",
        usage=(5, None, 0),
    ),
    Quirk(
        "Gemini: stop on every chunk, and a pause",
        stream(say("a", "stop"), 0.2, say("b", "stop"), 0.2, say("c", "stop")),
        text="abc",
    ),
    Quirk(
        "Gemini: stop on every chunk, and the last is cut",
        stream(say("a", "STOP"), say("b", "MAX_TOKENS")),
        text="ab",
        finish="LENGTH",
        raw="MAX_TOKENS",
    ),
    Quirk(
        "Gemini: stop on every chunk, and then the connection breaks",
        stream(say("a", "stop"), say("b", "stop"), done=False, whole=False),
        error=EngineUnavailable,
        words="before the answer's end",
    ),
    Quirk(
        "a proxy: the finish reason, and less than the announced length",
        stream(say("Hi", "stop"), done=False, framing="length", whole=False),
        error=EngineUnavailable,
        words="before the answer's end",
    ),
    Quirk(
        "a proxy: the finish reason, and then silence",
        stream(say("Hi", "stop"), STALL),
        error=EngineTimeout,
        words="silent",
        settings=IMPATIENT,
    ),
    Quirk(
        "a gateway: usage without choices, and then silence",
        stream(say("Hi", "stop"), used(), STALL),
        text="Hi",
        settings=IMPATIENT,
    ),
    Quirk(
        "a gateway: usage without choices, and then the connection breaks",
        stream(say("Hi", "stop"), used(), done=False, whole=False),
        text="Hi",
    ),
    Quirk(
        "vLLM: usage without choices before the finish reason",
        stream(say("Hi"), used(), end(), done=False),
        text="Hi",
        usage=(9, None, 3),
    ),
    Quirk(
        "a gateway: [DONE] and then no end of the body",
        stream(say("Hi", "stop"), whole=False),
        text="Hi",
    ),
    Quirk(
        "LM Studio: no [DONE], and the body ends by its last chunk",
        stream(say("Hi", "stop"), done=False),
        text="Hi",
    ),
    Quirk(
        "an old proxy: no [DONE], and the body ends by its length",
        stream(say("Hi", "stop"), done=False, framing="length"),
        text="Hi",
    ),
    Quirk(
        "HTTP/1.0: no [DONE], and the body ends by the connection's end",
        stream(say("Hi", "stop"), done=False, framing="close"),
        text="Hi",
    ),
    Quirk(
        "a crash: text and no finish reason",
        stream(say("Hi"), done=False, framing="close"),
        error=EngineUnavailable,
        words="ended before its end",
    ),
    Quirk(
        "Azure: a first chunk without choices",
        stream({"choices": [], "prompt_filter_results": []}, say("Hi"), end()),
        text="Hi",
    ),
    Quirk("OpenRouter: comments", stream(b": wait\n\n", say("Hi", "stop")), text="Hi"),
)
async def test_a_finish_reason_counts_once_the_end_is_confirmed(quirk: Quirk) -> None:
    await check(quirk)


@table(
    Quirk(
        "OpenAI: a refusal",
        stream(delta(refusal="I'm sorry,"), delta(refusal=" no."), end()),
        text="I'm sorry, no.",
    ),
    Quirk(
        "OpenAI: a refusal with content null",
        stream(delta(content=None, refusal="No."), end()),
        text="No.",
    ),
    Quirk(
        "OpenAI: a refusal in place of the requested format",
        stream(delta(refusal="I'm sorry,"), delta(refusal=" no."), end()),
        error=EngineRejected,
        words="I'm sorry, no.",
        request=Ask(options={"response_format": ResponseFormat("{}")}),
    ),
    Quirk("a proxy: one whole message", stream(message("Hi there", "stop")), text="Hi there"),
    Quirk(
        "a proxy: messages that go on",
        stream(message("Hi"), message(" there"), message("", "stop")),
        text="Hi there",
    ),
    Quirk(
        "DashScope: messages with all that came before",
        stream(message("Hi"), message("Hi there"), message("Hi there", "stop")),
        text="Hi there",
    ),
    Quirk(
        "a proxy: deltas, and the whole message at the end",
        stream(say("Hi"), say(" there"), message("Hi there", "stop")),
        text="Hi there",
    ),
    Quirk(
        "a proxy: a message that goes beyond the deltas",
        stream(say("Hi"), message("Hi there", "stop")),
        text="Hi there",
    ),
    Quirk(
        "a proxy: a null delta beside the message",
        stream(
            {"choices": [{"delta": None, "message": {"content": "Hi"}, "finish_reason": "eos"}]}
        ),
        text="Hi",
        raw="eos",
    ),
    Quirk(
        "a proxy: a message with a tool call and reasoning",
        stream(
            message(
                None,
                "tool_calls",
                reasoning_content="hm",
                tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}],
            )
        ),
        reasoning="hm",
        calls=[("f", "{}")],
    ),
    Quirk(
        "text-generation-webui: text in place of delta",
        stream(legacy("Hi"), legacy(" there"), legacy("", "stop")),
        text="Hi there",
    ),
    Quirk(
        "a proxy: a delta that is a text",
        stream({"choices": [{"delta": "Hi"}]}, {"choices": [{"delta": " you"}]}, end()),
        text="Hi you",
    ),
    Quirk(
        "a proxy: text inside the delta",
        stream({"choices": [{"delta": {"type": "text_delta", "text": "Hi"}}]}, end()),
        text="Hi",
    ),
    Quirk(
        "a proxy: content beside the delta",
        stream({"choices": [{"content": "Hi", "finish_reason": "stop"}]}),
        text="Hi",
    ),
    Quirk(
        "an older API: function_call",
        stream(
            delta(function_call={"name": "f", "arguments": '{"x"'}),
            delta(function_call={"arguments": ":1}"}),
            end("function_call"),
        ),
        calls=[("f", '{"x":1}')],
    ),
    Quirk(
        "a proxy: a whole message as JSON",
        reply(message("Hi", "stop") | {"usage": {"prompt_tokens": 4, "completion_tokens": 1}}),
        text="Hi",
        usage=(4, None, 1),
    ),
)
async def test_text_is_found_wherever_it_is(quirk: Quirk) -> None:
    await check(quirk)


@table(
    *(
        Quirk(
            f"{word!r} is {meaning}",
            stream(say("Hi"), end(word)),
            text="Hi",
            finish=meaning,
            raw=word,
        )
        for word, meaning in {
            "stop": "STOP",
            "STOP": "STOP",
            "eos": "STOP",
            "end_turn": "STOP",
            "stop_sequence": "STOP",
            "COMPLETE": "STOP",
            "FinishReason.STOP": "STOP",
            "whatever": "STOP",
            "length": "LENGTH",
            "LENGTH": "LENGTH",
            "MAX_TOKENS": "LENGTH",
            "max_output_tokens": "LENGTH",
            "model_context_window_exceeded": "LENGTH",
            "ERROR_LIMIT": "LENGTH",
            "FINISH_REASON_MAX_TOKENS": "LENGTH",
            "MaxTokens": "LENGTH",
        }.items()
    ),
    *(
        Quirk(
            f"{word!r} is a filter", stream(say("Hi"), end(word)), error=EngineRejected, words=word
        )
        for word in (
            "content_filter",
            "content_filter: SAFETY",
            "SAFETY",
            "sensitive",
            "RECITATION",
            "PROHIBITED_CONTENT",
            "SPII",
            "BLOCKLIST",
            "guardrail_intervened",
            "refusal",
            "ERROR_TOXIC",
            "MODEL_ARMOR",
            "contentFiltered",
        )
    ),
    *(
        Quirk(
            f"{word!r} is a failure",
            stream(say("Hi"), end(word)),
            error=EngineUnavailable,
            words=word,
        )
        for word in (
            "error",
            "abort",
            "network_error",
            "rate_limit",
            "insufficient_system_resource",
            "ERROR",
            "timeout",
            "function_call_filter: MALFORMED_FUNCTION_CALL",
            "MALFORMED_FUNCTION_CALL",
            "UNEXPECTED_TOOL_CALL",
            "cancelled",
            "serverError",
        )
    ),
    Quirk(
        "Zhipu: the context is full before the answer begins",
        stream(end("model_context_window_exceeded")),
        error=ContextTooLong,
        words="model_context_window_exceeded",
    ),
    Quirk(
        "Anthropic: tool_use",
        stream(
            delta(tool_calls=[{"id": "a", "function": {"name": "f", "arguments": "{}"}}]),
            end("tool_use"),
        ),
        calls=[("f", "{}")],
        raw="tool_use",
    ),
    Quirk(
        "a server: tool_calls and only text",
        stream(say("Hi"), end("tool_calls")),
        text="Hi",
        raw="tool_calls",
    ),
    Quirk(
        "a server: tool_calls and nothing",
        stream(end("tool_calls")),
        error=EngineUnavailable,
        words="sent no tool call",
    ),
    Quirk(
        "DashScope: null as text until the end",
        stream(say("Hi", "null"), say(" you", "null"), end()),
        text="Hi you",
    ),
    Quirk(
        "a server: null as text and no end",
        stream(say("Hi", "null"), done=False),
        error=EngineUnavailable,
        words="ended before its end",
    ),
    Quirk(
        "a server: a failure, and then a plain end",
        stream(say("Hi"), end("content_filter"), end("stop")),
        error=EngineRejected,
        words="content_filter",
    ),
    Quirk(
        "a server: the finish reason is an object",
        stream(say("Hi"), {"choices": [{"delta": {}, "finish_reason": {"type": "length"}}]}),
        text="Hi",
        finish="LENGTH",
    ),
    Quirk(
        "a server: the finish reason is a number",
        stream(say("Hi"), {"choices": [{"delta": {}, "finish_reason": 2}]}),
        text="Hi",
        raw="2",
    ),
)
async def test_a_finish_reason_means_what_its_server_means(quirk: Quirk) -> None:
    await check(quirk)
