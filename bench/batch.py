"""What BatchComplete gains over calling Complete, and what it costs those who chat meanwhile.

Four cases, each on a daemon process of its own, both sides in turns in one run:

remote     A mock upstream (50 ms to the first token, 10 ms a token) with room for 32, answers of 64
           tokens and of 16: completions a second by BatchComplete, against one Complete after the
           other and against the ideal, which is 32 times what the mock's pace allows; and what
           clients that parse nothing get from the mock, which shares the machine's cores.
document   The embedded engine, 32 short questions on one document of about 1,500 tokens, answers of
           16 tokens at temperature 0: `cold` one by one without the cache, `cached` one by one
           with it, `batch` by BatchComplete. Every side has a document of its own in every round,
           so that none finds what another left. Cold takes minutes, so a few questions stand for
           32; they cost the same, as each evaluates all of it. What the engine itself says was
           cached is printed.
curve      The embedded engine with 16 slots, short prompts, answers of 64 tokens: the rate at
           max_concurrency 1, 2, 4, 8 and 16, the same daemon for all.
chat       The time to the first token of interactive calls, p99, while a batch of 200 runs, against
           the idle daemon: on the mock (a batch's share is half of 32) and on the embedded engine.

Figures are medians over the rounds with their spread. Run it with `.venv/bin/python
bench/batch.py`; it takes about fifteen minutes, `--quick` about four, with fewer rounds and items.
The aims: remote 4 times one by one and 90 % of the ideal; document 8 times cold and faster than
cached; chat on the mock at most twice the idle p99.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench import relay_servers as servers
from bench.machine import describe
from bench.mock_upstream import PACED_MODEL
from bench.relay_clients import HttpClient
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_ROOM = 32
_FIRST_MS, _TOKEN_MS, _SHORT, _LONG = 50.0, 10.0, 16, 64
_WIDTHS = (1, 2, 4, 8, 16)
_QUESTIONS = [
    f"What does the text say about {what}, and {how}?"
    for what in ("ships", "cargo", "captains", "lamps", "storms", "prices", "dogs", "letters")
    for how in ("when", "why", "where", "who saw it")
]
_SUBJECTS = [
    "The harbour master",
    "A captain",
    "The keeper of the lamp",
    "An old merchant",
    "The pilot",
]
_VERBS = ["writes down", "counts", "forgets", "brings", "asks for", "carries", "sells", "finds"]
_THINGS = ["the cargo", "a letter", "the price of grain", "seven barrels", "a grey dog", "the rope"]
_TIMES = ["at dusk", "before the storm", "in the morning", "when the bell rings", "on Sundays"]


def document(seed: str, sentences: int = 82) -> str:
    """A text that is no other's, about 1,500 tokens of the default model."""
    draw = random.Random(seed)
    words = (_SUBJECTS, _VERBS, _THINGS, _TIMES)
    return " ".join(
        " ".join(draw.choice(each) for each in words) + f", as page {number} says."
        for number in range(sentences)
    )


def ask(text: str, *, system: str = "", tokens: int = 16, **options: Any) -> pb.CompleteRequest:
    """A stateless request. The embedded engine does not end it early, so that lengths compare."""
    asked = pb.CompletionOptions(max_tokens=tokens, temperature=0, **options)
    messages = [pb.Message(role=pb.ROLE_USER, content=text)]
    return pb.CompleteRequest(messages=messages, system_prompt=system, options=asked)


def endless(request: pb.CompleteRequest) -> pb.CompleteRequest:
    request.options.extra_body["ignore_eos"] = True
    return request


@asynccontextmanager
async def daemon(folder: Path, *flags: str) -> AsyncIterator[Any]:
    """A daemon that is ready; its stub."""
    address = f"unix:{folder}/r.sock"
    environment = {name: value for name, value in os.environ.items() if name[:5] != "RUVD_"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ruvd", "serve", "--store", "memory", "--log-level", "error",
        "--listen", address, *flags, env=environment, cwd=servers.ROOT,
    )  # fmt: skip
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="readiness")
            async with asyncio.timeout(60):
                while True:
                    told = await health.Check(request, wait_for_ready=True)
                    if told.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                    await asyncio.sleep(0.1)
            yield pb_grpc.SessionServiceStub(channel)
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def on_mock(folder: Path, share: float, tokens: int) -> AsyncIterator[tuple[Any, HttpClient]]:
    """A daemon on the mock: its stub, and a client that speaks to the mock itself."""
    mock = servers.mock(folder, tokens=tokens, first_ms=_FIRST_MS, token_ms=_TOKEN_MS)
    async with mock as (_, port):
        flags = ("--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1")
        room = ("--max-parallel", str(_ROOM), "--batch-share", str(share))
        async with daemon(folder, *flags, "--model", PACED_MODEL, *room) as stub:
            direct = HttpClient(port, tokens)
            yield stub, direct
            await direct.close()


@dataclass
class Run:
    """What a number of completions took together, and what the engine counted."""

    seconds: float
    usage: pb.Usage
    items: int

    @property
    def rate(self) -> float:
        return self.items / self.seconds


