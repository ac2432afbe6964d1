"""Whether a cached answer is the answer: the same prompt asked again without any cache.

At temperature 0 llama.cpp's text may still differ with where a prompt was split, as sums of floats
depend on their order. Where two texts part, the server by itself says how likely the two tokens
were; if they were nearly as likely, the difference is a near-tie and not a wrong cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx
from ruvd_client import AsyncClient

from bench.multi_turn_chats import Line, Sent, request_body, uncached, whole
from ruvd.core.text import common_beginning

# Of log-probabilities. So much does the cache of llama.cpp's server by itself change, in one of a
# hundred tokens, the distance between the two likeliest, because a token that was generated was
# evaluated alone and one that is read was evaluated with others (`alone`; 2,015 tokens of real
# conversations, 2026-11-29; `bench/answers.py` measures it in every run).
NEAR_TIE = 0.4
_LIKELIHOODS = {"logprobs": True, "top_logprobs": 10}

Prober = Callable[[], AbstractAsyncContextManager[httpx.AsyncClient]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two texts that part after `common` characters. `gap` None: the tokens are not known."""

    common: int
    cached: str
    uncached: str
    gap: float | None

    @property
    def is_near_tie(self) -> bool:
        return self.gap is not None and self.gap <= NEAR_TIE


@dataclass(frozen=True, slots=True)
class Sameness:
    """How many answers were asked again, and those that differed."""

    asked: int
    differences: Sequence[Difference]

    @property
    def unexplained(self) -> int:
        """Differences that are no near-tie."""
        return sum(not difference.is_near_tie for difference in self.differences)


async def compare(
    client: AsyncClient, prober: Prober, prompts: Sequence[Sent], tokens: int
) -> Sameness:
    """Ask each prompt again without the cache; `prober` gives a server of the same settings."""
    parted = []
    for sent in prompts:
        again = await uncached(client, sent.lines, tokens)
        if again.text != sent.text:
            parted.append((sent, again.text))
    differences = []
    if parted:
        async with prober() as server:
            for sent, text in parted:
                common = common_beginning(sent.text, text)
                gap = await _gap(server, sent, text, tokens)
                differences.append(Difference(common, sent.text, text, gap))
    return Sameness(len(prompts), differences)


@dataclass(frozen=True, slots=True)
class Alone:
    """What the server by itself makes of conversations with its own cache and without: how many
    answers are the same, and by how much the distance between the log-probabilities of the two
    likeliest tokens differs, token by token."""

    sameness: Sameness
    changes: Sequence[float]


async def alone(server: httpx.AsyncClient, talks: Sequence[Sequence[str]], tokens: int) -> Alone:
    """Hold each conversation in one warm slot, and ask each of its prompts without a cache."""
    differences: list[Difference] = []
    changes: list[float] = []
    for talk in talks:
        lines: list[Line] = []
        for said in talk:
            body = request_body(whole(lines, said), tokens) | _LIKELIHOODS
            cold = await _content(server, body | {"cache_prompt": False, "id_slot": 0})
            warm = await _content(server, body | {"cache_prompt": True, "id_slot": 1})
            cached, uncached_ = (
                "".join(token["token"] for token in content) for content in (warm, cold)
            )
            if cached != uncached_:
                gap = gap_where_parted(cold, cached, uncached_)
                common = common_beginning(cached, uncached_)
                differences.append(Difference(common, cached, uncached_, gap))
            changes += _changes(cold, warm)
            lines += [("user", said), ("assistant", cached)]
    return Alone(Sameness(sum(map(len, talks)), differences), changes)


def spaced(sent: Sequence[Sent], most: int) -> list[Sent]:
    """So many of them at most, evenly spaced, the last among them."""
    step = max(1, len(sent) / most)
    return [sent[round(len(sent) - 1 - step * number)] for number in range(min(most, len(sent)))]


async def _gap(server: httpx.AsyncClient, sent: Sent, other: str, tokens: int) -> float | None:
    """Between the log-probabilities of the first tokens in which the two texts differ."""
    *lines, (_, text) = sent.lines
    body = request_body(whole(lines, text), tokens) | _LIKELIHOODS
    content = await _content(server, body | {"cache_prompt": False})
    return gap_where_parted(content, sent.text, other)


async def _content(
    server: httpx.AsyncClient, body: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]]:
    """The tokens of an answer, each with what else was likely."""
    response = await server.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    content: Sequence[Mapping[str, Any]] = response.json()["choices"][0]["logprobs"]["content"]
    return content


def _changes(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[float]:
    found = []
    for token, its in zip(one, other, strict=False):
        if token["token"] != its["token"]:
            break
        before, after = (
            {each["token"]: each["logprob"] for each in those["top_logprobs"]}
            for those in (token, its)
        )
        first, second = sorted(before, key=before.__getitem__, reverse=True)[:2]
        if first in after and second in after:
            distance = before[first] - before[second]
            found.append(abs(distance - (after[first] - after[second])))
    return found


def gap_where_parted(content: Sequence[Mapping[str, Any]], one: str, other: str) -> float | None:
    """From the tokens of a third, greedy answer that is the same up to there; None if it is not."""
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
    """The likely token by which the text goes on: the longest, as ` I` begins ` In` as well."""
    likely = [
        each
        for each in token["top_logprobs"]
        if each["token"] and text.startswith(done + each["token"])
    ]
    return max(likely, key=lambda each: len(each["token"]), default=None)
