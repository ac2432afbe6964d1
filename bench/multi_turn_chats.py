"""The approaches to a conversation that `bench/multi_turn.py` compares, each a kind of `Chat`.

All request the same number of tokens at temperature 0, and no answer may end early. Times are
measured by the client, from the call to the first text and to the end of the stream. The engine
counts the cached tokens. Each conversation continues from its own answers.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
from ruvd_client import AsyncClient, Message, Role, RuvdError
from ruvd_client.protocol import CompleteArguments, to_seconds

from bench.conversation import SYSTEM_PROMPT

# A role and its message.
Line = tuple[str, str]
# Makes the messages to send from the history and the new message.
Window = Callable[[Sequence[Line], str], list[Line]]

ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT}


class Refused(Exception):
    """The server refused the request; the message says why."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The figures of one turn.

    `unbuffered_first_ms` is the time to the first token if no proxy had buffered the stream: the
    total time minus the engine's own generation time.
    """

    first_ms: float
    total_ms: float
    prompt_tokens: int
    cached_tokens: int | None
    answer_tokens: int
    prefill_ms: float | None
    text: str = field(repr=False)
    unbuffered_first_ms: float | None = None
    turn: int = 0
    session: int = 0


@dataclass(frozen=True, slots=True)
class SentPrompt:
    """A prompt as the engine got it, without the system prompt, and the answer to it."""

    lines: tuple[Line, ...]
    text: str


class Chat(ABC):
    """One conversation with the figures of its turns; it stops at the first failure."""

    def __init__(self, name: str, tokens: int, *, session: int = 0) -> None:
        self.name = name
        self.tokens = tokens
        self.session = session
        self.lines: list[Line] = []
        self.turns: list[Turn] = []
        self.failed = ""

    async def say(self, text: str, *, number: int | None = None) -> None:
        """Holds one turn, the next if no number is given, unless an earlier one has failed."""
        if self.failed:
            return
        number = number or len(self.turns) + 1
        try:
            turn = await self._ask(text)
        except (Refused, httpx.HTTPError) as failure:
            self.failed = f"turn {number}: {type(failure).__name__}: {failure}"
            return
        self.turns.append(replace(turn, turn=number, session=self.session))
        self.lines += [("user", text), ("assistant", turn.text)]

    @abstractmethod
    async def _ask(self, text: str) -> Turn:
        """Holds one turn. Raises Refused."""


class RuvdChat(Chat):
    """A session of the daemon, which gets only the new message.

    `client` has to be replaced after the daemon was restarted.
    """

    def __init__(
        self, name: str, tokens: int, client: AsyncClient | None = None, *, session: int = 0
    ) -> None:
        super().__init__(name, tokens, session=session)
        self.client = client
        self.session_id = f"bench-{session}"
        self.sent: list[SentPrompt] = []

    async def _ask(self, text: str) -> Turn:
        assert self.client is not None
        arguments = _arguments(self.tokens)
        arguments["session_id"] = self.session_id
        # The first request creates the session; its system prompt cannot be changed later.
        if not self.lines:
            arguments["system_prompt"] = SYSTEM_PROMPT
        turn, count = await _complete(self.client, text, arguments)
        history_count = count - 2  # without the system prompt and the new message
        lines = [*self.lines[len(self.lines) - history_count :], ("user", text)]
        self.sent.append(SentPrompt(tuple(lines), turn.text))
        return turn


async def ask_uncached(client: AsyncClient, lines: Sequence[Line], tokens: int) -> Turn:
    """Returns the daemon's answer to the same prompt, without a session and without a cache."""
    arguments = _arguments(tokens)
    arguments["system_prompt"] = SYSTEM_PROMPT
    arguments["bypass_cache"] = True
    messages = [Message(role=ROLES[role], content=text) for role, text in lines]
    return (await _complete(client, messages, arguments))[0]


def _arguments(tokens: int) -> CompleteArguments:
    return {"temperature": 0.0, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}


async def _complete(
    client: AsyncClient, messages: str | list[Message], arguments: CompleteArguments
) -> tuple[Turn, int]:
    """Returns the turn and the number of messages that the engine got."""
    began, first = time.perf_counter(), None
    try:
        async with client.complete(messages, **arguments) as answer:
            async for _ in answer:
                first = first or time.perf_counter()
    except RuvdError as error:
        raise Refused(f"{error.reason}: {error.message}") from error
    ended = time.perf_counter()
    finished, started = answer.finished, answer.started
    assert finished is not None
    assert started is not None
    usage, timings = finished.usage, finished.timings
    turn = Turn(
        first_ms=1000 * ((first or ended) - began),
        total_ms=1000 * (ended - began),
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens if usage.HasField("cached_tokens") else None,
        answer_tokens=usage.completion_tokens,
        prefill_ms=1000 * to_seconds(timings.prefill) if timings.HasField("prefill") else None,
        text=finished.message.content,
    )
    return turn, started.context_messages


