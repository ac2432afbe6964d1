"""Shared by the tests of the embedded engine: an engine that can be watched, sessions, figures.

The engine is watched where it ends: at the requests to its server, which a test can count, hold
back or break, at its events, and at the files on the disk.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ruvd.core.model import Message, Role
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineDone, EngineRequest, EngineText, PrefixCache
from ruvd.core.ports.events import EngineStateMoved, Event
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.http.transport import Request, Response, Transport
from ruvd.engines.llama.engine import LlamaEngine
from ruvd.engines.llama.idle_work import IdlePolicy

NEVER = 1000.0
# Nothing is done in idle slots: the first check never comes.
NO_IDLE_WORK = IdlePolicy(check_seconds=NEVER)

SYSTEM = "You keep the harbour's ledger. Answer in one sentence, and only of what was said. " * 6
STORIES = {
    "ann": "The brig Fortuna came in from Lisbon with salt and oranges, and lay at the east mole. ",
    "ben": "Two trawlers were mended on the slip, and the smith was paid eleven crowns for it. ",
    "cay": "The ferry ran late since fog lay on the sound, and the bell was rung until noon. ",
    "dee": "A barge of timber broke loose in the night, and was found on the sand at low tide. ",
}

# A llama-server as a user may have one: it takes the flags, and the key from the environment.
SERVER = f"""#!{sys.executable}
import argparse, os, signal, sys, xllamacpp
parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in ("model", "alias", "host", "slot-save-path", "extra", "chat-template"):
    parser.add_argument("--" + flag)
for flag in ("port", "ctx-size", "parallel", "threads", "threads-batch", "batch-size",
             "ubatch-size"):
    parser.add_argument("--" + flag, type=int)
args = parser.parse_args()
assert args.extra == "yes", args
params = xllamacpp.CommonParams()
params.model.path = args.model
params.hostnames = [args.host]
params.api_keys = [os.environ["LLAMA_API_KEY"]]
params.n_ctx = args.ctx_size
params.n_parallel = args.parallel
params.n_batch, params.n_ubatch = args.batch_size, args.ubatch_size
params.cpuparams.n_threads = args.threads
params.cpuparams_batch.n_threads = args.threads_batch
params.slot_save_path = args.slot_save_path
params.cache_ram_mib = int(os.environ["LLAMA_ARG_CACHE_RAM"])
params.chat_template = args.chat_template or ""
params.endpoint_slots = True
params.ui = False
server = xllamacpp.Server(params)
while True:
    signal.pause()
"""


HEARTBEAT = "slots"  # the path of the supervisor's question whether the server still answers


@dataclass(frozen=True)
class Call:
    """A request to the server. `kind` is `chat`, `completion` (an evaluation ahead), `save`,
    `restore`, `erase`, or the path."""

    kind: str
    slot: int | None
    body: dict[str, Any] = field(hash=False)

    @classmethod
    def of(cls, request: Request) -> Call:
        body = json.loads(request.content or b"{}")
        path = request.url.path.strip("/")
        if action := request.url.params.get("action"):
            return cls(action, int(path.rpartition("/")[2]), body)
        kind = "chat" if path == "v1/chat/completions" else path
        return cls(kind, body.get("id_slot"), body)


class Gate:
    """Holds back the calls of one kind that have the text in them, until it is opened."""

    def __init__(self, kind: str, text: str) -> None:
        self._kind, self._text = kind, text
        self._opened = asyncio.Event()
        self.reached = asyncio.Event()
        self.waiting = 0

    def open(self) -> None:
        self._opened.set()

    async def enter(self, call: Call) -> None:
        if call.kind != self._kind or self._text not in json.dumps(call.body):
            return
        self.waiting += 1
        self.reached.set()
        try:
            await self._opened.wait()
        finally:
            self.waiting -= 1


class Wire:
    """The way to the server: all calls in their order, and what happens `before` each is sent.

    The heartbeat's calls are left out, as they come at any time.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.before: Callable[[Call], object] = lambda _: None
        self.socket = Path()
        self.authorization = ""
        self._gates: list[Gate] = []

    def __call__(self, socket: Path) -> Transport:
        self.socket = socket
        return _WatchedTransport(self, Http1Transport(path=socket))

    def gate(self, kind: str, text: str = "") -> Gate:
        gate = Gate(kind, text)
        self._gates.append(gate)
        return gate

    def slots(self, kind: str, text: str = "") -> list[int | None]:
        """The slots of the calls of one kind that have the text in them."""
        calls = [call for call in self.calls if call.kind == kind]
        return [call.slot for call in calls if text in json.dumps(call.body)]

    async def busy(self) -> bool:
        """Whether the server says that one of its slots is at work."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        headers = {"Authorization": self.authorization}
        async with httpx.AsyncClient(transport=transport, headers=headers) as http:
            slots = (await http.get("http://engine/slots")).json()
        return any(slot["is_processing"] for slot in slots)

    async def pass_on(self, request: Request, transport: Transport) -> Response:
        call = Call.of(request)
        self.authorization = dict(request.headers)[b"Authorization"].decode()
        if call.kind == HEARTBEAT:
            return await transport.send(request)
        self.calls.append(call)
        for gate in self._gates:
            await gate.enter(call)
        self.before(call)
        return await transport.send(request)


class _WatchedTransport:
    def __init__(self, wire: Wire, transport: Transport) -> None:
        self._wire, self._transport = wire, transport

    async def send(self, request: Request) -> Response:
        return await self._wire.pass_on(request, self._transport)

    async def aclose(self) -> None:
        await self._transport.aclose()


class CheckSleep:
    """A sleep for idle work, which counts the checks of idle slots and can stop them."""

    def __init__(self, policy: IdlePolicy) -> None:
        self._pause_seconds = policy.pause_seconds
        self._pauses = 0
        self._goes = asyncio.Event()
        self._goes.set()

    async def __call__(self, seconds: float) -> None:
        self._pauses += seconds == self._pause_seconds  # there is one before each check
        await asyncio.sleep(seconds)
        await self._goes.wait()

    def stop(self) -> None:
        self._goes.clear()

    async def checks(self, count: int) -> None:
        """Return when so many checks have begun and ended from now on."""
        last = self._pauses + count + 1

        async def have_ended() -> bool:
            return self._pauses >= last

        await until(have_ended)


class WatchedEngine(LlamaEngine):
    """An embedded engine with a wire and a sleep in the test's hands."""

    def __init__(self, events: list[Event], policy: IdlePolicy, **settings: Any) -> None:
        self.wire, self.sleep = Wire(), CheckSleep(policy)
        self._states_path: Path | None = settings.get("states_path")
        super().__init__(
            observer=events.append,
            idle_policy=policy,
            sleep=self.sleep,
            transport=self.wire,
            **settings,
        )

    @property
    def cache(self) -> PrefixCache:
        assert self.prefix_cache is not None
        return self.prefix_cache

    @property
    def directory(self) -> Path:
        """The private directory, which has the socket."""
        return self.wire.socket.parent

    def files(self) -> list[Path]:
        """The saved states."""
        own = self.directory / "states"
        path = own if own.exists() or self._states_path is None else self._states_path
        return sorted(path.glob("*.kv"))

    async def idle_work_done(self) -> None:
        """Return when a check of the idle slots has found nothing to ask the server for."""
        while True:
            before = len(self.wire.calls)
            await self.sleep.checks(1)
            if len(self.wire.calls) == before:
                return


