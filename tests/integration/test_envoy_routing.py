"""The recipe of docs/replicas.md by which Envoy sends each session to one of the daemons."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml  # type: ignore[import-untyped]
from certificates import Files
from running import RunningDaemon, StartDaemon
from wire import turn

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

ROOT = Path(__file__).parents[2]
NAME = "ruvd.prod.svc"  # in the manual
SESSIONS = [f"session-{number}" for number in range(24)]
WAIT_SECONDS = 60


def envoy() -> str:
    """The path of Envoy, which `.ci/run` installs."""
    own = ROOT / "build" / "envoy" / "bin" / "envoy"
    found = shutil.which("envoy") or (str(own) if own.exists() else None)
    if not found:
        pytest.skip("needs Envoy: see .ci/run")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def recipe(port: int, ca: Path, daemons: list[RunningDaemon]) -> dict[str, Any]:
    """The configuration of the manual, with these addresses and files instead of its own."""
    manual = (ROOT / "docs" / "replicas.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"```yaml\n(static_resources:.*?)```", manual, re.DOTALL)
    config: dict[str, Any] = yaml.safe_load(found)
    (listener,), (cluster,) = (
        config["static_resources"][each] for each in ("listeners", "clusters")
    )
    listener["address"]["socket_address"]["port_value"] = port
    # The name of a headless Service resolves to the addresses of all daemons.
    (group,) = cluster["load_assignment"]["endpoints"]
    (endpoint,) = group["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"]["address"] == NAME
    ports = [int(each.address.rpartition(":")[2]) for each in daemons]
    group["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": each}}}}
        for each in ports
    ]
    tls = cluster["transport_socket"]["typed_config"]["common_tls_context"]
    tls["validation_context"]["trusted_ca"]["filename"] = str(ca)
    # Changes that come within a second of each other are not joined, so that the test sees each.
    cluster["common_lb_config"] = {"update_merge_window": "0s"}
    return config


@asynccontextmanager
async def running_envoy(folder: Path, ca: Path, daemons: list[RunningDaemon]) -> AsyncIterator[int]:
    """Runs Envoy as the manual says; yields its port once it has found all daemons healthy."""
    port, admin = free_port(), free_port()
    config = folder / "envoy.json"  # JSON is YAML
    address = {"socket_address": {"address": "127.0.0.1", "port_value": admin}}
    config.write_text(json.dumps(recipe(port, ca, daemons) | {"admin": {"address": address}}))
    process = await asyncio.create_subprocess_exec(
        *(envoy(), "-c", str(config), "--disable-hot-restart", "--concurrency", "1"),
        *("-l", "error", "--log-path", str(folder / "envoy.log")),
    )
    try:
        async with httpx.AsyncClient() as client, asyncio.timeout(WAIT_SECONDS):
            while True:
                with suppress(httpx.TransportError):
                    url = f"http://127.0.0.1:{admin}/stats?filter=ruvd.membership_healthy"
                    if (await client.get(url)).text.split()[-1:] == [str(len(daemons))]:
                        break
                await asyncio.sleep(0.1)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def say(stub: Any, session: str) -> int:
    """Makes a turn, again until it succeeds; returns its number as its daemon counts."""
    while True:
        try:
            call = stub.Complete(
                turn("Hello", session), metadata=[("x-ruvd-session-id", session)], timeout=30
            )
            read = [response.event async for response in call]
            return int(read[-1].finished.exchange_count)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.2)


async def kept(daemon: RunningDaemon) -> set[str]:
    async with daemon.stub() as stub:
        listed = await stub.ListSessions(pb.ListSessionsRequest(page_size=100))
        return {each.id for each in listed.sessions}


@pytest.mark.timeout(300)
async def test_envoy_keeps_each_session_at_one_daemon_and_moves_those_of_one_that_ends(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    """The daemons share nothing, so that a session at two of them would be counted anew."""
    envoy()
    files = Files(tmp_path)
    certificate, key = files.issue("daemon", NAME)
    flags = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    async with AsyncExitStack() as stack:
        daemons = []
        for number in range(3):
            folder = tmp_path / str(number)
            folder.mkdir()
            started = daemon("--engine", "echo", *flags, folder=folder)
            daemons.append(await stack.enter_async_context(started))
        port = await stack.enter_async_context(running_envoy(tmp_path, files.ca, daemons))
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        stub = pb_grpc.SessionServiceStub(await stack.enter_async_context(channel))
        async with asyncio.timeout(WAIT_SECONDS):
            for number in (1, 2, 3):
                counts = [await say(stub, session) for session in SESSIONS]
                assert Counter(counts) == {number: len(SESSIONS)}
        places = [await kept(each) for each in daemons]
        assert sum(map(len, places)) == len(SESSIONS)
        assert all(places)
        await daemons[0].stop()
        async with asyncio.timeout(WAIT_SECONDS):
            counts = [await say(stub, session) for session in SESSIONS]
        stayed = [session for session, count in zip(SESSIONS, counts, strict=True) if count == 4]
        assert set(counts) == {1, 4}
        assert not places[0] & set(stayed)
        # Two daemons have more places on the ring each than three, so a few others move as well.
        assert len(stayed) > len(places[1] | places[2]) / 2
