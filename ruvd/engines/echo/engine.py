"""The deterministic engine, for tests of ruvd and of the services that use it.

It answers with the last user message, word by word. A word counts as a token, and so does a
fragment of a tool call. Every prefix of the prompts and answers is remembered as a hash chained to
that of the shorter prefix. Finding the longest cached prefix of a prompt therefore takes one
look-up for each word, however many prompts there were.

- Tools: a tool is called if `tool_choice` is a tool's name or REQUIRED, or if the last user message
  contains a tool's name as a word and `tool_choice` is not NONE. REQUIRED calls the tool that the
  message names, or else the first. The arguments are `{"text": <the last user message>}`, in one
  fragment for each word. The same question always gets the same call id.
- After a tool's message, the answer is that message's content.
- With `response_format`, the answer is the smallest JSON that follows the schema: every property;
  the text that would have been answered for each string; 0 or `minimum` for numbers; false for
  booleans; `minItems` items in arrays; the first choice of `enum` and `anyOf`; the value of
  `const`. Patterns and lengths are ignored. With `json_object`, it is `{"text": <that text>}`.
- `max_tokens` and `stop` cut the answer. With `bypass_cache`, nothing is looked up or remembered.
- There is no reasoning. Penalties, `logit_bias`, `parallel_tool_calls` and `extra_body` are
  accepted without effect.
"""

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from typing import Self

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role, Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText, PrefixCache
from ruvd.core.ports.events import EngineStateChanged, Observer
from ruvd.engines.echo.answer import answer, split_fault

_REMEMBERED_WORDS = 200_000


class EchoEngine:
    """An engine that answers with the last user message. It accepts every model name.

    Each word takes `delay_seconds`. With `nonce`, every answer ends with an extra word of `#` and
    eight random hex digits, so that no two answers are equal. With `faults`, a message can request
    an error (see `answer`).
    """

    def __init__(
        self,
        *,
        delay_seconds: float = 0.0,
        nonce: bool = False,
        faults: bool = False,
        observer: Observer,
    ) -> None:
        self._delay_seconds = delay_seconds
        self._nonce = nonce
        self._faults = faults
        self._observer = observer
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._closed = False

    @property
    def model(self) -> str:
        """`echo`."""
        return "echo"

    def for_model(self, model: str) -> Self:
        """Returns this engine; see `Engine.for_model`."""
        return self

    @property
    def name(self) -> str:
        """Empty, as it does not know whether it has a name."""
        return ""

    @property
    def slots(self) -> int | None:
        """None, because the number of concurrent completions has no limit."""
        return None

    @property
    def window_tokens(self) -> int | None:
        """None, because a prompt may have any length."""
        return None

    async def start(self) -> None:
        """Reports that the engine is up."""
        self._observer(EngineStateChanged(up=True, detail="echo"))

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return not self._closed

    async def ready(self) -> None:
        """Returns at once. Raises EngineUnavailable after `close`."""
        if self._closed:
            raise EngineUnavailable("the echo engine is closed")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Yields the last user message, up to `max_tokens` words or a stop string."""
        await self.ready()
        use_cache = not request.options.bypass_cache
        words = [
            (message.role.value, word)
            for message in request.messages
            for word in _text(message).split()
        ]
        prefixes = list(accumulate(words, _chain, initial=hash(request.tenant)))[1:]
        cached = len(list(takewhile(self._seen.__contains__, prefixes))) if use_cache else 0
        if use_cache:
            self._remember(prefixes)
        last = prefixes[-1] if prefixes else 0
        nonce = f"#{secrets.token_hex(4)}" if self._nonce else ""
        messages, fault = request.messages, None
        if self._faults and messages:
            text, fault = split_fault(messages[-1].content)
            messages = [*messages[:-1], replace(messages[-1], content=text)]
        echoed = answer(messages, request.options, nonce=nonce)
        for piece in echoed.pieces:
            await asyncio.sleep(self._delay_seconds)
            text = piece.text if isinstance(piece, EngineText) else f"{piece.name}{piece.arguments}"
            last = _chain(last, (Role.ASSISTANT.value, text.strip()))
            if use_cache:
                self._remember([last])
            yield piece
        if fault is not None:
            raise fault
        yield EngineDone(echoed.finish_reason, Usage(len(words), cached, len(echoed.pieces)))

    async def models(self) -> Sequence[str]:
        """Returns `echo`, although every name is accepted."""
        await self.ready()
        return [self.model]

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """None, because there is no state to prepare or save."""
        return None

    async def close(self) -> None:
        """Rejects all later requests."""
        self._closed = True

    def _remember(self, prefixes: Sequence[int]) -> None:
        # Longest first, so that the short prefixes, which later prompts share, are evicted last.
        for prefix in reversed(prefixes):
            self._seen[prefix] = None
            self._seen.move_to_end(prefix)
        while len(self._seen) > _REMEMBERED_WORDS:
            self._seen.popitem(last=False)


def _chain(prefix: int, word: tuple[str, str]) -> int:
    return hash((prefix, *word))


def _text(message: Message) -> str:
    """Returns a message's content and tool calls (name, arguments) as one text."""
    calls = [f"{call.name} {call.arguments}" for call in message.tool_calls]
    return " ".join([message.content, *calls])
