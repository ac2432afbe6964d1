"""An answer's end: a finish reason counts once the answer is known to be whole."""

from __future__ import annotations

from quirk import Quirk, check, end, say, stream, table, used

from ruvd.core.errors import EngineUnavailable


@table(
    Quirk("OpenAI: text, end, usage, [DONE]", stream(say("Hi"), end(), used()), text="Hi"),
    Quirk(
        "Mistral: usage beside the finish reason",
        stream(say("Hi"), end(usage={"prompt_tokens": 5, "completion_tokens": 1})),
        text="Hi",
        usage=(5, None, 1),
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
async def test_an_answer_ends_as_its_server_says(quirk: Quirk) -> None:
    await check(quirk)
