"""Compares BatchComplete with calling Complete, and measures how it slows interactive calls down.

There are four cases, each with a daemon process of its own. Both sides run alternately:

remote     A mock upstream (50 ms to the first token, 10 ms per token) that serves 32 completions at
           a time, with answers of 64 and of 16 tokens. BatchComplete's completions per second are
           compared with one Complete after the other, and with the ideal: 32 times the rate that
           the mock's pace allows. The rate of clients that call the mock directly and parse nothing
           is measured as well, because the mock shares the machine's cores.
document   The embedded engine, 32 short questions on one document of about 1,500 tokens, answers of
           16 tokens at temperature 0: `cold` one by one without a cache, `cached` one by one with
           it, `batch` with BatchComplete. Each side gets a new document in each round, so that it
           cannot use another side's cache. Cold takes minutes, so only a few questions are measured
           and the time is scaled to 32; each of them evaluates the whole document. The share of
           cached tokens, as the engine counts them, is printed.
curve      The embedded engine with 16 slots, short prompts, answers of 64 tokens: the rate at
           max_concurrency 1, 2, 4, 8 and 16, with the same daemon.
chat       The p99 of the time to the first token of interactive calls while a batch of 200 runs,
           compared with the idle daemon: on the mock, where a batch may use half of the 32 places,
           and on the embedded engine.

Figures are medians over the rounds with their range. Run it with `.venv/bin/python -m bench.batch`;
it takes about fifteen minutes, `--quick` about four, with fewer rounds and items. The aims are:
remote 4 times one by one and 90 % of the ideal; document 8 times cold and faster than cached; chat
on the mock at most twice the idle p99.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from bench import relay_servers as servers
from bench import runner
from bench.machine import describe
from bench.mock_upstream import PACED_MODEL
from bench.relay_clients import HttpClient
from bench.report import percentile
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

_MAX_PARALLEL = 32
_FIRST_MS, _TOKEN_MS, _SHORT_TOKENS, _LONG_TOKENS = 50.0, 10.0, 16, 64
_WIDTHS = (1, 2, 4, 8, 16)
_QUESTIONS = [
    f"What does the text say about {what}, and {how}?"
    for what in ("ships", "cargo", "captains", "lamps", "storms", "prices", "dogs", "letters")
    for how in ("when", "why", "where", "who saw it")
]
_SUBJECTS = [
    "The harbour master", "A captain", "The keeper of the lamp", "An old merchant", "The pilot",
]  # fmt: skip
_VERBS = ["writes down", "counts", "forgets", "brings", "asks for", "carries", "sells", "finds"]
_THINGS = ["the cargo", "a letter", "the price of grain", "seven barrels", "a grey dog", "the rope"]
_TIMES = ["at dusk", "before the storm", "in the morning", "when the bell rings", "on Sundays"]


def document(seed: str, sentences: int = 82) -> str:
    """Returns a text that only this seed gives, about 1,500 tokens of the default model."""
    draw = random.Random(seed)
    words = (_SUBJECTS, _VERBS, _THINGS, _TIMES)
    return " ".join(
        " ".join(draw.choice(choices) for choices in words) + f", as page {number} says."
        for number in range(sentences)
    )


def ask(text: str, *, system: str = "", tokens: int = 16, **options: Any) -> pb.CompleteRequest:
    """Returns a stateless request."""
    all_options = pb.CompletionOptions(max_tokens=tokens, temperature=0, **options)
    messages = [pb.Message(role=pb.ROLE_USER, content=text)]
    return pb.CompleteRequest(messages=messages, system_prompt=system, options=all_options)


def without_early_end(request: pb.CompleteRequest) -> pb.CompleteRequest:
    """Makes the embedded engine generate all of `max_tokens`, so that all answers are as long."""
    request.options.extra_body["ignore_eos"] = True
    return request


@asynccontextmanager
async def daemon(folder: Path, *flags: str) -> AsyncIterator[Any]:
    """Runs a daemon and yields its stub when it is ready."""
    flags = ("--store", "memory", "--log-level", "error", *flags)
    async with servers.daemon("ruvd", folder, *flags) as (server, address):
        await servers.until_serving(server, address, service="readiness")
        async with grpc.aio.insecure_channel(address) as channel:
            yield pb_grpc.SessionServiceStub(channel)


@asynccontextmanager
async def on_mock(folder: Path, share: float, tokens: int) -> AsyncIterator[tuple[Any, HttpClient]]:
    """Runs a daemon with the mock and yields its stub and a client that calls the mock directly."""
    mock = servers.mock(folder, tokens=tokens, first_ms=_FIRST_MS, token_ms=_TOKEN_MS)
    async with mock as (_, port):
        flags = ("--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1")
        limits = ("--max-parallel", str(_MAX_PARALLEL), "--batch-share", str(share))
        async with daemon(folder, *flags, "--model", PACED_MODEL, *limits) as stub:
            direct = HttpClient(port, tokens)
            yield stub, direct
            await direct.close()


@dataclass
class Run:
    """The time that some completions took together, and their usage."""

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
    """Returns the seconds to the first text, and cancels the call then."""
    began = time.perf_counter()
    call = stub.Complete(request)
    async for response in call:
        if response.event.HasField("delta"):
            break
    took = time.perf_counter() - began
    call.cancel()
    return took


def spread(values: Sequence[float], unit: str = "", digits: int = 1) -> str:
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


async def remote(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        str(tokens): await with_answers_of(options, folder, tokens)
        for tokens in (_LONG_TOKENS, _SHORT_TOKENS)
    }


async def with_answers_of(options: argparse.Namespace, folder: Path, tokens: int) -> dict[str, Any]:
    """Measures the remote case with answers of one length."""
    rounds, waves = (min(options.rounds, 3), 4) if options.quick else (options.rounds, 10)
    single_rates: list[float] = []
    batch_rates: list[float] = []
    direct_rates: list[float] = []
    async with on_mock(folder, 1.0, tokens) as (stub, direct):
        await batch(stub, [ask("warm")] * 64, _MAX_PARALLEL)
        for number in range(rounds):
            items = [ask(f"item {number} {item}") for item in range(_MAX_PARALLEL * waves)]
            single_rates.append((await one_by_one(stub, items[:8])).rate)
            batch_rates.append((await batch(stub, items, _MAX_PARALLEL)).rate)
            direct_rates.append(await direct_rate(direct, waves))
    ideal = _MAX_PARALLEL / ((_FIRST_MS + (tokens - 1) * _TOKEN_MS) / 1000)
    gains = [many / one for many, one in zip(batch_rates, single_rates, strict=True)]
    shares = [100 * rate / ideal for rate in batch_rates]
    print(f"  answers of {tokens} tokens, completions per second (median, smallest to largest):")
    print(f"    one by one {spread(single_rates)}, BatchComplete {spread(batch_rates)},")
    print(f"    {spread(gains, 'x')} as fast, {spread(shares, ' %')} of the ideal {ideal:.0f};")
    print(f"    the mock with {_MAX_PARALLEL} direct clients {spread(direct_rates)}", flush=True)
    return {"one_by_one": single_rates, "batch": batch_rates, "ideal": ideal, "mock": direct_rates}


async def direct_rate(client: HttpClient, waves: int) -> float:
    """Returns the mock's rate without a daemon, with clients that parse nothing."""

    async def caller(worker: int) -> None:
        for _ in range(waves):
            await client.stream(worker, paced=True)

    client.new_round()
    began = time.perf_counter()
    await asyncio.gather(*(caller(worker) for worker in range(_MAX_PARALLEL)))
    return _MAX_PARALLEL * waves / (time.perf_counter() - began)


