"""Whether what is kept warm changes an answer: real conversations, each answer asked again.

Conversations of MT-Bench-101 (`../shared/data/conversations.jsonl`, where it is; else our own) are
held at temperature 0 by turns, six on two slots, so that none finds its slot as it left it:

first      begins from the state of another session with the same system prompt
moved      the session's state was saved and is restored into a slot
restarted  the daemon was stopped by SIGTERM and started again before it
trimmed    the window is trimmed, and was evaluated ahead in a pause
forked     the first turn of a fork, which begins from its parent's state

Then the same prompts are asked again without any cache. Where two texts part, the server by itself
tells the log-probabilities of the two tokens (`bench/answer_comparison.py`). The cached share, by
the engine's count, shows that there was a cache to go wrong. Beside it stands how often llama.cpp's
server, with nothing of ours, answers otherwise with its own cache than without, and by how much
that cache changes the distance of its two likeliest tokens: what is within that is a near-tie.

Run it with `.venv/bin/python -m bench.answers`; it takes about 20 s a conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import shlex
import signal
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ruvd_client import AsyncClient

from bench.answer_comparison import NEAR_TIE, Alone, Difference, Sameness, alone, compare
from bench.conversation import SUBJECTS, talk
from bench.machine import describe
from bench.multi_turn_chats import RuvdChat, Sent, Turn
from bench.multi_turn_plan import made, tell
from bench.multi_turn_report import Criterion, cached_share
from bench.multi_turn_servers import THREADS, Shape, daemon, direct
from bench.relay_servers import Failed

SHARED = Path(__file__).parents[2] / "shared" / "data" / "conversations.jsonl"
TURNS = ("first", "moved", "restarted", "trimmed")
KINDS = (*TURNS, "forked")
_SHAPE = Shape(2048, 512, 2)
_GROUP = 6
# The fourth turn trims, and is sent with the one before it.
_LIMITS = ("--keep-exchanges", "1", "--max-exchanges", "2")
_TRIMMED_LINES = 3
# About what a group's windows take to be evaluated ahead.
_PAUSE_SECONDS = 8.0
_FORK_ASKS = "Say the most important part of that again, in other words."


@dataclass
class Kind:
    """The turns of one kind, and what came of asking them again."""

    turns: list[Turn] = field(default_factory=list)
    found: list[Sameness] = field(default_factory=list)

    @property
    def differences(self) -> Sequence[Difference]:
        return [each for found in self.found for each in found.differences]

    def counts(self) -> dict[str, int]:
        """How many were asked again, and of how many the text was what."""
        asked = sum(found.asked for found in self.found)
        near_ties = sum(each.is_near_tie for each in self.differences)
        return {
            "asked": asked,
            "equal": asked - len(self.differences),
            "near_ties": near_ties,
            "others": len(self.differences) - near_ties,
        }


@dataclass
class Found:
    """What was found of each kind, and of the server by itself."""

    kinds: dict[str, Kind] = field(default_factory=lambda: {name: Kind() for name in KINDS})
    alone: list[Alone] = field(default_factory=list)

    @property
    def changes(self) -> Sequence[float]:
        """See `Alone`."""
        return sorted(change for each in self.alone for change in each.changes)


class Conversations:
    """A group of conversations with the daemon, and forks of them."""

    def __init__(self, talks: Sequence[Sequence[str]], tokens: int) -> None:
        self._talks = talks
        self._chats = [RuvdChat("ruvd", tokens, session=each) for each in range(len(talks))]
        self.held: dict[str, list[tuple[Turn, Sent]]] = {}

    async def turn(self, kind: str, client: AsyncClient) -> None:
        """One turn of each, one after the other. Raises Failed."""
        self.held[kind] = []
        for chat, talk_ in zip(self._chats, self._talks, strict=True):
            chat.client = client
            await chat.say(talk_[TURNS.index(kind)] if kind in TURNS else _FORK_ASKS)
            if chat.failed:
                raise Failed(f"{kind}: {chat.failed}")
            self.held[kind].append((chat.turns[-1], chat.sent[-1]))

    async def fork(self, client: AsyncClient) -> None:
        """Go on in forks."""
        for chat in self._chats:
            parent, chat.session_id = chat.session_id, f"{chat.session_id}-fork"
            await client.fork_session(parent, new_session_id=chat.session_id)


async def hold(folder: Path, talks: Sequence[Sequence[str]], tokens: int, found: Found) -> None:
    """Hold a group of conversations, then ask all again."""
    running = partial(daemon, made(folder / "ruvd"), _SHAPE, *_LIMITS)
    prober = partial(direct, made(folder / "direct"), _SHAPE)
    group = Conversations(talks, tokens)
    async with running() as client:
        await group.turn("first", client)
        await group.turn("moved", client)
    async with running() as client:
        await group.turn("restarted", client)
        await asyncio.sleep(_PAUSE_SECONDS)
        await group.turn("trimmed", client)
        if any(len(sent.lines) != _TRIMMED_LINES for _, sent in group.held["trimmed"]):
            raise Failed("a window was not trimmed")
        await group.fork(client)
        await group.turn("forked", client)
        for name, held in group.held.items():
            kind, prompts = found.kinds[name], [sent for _, sent in held]
            kind.turns += [turn for turn, _ in held]
            kind.found.append(await compare(client, prober, prompts, tokens))
    async with prober() as server:
        found.alone.append(await alone(server, talks, tokens))


def conversations(count: int) -> tuple[Sequence[Sequence[str]], str]:
    """So many lists of what a user says, and where they are from."""
    if not SHARED.is_file():
        told = [talk(each, len(TURNS), opened=True) for each in range(len(SUBJECTS))]
        return told[:count], "our own"
    lines = SHARED.read_text().splitlines()
    whole = (json.loads(line)["turns"] for line in lines)
    told = [turns[: len(TURNS)] for turns in whole if len(turns) >= len(TURNS)]
    # Evenly spaced, as neighbours may be alike.
    return [told[at * len(told) // count] for at in range(min(count, len(told)))], "MT-Bench-101"


async def measure(options: argparse.Namespace) -> None:
    """All groups; their processes end with them, also on SIGTERM."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    talks, source = conversations(options.conversations)
    date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    command = shlex.join(["python", "-m", "bench.answers", *sys.argv[1:]])
    print(f"{describe()}\n{command}", flush=True)
    found = Found()
    for start in range(0, len(talks), _GROUP):
        group = talks[start : start + _GROUP]
        tell(f"conversations {start + 1} to {start + len(group)} of {len(talks)}")
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            await hold(Path(folder), group, options.tokens, found)
    workload = {
        "conversations": len(talks),
        "source": source,
        "answer_tokens": options.tokens,
        "context_tokens": _SHAPE.context_tokens,
        "slots": _SHAPE.slots,
        "threads": THREADS,
        "temperature": 0,
    }
    print("\n" + "; ".join(f"{name}: {value}" for name, value in workload.items()))
    criterion = show(found)
    if options.json:
        figures = {
            "machine": describe(),
            "date": date,
            "command": command,
            "workload": workload,
            "near_tie": NEAR_TIE,
            "kinds": {name: as_json(kind) for name, kind in found.kinds.items()},
            "alone": {
                **as_json(Kind(found=[each.sameness for each in found.alone])),
                **noise(found),
            },
            "criteria": [{**asdict(criterion), "verdict": criterion.verdict}],
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def as_json(kind: Kind) -> dict[str, Any]:
    """The figures of a kind, without what was said."""
    parted = [{"common": each.common, "gap": each.gap} for each in kind.differences]
    return {**kind.counts(), "cached_share": cached_share(kind.turns), "differences": parted}


def noise(found: Found) -> dict[str, float]:
    """What the server's own cache changes of the distance between two log-probabilities."""
    changes = found.changes
    quantiles = statistics.quantiles(changes, n=100)
    return {"tokens": len(changes), "p50": quantiles[49], "p99": quantiles[98], "max": changes[-1]}


def show(found: Found) -> Criterion:
    """Print what came of it."""
    total = Counter[str]()
    print("\n| turns | asked again | equal | near-ties | other differences | cached |")
    print("|---|---|---|---|---|---|")
    for name, kind in found.kinds.items():
        total.update(kind.counts())
        share = cached_share(kind.turns) or 0.0
        print(f"| {name} | {_cells(kind.counts())} | {100 * share:.0f} % |")
    print(f"| **all** | {_cells(total)} | |")
    itself = Kind(found=[each.sameness for each in found.alone])
    print(f"| llama.cpp alone, one warm slot | {_cells(itself.counts())} | |\n")
    for name, kind in {**found.kinds, "alone": itself}.items():
        for each in kind.differences:
            gap = "are unknown" if each.gap is None else f"differ by {each.gap:.3f}"
            print(f"  {name}: after {each.common} characters; log-probabilities {gap}")
    print(
        "  its own cache changes the distance of the two likeliest tokens by {p50:.3f}, p99"
        " {p99:.3f}, at most {max:.3f} ({tokens} tokens)".format_map(noise(found))
    )
    criterion = Criterion("answers that differ by more than a near-tie", total["others"], 0)
    print(criterion)
    return criterion


def _cells(counts: Mapping[str, int]) -> str:
    return " | ".join(map(str, counts.values()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--conversations", type=int, default=36, metavar="N", help="%(default)s")
    parser.add_argument(
        "--tokens", type=int, default=32, metavar="N", help="an answer's; %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="four conversations")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.conversations = 4
    try:
        asyncio.run(measure(options))
    except Failed as failure:
        print(f"answers: {failure}", file=sys.stderr)
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
