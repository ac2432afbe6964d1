"""Checks that the embedded engine's caches do not change answers, with real conversations.

The conversations are from MT-Bench-101 (`../shared/data/conversations.jsonl`); without that file,
generated ones are used. They run at temperature 0 and alternately, six on two slots, so that
another conversation always used the slot in between. These kinds of turns are compared:

first      starts from the state of another session with the same system prompt
moved      the session's state was saved and is restored into a slot
restarted  the daemon was stopped by SIGTERM and started again before the turn
trimmed    the context window was trimmed, and the new prompt was evaluated ahead during a pause
forked     the first turn of a fork, which starts from its parent's state

Then each prompt is repeated without a cache. Where two answers begin to differ, llama.cpp's own
server gives the log-probabilities of the two tokens (`bench/answer_comparison.py`). The share of
cached tokens, as the engine counts them, shows that the caches were in use. For comparison, the
same conversations run on llama.cpp's own server without the daemon: how often its own cache changes
an answer, and by how much it changes the distance between the two likeliest tokens. A difference
within that distance is a near-tie.

Run it with `.venv/bin/python -m bench.answers`; it takes about 20 s a conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ruvd_client import AsyncClient

from bench import runner
from bench.answer_comparison import (
    NEAR_TIE,
    Baseline,
    Comparison,
    Difference,
    compare,
    measure_baseline,
)
from bench.conversation import SUBJECTS, user_messages
from bench.multi_turn_chats import RuvdChat, SentPrompt, Turn
from bench.multi_turn_report import cached_share
from bench.multi_turn_servers import THREADS, Shape, daemon, direct
from bench.relay_servers import Failed
from bench.report import Criterion

SHARED = Path(__file__).parents[2] / "shared" / "data" / "conversations.jsonl"
TURNS = ("first", "moved", "restarted", "trimmed")
KINDS = (*TURNS, "forked")
_SHAPE = Shape(2048, 512, 2)
_GROUP_SIZE = 6
# The fourth turn trims the window, after which it is sent with one exchange before it.
_LIMITS = ("--keep-exchanges", "1", "--max-exchanges", "2")
_TRIMMED_LINES = 3
# Long enough to evaluate the trimmed windows of a group ahead.
_PAUSE_SECONDS = 8.0
_FORK_MESSAGE = "Say the most important part of that again, in other words."


@dataclass
class TurnKind:
    """The turns of one kind, and their comparisons with uncached answers."""

    turns: list[Turn] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def differences(self) -> Sequence[Difference]:
        return [
            difference for comparison in self.comparisons for difference in comparison.differences
        ]

    def counts(self) -> dict[str, int]:
        """Returns how many prompts were repeated, and how many answers were equal or differed."""
        asked = sum(comparison.asked for comparison in self.comparisons)
        near_ties = sum(difference.is_near_tie for difference in self.differences)
        return {
            "asked": asked,
            "equal": asked - len(self.differences),
            "near_ties": near_ties,
            "others": len(self.differences) - near_ties,
        }


@dataclass
class Findings:
    """The results by kind of turn, and those of llama.cpp's own server."""

    kinds: dict[str, TurnKind] = field(default_factory=lambda: {name: TurnKind() for name in KINDS})
    baselines: list[Baseline] = field(default_factory=list)

    @property
    def changes(self) -> Sequence[float]:
        """Returns the changes that `Baseline` describes, the smallest first."""
        return sorted(change for baseline in self.baselines for change in baseline.changes)

    def baseline_kind(self) -> TurnKind:
        """Returns the comparisons of llama.cpp's own server."""
        return TurnKind(comparisons=[baseline.comparison for baseline in self.baselines])


class Group:
    """A group of conversations with the daemon, and forks of them."""

    def __init__(self, conversations: Sequence[Sequence[str]], tokens: int) -> None:
        self._conversations = conversations
        self._chats = [RuvdChat("ruvd", tokens, session=at) for at in range(len(conversations))]
        self.finished: dict[str, list[tuple[Turn, SentPrompt]]] = {}

    async def turn(self, kind: str, client: AsyncClient) -> None:
        """Holds one turn of each conversation, one after the other. Raises Failed."""
        self.finished[kind] = []
        for chat, messages in zip(self._chats, self._conversations, strict=True):
            chat.client = client
            await chat.say(messages[TURNS.index(kind)] if kind in TURNS else _FORK_MESSAGE)
            if chat.failed:
                raise Failed(f"{kind}: {chat.failed}")
            self.finished[kind].append((chat.turns[-1], chat.sent[-1]))

    async def fork(self, client: AsyncClient) -> None:
        """Forks each session and continues in the fork."""
        for chat in self._chats:
            parent, chat.session_id = chat.session_id, f"{chat.session_id}-fork"
            await client.fork_session(parent, new_session_id=chat.session_id)


