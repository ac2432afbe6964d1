"""Evaluating a prompt before it is asked for, a little at a time.

By tokens, because a message cannot be sent in part: the server's own template and tokenizer say
what every next message comes after. What is one token off costs one token.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.text import common_beginning
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.chat.request import encode
from ruvd.engines.llama.prompt import Prompt

T = TypeVar("T")

# How many tokens a caller who comes meanwhile has to wait for.
STEP_TOKENS = 64


class _Template(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Text(msgspec.Struct):
    content: str
    add_special: bool = True
    parse_special: bool = True


class _Step(msgspec.Struct):
    prompt: list[int]
    id_slot: int
    n_predict: int = 0
    cache_prompt: bool = True


class _Timings(msgspec.Struct):
    prompt_n: int = 0
    prompt_ms: float = 0.0


class _Answer(msgspec.Struct):
    timings: _Timings = msgspec.field(default_factory=_Timings)


@dataclass(frozen=True, slots=True)
class Server:
    """The child, at `root`, as this module asks it. Raises as `ChatCompletionsClient.call` does."""

    client: ChatCompletionsClient
    root: str
    model: str

    async def beginning(self, request: EngineRequest) -> list[int]:
        """The tokens of the messages, as far as they are the same whatever is said next."""
        return await self._tokens(await self._beginning(request))

    async def following(self, request: EngineRequest, answer: str) -> tuple[list[int], int] | None:
        """The tokens of the request, of the answer to it, and of what follows whatever is said
        next; and how many those are.

        None if the template writes the first two in another way than they were asked and
        generated, for example without thoughts: all that differs would be evaluated again.
        """
        said = await self._text(request) + answer
        messages = (*request.messages, Message(Role.ASSISTANT, answer))
        text = await self._beginning(replace(request, messages=messages))
        if not text.startswith(said):
            return None
        rest = await self._tokens(text[len(said) :], is_whole=False)
        return await self._tokens(text), len(rest)

    async def held(self, prompt: Prompt, request: EngineRequest, beginning: list[int]) -> int:
        """How many tokens of the request's beginning a slot has that holds the prompt."""
        if not prompt.messages:
            return 0
        options = replace(request.options, tools=prompt.tools)
        tokens = await self.beginning(replace(request, messages=prompt.messages, options=options))
        pairs = enumerate(zip(tokens, beginning, strict=False))
        return next(
            (at for at, (one, two) in pairs if one != two), min(len(tokens), len(beginning))
        )

    async def step(self, slot: int, tokens: list[int]) -> tuple[int, float]:
        """Let the slot hold the tokens; how many were evaluated for it, in how many seconds."""
        body = msgspec.json.encode(_Step(tokens, slot))
        timings = (await self._post("completion", body, _Answer)).timings
        return timings.prompt_n, timings.prompt_ms / 1000

    async def _beginning(self, request: EngineRequest) -> str:
        one, two = [
            await self._text(
                replace(request, messages=(*request.messages, Message(Role.USER, said)))
            )
            for said in ("a", "b")
        ]
        return one[: common_beginning(one, two)]

    async def _text(self, request: EngineRequest) -> str:
        body = encode(request, model=self.model, extra={})
        return (await self._post("apply-template", body, _Template)).prompt

    async def _tokens(self, text: str, *, is_whole: bool = True) -> list[int]:
        body = msgspec.json.encode(_Text(text, add_special=is_whole))
        return (await self._post("tokenize", body, _Tokens)).tokens

    async def _post(self, path: str, content: bytes, into: type[T]) -> T:
        return await self.client.call("POST", f"{self.root}/{path}", into, content=content)
