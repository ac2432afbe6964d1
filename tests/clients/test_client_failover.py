"""The clients of all languages with several addresses, by `PROGRAM failover` of CONFORMANCE.md.

A language is added by its name in LANGUAGES, and in NAMES if its gRPC library can be told which DNS
server to ask.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fault_proxy import FaultProxy
from name_server import NameServer
from ports import free_port
from postgres import Server, running
from running import RunningDaemon, StartDaemon, clean_environment
from wire import contents, turn

from ruvd.v1 import session_service_pb2 as pb

CLIENTS = Path(__file__).parents[2] / "clients"
LANGUAGES = ["typescript", "go", "java", "rust"]
NAMES = ["typescript", "go"]
# Or else Node asks the resolver of the system, whatever server the address names.
NODE_DNS = {"GRPC_NODE_USE_ALTERNATIVE_RESOLVER": "true"}
PYTHON = ["python", "python --asyncio"]
SECONDS = 60.0
LEASE_SECONDS = 2.0
pytestmark = pytest.mark.timeout(300)


def flavours(languages: Sequence[str]) -> pytest.MarkDecorator:
    others = [pytest.param(name, marks=pytest.mark.languages) for name in languages]
    return pytest.mark.parametrize("flavour", [*PYTHON, *others])


class Program:
    """A running program, which makes the calls that it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    def begin(self, call: str) -> None:
        """Lets the program make a call."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{call}\n".encode())

    async def line(self) -> str:
        """Returns the next line of the output."""
        assert self._process.stdout is not None
        async with asyncio.timeout(SECONDS):
            return (await self._process.stdout.readline()).decode().rstrip("\n")

    async def result(self, call: str = "") -> list[str]:
        """Returns the rest of the output of a call, which is made now if it is given."""
        if call:
            self.begin(call)
        lines = [await self.line()]
        while lines[-1].startswith("text "):
            lines.append(await self.line())
        return lines

    async def end(self) -> tuple[bytes, bytes, int | None]:
        """Ends the input; returns the rest of the output, the errors and the exit code."""
        async with asyncio.timeout(SECONDS):
            output, errors = await self._process.communicate(b"")
        return output, errors, self._process.returncode


@asynccontextmanager
async def program(flavour: str, *addresses: str) -> AsyncIterator[Program]:
    language, *options = flavour.split()
    process = await asyncio.create_subprocess_exec(
        *(str(CLIENTS / language / "run"), "conformance", *options, "failover"),
        env={**clean_environment(), **NODE_DNS, "RUVD_ADDRESS": ", ".join(addresses)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Program(process)
        if process.returncode is None:
            assert await Program(process).end() == (b"", b"", 0)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def answer(text: str, exchanges: int) -> list[str]:
    """Returns the output of a turn that the echo engine answers with its own text."""
    first, *rest = text.split()
    words = [f"text [{first}]", *(f"text [ {word}]" for word in rest)]
    return [*words, f"finished STOP exchanges={exchanges}"]


async def serving(daemons: Sequence[RunningDaemon], session: str) -> RunningDaemon:
    """Waits until a daemon runs a completion of the session, and returns it."""
    async with asyncio.timeout(SECONDS):
        while True:
            for daemon in daemons:
                async with daemon.stub() as stub:
                    request = pb.GetSessionRequest(session_id=session)
                    try:
                        found = await stub.GetSession(request, timeout=SECONDS)
                    except grpc.aio.AioRpcError:
                        continue  # it does not exist yet
                if found.session.running_completion_id:
                    return daemon
            await asyncio.sleep(0.02)


async def answered(daemons: Sequence[RunningDaemon]) -> RunningDaemon:
    """Returns the only daemon that has logged a completion, once there is one."""
    async with asyncio.timeout(SECONDS):
        while True:
            for daemon in daemons:
                if any(line["event"] == "completion" for line in daemon.log):
                    return daemon
            await asyncio.sleep(0.02)


@asynccontextmanager
async def busy(daemon: RunningDaemon) -> AsyncIterator[None]:
    """Lets a daemon drain, with a completion that keeps it from ending, and then lets it end."""
    async with daemon.stub() as stub:
        long = stub.Complete(turn(" ".join(["word"] * 1000), "busy"))
        await anext(aiter(long))
        daemon.process.send_signal(signal.SIGTERM)
        await daemon.logged("draining")
        yield
        long.cancel()
        await daemon.ended()


# --- addresses that cannot be reached --------------------------------------------------------

CALLS = [
    ("models", ["models ok"]),
    ("create s", ["created s"]),
    ("complete s r1 one two", answer("one two", 1)),
    ("append s and one more", ["appended messages=3"]),
    ("collect s r2 three", ["collected [three]"]),
    ("update s blue", ["updated"]),
    ("fork s t", ["forked exchanges=3"]),
    ("get t", ["session t messages=5 exchanges=3"]),
    ("complete - r3 four five", answer("four five", 0)),
    ("complete s r2 three", answer("three", 3)),
    ("complete s r4 !fault SESSION_BUSY", ["error ABORTED SESSION_BUSY retry=1000ms"]),
    ("cancel s nothing", ["error NOT_FOUND COMPLETION_NOT_FOUND"]),
    ("end t", ["ended"]),
    ("end t", ["ended"]),  # the attempt whose connection was lost may have ended it
]


@flavours(LANGUAGES)
async def test_every_call_goes_on_at_the_address_that_can_be_reached(
    daemon: StartDaemon, flavour: str
) -> None:
    """Before each call the address that the client uses is closed, and the other one is opened."""
    async with AsyncExitStack() as stack:
        started = await stack.enter_async_context(
            daemon("--engine", "echo", "--echo-faults", "--echo-delay-seconds", "0.05")
        )
        proxies = [
            await stack.enter_async_context(FaultProxy(started.address).running()) for _ in range(2)
        ]
        dead = f"unix:{started.folder}/nobody.sock"
        client = await stack.enter_async_context(
            program(flavour, proxies[0].address, dead, proxies[1].address)
        )
        for number, (call, expected) in enumerate(CALLS):
            proxies[number % 2].closed = False
            proxies[(number + 1) % 2].closed = True
            assert await client.result(call) == expected, call
        proxies[0].closed, proxies[1].closed = True, False
        assert [await client.result("batch x y"), await client.result()] == [
            ["item 0 [x]"],
            ["item 1 [y]"],
        ]
        # A list may also name the socket of a daemon that runs.
    async with (
        daemon("--engine", "echo") as started,
        program(flavour, dead, started.socket) as client,
    ):
        assert await client.result("complete s r1 one") == answer("one", 1)


@flavours(LANGUAGES)
async def test_without_any_daemon_the_error_is_that_of_the_last_attempt(
    tmp_path: Path, flavour: str
) -> None:
    dead = f"unix:{tmp_path}/nobody.sock"
    async with program(flavour, dead, dead) as client:
        for call in ("models", "create s", "end s", "batch x"):
            assert await client.result(call) == ["error UNAVAILABLE -"], call


@flavours(LANGUAGES)
async def test_a_wrong_entry_is_named(flavour: str) -> None:
    async with program(flavour, "127.0.0.1:1", "http://b:7000") as client:
        line = await client.line()
        assert line.startswith("refused ")
        assert "http://b:7000" in line
        assert await client.end() == (b"", b"", 0)


# --- daemons that die or stop ----------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="ruvd-pg-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        with running(Path(directory) / "server") as started:
            yield started


@pytest.fixture
def store(server: Server) -> str:
    """The setting `store` of daemons that share an empty database."""
    schema = server.new_schema().partition("search_path=")[2].rstrip("'")
    return f"postgresql://ruvd@/postgres?host={server.directory}&options=-csearch_path%3D{schema}"


@flavours(LANGUAGES)
async def test_turns_of_killed_daemons_go_on_elsewhere_but_no_text_is_continued(
    daemon: StartDaemon, store: str, flavour: str
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.3", "--store", store)
    async with AsyncExitStack() as stack:
        daemons = [
            await stack.enter_async_context(
                daemon(*flags, "--store-lease-seconds", str(LEASE_SECONDS))
            )
            for _ in range(4)
        ]
        client = await stack.enter_async_context(
            program(flavour, *(each.address for each in daemons))
        )

        async def kill(daemon: RunningDaemon) -> None:
            daemon.kill()
            daemons.remove(daemon)
            await daemon.ended()

        # Killed in the middle of an answer that the client collects: it is generated again.
        client.begin("collect s r1 a b c d e")
        await kill(await serving(daemons, "s"))
        assert await client.result() == ["collected [a b c d e]"]

        # Killed before the first text, which a stopped process cannot have sent.
        current = await answered(daemons)
        current.process.send_signal(signal.SIGSTOP)
        client.begin("complete s r2 g h")
        await kill(current)
        assert await client.result() == answer("g h", 2)

        # Killed after the first text: the rest would be that of another generation.
        current = await answered(daemons)
        client.begin("complete s r3 i j k l m")
        assert await client.line() == "text [i]"
        await kill(current)
        *texts, last = await client.result()
        assert last == "error NOT_FOUND COMPLETION_NOT_FOUND"
        whole = answer("i j k l m", 3)
        assert texts == whole[1 : 1 + len(texts)]
        assert await client.result("complete s r3 i j k l m") == whole
        async with daemons[0].stub() as stub:
            assert (await contents(stub, "s"))[::2] == ["a b c d e", "g h", "i j k l m"]


@flavours(LANGUAGES)
async def test_a_rolling_restart_fails_no_call(
    daemon: StartDaemon, store: str, flavour: str
) -> None:
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.1", "--store", store)
    async with AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(daemon(*flags)) for _ in range(2)]
        client = await stack.enter_async_context(
            program(flavour, *(each.address for each in daemons))
        )
        # A turn that runs when its daemon begins to drain is finished there.
        words = " ".join(f"w{number}" for number in range(20))
        client.begin(f"complete s r1 {words}")
        first = await serving(daemons, "s")
        async with busy(first):
            assert await client.result() == answer(words, 1)
            assert await client.result("complete s r2 b") == answer("b", 2)
            assert await client.result("batch c") == ["item 0 [c]"]
        listen = ("--listen", first.address, "--listen", f"unix:{first.folder}/r.sock")
        again = await stack.enter_async_context(daemon(*flags, *listen, folder=first.folder))
        second = next(each for each in daemons if each is not first)
        async with busy(second):
            assert await client.result("complete s r3 d") == answer("d", 3)
        assert await client.result("get s") == ["session s messages=6 exchanges=3"]
        async with again.stub() as stub:
            assert (await contents(stub, "s"))[2::2] == ["b", "d"]


@flavours(NAMES)
async def test_a_name_with_several_records_stands_for_several_daemons(
    daemon: StartDaemon, flavour: str
) -> None:
    hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    port = free_port(hosts)
    flags = ("--engine", "echo", "--echo-delay-seconds", "0.1")
    async with AsyncExitStack() as stack:
        names = await stack.enter_async_context(NameServer({"daemons.example": hosts}).running())
        daemons = []
        for host in hosts[:2]:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-")))
            listen = ("--listen", f"{host}:{port}", "--listen", f"unix:{folder}/r.sock")
            starting = daemon(*flags, *listen, folder=folder)
            daemons.append(await stack.enter_async_context(starting))
        name = f"dns://{names.address}/daemons.example:{port}"
        client = await stack.enter_async_context(program(flavour, name))
        client.begin(f"complete s r1 {' '.join(['word'] * 20)}")
        first = await serving(daemons, "s")
        assert (await client.result())[-1] == "finished STOP exchanges=1"
        async with busy(first):
            assert await client.result("complete - r2 b") == answer("b", 0)
        assert await client.result("create t") == ["created t"]


# --- the session's header --------------------------------------------------------------------


class Recorder(grpc.GenericRpcHandler):
    """A service that records the session header of each call, and lets streams break once."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def service(self, call: grpc.HandlerCallDetails) -> Any:
        method = call.method.rpartition("/")[2]
        header = dict(call.invocation_metadata).get("x-ruvd-session-id", "-")
        self.calls.append((method, str(header)))
        if method == "Complete":
            return grpc.unary_stream_rpc_method_handler(self._break)
        return None  # UNIMPLEMENTED, which is final

    async def _break(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        started = pb.Started(completion_id="c")
        event = pb.CompletionEvent(sequence=1, started=started)
        await context.write(pb.CompleteResponse(event=event).SerializeToString())
        await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


@flavours(LANGUAGES)
async def test_every_call_for_a_session_names_it_in_its_metadata(flavour: str) -> None:
    recorder = Recorder()
    service = grpc.aio.server()
    service.add_generic_rpc_handlers((recorder,))
    address = f"127.0.0.1:{service.add_insecure_port('127.0.0.1:0')}"
    await service.start()
    calls = ["create", "append", "update", "fork", "get", "end"]
    lines = [*(f"{call} s x" for call in calls), "complete s r x", "cancel s r"]
    lines += ["create -", "complete - r x", "batch x", "models", "complete \u00e4 r x"]
    try:
        async with program(flavour, address) as client:
            for line in lines:
                assert await client.result(line) == ["error UNIMPLEMENTED -"]
    finally:
        await service.stop(0)
    methods = ["CreateSession", "AppendMessages", "UpdateSession", "ForkSession", "GetSession"]
    methods += ["EndSession", "Complete", "ResumeCompletion", "CancelCompletion"]
    without = ["CreateSession", "Complete", "ResumeCompletion", "BatchComplete", "ListModels"]
    without += ["Complete", "ResumeCompletion"]
    assert recorder.calls == [
        *((method, "s") for method in methods),
        *((method, "-") for method in without),
    ]
