"""TLS and client certificates of the daemon's TCP addresses, and their renewal while it runs."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from certificates import Authority, Files
from running import RunningDaemon, StartDaemon, start_serve
from wire import say, turn

from ruvd.v1 import session_service_pb2_grpc as pb_grpc

ECHO = ("--engine", "echo")
STREAMS = 64
SECONDS = 60.0


@asynccontextmanager
async def stub(
    running: RunningDaemon,
    ca: bytes | None,
    certificate: bytes | None = None,
    key: bytes | None = None,
) -> AsyncIterator[pb_grpc.SessionServiceAsyncStub]:
    """Yields a stub at the daemon's port, without TLS if there is no CA."""
    if ca is None:
        channel = grpc.aio.insecure_channel(running.address)
    else:
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        channel = grpc.aio.secure_channel(running.address, credentials)
    async with channel:
        yield pb_grpc.SessionServiceStub(channel)


async def refused(running: RunningDaemon, *credentials: bytes | None) -> bool:
    async with stub(running, *credentials) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(client, "hello")
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


def served(address: str) -> bytes:
    """Returns the certificate that a new connection gets."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=SECONDS).encode()


async def until_served(address: str, certificate: bytes) -> None:
    async with asyncio.timeout(SECONDS):
        while True:
            if await asyncio.to_thread(served, address) == certificate:
                return
            await asyncio.sleep(0.1)


async def read(client: pb_grpc.SessionServiceAsyncStub, counts: list[int], number: int) -> None:
    """Reads an answer of five minutes and counts its events."""
    async for _ in client.Complete(turn(" ".join(["word"] * 3000))):
        counts[number] += 1


async def until_grown(counts: list[int]) -> None:
    """Waits until every stream has received three more events."""
    before = list(counts)
    async with asyncio.timeout(SECONDS):
        while True:
            if all(now >= then + 3 for now, then in zip(counts, before, strict=True)):
                return
            await asyncio.sleep(0.1)


async def test_a_port_with_tls_serves_those_who_trust_its_authority(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    async with daemon(*ECHO, *files.flags) as running:
        async with stub(running, files.authority.pem) as client:
            assert (await say(client, "hello")).message.content == "hello"
        assert await refused(running, None), "without TLS"
        assert await refused(running, Authority().pem), "another authority"
        async with running.stub() as local:  # the Unix socket needs no TLS
            assert (await say(local, "hello")).message.content == "hello"


async def test_clients_need_a_certificate_where_an_authority_for_them_is_set(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files, ca = Files(tmp_path), None
    flags = (*files.flags, "--client-ca-file", str(files.ca))
    async with daemon(*ECHO, *flags) as running:
        ca = files.authority.pem
        async with stub(running, ca, *files.authority.issue("client")) as client:
            assert (await say(client, "hello")).message.content == "hello"
        assert await refused(running, ca), "no certificate"
        assert await refused(running, ca, *Authority().issue("client")), "another authority's"
        assert await refused(running, ca, *files.authority.issue("client", days=-1)), "expired"


async def test_a_renewed_certificate_is_used_by_new_connections_and_cuts_no_stream(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    # As Kubernetes mounts a secret: the files are links into ..data, a link that it renames.
    files = Files(tmp_path)
    for version in ("v1", "v2"):
        (tmp_path / version).mkdir()
        Files(tmp_path / version, files.authority)
    data = tmp_path / "..data"
    data.symlink_to("v1")
    for path in (files.certificate, files.key):
        path.unlink()
        path.symlink_to(f"..data/{path.name}")
    flags = (*ECHO, *files.flags, "--echo-delay-seconds", "0.1")
    async with daemon(*flags) as running, stub(running, files.authority.pem) as client:
        counts = [0] * STREAMS
        streams = [asyncio.create_task(read(client, counts, number)) for number in range(STREAMS)]
        await until_grown(counts)
        await until_served(running.address, files.certificate.read_bytes())
        (tmp_path / "..new").symlink_to("v2")
        (tmp_path / "..new").rename(data)
        await until_served(running.address, files.certificate.read_bytes())
        async with stub(running, files.authority.pem) as another:
            assert (await say(another, "hello")).message.content == "hello"
        await until_grown(counts)
        assert [stream.done() for stream in streams] == [False] * STREAMS
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)


async def test_an_invalid_renewal_is_logged_and_the_last_good_certificate_stays(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    good = files.certificate.read_bytes()
    async with daemon(*ECHO, *files.flags) as running:
        files.certificate.write_bytes(files.authority.issue("localhost")[0])  # not of the key
        line = await running.logged("changed files are invalid; the last good ones stay in use")
        assert (line["level"], line["reason"].partition(":")[0]) == ("error", "tls_key_file")
        await until_served(running.address, good)
        async with stub(running, files.authority.pem) as client:
            assert (await say(client, "hello")).message.content == "hello"
        files.issue("server", "localhost", "127.0.0.1")
        await until_served(running.address, files.certificate.read_bytes())


async def test_a_missing_certificate_at_the_start_is_exit_code_2(tmp_path: Path) -> None:
    files = Files(tmp_path)
    files.certificate.unlink()
    running = await start_serve(*ECHO, "--store", "memory", *files.flags, folder=tmp_path)
    assert await running.ended() == 2
    assert any("tls_cert_file: cannot read" in line["event"] for line in running.log)