async def one_by_one(stub: Any, requests: Sequence[pb.CompleteRequest]) -> Run:
    usage = pb.Usage()
    began = time.perf_counter()
    for request in requests:
        async for response in stub.Complete(request):
            if response.event.HasField("finished"):
                add(usage, response.event.finished.usage)
    return Run(time.perf_counter() - began, usage, len(requests))


async def batch(stub: Any, requests: Sequence[pb.CompleteRequest], width: int = 0) -> Run:
    began = time.perf_counter()
    call = stub.BatchComplete(pb.BatchCompleteRequest(items=requests, max_concurrency=width))
    summary = pb.BatchSummary()
    async for response in call:
        if response.HasField("summary"):
            summary = response.summary
    assert summary.succeeded == len(requests), summary
    return Run(time.perf_counter() - began, summary.usage, len(requests))


def add(total: pb.Usage, usage: pb.Usage) -> None:
    total.prompt_tokens += usage.prompt_tokens
    total.cached_tokens += usage.cached_tokens
    total.completion_tokens += usage.completion_tokens


async def first_token(stub: Any, request: pb.CompleteRequest) -> float:
    """Seconds to the first text; the call is cancelled then."""
    began = time.perf_counter()
    call = stub.Complete(request)
    async for response in call:
        if response.event.HasField("delta"):
            break
    took = time.perf_counter() - began
    call.cancel()
    return took


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]


