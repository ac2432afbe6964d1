"""A benchmark of compaction on the embedded model: what it costs callers, and what it saves.

long      one conversation of 100 exchanges in a window of 2,048 tokens: with summaries, with a
          rolling window (`keep_exchanges` equal to `max_exchanges`), and with trims. The time to
          the first token of each turn, and the tokens that the engine evaluated: in turns, ahead of
          them, and for summaries.
beside    12 conversations whose windows are summarised, each with a turn every 20 s, beside one
          caller who rests for 1.5 s after each turn: that caller's time to the first token, with
          summaries and without, alternating.

A caller rests for `--rest` seconds after each turn of `long`; within that time the engine is idle.

Run it with `.venv/bin/python -m bench.compaction` on an idle machine; it takes about half an hour,
`--quick` four minutes. The last lines are the aims:

- the first token of a turn right after a compaction takes at most 1.3 of the median,
- requests for summaries read at least 85 % of their prompts from the cache,
- all prefill together is at most half of a rolling window's,
- p99 to the first token beside 12 compacting conversations is at most 1.1 of without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.compaction_core import Harness, running
from bench.conversation import SYSTEM_PROMPT, question
from bench.report import Criterion, percentile
from bench.runner import argument_parser, log_progress, origin, run
from ruvd.core.model import Compaction, ContextWindow
from ruvd.core.ports.events import PromptEvaluated, SessionCompacted, SummaryRequested

_TOKENS = 2048
_ANSWER_TOKENS = 48
_BESIDE = 12
# About half of two cores is left, so that there are idle moments. Without any, no summary is made.
_OTHERS_REST_SECONDS = 20.0
_CALLER_REST_SECONDS = 1.5
_QUESTIONS = 20  # of a subject, after which they come again
_FLAGS: dict[str, Any] = {"engine": "llama"}


@dataclass
class Long:
    """The figures of a long conversation. Times are seconds to the first token."""

    first_tokens: list[float] = field(default_factory=list)
    after_compaction: list[float] = field(default_factory=list)
    turn_tokens: int = 0
    ahead_tokens: int = 0
    summary_tokens: int = 0
    summary_prompts: int = 0
    summary_cached: int = 0
    compactions: int = 0
    interrupted: int = 0
    trims: int = 0

    @property
    def evaluated(self) -> int:
        """All tokens of prompts that the engine evaluated."""
        return self.turn_tokens + self.ahead_tokens + self.summary_tokens


def _message(subject: int, turn: int) -> str:
    return f"{turn}. {question(subject, turn % _QUESTIONS)}"


def windows(rolling: int) -> dict[str, ContextWindow]:
    """Returns the windows that are compared."""
    return {
        "summary": ContextWindow(3, 10, _TOKENS, compaction=Compaction.SUMMARY),
        f"rolling {rolling}": ContextWindow(rolling, rolling, _TOKENS),
        "trim": ContextWindow(3, 10, _TOKENS),
    }


async def converse(harness: Harness, name: str, window: ContextWindow, options: Any) -> Long:
    """Holds a conversation, and returns its figures."""
    long, seen = Long(), 0
    harness.events.clear()
    await harness.create(name, window, SYSTEM_PROMPT)
    for number in range(options.exchanges):
        turn = await harness.say(name, _message(0, number), max_tokens=_ANSWER_TOKENS)
        compactions = (await harness.session(name)).compactions
        if number:  # the first prompt is cold in every window
            long.first_tokens.append(turn.first_token_seconds)
            if compactions > seen:
                long.after_compaction.append(turn.first_token_seconds)
        seen = compactions
        usage = turn.finished.usage
        assert usage is not None
        long.turn_tokens += usage.prompt_tokens - (usage.cached_tokens or 0)
        long.trims += turn.started.context_trimmed
        await asyncio.sleep(options.rest)
        await harness.rest(name, options.most_rest)
    for event in harness.events:
        match event:
            case PromptEvaluated(tokens):
                long.ahead_tokens += tokens
            case SessionCompacted():
                long.compactions += 1
            case SummaryRequested(outcome="interrupted"):
                long.interrupted += 1
            case SummaryRequested(usage=usage) if usage:
                long.summary_prompts += usage.prompt_tokens
                long.summary_cached += usage.cached_tokens or 0
    long.summary_tokens = long.summary_prompts - long.summary_cached
    await harness.core.commands.end(name)
    return long


async def beside(harness: Harness, window: ContextWindow, turns: int) -> tuple[list[float], int]:
    """Returns the first tokens of a caller beside conversations, and how many summaries came."""
    harness.events.clear()
    others = [f"other{number}" for number in range(_BESIDE)]
    for name in (*others, "caller"):
        await harness.create(name, window, SYSTEM_PROMPT)
    done = asyncio.Event()

    async def talk(number: int, name: str) -> None:
        # One after the other, as independent callers come.
        await asyncio.sleep(number * _OTHERS_REST_SECONDS / _BESIDE)
        exchange = 0
        while not done.is_set():
            await harness.say(name, _message(number, exchange), max_tokens=16)
            exchange += 1
            await asyncio.sleep(_OTHERS_REST_SECONDS)

    tasks = [asyncio.create_task(talk(number, name)) for number, name in enumerate(others)]
    first_tokens = []
    for exchange in range(turns):
        turn = await harness.say("caller", _message(15, exchange), max_tokens=16)
        if exchange:
            first_tokens.append(turn.first_token_seconds)
        await asyncio.sleep(_CALLER_REST_SECONDS)
    done.set()
    await asyncio.gather(*tasks)
    for name in (*others, "caller"):
        await harness.core.commands.end(name)
    return first_tokens, sum(isinstance(event, SessionCompacted) for event in harness.events)


async def measure(options: argparse.Namespace) -> tuple[dict[str, Long], dict[str, Any]]:
    """Measures both parts."""
    longs: dict[str, Long] = {}
    loads: dict[str, Any] = {"summary": [], "none": [], "compactions": 0}
    async with running(**_FLAGS, llama_context_tokens=_TOKENS + 512) as harness:
        for name, window in windows(options.rolling).items():
            if "long" in options.only:
                log_progress(f"long, {name}: {options.exchanges} exchanges")
                longs[name] = await converse(harness, name.replace(" ", "-"), window, options)
        for number in range(options.rounds if "beside" in options.only else 0):
            for name, compaction in (("none", Compaction.NONE), ("summary", Compaction.SUMMARY)):
                log_progress(f"beside, {name}, round {number + 1}")
                window = ContextWindow(1, 6, compaction=compaction, compact_at=0.5)
                found, compactions = await beside(harness, window, options.turns)
                loads[name] += found
                loads["compactions"] += compactions
    return longs, loads


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--exchanges", type=int, default=100)
    parser.add_argument("--rest", type=float, default=2.0, help="seconds after each turn")
    parser.add_argument("--most-rest", type=float, default=20.0, help="until a summary is made")
    parser.add_argument("--rolling", type=int, default=10, help="exchanges of the rolling window")
    parser.add_argument("--turns", type=int, default=60, help="of the caller beside others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=["long", "beside"], default=["long", "beside"])
    parser.add_argument("--quick", action="store_true", help="24 exchanges, 30 turns, 1 round")
    options = parser.parse_args()
    if options.quick:
        options.exchanges, options.turns, options.rounds = 24, 30, 1
    longs, loads = run("compaction", measure(options))
    for name, long in longs.items():
        print(
            f"{name}: first token median {statistics.median(long.first_tokens):.3f} s, p99"
            f" {percentile(long.first_tokens, 0.99):.3f} s; {long.trims} trims,"
            f" {long.compactions} summaries ({long.interrupted} interrupted); evaluated"
            f" {long.evaluated} tokens: {long.turn_tokens} in turns, {long.ahead_tokens} ahead,"
            f" {long.summary_tokens} for summaries"
        )
        if long.after_compaction:
            others = [each for each in long.first_tokens if each not in long.after_compaction]
            print(
                f"{name}: slowest first token after a compaction"
                f" {max(long.after_compaction):.3f} s, of the other turns {max(others):.3f} s"
            )
    criteria = _criteria(longs, loads, f"rolling {options.rolling}")
    for criterion in criteria:
        print(criterion)
    if options.json:
        figures = {
            **origin("compaction"),
            "long": {name: _figures(long) for name, long in longs.items()},
            "beside": loads,
            "criteria": [{"what": each.what, "value": each.value} for each in criteria],
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _figures(long: Long) -> dict[str, Any]:
    names = (*Long.__dataclass_fields__, "evaluated")
    return {name: getattr(long, name) for name in names}


def _criteria(longs: dict[str, Long], loads: dict[str, Any], rolling: str) -> Sequence[Criterion]:
    after = cached = prefill = p99 = None
    if summary := longs.get("summary"):
        if summary.after_compaction:
            worst = max(summary.after_compaction)
            after = worst / statistics.median(summary.first_tokens)
        if summary.summary_prompts:
            cached = summary.summary_cached / summary.summary_prompts
        prefill = summary.evaluated / longs[rolling].evaluated
    if loads["summary"]:
        p99 = percentile(loads["summary"], 0.99) / percentile(loads["none"], 0.99)
    return (
        Criterion("slowest first token after a compaction, in medians", after, 1.3),
        Criterion("share of summaries' prompts from the cache", cached, 0.85, at_least=True),
        Criterion(f"all prefill, in that of the window {rolling}", prefill, 0.5),
        Criterion(
            f"p99 of the first token beside {_BESIDE} conversations with"
            f" {loads['compactions']} summaries, in that without",
            p99,
            1.1,
        ),
    )


if __name__ == "__main__":
    main()
