"""`make replicas`: daemons that share a database go on with each other's sessions under faults.

Three daemons, 16 callers and 200 sessions. Each call goes to a random daemon, which forwards it to
the owner of its session, and, if it fails, with the same request id to another one. Some interrupt
turns of others. Meanwhile one fault follows the other: daemons are killed, frozen past their lease
and restarted in turn, the database server crashes, the primary is killed and its synchronous
standby promoted, ways to the database are cut, lose its answers or its statements, or lose the
answer of a commit, and wall clocks are set: a daemon's and the database's.

Each answer names the turn that its prompt showed last. So at the end every session must be one
chain of turns, with every acknowledged answer in it once and no request id twice. Some answers are
resumed at a random daemon once they are there: their ends must be equal, byte for byte.

The exit code is 1 if that is not so, or if a kind of fault did not occur. With REPLICAS_FENCE=off
the daemons write without their fence, which must be found.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from certificates import Files
from peer_replicas import peer_flags
from postgres import Server
from postgres_link import Link
from remembering_upstream import NOTHING, RememberingUpstream, saw
from wire import details, turn

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

REPLICAS = 3
_START_SECONDS = 120
_CALL_SECONDS = 60
_GIVE_UP_SECONDS = 240
_BUSY_SESSIONS = 8
_INTERRUPTS = 0.05  # of the requests
# The share of the answers that are resumed.
_RESUMED = 0.2
# Only the commit of a turn has this, in its receipt.
_COMMIT = b'"finish_reason": "stop"'
_FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def settable(clock: Path) -> dict[str, str]:
    """Returns the variables of a process whose wall clock is set by a file, like `+5`."""
    clock.write_text("+0")
    return {
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "LD_PRELOAD": str(_FAKETIME[-1]),
    }


@dataclass
class Replica:
    """A daemon, its way to the database, and its wall clock."""

    folder: Path
    link: Link
    flags: list[str]
    program: list[str]
    process: asyncio.subprocess.Process | None = None
    stub: Any = None
    channel: grpc.aio.Channel | None = None

    @property
    def clock(self) -> Path:
        return self.folder / "clock"

    async def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RUVD_", "GRPC_"))}
        environment |= settable(self.clock)
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self.program, "serve", "--log-format", "json"),
                *("--listen", f"unix:{self.folder}/r.sock", "--admin-listen", "none", *self.flags),
                stderr=log,
                env=environment,
                cwd=self.folder,
            )
        if self.channel is None:
            options = [
                ("grpc.max_reconnect_backoff_ms", 500),
                ("grpc.initial_reconnect_backoff_ms", 100),
            ]
            self.channel = grpc.aio.insecure_channel(f"unix:{self.folder}/r.sock", options)
            self.stub = pb_grpc.SessionServiceStub(self.channel)
        async with asyncio.timeout(_START_SECONDS):
            while True:
                with suppress(grpc.aio.AioRpcError):
                    await self.stub.GetSessionMetrics(pb.GetSessionMetricsRequest(), timeout=10)
                    break
                assert self.process.returncode is None, "a daemon has ended: see its log"
                await asyncio.sleep(0.1)

    async def end(self, how: signal.Signals) -> None:
        if self.process and self.process.returncode is None:
            self.process.send_signal(how)
            try:
                async with asyncio.timeout(60):
                    await self.process.wait()
            except TimeoutError:
                self.process.kill()
                await self.process.wait()


@dataclass
class Run:
    """The turns that the callers have made, and all that went wrong."""

    options: argparse.Namespace
    choose: random.Random
    replicas: list[Replica] = field(default_factory=list)
    acknowledged: dict[str, dict[str, str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    unknown: int = 0
    turns: int = 0
    resumed: int = 0
    stopping: bool = False

    async def caller(self, number: int) -> None:
        """Makes turns one after the other, each until it is acknowledged."""
        count = 0
        while not self.stopping:
            # Half of the turns are in few sessions, where a daemon that was paused meets others.
            most = self.options.sessions if self.choose.random() < 0.5 else _BUSY_SESSIONS
            session = f"s{self.choose.randrange(most)}"
            request_id = f"r{number}.{count}"
            count += 1
            answer = await self._turn(session, request_id)
            if answer is None:
                self.unknown += 1
                continue
            self.turns += 1
            self.acknowledged.setdefault(session, {})[request_id] = answer

    async def _turn(self, session: str, request_id: str) -> str | None:
        end = time.monotonic() + _GIVE_UP_SECONDS
        # Few interrupt the turn of another caller, who then repeats the request.
        interrupts = self.choose.random() < _INTERRUPTS
        if_busy = pb.IF_BUSY_INTERRUPT if interrupts else pb.IF_BUSY_QUEUE
        text = f"{request_id} says something"
        request = turn(text, session, request_id=request_id, if_busy=if_busy)
        while time.monotonic() < end:
            stub = self.choose.choice(self.replicas).stub
            try:
                read = [
                    response.event
                    async for response in stub.Complete(request, timeout=_CALL_SECONDS)
                ]
                if read and read[-1].HasField("finished"):
                    if self.choose.random() < _RESUMED:
                        await self._resume(session, request_id, read)
                    return str(read[-1].finished.message.content)
                self.problems.append(f"{request_id} ended without Finished and without an error")
            except grpc.aio.AioRpcError as error:
                self.errors[details(error)[0] or error.code().name] += 1
                if details(error)[0] == "INTERNAL":
                    self.problems.append(f"{request_id}: {error.details()}")
                await asyncio.sleep(0.05 + 0.2 * self.choose.random())
        return None

    async def _resume(self, session: str, request_id: str, read: list[pb.CompletionEvent]) -> None:
        """Reads the answer again at a random daemon, and compares it with the first reading."""
        stub = self.choose.choice(self.replicas).stub
        request = pb.ResumeCompletionRequest(completion_id=read[0].started.completion_id)
        if not request.completion_id or self.choose.random() < 0.5:
            request = pb.ResumeCompletionRequest(session_id=session, request_id=request_id)
        try:
            again = [
                response.event
                async for response in stub.ResumeCompletion(request, timeout=_CALL_SECONDS)
            ]
        except grpc.aio.AioRpcError as error:
            self.errors[f"resume: {details(error)[0] or error.code().name}"] += 1
            return
        self.resumed += 1
        if not again or again[-1].SerializeToString() != read[-1].SerializeToString():
            self.problems.append(f"{request_id} was resumed with another end")
        said = ["".join(each.delta.text for each in events) for events in (again, read)]
        if all(said) and said[0] != said[1]:  # the database has only the end
            self.problems.append(f"{request_id} was resumed with another text")

    async def check(self) -> None:
        """Compares the stored sessions with what was acknowledged. O(n) in the turns."""
        seen: Counter[str] = Counter()
        for number in range(self.options.sessions):
            session = f"s{number}"
            stub = self.choose.choice(self.replicas).stub
            messages = await self._history(stub, session)
            before, answers = NOTHING, {}
            for user, answer in zip(messages[::2], messages[1::2], strict=True):
                request_id = user.content.split()[0]
                seen[request_id] += 1
                answers[request_id] = answer.content
                if saw(answer.content) != before:
                    self.problems.append(
                        f"{session}: {request_id} saw {saw(answer.content)}, not {before}"
                    )
                before = request_id
            for request_id, text in self.acknowledged.get(session, {}).items():
                if answers.get(request_id) != text:
                    self.problems.append(f"{session}: {request_id} was acknowledged and is lost")
        self.problems += [f"{each} is stored {n} times" for each, n in seen.items() if n > 1]

    @staticmethod
    async def _history(stub: Any, session: str) -> list[pb.Message]:
        messages: list[pb.Message] = []
        token = ""
        while True:
            request = pb.GetSessionRequest(
                session_id=session, view=pb.SESSION_VIEW_FULL, page_size=1000, page_token=token
            )
            try:
                page = await stub.GetSession(request)
            except grpc.aio.AioRpcError as error:
                if details(error)[0] == "SESSION_NOT_FOUND" and not messages:
                    return []
                raise
            messages += page.session.messages
            token = page.next_page_token
            if not token:
                return messages


class Faults:
    """The faults, each of which is over when its function returns."""

    def __init__(self, run: Run, server: Server, standby: Server, lease: float) -> None:
        self._run = run
        self._server = server
        self._standby = standby
        self._lease = lease
        self.kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "killed daemon": self._kill,
            "frozen daemon": self._freeze,
            "crashed server": self._crash_server,
            "cut way": self._cut,
            "deaf way": self._deafen,
            "mute way": self._mute,
            "lost answer of a commit": self._lose_commit,
            "clock set": self._set_clock,
            "database's clock set": self._set_database_clock,
            "rolling restart": self._restart_all,
            "frozen standby": self._freeze_standby,
            "promoted standby": self._promote,
        }

    async def cause_all(self, seconds: float) -> None:
        """Causes each kind at least once, the promotion last, for `seconds` or so."""
        last = "promoted standby"
        end = time.monotonic() + seconds
        order: list[str] = []
        while time.monotonic() < end or order or set(self.kinds) - {last} - set(self._run.faults):
            if not order:
                order = [kind for kind in self.kinds if kind != last]
                self._run.choose.shuffle(order)
            kind = order.pop()
            if time.monotonic() >= end and kind in self._run.faults:
                continue
            await self._cause(kind)
        await self._cause(last)

    async def _cause(self, kind: str) -> None:
        before = self._run.turns
        await self.kinds[kind]()
        self._run.faults[kind] += 1
        # Some turns between two faults, so that each meets a working system.
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            while self._run.turns < before + 2 * self._run.options.callers:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        print(f"  {kind}: {self._run.turns} turns", flush=True)

    def _one(self) -> Replica:
        return self._run.choose.choice(self._run.replicas)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * (0.5 + self._run.choose.random()))

    async def _kill(self) -> None:
        replica = self._one()
        await replica.end(signal.SIGKILL)
        await self._pause(1.0)
        await replica.start()

    async def _freeze(self) -> None:
        for replica in self._run.choose.sample(self._run.replicas, 2):
            assert replica.process
            replica.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(self._lease * (1.5 + self._run.choose.random()))
            replica.process.send_signal(signal.SIGCONT)
            await self._pause(0.2)

    async def _crash_server(self) -> None:
        await asyncio.to_thread(self._server.stop, signal.SIGQUIT)
        await self._pause(0.5)
        await asyncio.to_thread(self._server.start)

    async def _cut(self) -> None:
        link = self._one().link
        link.is_down = True
        await asyncio.sleep(self._lease * 1.5)
        link.is_down = False

    async def _deafen(self) -> None:
        link = self._one().link
        link.is_deaf = True
        await asyncio.sleep(self._lease * 1.5)
        link.is_down = True  # what was lost is not sent again
        link.is_deaf = False
        link.is_down = False

    async def _mute(self) -> None:
        link = self._one().link
        link.is_mute = True
        await asyncio.sleep(self._lease * 1.5)
        link.is_down = True  # what was lost is not sent again
        link.is_mute = False
        link.is_down = False

    async def _lose_commit(self) -> None:
        for replica in self._run.replicas:
            replica.link.marker = _COMMIT
        async with asyncio.timeout(_GIVE_UP_SECONDS):
            while any(each.link.marker for each in self._run.replicas):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _set_clock(self) -> None:
        for step in ("+5", "-5", "+0"):
            self._one().clock.write_text(step)
            await self._pause(0.5)
        for replica in self._run.replicas:
            replica.clock.write_text("+0")

    async def _set_database_clock(self) -> None:
        for step in ("+5", "-5", "+0"):
            self._server.clock.write_text(step)
            await self._pause(self._lease)

    async def _restart_all(self) -> None:
        for replica in self._run.replicas:
            await replica.end(signal.SIGTERM)
            await replica.start()

    async def _freeze_standby(self) -> None:
        assert self._standby.process
        os.kill(self._standby.process.pid, signal.SIGSTOP)
        walreceivers = await asyncio.to_thread(self._standby.children)
        for pid in walreceivers:
            os.kill(pid, signal.SIGSTOP)
        await self._pause(1.0)
        for pid in (*walreceivers, self._standby.process.pid):
            os.kill(pid, signal.SIGCONT)

    async def _promote(self) -> None:
        await asyncio.to_thread(self._server.stop, signal.SIGQUIT)
        await asyncio.to_thread(self._standby.promote)
        for replica in self._run.replicas:
            replica.link.target = self._standby.directory


async def run(options: argparse.Namespace) -> int:
    choose = random.Random(options.seed)
    result = Run(options, choose)
    program = ["-m", "ruvd"]
    if os.environ.get("REPLICAS_FENCE") == "off":
        program = [str(Path(__file__).with_name("unfenced.py"))]
        print("without the fence", flush=True)
    async with AsyncExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ruvd-r-", dir="/tmp"))
        folder = Path(place)
        folder.chmod(0o755)
        server = Server(folder / "primary")
        server.create()
        server.environment = settable(server.clock)
        server.start()
        stack.callback(server.stop)
        standby = server.copy_to(folder / "standby")
        standby.start()
        stack.callback(standby.stop)
        server.replicate_synchronously()
        certificates = Files(folder)
        upstream = await stack.enter_async_context(RememberingUpstream(0.1).running())
        for number in range(REPLICAS):
            own = folder / str(number)
            own.mkdir()
            link = await stack.enter_async_context(Link(own, server.directory).running())
            flags = [
                *("--engine", "openai", "--base-url", upstream.url, "--model", "m"),
                *("--store", f"postgresql://ruvd@/postgres?host={own}"),
                *("--store-lease-seconds", str(options.lease)),
                *("--store-timeout-seconds", "5", "--max-sessions", "10000"),
                *("--drain-seconds", "5"),
                *peer_flags(certificates),
            ]
            replica = Replica(own, link, flags, program)
            result.replicas.append(replica)
            stack.push_async_callback(replica.end, signal.SIGTERM)
        for replica in result.replicas:
            await replica.start()
        began = time.monotonic()
        callers = [asyncio.create_task(result.caller(n)) for n in range(options.callers)]
        faults = Faults(result, server, standby, options.lease)
        try:
            await faults.cause_all(options.seconds)
        except TimeoutError:
            result.problems.append("after a fault no turns were made any more")
        result.stopping = True
        done, late = await asyncio.wait(callers, timeout=_GIVE_UP_SECONDS)
        for task in late:
            task.cancel()
        for task in done:
            if error := task.exception():
                result.problems.append(f"a caller has failed: {error!r}")
        with suppress(Exception):
            await asyncio.gather(*late, return_exceptions=True)
        await result.check()
        for replica in result.replicas:
            assert replica.channel
            await replica.channel.close()
        seconds = time.monotonic() - began
    missing = set(faults.kinds) - set(result.faults)
    result.problems += [f"the fault {kind!r} did not occur" for kind in missing]
    fenced = result.errors["OWNERSHIP_LOST"]
    print(
        f"{result.turns} turns in {seconds:.0f} s, {result.faults.total()} faults, {fenced} fenced,"
        f" {result.resumed} resumed, {result.unknown} unknown\nfaults: {dict(result.faults)}\n"
        f"errors: {dict(result.errors)}"
    )
    for problem in result.problems[:20]:
        print(f"PROBLEM: {problem}")
    print(f"{len(result.problems)} problems" if result.problems else "all held")
    return int(bool(result.problems))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    seconds = float(os.environ.get("REPLICAS_SECONDS", "600"))
    parser.add_argument("--seconds", type=float, default=seconds, help="of faults")
    parser.add_argument("--lease", type=float, default=2.0, help="seconds of a daemon's lease")
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    return asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
