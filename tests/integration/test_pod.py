"""Rolling replacement of pods under load, as a kubelet does it, twenty times in all.

Each of sixty-four users holds a conversation, one long streamed answer after the other, while the
pod that serves them is replaced: five times for each order in which sidecar and service may end.
An answer ends with a nonce, so that a turn that was generated twice shows.

Within the grace period a stream that has begun is never cut. A turn that a user saw as finished is
in the store exactly once, however the sidecar ended. A turn that a pod refused because it is going
down is sent again to the next pod, as a client does.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from kubelet import Pod

from ruvd.server.system_clock import SystemClock, read_boot_id
from ruvd.stores.sqlite.store import SqliteStore

USERS = 64
ROUNDS = 5
LONG_WORDS = (4, 10)  # and six more, of 0.2 s each


class Traffic:
    """The users, and the Kubernetes Service that routes them to a ready pod."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.endpoints: list[Pod] = []
        self.streaming: dict[Pod, set[str]] = defaultdict(set)
        self.cut: list[dict[str, Any]] = []
        self.refused = 0
        # Store path -> session -> question -> the answer that its user saw as finished.
        self.seen: dict[Path, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._changed = asyncio.Condition()
        self._event_came = asyncio.Event()
        self._users = [asyncio.create_task(self._user(number)) for number in range(USERS)]
        self._ending = False

    def on_event(self, pod: Pod, event: dict[str, Any]) -> None:
        """Takes an event of a request from a pod's service."""
        request_id = event["request_id"]
        if event["event"] == "streaming":
            self.streaming[pod].add(request_id)
        else:
            self.streaming[pod].discard(request_id)
            self._waiting.pop(request_id).set_result(event)
        self._event_came.set()
        self._event_came = asyncio.Event()

    async def serve(self, *pods: Pod) -> None:
        """Routes all further requests to these pods."""
        async with self._changed:
            self.endpoints = list(pods)
            self._changed.notify_all()

    async def under_way(self, pod: Pod) -> None:
        """Waits until nearly all users have a stream running on the pod."""
        async with asyncio.timeout(30):
            while len(self.streaming[pod]) < USERS * 0.9:
                await self._event_came.wait()

    async def stop(self) -> None:
        """Lets each user stop after the current answer."""
        self._ending = True
        await asyncio.gather(*self._users)

    async def abandon(self) -> None:
        """Cancels the users that a failed test has left."""
        for user in self._users:
            user.cancel()
        await asyncio.gather(*self._users, return_exceptions=True)

    async def _user(self, number: int) -> None:
        """Holds one conversation, turn after turn."""
        session_id = f"user-{number}"
        turn = 0
        while not self._ending:
            turn += 1
            words = self.chance.randint(*LONG_WORDS)
            text = " ".join([f"user {number} turn {turn}", *["word"] * words])
            while not await self._turn(session_id, f"{number}:{turn}", text):
                pass

    async def _turn(self, session_id: str, request_id: str, text: str) -> bool:
        async with self._changed:
            await self._changed.wait_for(lambda: self.endpoints)
            pod = self.chance.choice(self.endpoints)
        answered = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        pod.ask({"session_id": session_id, "request_id": request_id, "text": text})
        outcome = await answered
        if outcome["event"] == "finished":
            answers = self.seen[pod.store][session_id]
            assert answers.setdefault(text, outcome["text"]) == outcome["text"]
            return True
        if outcome["reason"] == "SHUTTING_DOWN" and not outcome["begun"]:
            self.refused += 1
        else:
            self.cut.append(outcome)
        await asyncio.sleep(0.05)  # the back-off of a client
        return False


async def check(traffic: Traffic, store_path: Path) -> None:
    """Asserts that every turn that a user saw as finished is in the store, once and in order."""
    clock = SystemClock(await asyncio.to_thread(read_boot_id))
    store = SqliteStore(store_path, clock=clock, observer=lambda _: None)
    await store.open()
    try:
        for session_id, answers in traffic.seen[store_path].items():
            history = {}
            turns = []
            for exchange in await store.exchanges(session_id, 0):
                said, answer = (message.content for message in exchange)
                assert answer.startswith(f"{said} #")
                assert said not in history, "a turn is there twice"
                history[said] = answer
                turns.append(int(said.split()[3]))
            assert turns == sorted(turns)
            assert answers.items() <= history.items(), "a turn that was seen as finished is lost"
    finally:
        await store.close()


Termination: TypeAlias = Callable[[Traffic, Pod, Pod], Awaitable[None]]


async def reroute(traffic: Traffic, new: Pod) -> None:
    """Routes requests to the new pod, somewhat late, as endpoints follow readiness."""
    await asyncio.sleep(traffic.chance.uniform(0.0, 0.3))
    await traffic.serve(new)


async def service_first(traffic: Traffic, old: Pod, new: Pod) -> None:
    """A native sidecar: preStop at once, SIGTERM when the service has ended."""
    await asyncio.gather(old.drain(), reroute(traffic, new))
    await old.end_app()
    await old.end_sidecar()


async def sidecar_first(traffic: Traffic, old: Pod, new: Pod) -> None:
    """The sidecar gets SIGTERM while the service still streams, and even still gets calls."""
    await old.drain()
    ending = asyncio.create_task(old.end_sidecar())
    await reroute(traffic, new)
    await ending
    await old.end_app()


async def together(traffic: Traffic, old: Pod, new: Pod) -> None:
    """An ordinary container: SIGTERM to both at once, after their preStop."""
    await asyncio.gather(old.drain(), reroute(traffic, new))
    await asyncio.gather(old.end_app(), old.end_sidecar())


@asynccontextmanager
async def rollout(seed: int) -> AsyncIterator[tuple[Traffic, Callable[[Path | None], Pod]]]:
    """Yields users and a factory of pods; ends what is left afterwards."""
    sys.stdout.write(f"seed {seed}\n")
    traffic = Traffic(random.Random(seed))
    made: list[tuple[Pod, Path]] = []

    def make(folder: Path | None = None) -> Pod:
        folder = folder or Path(tempfile.mkdtemp(prefix="ruvd-"))
        made.append((Pod(folder, traffic.on_event), folder))
        return made[-1][0]

    try:
        yield traffic, make
    finally:
        await traffic.abandon()
        for pod, _ in made:
            await pod.remove()
        for _, folder in made:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@pytest.mark.parametrize(
    ("terminate", "seed"), [(service_first, 1), (sidecar_first, 2), (together, 3)]
)
async def test_a_rolling_replacement_cuts_no_stream_and_loses_no_turn(
    terminate: Termination, seed: int
) -> None:
    async with rollout(seed) as (traffic, make):
        pod = make(None)
        await pod.start()
        await traffic.serve(pod)
        for _ in range(ROUNDS):
            new = make(None)
            await new.start()
            await traffic.under_way(pod)
            # Both are ready for a moment, as in a rolling update.
            await traffic.serve(pod, new)
            await terminate(traffic, pod, new)
            assert traffic.cut == []
            await check(traffic, pod.store)
            pod = new
        await traffic.stop()
        await pod.end_app()
        await pod.end_sidecar()
        await check(traffic, pod.store)
        assert traffic.cut == []
        if terminate is service_first:
            assert traffic.refused == 0


async def test_a_sidecar_that_is_killed_right_after_sigterm_loses_no_finished_turn() -> None:
    """The next pod has the same volume, and the users repeat the turns that were cut."""
    async with rollout(4) as (traffic, make):
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ruvd-"))
        pod = make(folder)
        await pod.start()
        await traffic.serve(pod)
        for _ in range(ROUNDS):
            await traffic.under_way(pod)
            await pod.drain()
            await pod.kill_sidecar(traffic.chance.uniform(0.0, 0.1))
            await traffic.serve()
            await pod.end_app()
            await check(traffic, pod.store)
            pod = make(folder)
            await pod.start()
            await traffic.serve(pod)
        await traffic.stop()
        await pod.end_app()
        await pod.end_sidecar()
        await check(traffic, pod.store)
        assert len(traffic.cut) > ROUNDS  # or nothing was killed under way
