"""The deterministic engine, for tests: ours and those of the services that use `ruvd`.

It answers with the last user message, a word at a time. A word counts as a token, and so does a
fragment of a tool call. What it has seen is remembered as a chain of hashes, one for each prefix,
so that the longest shared prefix costs one look-up a word, however many prompts there were.

- With `tools`, it calls one if `tool_choice` is REQUIRED (the first, unless another is named in
  the message) or a tool's name, or if the last user message has a tool's name as a word, unless
  it is NONE. The arguments are `{"text": <the last user message>}`, in as many fragments as they
  have words; the id is the same for the same question.
- After a tool's message it answers with that message's content.
- With `response_format` it answers with the smallest JSON that follows the schema: every
  property, a string is the text it would have said, numbers are 0 or `minimum`, booleans false,
  arrays as short as `minItems`, of `enum` and of `anyOf` the first, `const` itself. Patterns and
  lengths are not followed.
- `max_tokens` and `stop` cut the answer, `bypass_cache` leaves it unseen. It never reasons, and
  penalties, `logit_bias`, `parallel_tool_calls` and `extra_body` are taken without effect.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role, Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText, PrefixCache
from ruvd.core.ports.events import EngineStateChanged, Observer
from ruvd.engines.echo import faults
from ruvd.engines.echo.answer import answer

_REMEMBERED_WORDS = 200_000


class EchoEngine:
    """Answers with the last user message; every model name is accepted.

    Each word takes `delay_seconds`. With `nonce`, ` #` and eight random hex digits end every
    answer as a last word, so that no two generations are the same. With `faults`, a message can
    ask for an error (`ruvd.engines.echo.faults`).
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

    @property
    def slots(self) -> int | None:
        """None: any number of completions run side by side."""
        return None

    @property
    def window_tokens(self) -> int | None:
        """None: a prompt may have any length."""
        return None

    async def start(self) -> None:
        """Be up."""
        self._observer(EngineStateChanged(up=True, detail="echo"))

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return not self._closed

    async def ready(self) -> None:
        """Return. Raises EngineUnavailable after `close`."""
        if self._closed:
            raise EngineUnavailable("the echo engine is closed")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Say the last user message again, within `max_tokens` and up to a stop string."""
        await self.ready()
        remember = not request.options.bypass_cache
        words = [
            (message.role, word) for message in request.messages for word in _text(message).split()
        ]
        prefixes = self._prefixes(words)
        cached = self._cached(prefixes) if remember else 0
        if remember:
            self._remember(prefixes)
        last = prefixes[-1] if prefixes else 0
        nonce = f"#{secrets.token_hex(4)}" if self._nonce else ""
        messages, fault = request.messages, None
        if self._faults and messages:
            text, fault = faults.split(messages[-1].content)
            messages = [*messages[:-1], replace(messages[-1], content=text)]
        said = answer(messages, request.options, nonce=nonce)
        for piece in said.pieces:
            await asyncio.sleep(self._delay_seconds)
            text = piece.text if isinstance(piece, EngineText) else f"{piece.name}{piece.arguments}"
            last = hash((last, Role.ASSISTANT.value, text.strip()))
            if remember:
                self._remember([last])
            yield piece
        if fault is not None:
            raise fault
        yield EngineDone(said.finish_reason, Usage(len(words), cached, len(said.pieces)))

    async def models(self) -> Sequence[str]:
        """`echo`, though every name will do."""
        await self.ready()
        return [self.model]

    @property
    def prefix_cache(self) -> PrefixCache | None:
        """None: it keeps nothing."""
        return None

    async def close(self) -> None:
        """Refuse what comes from now on."""
        self._closed = True

    def _prefixes(self, words: Sequence[tuple[Role, str]]) -> list[int]:
        prefixes: list[int] = []
        last = 0
        for role, word in words:
            last = hash((last, role.value, word))
            prefixes.append(last)
        return prefixes

    def _cached(self, prefixes: Sequence[int]) -> int:
        for count, prefix in enumerate(prefixes):
            if prefix not in self._seen:
                return count
        return len(prefixes)

    def _remember(self, prefixes: Sequence[int]) -> None:
        # The longest first: what a later prompt shares is the beginning, so that goes last.
        for prefix in reversed(prefixes):
            self._seen[prefix] = None
            self._seen.move_to_end(prefix)
        while len(self._seen) > _REMEMBERED_WORDS:
            self._seen.popitem(last=False)


def _text(message: Message) -> str:
    """A message as the words that it counts: a call is its name and then its arguments."""
    calls = [f"{call.name} {call.arguments}" for call in message.tool_calls]
    return " ".join([message.content, *calls])