async def measure_group(
    folder: Path, conversations: Sequence[Sequence[str]], tokens: int, findings: Findings
) -> None:
    """Holds a group of conversations, then repeats all prompts without a cache."""
    running = partial(daemon, folder / "ruvd", _SHAPE, *_LIMITS)
    start_server = partial(direct, folder / "direct", _SHAPE)
    group = Group(conversations, tokens)
    async with running() as client:
        await group.turn("first", client)
        await group.turn("moved", client)
    async with running() as client:
        await group.turn("restarted", client)
        await asyncio.sleep(_PAUSE_SECONDS)
        await group.turn("trimmed", client)
        if any(len(sent.lines) != _TRIMMED_LINES for _, sent in group.finished["trimmed"]):
            raise Failed("a window was not trimmed")
        await group.fork(client)
        await group.turn("forked", client)
        for name, finished in group.finished.items():
            kind, prompts = findings.kinds[name], [sent for _, sent in finished]
            kind.turns += [turn for turn, _ in finished]
            kind.comparisons.append(await compare(client, start_server, prompts, tokens))
    async with start_server() as server:
        findings.baselines.append(await measure_baseline(server, conversations, tokens))


def load_conversations(count: int) -> tuple[Sequence[Sequence[str]], str]:
    """Returns the user's messages of `count` conversations, and their source."""
    if not SHARED.is_file():
        subjects = range(min(count, len(SUBJECTS)))
        return [
            user_messages(each, len(TURNS), long_opening=True) for each in subjects
        ], "generated"
    lines = SHARED.read_text().splitlines()
    parsed = (json.loads(line)["turns"] for line in lines)
    found = [turns[: len(TURNS)] for turns in parsed if len(turns) >= len(TURNS)]
    # Evenly spaced, as neighbours may be alike.
    chosen = [found[at * len(found) // count] for at in range(min(count, len(found)))]
    return chosen, "MT-Bench-101"


async def measure(options: argparse.Namespace) -> None:
    """Measures all groups, prints the report and writes the figures."""
    conversations, source = load_conversations(options.conversations)
    origin = runner.origin("answers")
    print(f"{origin['machine']}\n{origin['command']}", flush=True)
    findings = Findings()
    for start in range(0, len(conversations), _GROUP_SIZE):
        group = conversations[start : start + _GROUP_SIZE]
        runner.log_progress(
            f"conversations {start + 1} to {start + len(group)} of {len(conversations)}"
        )
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            await measure_group(Path(folder), group, options.tokens, findings)
    workload = {
        "conversations": len(conversations),
        "source": source,
        "answer_tokens": options.tokens,
        "context_tokens": _SHAPE.context_tokens,
        "slots": _SHAPE.slots,
        "threads": THREADS,
        "temperature": 0,
    }
    print("\n" + "; ".join(f"{name}: {value}" for name, value in workload.items()))
    criterion = show(findings)
    figures = {
        **origin,
        "workload": workload,
        "near_tie": NEAR_TIE,
        "kinds": {name: as_json(kind) for name, kind in findings.kinds.items()},
        "alone": {**as_json(findings.baseline_kind()), **noise(findings)},
        "criteria": [{**asdict(criterion), "verdict": criterion.verdict}],
    }
    runner.write_json(options.json, figures)


def as_json(kind: TurnKind) -> dict[str, Any]:
    """Returns the figures of a kind, without the texts."""
    differences = [{"common": each.common, "gap": each.gap} for each in kind.differences]
    return {**kind.counts(), "cached_share": cached_share(kind.turns), "differences": differences}


def noise(findings: Findings) -> dict[str, float]:
    """Returns quantiles of the changes that `Baseline` describes."""
    changes = findings.changes
    quantiles = statistics.quantiles(changes, n=100)
    return {"tokens": len(changes), "p50": quantiles[49], "p99": quantiles[98], "max": changes[-1]}


def show(findings: Findings) -> Criterion:
    """Prints the results and returns the criterion."""
    total = Counter[str]()
    print("\n| turns | repeated | equal | near-ties | other differences | cached tokens |")
    print("|---|---|---|---|---|---|")
    for name, kind in findings.kinds.items():
        total.update(kind.counts())
        share = cached_share(kind.turns) or 0.0
        print(f"| {name} | {_cells(kind.counts())} | {100 * share:.0f} % |")
    print(f"| **all** | {_cells(total)} | |")
    baseline = findings.baseline_kind()
    print(f"| llama.cpp's own server, one warm slot | {_cells(baseline.counts())} | |\n")
    for name, kind in {**findings.kinds, "llama.cpp's own server": baseline}.items():
        for difference in kind.differences:
            print(f"  {name}: {difference}")
    text = (
        "  The cache of llama.cpp's own server changes the distance of the two likeliest tokens by"
        " {p50:.3f} (median), {p99:.3f} (p99), {max:.3f} (largest); {tokens} tokens."
    )
    print(text.format_map(noise(findings)))
    criterion = Criterion("answers that differ by more than a near-tie", total["others"], 0)
    print(criterion)
    return criterion


def _cells(counts: Mapping[str, int]) -> str:
    return " | ".join(map(str, counts.values()))


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--conversations", type=int, default=36, metavar="N")
    parser.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens per answer")
    parser.add_argument("--quick", action="store_true", help="four conversations")
    options = parser.parse_args()
    if options.quick:
        options.conversations = 4
    runner.run("answers", measure(options))


if __name__ == "__main__":
    main()
