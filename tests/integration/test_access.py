"""A daemon that asks every caller for an identity: certificates, tokens, JWTs and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import Files
from google.protobuf import message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from running import StartDaemon
from web_tokens import AUDIENCE, ISSUER, Issuer, key_set
from wire import details, say, turn

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

ECHO = ("--engine", "echo")
SPIFFE = "spiffe://example.org/ns/prod/sa/web"
SERVICE = pb.DESCRIPTOR.services_by_name["SessionService"]
Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


@asynccontextmanager
async def stub(
    address: str, credentials: grpc.ChannelCredentials | None = None
) -> AsyncIterator[Any]:
    if credentials is None:
        channel = grpc.aio.insecure_channel(address)
    else:
        channel = grpc.aio.secure_channel(address, credentials)
    async with channel:
        yield pb_grpc.SessionServiceStub(channel)


async def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call()
    return caught.value.code(), details(caught.value)[0]


async def listed(client: Any, **call: Any) -> list[str]:
    response = await client.ListSessions(pb.ListSessionsRequest(), **call)
    return [session.id for session in response.sessions]


UNAUTHENTICATED = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
DENIED = (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def new_token(file: Path, role: Role = Role.USER) -> str:
    token, line = tokens.create("acme", role)
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    return token


async def call_every_rpc(channel: grpc.aio.Channel, metadata: Metadata) -> dict[str, Any]:
    """Calls every RPC of the service with an empty request; returns the outcome of each."""
    outcomes: dict[str, Any] = {}
    for method in SERVICE.methods:
        path = f"/{SERVICE.full_name}/{method.name}"
        call: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
        request = message_factory.GetMessageClass(method.input_type)().SerializeToString()
        try:
            if method.server_streaming:
                async for _ in call(path)(request, metadata=metadata):
                    break
            else:
                await call(path)(request, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            outcomes[method.name] = (error.code(), details(error)[0])
        else:
            outcomes[method.name] = "allowed"
    return outcomes


async def test_without_an_identity_only_health_is_served(
    daemon: StartDaemon, token_file: Path
) -> None:
    good, reader = new_token(token_file), new_token(token_file, Role.READER)
    async with (
        daemon(*ECHO, "--tokens-file", str(token_file)) as running,
        grpc.aio.insecure_channel(running.socket) as channel,
    ):
        for wrong in ((), bearer("ruvd_wrong"), bearer("a.b.c"), (("authorization", good),)):
            outcomes = await call_every_rpc(channel, wrong)
            assert set(outcomes.values()) == {UNAUTHENTICATED}, wrong
        allowed = await call_every_rpc(channel, bearer(good))
        assert not {UNAUTHENTICATED, DENIED} & set(allowed.values())
        by_reader = await call_every_rpc(channel, bearer(reader))
        assert {name for name, outcome in by_reader.items() if outcome != DENIED} == {
            "GetSession",
            "ListSessions",
            "ListModels",
            "GetServerInfo",
            "GetSessionMetrics",
        }
        health: Any = health_pb2_grpc.HealthStub(channel)
        checked = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        assert await refused_reflection(channel)
        assert await reflected(channel, bearer(good)) == SERVICE.full_name
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            invented: Any = channel.unary_unary("/ruvd.v1.SessionService/Invented")
            await invented(b"")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def refused_reflection(channel: Any) -> bool:
    """Whether reflection is refused.

    No request is written: grpc.aio reports a failed write of a stream as INTERNAL.
    """
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    return bool(await stub.ServerReflectionInfo().code() is grpc.StatusCode.UNAUTHENTICATED)


async def reflected(channel: Any, metadata: Metadata) -> str:
    """Returns the first service that reflection lists."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for response in stub.ServerReflectionInfo(iter([request]), metadata=metadata):
        names = sorted(each.name for each in response.list_services_response.service)
        return str(names[-1])
    return ""


async def test_a_reader_sees_sessions_without_content(
    daemon: StartDaemon, token_file: Path
) -> None:
    user = {"metadata": bearer(new_token(token_file))}
    reader = {"metadata": bearer(new_token(token_file, Role.READER))}
    flags = (*ECHO, "--tokens-file", str(token_file))
    async with daemon(*flags) as running, stub(running.socket) as client:
        new = pb.CreateSessionRequest(session_id="s", system_prompt="secret", labels={"a": "b"})
        await client.CreateSession(new, **user)
        assert await listed(client, **reader) == ["s"]
        basic = pb.GetSessionRequest(session_id="s")
        session = (await client.GetSession(basic, **reader)).session
        assert (session.labels, session.system_prompt) == ({"a": "b"}, "")
        assert (await client.GetSession(basic, **user)).session.system_prompt == "secret"
        full = pb.GetSessionRequest(session_id="s", view=pb.SESSION_VIEW_FULL)
        assert await refusal(lambda: client.GetSession(full, **reader)) == DENIED


