"""A daemon that is killed again and again keeps each finished turn completely and once.

Eight writers talk to a daemon that is killed at random points and restarted on the same store, 25
times in each of four runs. A writer repeats a call that was not answered, with its request id.
Every answer ends with a nonce, so that a second generation gives a different text.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from running import RunningDaemon, StartDaemon
from wire import events, turn

from ruvd.sealing.keys import add_key
from ruvd.v1 import session_service_pb2 as pb

# In each of the four runs; `make soak` makes more.
KILLS = int(os.environ.get("CRASH_KILLS", "25"))
WRITERS = 8
SHARED = "shared"
FLAGS = ("--engine", "echo", "--echo-nonce", "--echo-delay-seconds", "0.004")


@dataclass
class Call:
    """A call of Complete: a text, its session and its request id."""

    session_id: str
    request_id: str
    text: str

    @property
    def request(self) -> pb.CompleteRequest:
        return turn(self.text, self.session_id, request_id=self.request_id)


class Client:
    """The calls of all writers, the answers that they have seen, and when to kill the daemon."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.answers: dict[str, str] = {}
        self.calls: dict[str, Call] = {}
        self.killed = asyncio.Event()
        self._kill_at: tuple[int, RunningDaemon] | None = None

    async def kill_somewhere(self, running: RunningDaemon) -> None:
        """Sends SIGKILL after a random time, or at the moment of a Finished event."""
        if self.chance.random() < 0.4:
            await asyncio.sleep(self.chance.uniform(0.0, 0.3))
            self._kill(running)
        else:
            self._kill_at = (len(self.answers) + self.chance.randint(1, 30), running)
            async with asyncio.timeout(30):
                await self.killed.wait()

    def _kill(self, running: RunningDaemon) -> None:
        running.kill()
        self._kill_at = None
        self.killed.set()

    def finished(self, call: Call, text: str) -> None:
        """Records an answer, which must always be the same for a request id."""
        new = call.request_id not in self.answers
        if new and self._kill_at and len(self.answers) + 1 >= self._kill_at[0]:
            self._kill(self._kill_at[1])
        assert self.answers.setdefault(call.request_id, text) == text

    async def ask(self, stub: Any, call: Call) -> bool:
        """Makes one call; returns False if the daemon was killed meanwhile."""
        self.calls[call.request_id] = call
        try:
            async for response in stub.Complete(call.request):
                if response.event.HasField("finished"):
                    self.finished(call, response.event.finished.message.content)
        except grpc.aio.AioRpcError as error:
            if self.killed.is_set() and error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        assert call.request_id in self.answers
        return True


@dataclass
class Writer:
    """Makes one call after the other, and repeats a call that was not answered."""

    client: Client
    calls: Iterator[Call]
    open: Call | None = None

    async def write(self, stub: Any) -> None:
        """Makes calls until the daemon is killed."""
        while True:
            self.open = self.open or next(self.calls)
            call = self.open
            if not await self.client.ask(stub, call):
                return
            self.open = None
            repeat = self.client.chance.random() < 0.1
            if repeat and not await self.client.ask(stub, call):
                return

    async def finish(self, stub: Any) -> None:
        """Repeats the call that was not answered."""
        if self.open:
            assert await self.client.ask(stub, self.open)


def calls(number: int) -> Iterator[Call]:
    """Yields the calls of a writer; every other one of half of them is in the shared session."""
    for index in count():
        shared = number % 2 and index % 2
        session_id = SHARED if shared else f"own-{number}"
        request_id = f"{number}:{index}"
        yield Call(session_id, request_id, f"writer {number} call {index}")


async def check_history(stub: Any, client: Client, session_id: str) -> set[str]:
    """Checks that a session has complete turns, each once, with the answers that were seen.

    Returns the texts of its user messages.
    """
    wanted = pb.GetSessionRequest(session_id=session_id, view=pb.SESSION_VIEW_FULL)
    try:
        session = (await stub.GetSession(wanted)).session
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        session = pb.Session()
    messages = session.messages
    assert [message.role for message in messages[::2]] == [pb.ROLE_USER] * (len(messages) // 2)
    assert [message.role for message in messages[1::2]] == [pb.ROLE_ASSISTANT] * (
        len(messages) // 2
    )
    assert session.message_count == len(messages) == 2 * session.exchange_count
    turns = [
        (said.content, answer.content)
        for said, answer in zip(messages[::2], messages[1::2], strict=True)
    ]
    history = dict(turns)
    assert len(history) == len(turns), "a turn was committed twice"
    for said, answer in turns:
        assert answer.startswith(f"{said} #"), "the answer is not to this message"
    for request_id, answer in client.answers.items():
        call = client.calls[request_id]
        if call.session_id == session_id:
            assert history.get(call.text) == answer, "a finished turn is missing"
    in_order: dict[str, list[int]] = defaultdict(list)
    for said, _ in turns:
        _, writer, _, index = said.split()
        in_order[writer].append(int(index))
    assert all(indices == sorted(indices) for indices in in_order.values())
    return set(history)


async def check_asked_again(stub: Any, client: Client, request_ids: Sequence[str]) -> None:
    """Checks that a repeated or resumed call returns the answer that was seen."""
    for request_id in request_ids:
        call = client.calls[request_id]
        answer = (await events(stub, call.request))[-1]
        assert answer.finished.message.content == client.answers[request_id]
        ref = pb.ResumeCompletionRequest(session_id=call.session_id, request_id=request_id)
        resumed = [response.event async for response in stub.ResumeCompletion(ref)]
        assert resumed[-1] == answer


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_that_was_finished_is_lost_or_doubled_by_a_hundred_kills(
    daemon: StartDaemon, tmp_path: Path, seed: int
) -> None:
    store: tuple[str, ...] = ("--store", f"sqlite:{tmp_path}/s.db")
    if seed % 2:  # the store of every other run is encrypted
        await asyncio.to_thread(add_key, tmp_path / "keys")
        store += ("--encryption-key-file", f"{tmp_path}/keys")
    client = Client(seed)
    writers = [Writer(client, calls(number)) for number in range(WRITERS)]
    sessions = [SHARED, *(f"own-{number}" for number in range(WRITERS))]
    folder: Path | None = None
    for _ in range(KILLS):
        client.killed.clear()
        async with daemon(*FLAGS, *store, folder=folder) as running, running.stub() as stub:
            folder = running.folder
            await check_history(stub, client, client.chance.choice(sessions))
            sample = client.chance.sample(sorted(client.answers), min(3, len(client.answers)))
            await check_asked_again(stub, client, sample)
            async with asyncio.TaskGroup() as group:
                for writer in writers:
                    group.create_task(writer.write(stub))
                group.create_task(client.kill_somewhere(running))
            await running.ended()
    client.killed.clear()
    async with daemon(*FLAGS, *store, folder=folder) as running, running.stub() as stub:
        await asyncio.gather(*(writer.finish(stub) for writer in writers))
        for repeat in range(2):
            kept = set().union(*[await check_history(stub, client, each) for each in sessions])
            assert kept == {client.calls[request_id].text for request_id in client.answers}
            if not repeat:
                many = client.chance.sample(sorted(client.answers), min(200, len(client.answers)))
                await check_asked_again(stub, client, many)
    assert len(client.answers) > KILLS