async def remote(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {str(tokens): await at_pace(options, folder, tokens) for tokens in (_LONG, _SHORT)}


async def at_pace(options: argparse.Namespace, folder: Path, tokens: int) -> dict[str, Any]:
    rounds, waves = (min(options.rounds, 3), 4) if options.quick else (options.rounds, 10)
    single: list[float] = []
    together: list[float] = []
    ceiling: list[float] = []
    async with on_mock(folder, 1.0, tokens) as (stub, direct):
        await batch(stub, [ask("warm")] * 64, _ROOM)
        for number in range(rounds):
            items = [ask(f"item {number} {item}") for item in range(_ROOM * waves)]
            single.append((await one_by_one(stub, items[:8])).rate)
            together.append((await batch(stub, items, _ROOM)).rate)
            ceiling.append(await direct_rate(direct, waves))
    ideal = _ROOM / ((_FIRST_MS + (tokens - 1) * _TOKEN_MS) / 1000)
    gains = [many / one for many, one in zip(together, single, strict=True)]
    shares = [100 * many / ideal for many in together]
    print(f"  {tokens} tokens: one by one {spread(single, '/s')}, batch {spread(together, '/s')},")
    print(f"    gain {spread(gains, 'x')}, of the ideal {ideal:.0f}/s {spread(shares, ' %')};")
    print(f"    the mock itself with {_ROOM} clients {spread(ceiling, '/s')}", flush=True)
    return {"one_by_one": single, "batch": together, "ideal": ideal, "mock": ceiling}


async def direct_rate(client: HttpClient, waves: int) -> float:
    """What the mock does without a daemon, by clients that parse nothing."""

    async def caller(worker: int) -> None:
        for _ in range(waves):
            await client.stream(worker, paced=True)

    client.new_round()
    began = time.perf_counter()
    await asyncio.gather(*(caller(worker) for worker in range(_ROOM)))
    return _ROOM * waves / (time.perf_counter() - began)


async def one_document(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds, colds = (min(options.rounds, 2), 1) if options.quick else (options.rounds, 2)
    questions = _QUESTIONS[: options.questions]
    cold: list[float] = []
    cached: list[float] = []
    together: list[float] = []
    flags = ("--engine", "llama", "--llama-slots", str(options.slots), "--batch-share", "1.0")
    async with daemon(folder, *flags, *options.ruvd_flag) as stub:
        await one_by_one(stub, [ask("Say hello")])

        def asked(side: str, **more: Any) -> list[pb.CompleteRequest]:
            text = document(f"{random.random()} {side}")
            return [endless(ask(question, system=text, **more)) for question in questions]

        for number in range(rounds):
            run = await one_by_one(stub, asked("cold", bypass_cache=True)[:colds])
            cold.append(run.seconds / colds * len(questions))
            sides = ["cached", "batch"] if number % 2 else ["batch", "cached"]
            told = []
            for side in sides:
                requests = asked(side)
                run = await (batch if side == "batch" else one_by_one)(stub, requests)
                (together if side == "batch" else cached).append(run.seconds)
                prompt = run.usage.prompt_tokens
                told.append(
                    f"{side} {run.seconds:.1f} s ({100 * run.usage.cached_tokens / prompt:.0f} %"
                    f" of {prompt // len(questions)} cached, {run.usage.completion_tokens} out)"
                )
            print(f"  round {number + 1}: cold {cold[-1]:.0f} s, {', '.join(told)}", flush=True)
    against = {
        "cold": [one / other for one, other in zip(cold, together, strict=True)],
        "cached": [one / other for one, other in zip(cached, together, strict=True)],
    }
    print(
        f"  cold {spread(cold, ' s', 0)} ({colds} of {len(questions)} measured),"
        f" cached {spread(cached, ' s')}, batch {spread(together, ' s')}"
    )
    print(f"  batch gains {spread(against['cold'], 'x')} over cold,", end=" ")
    print(f"{spread(against['cached'], 'x', 2)} over cached")
    return {"cold": cold, "cached": cached, "batch": together}


async def curve(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds, items = (1, 16) if options.quick else (min(options.rounds, 3), 32)
    rates: dict[int, list[float]] = {width: [] for width in _WIDTHS}
    flags = ("--llama-slots", "16", "--llama-context-tokens", "512", "--llama-answer-tokens", "128")
    shared = ("--engine", "llama", "--batch-share", "1.0", *flags, *options.ruvd_flag)
    async with daemon(folder, *shared) as stub:
        await one_by_one(stub, [ask("Say hello")])
        for number in range(rounds):
            for width in _WIDTHS if number % 2 == 0 else reversed(_WIDTHS):
                texts = [f"Tell story {item} of round {number}" for item in range(items)]
                requests = [endless(ask(text, tokens=64)) for text in texts]
                run = await batch(stub, requests, width)
                rates[width].append(run.usage.completion_tokens / run.seconds)
    alone = statistics.median(rates[1])
    for width, values in rates.items():
        gain = statistics.median(values) / alone
        print(f"  {width:2} side by side: {spread(values, ' tokens/s')}, {gain:.2f}x")
    print(
        "  A pass over the weights serves all that run side by side, which pays while it is memory"
        "\n  that is waited for; then arithmetic is, and that grows with each of them."
    )
    return {str(width): values for width, values in rates.items()}


async def chat(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    figures = {}
    async with on_mock(folder, 0.5, _SHORT) as (stub, _):
        few = 100 if options.quick else 400
        await batch(stub, [ask("warm")] * 32)
        figures["mock"] = await beside(stub, [ask("item")] * 200, ask("chat"), few, callers=4)
    show_beside(figures["mock"], "mock")
    async with daemon(folder, "--engine", "llama", *options.ruvd_flag) as stub:
        items = [endless(ask(f"Tell story {item}")) for item in range(200)]
        few = 10 if options.quick else 30
        figures["embedded"] = await beside(stub, items, ask("Say hello"), few, callers=1)
    show_beside(figures["embedded"], "embedded")
    return figures


def show_beside(figures: dict[str, list[float]], where: str) -> None:
    idle, busy = figures["idle_ms"], figures["busy_ms"]
    p99 = [percentile(values, 0.99) for values in (idle, busy)]
    p50 = [statistics.median(values) for values in (idle, busy)]
    print(
        f"  {where}: p50 {p50[0]:.0f} ms idle, {p50[1]:.0f} ms beside a batch;"
        f" p99 {p99[0]:.0f} and {p99[1]:.0f} ms, {p99[1] / p99[0]:.2f}x"
        f" ({len(idle)} and {len(busy)} calls)"
    )


async def beside(
    stub: Any,
    items: Sequence[pb.CompleteRequest],
    request: pb.CompleteRequest,
    few: int,
    *,
    callers: int,
) -> dict[str, list[float]]:
    """The milliseconds to the first token on an idle daemon and beside batches, in turns."""

    async def some(number: int) -> list[float]:
        async def caller() -> list[float]:
            return [1000 * await first_token(stub, request) for _ in range(number // callers)]

        found = await asyncio.gather(*(caller() for _ in range(callers)))
        return [each for one in found for each in one]

    async def batches() -> None:
        while True:
            await batch(stub, items)

    await some(callers)
    idle: list[float] = []
    busy: list[float] = []
    for _ in range(2):
        idle += await some(few // 2)
        running = asyncio.create_task(batches())
        try:
            await asyncio.sleep(0.5)  # until it has all of its share
            busy += await some(few // 2)
        finally:
            running.cancel()
            await asyncio.wait([running])
    return {"idle_ms": idle, "busy_ms": busy}


_CASES = {"remote": remote, "document": one_document, "curve": curve, "chat": chat}


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"machine": describe()}
    print(figures["machine"], flush=True)
    for name in options.only:
        print(name, flush=True)
        with tempfile.TemporaryDirectory(prefix="ruvd-bench-") as folder:
            async with asyncio.timeout(options.most_seconds):
                figures[name] = await _CASES[name](options, Path(folder))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds and items")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=4, help="document: the engine's")
    parser.add_argument("--questions", type=int, default=32, help="document: how many")
    parser.add_argument("--most-seconds", type=float, default=900.0, help="a case may take")
    parser.add_argument(
        "--ruvd-flag", action="append", default=[], metavar="FLAG", help="one more, embedded engine"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there as JSON")
    options = parser.parse_args()
    try:
        figures = asyncio.run(measure(options))
    except TimeoutError:
        print(f"batch: a case took more than {options.most_seconds:.0f} s", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