async def one_document(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rounds, cold_count = (min(options.rounds, 2), 1) if options.quick else (options.rounds, 2)
    questions = _QUESTIONS[: options.questions]
    cold: list[float] = []
    cached: list[float] = []
    batched: list[float] = []
    flags = ("--engine", "llama", "--llama-slots", str(options.slots), "--batch-share", "1.0")
    async with daemon(folder, *flags, *options.ruvd_flag) as stub:
        await one_by_one(stub, [ask("Say hello")])

        def new_requests(side: str, **more: Any) -> list[pb.CompleteRequest]:
            text = document(f"{random.random()} {side}")
            return [without_early_end(ask(question, system=text, **more)) for question in questions]

        for number in range(rounds):
            run = await one_by_one(stub, new_requests("cold", bypass_cache=True)[:cold_count])
            cold.append(run.seconds / cold_count * len(questions))
            sides = ["cached", "batch"] if number % 2 else ["batch", "cached"]
            results = []
            for side in sides:
                requests = new_requests(side)
                run = await (batch if side == "batch" else one_by_one)(stub, requests)
                (batched if side == "batch" else cached).append(run.seconds)
                prompt = run.usage.prompt_tokens
                results.append(
                    f"{side} {run.seconds:.1f} s ({100 * run.usage.cached_tokens / prompt:.0f} %"
                    f" of {prompt // len(questions)} prompt tokens cached,"
                    f" {run.usage.completion_tokens} generated)"
                )
            print(f"  round {number + 1}: cold {cold[-1]:.0f} s, {', '.join(results)}", flush=True)
    gain_over_cold = [one / many for one, many in zip(cold, batched, strict=True)]
    gain_over_cached = [one / many for one, many in zip(cached, batched, strict=True)]
    print(
        f"  cold {spread(cold, ' s', 0)} ({cold_count} of {len(questions)} measured),"
        f" cached {spread(cached, ' s')}, batch {spread(batched, ' s')}"
    )
    print(
        f"  batch is {spread(gain_over_cold, 'x')} as fast as cold,"
        f" {spread(gain_over_cached, 'x', 2)} as fast as cached"
    )
    return {"cold": cold, "cached": cached, "batch": batched}


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
                requests = [without_early_end(ask(text, tokens=64)) for text in texts]
                run = await batch(stub, requests, width)
                rates[width].append(run.usage.completion_tokens / run.seconds)
    alone = statistics.median(rates[1])
    for width, values in rates.items():
        gain = statistics.median(values) / alone
        print(f"  {width:2} in parallel: {spread(values, ' tokens/s')}, {gain:.2f}x")
    print(
        "  Parallel answers share each pass over the model's weights. This helps as long as memory"
        "\n  bandwidth is the limit. Beyond that, each further answer adds computing time."
    )
    return {str(width): values for width, values in rates.items()}


async def chat(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    figures = {}
    async with on_mock(folder, 0.5, _SHORT_TOKENS) as (stub, _):
        calls = 100 if options.quick else 400
        await batch(stub, [ask("warm")] * 32)
        figures["mock"] = await measure_interactive(
            stub, [ask("item")] * 200, ask("chat"), calls, callers=4
        )
    show_interactive(figures["mock"], "mock")
    async with daemon(folder, "--engine", "llama", *options.ruvd_flag) as stub:
        items = [without_early_end(ask(f"Tell story {item}")) for item in range(200)]
        calls = 10 if options.quick else 30
        figures["embedded"] = await measure_interactive(
            stub, items, ask("Say hello"), calls, callers=1
        )
    show_interactive(figures["embedded"], "embedded")
    return figures


def show_interactive(figures: dict[str, list[float]], engine: str) -> None:
    idle, busy = figures["idle_ms"], figures["busy_ms"]
    p99 = [percentile(values, 0.99) for values in (idle, busy)]
    p50 = [statistics.median(values) for values in (idle, busy)]
    print(
        f"  {engine}, first token: p50 {p50[0]:.0f} ms idle, {p50[1]:.0f} ms during a batch;"
        f" p99 {p99[0]:.0f} and {p99[1]:.0f} ms, {p99[1] / p99[0]:.2f}x"
        f" ({len(idle)} and {len(busy)} calls)"
    )


async def measure_interactive(
    stub: Any,
    items: Sequence[pb.CompleteRequest],
    request: pb.CompleteRequest,
    calls: int,
    *,
    callers: int,
) -> dict[str, list[float]]:
    """Returns the milliseconds to the first token, alternately idle and during batches."""

    async def measure_calls(number: int) -> list[float]:
        async def caller() -> list[float]:
            return [1000 * await first_token(stub, request) for _ in range(number // callers)]

        results = await asyncio.gather(*(caller() for _ in range(callers)))
        return [milliseconds for result in results for milliseconds in result]

    async def run_batches() -> None:
        while True:
            await batch(stub, items)

    await measure_calls(callers)
    idle: list[float] = []
    busy: list[float] = []
    for _ in range(2):
        idle += await measure_calls(calls // 2)
        running = asyncio.create_task(run_batches())
        try:
            await asyncio.sleep(0.5)  # until the batch uses all of its share
            busy += await measure_calls(calls // 2)
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
            async with runner.case_timeout(options.case_timeout_seconds):
                figures[name] = await _CASES[name](options, Path(folder))
    return figures


def main() -> None:
    parser = runner.argument_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=_CASES, default=list(_CASES))
    parser.add_argument("--quick", action="store_true", help="fewer rounds and items")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--slots", type=int, default=4, help="slots of the engine in the document case"
    )
    parser.add_argument("--questions", type=int, default=32, help="questions in the document case")
    parser.add_argument("--case-timeout-seconds", type=float, default=900.0)
    runner.add_ruvd_flag(parser)
    options = parser.parse_args()
    runner.write_json(options.json, runner.run("batch", measure(options)))


if __name__ == "__main__":
    main()