class HttpChat(Chat):
    """A conversation with a chat completions server, which gets the history in each request.

    `window` selects the messages to send. `slot` names one of the server's slots, so that several
    approaches on the same server do not share their caches.
    """

    def __init__(
        self,
        name: str,
        tokens: int,
        client: httpx.AsyncClient | None,
        window: Window,
        *,
        session: int = 0,
        slot: int | None = None,
        cached: bool = True,
    ) -> None:
        super().__init__(name, tokens, session=session)
        self.client = client
        self.window = window
        self._extra: dict[str, Any] = {"cache_prompt": cached}
        if slot is not None:
            self._extra["id_slot"] = slot

    async def _ask(self, text: str) -> Turn:
        assert self.client is not None
        body = request_body(self.window(self.lines, text), self.tokens) | self._extra
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began, first = time.perf_counter(), None
        pieces: list[str] = []
        timings: dict[str, Any] = {}
        async with self.client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise Refused(_reason(await response.aread()))
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[len("data: ") :])
                if "error" in chunk:
                    raise Refused(_reason(line[len("data: ") :].encode()))
                timings = chunk.get("timings") or timings
                for choice in chunk.get("choices", ()):
                    if piece := choice["delta"].get("content"):
                        first = first or time.perf_counter()
                        pieces.append(piece)
        ended = time.perf_counter()
        total = 1000 * (ended - began)
        return Turn(
            first_ms=1000 * ((first or ended) - began),
            total_ms=total,
            prompt_tokens=timings["cache_n"] + timings["prompt_n"],
            cached_tokens=timings["cache_n"],
            answer_tokens=timings["predicted_n"],
            prefill_ms=timings["prompt_ms"],
            text="".join(pieces),
            unbuffered_first_ms=total - timings["predicted_ms"],
        )


class SavedSlotChat(HttpChat):
    """A conversation whose client saves the slot after a turn and restores it after a restart."""

    _saved_on: httpx.AsyncClient | None = None

    async def _ask(self, text: str) -> Turn:
        began = time.perf_counter()
        if self._saved_on not in (None, self.client):
            await self._slot_action("restore")
        restore_ms = 1000 * (time.perf_counter() - began)
        turn = await super()._ask(text)
        await self._slot_action("save")
        self._saved_on = self.client
        return replace(
            turn, first_ms=turn.first_ms + restore_ms, total_ms=turn.total_ms + restore_ms
        )

    async def _slot_action(self, action: str) -> None:
        assert self.client is not None
        response = await self.client.post(f"/slots/0?action={action}", json={"filename": "state"})
        if response.status_code != httpx.codes.OK:
            raise Refused(_reason(response.content))


def request_body(lines: Sequence[Line], tokens: int) -> dict[str, Any]:
    """Returns the request body that all HTTP approaches send."""
    return {
        "messages": [{"role": role, "content": text} for role, text in lines],
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
    }


def _reason(body: bytes) -> str:
    """Returns the error message of a response body."""
    try:
        error = json.loads(body)["error"]
        return f"{error.get('type', '')}: {error.get('message', '')}"
    except (ValueError, LookupError, AttributeError):
        return body[:200].decode(errors="replace")


def full_history(lines: Sequence[Line], text: str) -> list[Line]:
    """Returns the system prompt, all of the history and the new message."""
    return [("system", SYSTEM_PROMPT), *lines, ("user", text)]


def rolling_window(lines: Sequence[Line], text: str) -> list[Line]:
    """Returns the system prompt, the last three exchanges and the new message."""
    return full_history(lines[-6:], text)


def history_in_system_prompt(lines: Sequence[Line], text: str) -> list[Line]:
    """Returns the project's original design: the last three messages inside the system prompt."""
    if not lines:
        return full_history((), text)
    history = "\n".join(f"{role.capitalize()}: {content}" for role, content in lines[-3:])
    system = f"{SYSTEM_PROMPT}\n\nPrevious conversation context:\n{history}"
    return [("system", system), ("user", text)]
