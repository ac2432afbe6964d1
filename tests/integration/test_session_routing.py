"""The recipe of docs/replicas.md by which gRPC clients send each session to one of the daemons."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from running import RunningDaemon, StartDaemon

from ruvd.v1 import session_service_pb2 as pb

ROOT = Path(__file__).parents[2]
MANUAL = (ROOT / "docs" / "replicas.md").read_text(encoding="utf-8")
SESSIONS = 24

# A process of its own, because gRPC reads the variable of the recipe when it is imported.
CALLER = """
import sys
import grpc
from ruvd.v1 import session_service_pb2 as pb, session_service_pb2_grpc as pb_grpc

target, config, sessions = sys.argv[1], sys.argv[2], int(sys.argv[3])
with grpc.insecure_channel(target, options=[("grpc.service_config", config)]) as channel:
    stub = pb_grpc.SessionServiceStub(channel)
    for _ in range(3):
        for session in (f"session-{number}" for number in range(sessions)):
            message = pb.Message(role=pb.ROLE_USER, content="Hello")
            request = pb.CompleteRequest(session_id=session, messages=[message])
            metadata = [("x-ruvd-session-id", session)]
            *_, last = stub.Complete(
                request, metadata=metadata, wait_for_ready=True, timeout=60
            )
            print(last.event.finished.exchange_count)
"""


def service_config() -> str:
    """Returns the service config that the manual gives."""
    (found,) = re.findall(r"```json\n(.*?requestHashHeader.*?)```", MANUAL, re.DOTALL)
    return json.dumps(json.loads(found))


def variable() -> dict[str, str]:
    """Returns the variable that the manual gives."""
    (name, value), *_ = re.findall(r"`(GRPC_EXPERIMENTAL_\w+)=(\w+)`", MANUAL)
    return {name: value}


async def call(daemons: list[RunningDaemon]) -> list[int]:
    """Makes three turns of each session; returns the number of each turn as its daemon counted."""
    target = "ipv4:" + ",".join(each.address for each in daemons)
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CALLER, target, service_config(), str(SESSIONS)],
        env={**os.environ, **variable()},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(map(int, done.stdout.split()))


@pytest.mark.timeout(300)
async def test_each_session_stays_at_one_daemon_and_the_sessions_are_spread(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    """The daemons share nothing, so that a session at two of them would be counted anew."""
    async with AsyncExitStack() as stack:
        daemons = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            daemons.append(
                await stack.enter_async_context(daemon("--engine", "echo", folder=folder))
            )
        counts = await call(daemons)
        assert counts == [turn for turn in (1, 2, 3) for _ in range(SESSIONS)]
        kept = []
        for each in daemons:
            async with each.stub() as stub:
                listed = await stub.ListSessions(pb.ListSessionsRequest(page_size=100))
                kept.append(len(listed.sessions))
        assert sum(kept) == SESSIONS
        assert max(kept) < SESSIONS