@dataclass(frozen=True)
class Answer:
    text: str
    prompt_tokens: int
    cached_tokens: int
    prefill_seconds: float


async def answer(engine: LlamaEngine, request: EngineRequest) -> Answer:
    texts, done = [], None
    async for chunk in engine.generate(request):
        if isinstance(chunk, EngineText):
            texts.append(chunk.text)
        elif isinstance(chunk, EngineDone):
            done = chunk
    assert done is not None
    assert done.usage is not None
    assert done.usage.cached_tokens is not None
    assert done.prefill_seconds is not None
    return Answer(
        "".join(texts), done.usage.prompt_tokens, done.usage.cached_tokens, done.prefill_seconds
    )


@asynccontextmanager
async def running(
    events: list[Event] | None = None, *, wait: bool = True, **settings: Any
) -> AsyncIterator[WatchedEngine]:
    """A small engine, started, and up unless `wait` is False. `policy` are fields of IdlePolicy, or
    all of it."""
    policy = settings.pop("policy", {})
    if isinstance(policy, dict):
        policy = IdlePolicy(**{"check_seconds": 0.02, "pause_seconds": 0.01, **policy})
    small = {"context_tokens": 1024, "answer_tokens": 256, "slots": 2, "threads": 1}
    engine = WatchedEngine([] if events is None else events, policy, **{**small, **settings})
    await engine.start()
    try:
        if wait:
            await engine.ready()
        yield engine
    finally:
        await engine.close()


class Talk:
    """One session, told as the core would: its whole history each time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages = [Message(Role.SYSTEM, SYSTEM)]

    def asks(self, text: str, **options: Any) -> EngineRequest:
        settings = {"max_tokens": 8, "temperature": 0.0, **options}
        messages = [*self.messages, Message(Role.USER, text)]
        return EngineRequest(messages, CompletionOptions(**settings), self.name)

    async def turn(self, engine: LlamaEngine, text: str, **options: Any) -> Answer:
        request = self.asks(text, **options)
        found = await answer(engine, request)
        self.messages = [*request.messages, Message(Role.ASSISTANT, found.text)]
        return found


def evaluated(found: Answer) -> int:
    return found.prompt_tokens - found.cached_tokens


def moved(events: list[Event]) -> list[tuple[str, str]]:
    return [(each.action, each.outcome) for each in events if isinstance(each, EngineStateMoved)]


async def tell_all(engine: LlamaEngine) -> dict[str, Talk]:
    talks = {name: Talk(name) for name in STORIES}
    for name, talk in talks.items():
        await talk.turn(engine, STORIES[name] * 4)
    return talks


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  what is awaited is in another process
            await asyncio.sleep(0.01)


async def idle(engine: WatchedEngine) -> bool:
    return not await engine.wire.busy()


async def all_is_well(engine: WatchedEngine) -> None:
    """No slot is lost: as many requests as there are slots are at the server at the same time."""
    count = engine.slots
    assert count is not None
    gate = engine.wire.gate("chat")
    answers = [asyncio.create_task(answer(engine, _ask(number))) for number in range(2 * count)]

    async def all_slots_are_taken() -> bool:
        return gate.waiting == count

    await until(all_slots_are_taken)
    gate.open()
    async with asyncio.timeout(60):
        await asyncio.gather(*answers)
    await until(lambda: idle(engine))


def _ask(number: int) -> EngineRequest:
    options = CompletionOptions(max_tokens=8, temperature=0.0)
    return EngineRequest([Message(Role.USER, f"Say {number}.")], options)
