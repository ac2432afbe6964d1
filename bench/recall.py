"""A benchmark of recall: what a prompt still holds of facts that were told long before.

Facts are planted in conversations: a name, a number, a decision, a decision that is changed three
exchanges later, and a name in a pinned message. Every eighth exchange tells another fact, so a
summary of limited length has to choose. Each planted fact is asked for 10, 30 and 100 exchanges
later, in a fork, so that the question changes nothing. Compared are

whole      the whole history in every prompt
rolling    the last three exchanges
trim       ruvd's default window: three to ten exchanges
summary    the same with summaries, which are made between turns

The upstream is scripted: it answers a question from what it is sent, and it writes a summary as an
ideal model with a limit of 64 tokens would: the facts that it is sent, the newest ones first, as
long as they fit. So the figures say what the prompts hold, without a model's luck. `--embedded`
asks the embedded model instead. It has 135M parameters: its summaries mostly repeat the first
messages, so its figures for `summary` are those of the model and not of the method; those of
pinned facts and of what the prompt holds (`held`) are not.

Run it with `.venv/bin/python -m bench.recall`; it takes a minute, with `--embedded` half an hour.
The last lines say whether the aim is met: at least 95 % of pinned facts.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Self

from bench.compaction_core import Harness, running
from bench.report import Criterion
from bench.runner import argument_parser, log_progress, origin, run
from ruvd.core.model import Compaction, ContextWindow, FinishReason, Usage
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText, PrefixCache

_SYSTEM = "You are the desk of a repair hall. Answer briefly, and only of what was said."
_WINDOWS = {
    "whole": ContextWindow(3, 0),
    "rolling": ContextWindow(3, 3),
    "trim": ContextWindow(3, 10),
    "summary": ContextWindow(3, 10, compaction=Compaction.SUMMARY),
}
_KINDS = ("name", "number", "decision", "changed", "pinned")
_NAMES = ("Ada", "Bruno", "Cleo", "Dario", "Edda", "Fynn", "Greta", "Hugo", "Ines", "Jaro")
_FACT = re.compile(r"The (\w+ of \w+) is (\w+)\.")
_QUESTION = re.compile(r"What is the (\w+ of \w+)\?")
_CHANGED_AFTER = 3
_OTHER_FACT_EVERY = 8
_UNKNOWN = "That was not said."


@dataclass
class ScriptedUpstream:
    """Answers from what it is sent. A word counts as a token."""

    model: str = "scripted"
    name: str = ""
    slots: int | None = 4
    window_tokens: int | None = None
    prefix_cache: PrefixCache | None = None
    is_ready: bool = True
    summaries: list[str] = field(default_factory=list)

    def for_model(self, model: str) -> Self:
        """See `Engine.for_model`."""
        return self

    async def start(self) -> None:
        """See `Engine.start`."""

    async def ready(self) -> None:
        """See `Engine.ready`."""

    async def close(self) -> None:
        """See `Engine.close`."""

    async def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return [self.model]

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        *before, last = [message.content for message in request.messages]
        facts: dict[str, str] = {}
        for text in before:
            for subject, value in _FACT.findall(text):
                facts.pop(subject, None)
                facts[subject] = value
        if asked := _QUESTION.search(last):
            value = facts.get(asked[1])
            answer = f"The {asked[1]} is {value}." if value else _UNKNOWN
        elif last.startswith("Summarise"):
            answer = _summary(facts, request.options.max_tokens or 64)
            self.summaries.append(answer)
        else:
            answer = "Noted."
        words = sum(len(text.split()) for text in (*before, last))
        yield EngineText(answer)
        yield EngineDone(FinishReason.STOP, Usage(words, None, len(answer.split())))


def _summary(facts: dict[str, str], max_tokens: int) -> str:
    """Returns the newest facts that fit, in the order in which they were told."""
    kept: list[str] = []
    size = 0
    for subject, value in reversed(facts.items()):
        text = f"The {subject} is {value}."
        size += len(text.split())
        if size > max_tokens:
            break
        kept.insert(0, text)
    return " ".join(kept) or "Nothing of note was said."


@dataclass
class Fact:
    """A fact: what is asked for, the right answer, and when it was told."""

    kind: str
    subject: str
    value: str
    told: int


@dataclass
class Outcome:
    """The questions of a window, of a kind and a distance: how many were answered right, and in how
    many the prompt held the fact."""

    asked: int = 0
    right: int = 0
    held: int = 0


async def converse(
    harness: Harness,
    session_id: str,
    mode: str,
    distances: Sequence[int],
    number: int,
    outcomes: dict[tuple[str, str, int], Outcome],
) -> None:
    """Holds one conversation in a window, and asks."""
    await harness.create(session_id, _WINDOWS[mode], _SYSTEM)
    values = count(number * 37)
    facts = [
        Fact(kind, f"{kind} of thing{at}", f"{_NAMES[next(values) % 10]}{next(values)}", at)
        for at, kind in enumerate(_KINDS)
    ]
    changed = next(fact for fact in facts if fact.kind == "changed")
    last = max(distances) + len(facts) + _CHANGED_AFTER
    for at in range(last + 1):
        text = f"Exchange {at}: the bench was swept, and the kettle was filled again."
        if at % _OTHER_FACT_EVERY == 0:
            text = f"The colour of item{at} is {_NAMES[at % 10]}."
        for fact in facts:
            if fact.told == at:
                value = "Undecided" if fact is changed else fact.value
                text = f"The {fact.subject} is {value}."
        if at == changed.told + _CHANGED_AFTER:
            text = f"On second thoughts: The {changed.subject} is {changed.value}."
        pinned = at == facts[-1].told and facts[-1].kind == "pinned"
        await harness.say(session_id, text, pinned=pinned, max_tokens=16)
        await harness.rest(session_id)
        for fact in facts:
            told = fact.told + (_CHANGED_AFTER if fact is changed else 0)
            if at - told in distances:
                turn = await harness.ask(session_id, f"What is the {fact.subject}?")
                outcome = outcomes[mode, fact.kind, at - told]
                outcome.asked += 1
                outcome.right += fact.value in turn.finished.message.content
                outcome.held += fact.value in turn.prompt
    await harness.core.commands.end(session_id)


async def measure(options: argparse.Namespace) -> dict[tuple[str, str, int], Outcome]:
    """Runs all conversations."""
    outcomes: dict[tuple[str, str, int], Outcome] = defaultdict(Outcome)
    engine = None if options.embedded else ScriptedUpstream()
    flags = {"engine": "llama", "kv_cache_bytes": 0} if options.embedded else {"engine": "echo"}
    async with running(engine, summary_max_tokens=64, **flags) as harness:
        for mode in _WINDOWS:
            log_progress(f"{mode}: {options.conversations} conversations")
            for number in range(options.conversations):
                session_id = f"{mode}-{number}"
                await converse(harness, session_id, mode, options.distances, number, outcomes)
    return outcomes


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--conversations", type=int, default=5)
    parser.add_argument("--distances", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--embedded", action="store_true", help="ask the embedded model")
    parser.add_argument("--quick", action="store_true", help="2 conversations, 10 and 30 later")
    options = parser.parse_args()
    if options.quick:
        options.conversations, options.distances = 2, [10, 30]
    outcomes = run("recall", measure(options))
    rows = []
    print(f"{'window':9}{'fact':10}" + "".join(f"{d:>8} later" for d in options.distances))
    for mode in _WINDOWS:
        for kind in (*_KINDS, "all"):
            cells = []
            for distance in options.distances:
                kinds = _KINDS if kind == "all" else (kind,)
                found = [outcomes[mode, each, distance] for each in kinds]
                asked = sum(each.asked for each in found)
                right = sum(each.right for each in found) / asked
                held = sum(each.held for each in found) / asked
                cells.append((right, held))
                rows.append(
                    {"window": mode, "fact": kind, "later": distance, "asked": asked,
                     "right": round(right, 3), "held": round(held, 3)}
                )  # fmt: skip
            texts = [f"{right:>6.0%}/{held:<7.0%}" for right, held in cells]
            print(f"{mode:9}{kind:10}" + "".join(texts))
    print("(answers that are right / prompts that hold the fact)")
    pinned = [row for row in rows if row["fact"] == "pinned"]
    share = min(float(str(row["held"])) for row in pinned if row["window"] != "whole")
    print(Criterion("prompts that hold a pinned fact", share, 0.95, at_least=True))
    if options.json:
        figures = {**origin("recall"), "embedded": options.embedded, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
