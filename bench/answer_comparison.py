"""Compares cached answers with uncached answers to the same prompts.

Even at temperature 0 llama.cpp's text may depend on how a prompt was split for evaluation, because
sums of floats depend on their order. Where two texts begin to differ, llama.cpp's own server gives
the likelihoods of the two tokens. If they are almost equally likely, the difference is a near-tie
and not the fault of a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx
from ruvd_client import AsyncClient

from bench.multi_turn_chats import Line, SentPrompt, ask_uncached, full_history, request_body
from ruvd.core.text import common_beginning

# The largest difference of two log-probabilities that counts as a near-tie. The cache of
# llama.cpp's own server changes the distance of the two likeliest tokens by this much for one token
# in a hundred, because it evaluates generated tokens singly and prompt tokens in batches
# (`measure_baseline`; 2,015 tokens of real conversations, 2026-11-29; `bench/answers.py` measures
# it in every run).
NEAR_TIE = 0.4
_LIKELIHOODS = {"logprobs": True, "top_logprobs": 10}

# Starts a llama.cpp server with the settings of the daemon's engine.
StartServer = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two texts that differ after `common` characters.

    `gap` is the difference of the log-probabilities of the two tokens, or None if it is unknown.
    """

    common: int
    cached: str
    uncached: str
    gap: float | None

    @property
    def is_near_tie(self) -> bool:
        return self.gap is not None and self.gap <= NEAR_TIE

    def __str__(self) -> str:
        gap = "by an unknown amount" if self.gap is None else f"by {self.gap:.3f}"
        return f"differs after {self.common} characters; the log-probabilities differ {gap}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number of repeated prompts, and the differences of their answers."""

    asked: int
    differences: Sequence[Difference]

    @property
    def unexplained(self) -> int:
        """Returns the number of differences that are not near-ties."""
        return sum(not difference.is_near_tie for difference in self.differences)


async def compare(
    client: AsyncClient, start_server: StartServer, prompts: Sequence[SentPrompt], tokens: int
) -> Comparison:
    """Repeats each prompt without a cache; where answers differ, a new server explains it."""
    differing = []
    for sent in prompts:
        again = await ask_uncached(client, sent.lines, tokens)
        if again.text != sent.text:
            differing.append((sent, again.text))
    differences = []
    if differing:
        async with start_server() as server:
            for sent, text in differing:
                common = common_beginning(sent.text, text)
                gap = await _gap(server, sent, text, tokens)
                differences.append(Difference(common, sent.text, text, gap))
    return Comparison(len(prompts), differences)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The effect of the cache of llama.cpp's own server, without the daemon.

    `changes` has for each token by how much the cache changed the distance between the
    log-probabilities of the two likeliest tokens.
    """

    comparison: Comparison
    changes: Sequence[float]


async def measure_baseline(
    server: httpx.AsyncClient, conversations: Sequence[Sequence[str]], tokens: int
) -> Baseline:
    """Holds each conversation in one warm slot, and repeats each prompt without a cache."""
    differences: list[Difference] = []
    changes: list[float] = []
    for messages in conversations:
        lines: list[Line] = []
        for message in messages:
            body = request_body(full_history(lines, message), tokens) | _LIKELIHOODS
            cold = await _answer_tokens(server, body | {"cache_prompt": False, "id_slot": 0})
            warm = await _answer_tokens(server, body | {"cache_prompt": True, "id_slot": 1})
            cached, uncached_ = (
                "".join(token["token"] for token in content) for content in (warm, cold)
            )
            if cached != uncached_:
                gap = _gap_at_difference(cold, cached, uncached_)
                common = common_beginning(cached, uncached_)
                differences.append(Difference(common, cached, uncached_, gap))
            changes += _changes(cold, warm)
            lines += [("user", message), ("assistant", cached)]
    return Baseline(Comparison(sum(map(len, conversations)), differences), changes)


def evenly_spaced(sent: Sequence[SentPrompt], count: int) -> list[SentPrompt]:
    """Returns at most `count` of the prompts, evenly spaced, including the last."""
    step = max(1, len(sent) / count)
    return [sent[round(len(sent) - 1 - step * number)] for number in range(min(count, len(sent)))]


async def _gap(
    server: httpx.AsyncClient, sent: SentPrompt, other: str, tokens: int
) -> float | None:
    """Returns the gap between the first two tokens that differ, or None if it is unknown."""
    *lines, (_, text) = sent.lines
    body = request_body(full_history(lines, text), tokens) | _LIKELIHOODS
    content = await _answer_tokens(server, body | {"cache_prompt": False})
    return _gap_at_difference(content, sent.text, other)


async def _answer_tokens(
    server: httpx.AsyncClient, body: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]]:
    """Returns the tokens of an answer, each with the likely alternatives."""
    response = await server.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    content: Sequence[Mapping[str, Any]] = response.json()["choices"][0]["logprobs"]["content"]
    return content


def _changes(cold: Sequence[Mapping[str, Any]], warm: Sequence[Mapping[str, Any]]) -> list[float]:
    """Returns the changes that `Baseline` describes, up to the first token that differs."""
    changes = []
    for cold_token, warm_token in zip(cold, warm, strict=False):
        if cold_token["token"] != warm_token["token"]:
            break
        before, after = (
            {likely["token"]: likely["logprob"] for likely in token["top_logprobs"]}
            for token in (cold_token, warm_token)
        )
        first, second = sorted(before, key=before.__getitem__, reverse=True)[:2]
        if first in after and second in after:
            distance = before[first] - before[second]
            changes.append(abs(distance - (after[first] - after[second])))
    return changes


def _gap_at_difference(content: Sequence[Mapping[str, Any]], one: str, other: str) -> float | None:
    """Returns the gap between two texts where they begin to differ.

    `content` are the tokens of a third, greedy answer. Returns None if it differs from both before.
    """
    done = ""
    for token in content:
        first, second = (_next_token(text, done, token) for text in (one, other))
        if first is None or second is None:
            return None
        if first["token"] != second["token"]:
            return float(abs(first["logprob"] - second["logprob"]))
        done += token["token"]
        if not one.startswith(done):
            return None
    return None


def _next_token(text: str, done: str, token: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the likely token that continues the text: the longest, as ` I` also begins ` In`."""
    likely = [
        candidate
        for candidate in token["top_logprobs"]
        if candidate["token"] and text.startswith(done + candidate["token"])
    ]
    return max(likely, key=lambda candidate: len(candidate["token"]), default=None)
