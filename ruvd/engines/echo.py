"""The deterministic engine, for tests: ours and those of the services that use `ruvd`.

It answers with the last user message, a word at a time. A word counts as a token. What it has
seen is remembered as a chain of hashes, one for each prefix, so that the longest shared prefix
costs one look-up a word, however many prompts there were.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence

from ruvd.errors import EngineUnavailable
from ruvd.model import FinishReason, Message, Role, Usage
from ruvd.options import CompletionOptions
from ruvd.ports import (
    EngineChunk,
    EngineDone,
    EngineRequest,
    EngineStateChanged,
    EngineText,
    Observer,
)

_REMEMBERED_WORDS = 200_000
_WORDS = re.compile(r"\s*\S+(?:\s+\Z)?|\s+\Z")


class EchoEngine:
    """Answers with the last user message; every model name is accepted.

    Each word takes `delay_seconds`. With `nonce`, ` #` and eight random hex digits end every
    answer as a last word, so that no two generations are the same.
    """

    def __init__(
        self, *, delay_seconds: float = 0.0, nonce: bool = False, observer: Observer
    ) -> None:
        self._delay_seconds = delay_seconds
        self._nonce = nonce
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

    async def ready(self) -> None:
        """Return. Raises EngineUnavailable after `close`."""
        if self._closed:
            raise EngineUnavailable("the echo engine is closed")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """Say the last user message again, within `max_tokens` and up to a stop string."""
        await self.ready()
        remember = not request.options.bypass_cache
        words = [
            (message.role, word) for message in request.messages for word in message.content.split()
        ]
        prefixes = self._prefixes(words)
        cached = self._cached(prefixes) if remember else 0
        if remember:
            self._remember(prefixes)
        last = prefixes[-1] if prefixes else 0
        pieces, finish_reason = self._answer(request.messages, request.options)
        for piece in pieces:
            await asyncio.sleep(self._delay_seconds)
            last = hash((last, Role.ASSISTANT.value, piece.strip()))
            if remember:
                self._remember([last])
            yield EngineText(piece)
        yield EngineDone(finish_reason, Usage(len(words), cached, len(pieces)))

    async def models(self) -> Sequence[str]:
        """`echo`, though every name will do."""
        await self.ready()
        return [self.model]

    async def close(self) -> None:
        """Refuse what comes from now on."""
        self._closed = True

    def _answer(
        self, messages: Sequence[Message], options: CompletionOptions
    ) -> tuple[list[str], FinishReason]:
        said = (m.content for m in reversed(messages) if m.role is Role.USER)
        text = next(said, "")
        if self._nonce:
            text = f"{text} #{secrets.token_hex(4)}"
        stops = [at for at in (text.find(stop) for stop in options.stop if stop) if at >= 0]
        pieces: list[str] = _WORDS.findall(text[: min(stops, default=len(text))])
        if options.max_tokens is not None and len(pieces) > options.max_tokens:
            return pieces[: options.max_tokens], FinishReason.LENGTH
        return pieces, FinishReason.STOP

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
