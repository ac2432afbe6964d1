"""The evaluation of a prompt before a turn needs it, a few tokens at a time.

Prompts are sent as tokens here, because a message cannot be sent in part. The server's own template
and tokenizer say which tokens every next message follows. An error of one token costs one token.
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec

from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.text import common_beginning
from ruvd.engines.chat.client import ChatCompletionsClient
from ruvd.engines.llama.prompt import Prompt
from ruvd.engines.llama.server import ROOT

T = TypeVar("T")

# The number of tokens that a turn waits for if it arrives during an evaluation.
STEP_TOKENS = 64


class _Template(msgspec.Struct):
    prompt: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Timings(msgspec.Struct):
    prompt_n: int = 0
    prompt_ms: float = 0.0


class _Answer(msgspec.Struct):
    timings: _Timings = msgspec.field(default_factory=_Timings)


@dataclass(frozen=True, slots=True)
class PromptEvaluator:
    """The template and slots of a server. Methods raise as `ChatCompletionsClient.call` does."""

    client: ChatCompletionsClient
    model: str

    async def history_tokens(self, request: EngineRequest) -> list[int]:
        """Returns the tokens of the messages, up to where the next user message would differ."""
        return await self._tokens(await self._history_text(request))

    async def answer_tokens(
        self, request: EngineRequest, answer: str
    ) -> tuple[list[int], int] | None:
        """Returns the tokens of the request, its answer and all that follows whatever the next
        message is, and the number of those that follow.

        Returns None if the template writes the request and its answer in another way than they
        were sent and generated, for example without reasoning: all that would be evaluated again.
        """
        sent = await self._text(request) + answer
        messages = (*request.messages, Message(Role.ASSISTANT, answer))
        text = await self._history_text(replace(request, messages=messages))
        if not text.startswith(sent):
            return None
        following = await self._tokens(text[len(sent) :], is_whole=False)
        return await self._tokens(text), len(following)

    async def cached_tokens(
        self, content: Prompt, request: EngineRequest, history: list[int]
    ) -> int:
        """Returns how many tokens of the request's history a slot with that content has."""
        if not content.messages:
            return 0
        options = replace(request.options, tools=content.tools)
        held = replace(request, messages=content.messages, options=options)
        tokens = await self.history_tokens(held)
        pairs = enumerate(zip(tokens, history, strict=False))
        return next((at for at, (one, two) in pairs if one != two), min(len(tokens), len(history)))

    async def evaluate(self, slot: int, tokens: list[int]) -> tuple[int, float]:
        """Fills a slot with tokens. Returns how many of them were evaluated, and the seconds."""
        step = {"prompt": tokens, "id_slot": slot, "n_predict": 0, "cache_prompt": True}
        timings = (await self._post("completion", msgspec.json.encode(step), _Answer)).timings
        return timings.prompt_n, timings.prompt_ms / 1000

    async def _history_text(self, request: EngineRequest) -> str:
        """Returns the text that two prompts with different next messages have in common."""
        one, two = [
            await self._text(
                replace(request, messages=(*request.messages, Message(Role.USER, text)))
            )
            for text in ("a", "b")
        ]
        return one[: common_beginning(one, two)]

    async def _text(self, request: EngineRequest) -> str:
        body = self.client.encode(request, model=self.model)
        return (await self._post("apply-template", body, _Template)).prompt

    async def _tokens(self, text: str, *, is_whole: bool = True) -> list[int]:
        body = {"content": text, "add_special": is_whole, "parse_special": True}
        return (await self._post("tokenize", msgspec.json.encode(body), _Tokens)).tokens

    async def _post(self, path: str, content: bytes, into: type[T]) -> T:
        return await self.client.call("POST", f"{ROOT}/{path}", into, content=content)