async def test_a_token_works_once_it_is_added_and_until_it_is_taken_out(
    daemon: StartDaemon, token_file: Path
) -> None:
    first = {"metadata": bearer(new_token(token_file))}
    flags = (*ECHO, "--tokens-file", str(token_file))
    async with daemon(*flags) as running, stub(running.socket) as client:
        await listed(client, **first)
        token, line = tokens.create("acme", Role.USER)
        second = {"metadata": bearer(token)}
        assert await refusal(lambda: listed(client, **second)) == UNAUTHENTICATED
        await asyncio.to_thread(token_file.write_text, line)
        await running.logged("changed files are in use")
        assert await refusal(lambda: listed(client, **first)) == UNAUTHENTICATED
        await listed(client, **second)
        await asyncio.to_thread(token_file.write_text, f"{line}\nnonsense\n")
        await running.logged("changed files are invalid; the last good ones stay in use")
        await listed(client, **second)


async def test_a_socket_may_stand_for_an_identity(daemon: StartDaemon, token_file: Path) -> None:
    admin = {"metadata": bearer(new_token(token_file, Role.ADMIN))}
    folder = token_file.parent
    plain, user, reader = (f"unix:{folder}/{name}" for name in ("p", "u", "r"))
    flags = ("--listen", plain, "--listen", f"{user};tenant=acme", "--tokens-file", str(token_file))
    more = ("--listen", f"{reader};tenant=acme;role=reader")
    async with (
        daemon(*ECHO, *flags, *more),
        stub(plain) as by_plain,
        stub(user) as by_user,
        stub(reader) as by_reader,
    ):
        assert (await say(by_user, "hello", "s")).message.content == "hello"
        assert await refusal(lambda: say(by_plain, "hello", "s")) == UNAUTHENTICATED
        assert await refusal(lambda: say(by_reader, "hello", "s")) == DENIED
        assert await listed(by_reader) == ["s"]
        await by_reader.EndSession(pb.EndSessionRequest(session_id="s"), **admin)
        wrong = {"metadata": bearer("ruvd_wrong")}
        assert await refusal(lambda: listed(by_user, **wrong)) == UNAUTHENTICATED
        async with grpc.aio.insecure_channel(user) as channel:
            assert await reflected(channel, ()) == SERVICE.full_name


async def test_client_certificates_say_who_calls(daemon: StartDaemon, tmp_path: Path) -> None:
    files = Files(tmp_path)
    rules = (
        "spiffe://example.org/ns/*/sa/web;tenant=x",
        "spiffe://example.org/**;tenant=x;role=reader",
    )
    flags = [*files.flags, "--client-ca-file", str(files.ca)]
    for rule in rules:
        flags += ["--client-identities", rule]
    async with daemon(*ECHO, *flags) as running:

        def credentials(*names: str) -> grpc.ChannelCredentials:
            certificate, key = files.authority.issue(*names)
            return grpc.ssl_channel_credentials(files.authority.pem, key, certificate)

        async with stub(running.address, credentials(SPIFFE)) as client:
            assert (await say(client, "hello", "s")).message.content == "hello"
            wrong = {"metadata": bearer("ruvd_wrong")}
            assert await refusal(lambda: listed(client, **wrong)) == UNAUTHENTICATED
        async with stub(running.address, credentials("spiffe://example.org/other")) as client:
            assert await listed(client) == ["s"]
            assert await refusal(lambda: say(client, "hello", "s")) == DENIED
        for names in ((), ("spiffe://evil.org/ns/prod/sa/web",), ("example.org",)):
            async with grpc.aio.secure_channel(running.address, credentials(*names)) as channel:
                outcomes = await call_every_rpc(channel, ())
                assert set(outcomes.values()) == {UNAUTHENTICATED}, names
                assert await refused_reflection(channel)
        async with grpc.aio.secure_channel(running.address, credentials(SPIFFE)) as channel:
            assert await reflected(channel, ()) == SERVICE.full_name
        assert await refusal_on_socket(running.socket) == UNAUTHENTICATED


async def refusal_on_socket(address: str) -> tuple[grpc.StatusCode, str]:
    async with stub(address) as client:
        return await refusal(lambda: listed(client))


async def test_json_web_tokens_say_who_calls_and_their_keys_may_change(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    keys, first, second = tmp_path / "jwks.json", Issuer("k1"), Issuer("k2", "EdDSA")
    keys.write_bytes(key_set(first))
    flags = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwt-jwks-file", str(keys))
    rule = ("--jwt-identities", "system:serviceaccount:prod:*;tenant=prod")
    account = "system:serviceaccount:prod:web"
    async with daemon(*ECHO, *flags, *rule) as running, stub(running.socket) as client:
        good = {"metadata": bearer(first.token(account))}
        for _ in range(3):
            stream = client.Complete(turn("hello"), **good)
            assert [response async for response in stream][-1].event.finished.message.content
        for token in (
            first.token("ada"),
            first.token(account, aud="another"),
            second.token(account),
        ):
            wrong = {"metadata": bearer(token)}
            assert await refusal(lambda: listed(client, **wrong)) == UNAUTHENTICATED  # noqa: B023
        await asyncio.to_thread(keys.write_bytes, key_set(second))
        await running.logged("changed files are in use")
        assert await refusal(lambda: listed(client, **good)) == UNAUTHENTICATED
        await listed(client, metadata=bearer(second.token(account)))
