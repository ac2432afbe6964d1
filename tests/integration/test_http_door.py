"""The HTTP address of the daemon: off by default, and its callers are those of gRPC."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
from certificates import Files
from http_door import HTTP, base_url, unix_client
from running import StartDaemon

from ruvd.config.loader import SettingsInvalid, load
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role

ECHO = ("--engine", "echo")


async def test_it_serves_models_and_drains_with_the_daemon(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, *HTTP) as running:
        url = await base_url(running)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            listed = (await client.get("/models")).json()
            assert [each["id"] for each in listed["data"]] == ["echo"]
            missing = await client.get("/models/other")
            assert (missing.status_code, missing.json()["error"]["code"]) == (
                404,
                "model_not_found",
            )
            unknown = await client.get("/nothing")
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_url")
            wrong = await client.put("/models")
            assert (wrong.status_code, wrong.json()["error"]["type"]) == (
                405,
                "invalid_request_error",
            )
        assert await running.stop() == 0
        assert not [line for line in running.log if "uvicorn" in line.get("logger", "")]


async def test_pages_of_other_sites_are_refused(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, *HTTP) as running:
        url = await base_url(running)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for foreign in ({"origin": "https://evil.example"}, {"host": "evil.example:80"}):
                assert (await client.get("/models", headers=foreign)).status_code == 403
            port = url.rpartition(":")[2].partition("/")[0]
            for own in ("localhost", f"127.0.0.1:{port}", "[::1]:1"):
                assert (await client.get("/models", headers={"host": own})).status_code == 200


async def test_every_call_needs_an_identity_where_the_daemon_asks_for_one(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file, socket = tmp_path / "tokens", tmp_path / "h.sock"
    token, line = tokens.create("acme", Role.USER)
    file.write_text(f"{line}\n")
    flags = ("--tokens-file", str(file))
    async with daemon(*ECHO, *HTTP, *flags) as running:
        url = await base_url(running)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            for wrong in ({}, {"authorization": "Bearer ruvd_wrong"}, {"authorization": token}):
                refused = await client.get("/models", headers=wrong)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
            good = {"authorization": f"Bearer {token}"}
            assert (await client.get("/models", headers=good)).status_code == 200
    named = ("--http-listen", f"unix:{socket};tenant=acme;role=reader")
    async with daemon(*ECHO, *named, *flags) as running:
        await base_url(running)
        async with unix_client(str(socket)) as client:
            assert (await client.get("/models")).status_code == 200
    assert not socket.exists()


async def test_client_certificates_say_who_calls_over_http(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    flags = (*files.flags, "--client-ca-file", str(files.ca))
    rule = ("--client-identities", "spiffe://example.org/*;tenant=x")
    async with daemon(*ECHO, *HTTP, *flags, *rule) as running:
        url = (await base_url(running, "https")).replace("127.0.0.1", "localhost")

        async def status(name: str) -> int:
            certificate, key = files.issue("client", name)
            context = ssl.create_default_context(cafile=files.ca)
            context.load_cert_chain(certificate, key)
            async with httpx.AsyncClient(verify=context, base_url=url, timeout=60) as client:
                return (await client.get("/models")).status_code

        assert await status("spiffe://example.org/web") == 200
        assert await status("spiffe://evil.org/web") == 401
        certificate, key = files.issue("server", "localhost", "127.0.0.1")
        await running.logged("changed files are in use")
        assert await status("spiffe://example.org/web") == 200
        await asyncio.to_thread(key.write_text, "nonsense")
        await running.logged("changed files are invalid; the last good ones stay in use")
        assert await status("spiffe://example.org/web") == 200
        assert certificate.exists()


@pytest.mark.parametrize("address", ["0.0.0.0:80", "example.org:80"])
def test_a_remote_http_address_needs_tls_and_identity(address: str) -> None:
    with pytest.raises(SettingsInvalid, match="not loopback"):
        load({"http_listen": address})
    assert load({"http_listen": address, "allow_remote_insecure": True})
    files = {"tls_cert_file": "c", "tls_key_file": "k", "client_ca_file": "a"}
    assert load({"http_listen": address, **files})


@pytest.mark.parametrize(
    "address", ["nonsense", "unix:", "127.0.0.1:1;tenant=a", "127.0.0.1:50051"]
)
def test_an_http_address_that_cannot_be_is_refused(address: str) -> None:
    with pytest.raises(SettingsInvalid, match="http_listen"):
        load({"http_listen": address})


async def test_a_stream_ends_within_the_drain_and_new_completions_are_refused(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO, *HTTP, "--echo-delay-seconds", "0.05") as running:
        url = await base_url(running)
        body = {"model": "echo", "messages": [{"role": "user", "content": "word " * 60}]}
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as client,
            client.stream("POST", "/chat/completions", json={**body, "stream": True}) as stream,
        ):
            lines = stream.aiter_lines()
            await anext(lines)
            running.process.terminate()
            await running.logged("draining")
            refused = await client.post("/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert "retry-after" in refused.headers
            rest = [line async for line in lines if line]
            assert rest[-1] == "data: [DONE]"
        assert await running.ended() == 0


async def test_a_pipelined_request_does_not_have_the_identity_of_another(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    token, line = tokens.create("acme", Role.USER)
    file.write_text(f"{line}\n")
    async with daemon(*ECHO, *HTTP, "--tokens-file", str(file)) as running:
        address = (await base_url(running)).removeprefix("http://").partition("/")[0]
        host, _, port = address.partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        get = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n"
        close = "connection: close\r\n"
        writer.write(f"{get}authorization: Bearer {token}\r\n\r\n{get}{close}\r\n".encode())
        answers = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        assert answers.count(b"HTTP/1.1 200 OK") == 1
        assert answers.count(b"HTTP/1.1 401 Unauthorized") == 1
