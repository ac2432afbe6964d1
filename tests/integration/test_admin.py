"""Administration of a real daemon: who may call, and what each RPC and command does."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import command_line
import grpc
import pytest
from certificates import Files
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from running import RunningDaemon, StartDaemon, start_serve
from web_tokens import AUDIENCE, ISSUER, Issuer, key_set
from wire import details, say, turn

from ruvd.admin.v1 import admin_service_pb2 as pb
from ruvd.admin.v1 import admin_service_pb2_grpc as pb_grpc
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as api_pb
from ruvd.v1 import session_service_pb2_grpc as api_grpc

ECHO = ("--engine", "echo")
SERVICE = pb.DESCRIPTOR.services_by_name["AdminService"]
Metadata = tuple[tuple[str, str], ...]


@asynccontextmanager
async def admin_at(address: str, token: str = "") -> AsyncIterator[Any]:
    """Yields a stub whose calls carry the token, if there is one."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()

    class Stub:
        def __init__(self, channel: grpc.aio.Channel) -> None:
            self._stub: Any = pb_grpc.AdminServiceStub(channel)

        def __getattr__(self, name: str) -> Any:
            method = getattr(self._stub, name)
            return lambda request: method(request, metadata=metadata, timeout=60)

    async with grpc.aio.insecure_channel(address) as channel:
        yield Stub(channel)


async def outcome(admin: Any, name: str, request: Any = None) -> str:
    """Calls an RPC, with an empty request if none is given; returns OK or the error's reason."""
    if request is None:
        request = getattr(pb, f"{name}Request")()
    try:
        call = getattr(admin, name)(request)
        if name == "Backup":
            assert [response async for response in call]
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return details(error)[0] or error.code().name
    return "OK"


async def outcomes(address: str, token: str = "") -> set[str]:
    """Returns the outcomes of all RPCs; of those that are in no test elsewhere, the daemon's."""
    async with admin_at(address, token) as admin:
        return {await outcome(admin, method.name) for method in SERVICE.methods}


def new_token(file: Path, role: Role, tenant: str = "acme") -> str:
    token, line = tokens.create(tenant, role)
    with file.open("a") as lines:
        lines.write(f"{line}\n")
    return token


async def ruvd(running: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {"RUVD_ADMIN_ADDRESS": running.admin_socket}
    return await command_line.run(*arguments, variables=variables)


async def status(admin: Any) -> pb.Status:
    response: pb.GetStatusResponse = await admin.GetStatus(pb.GetStatusRequest())
    return response.status


# --- who may call --------------------------------------------------------------------------


async def test_only_the_role_admin_may_administer_at_the_addresses_of_the_api(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    by_role = {role: new_token(file, role) for role in Role}
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    async with daemon(*ECHO, *store, "--tokens-file", str(file)) as running:
        for address in (running.socket, running.address):
            assert await outcomes(address) == {"UNAUTHENTICATED"}
            assert await outcomes(address, "ruvd_wrong") == {"UNAUTHENTICATED"}
            assert await outcomes(address, by_role[Role.USER]) == {"PERMISSION_DENIED"}
            assert await outcomes(address, by_role[Role.READER]) == {"PERMISSION_DENIED"}
        assert await outcomes(running.address, by_role[Role.ADMIN]) == {"OK"}
        assert (await running.logged("backup made"))["path"].startswith(f"{tmp_path}/s.db-backups/")


async def test_a_socket_with_a_role_gives_that_role(daemon: StartDaemon, tmp_path: Path) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    sockets = {role: f"{tmp_path}/{role}.sock" for role in ("user", "reader", "admin")}
    listen = [
        flag
        for role, path in sockets.items()
        for flag in ("--listen", f"unix:{path};tenant=t;role={role}")
    ]
    async with daemon(*ECHO, *store, *listen) as running:
        assert await outcomes(f"unix:{sockets['user']}") == {"PERMISSION_DENIED"}
        assert await outcomes(f"unix:{sockets['reader']}") == {"PERMISSION_DENIED"}
        assert await outcomes(f"unix:{sockets['admin']}") == {"OK"}
        assert running.process.returncode is None


async def test_without_identities_only_the_admin_socket_administers(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with daemon(*ECHO, "--store", f"sqlite:{tmp_path}/s.db") as running:
        for address in (running.socket, running.address):
            assert await outcomes(address) == {"PERMISSION_DENIED"}
            async with admin_at(address) as admin:
                with pytest.raises(grpc.aio.AioRpcError, match="admin socket") as refused:
                    await admin.Drain(pb.DrainRequest())
            assert details(refused.value)[0] == "PERMISSION_DENIED"
        assert await outcomes(running.admin_socket) == {"OK"}
        # A token that somebody has in the environment does no harm.
        assert "OK" in await outcomes(running.admin_socket, "ruvd_token")


async def test_the_admin_socket_serves_administration_health_and_nothing_else(
    daemon: StartDaemon,
) -> None:
    async with (
        daemon(*ECHO) as running,
        grpc.aio.insecure_channel(running.admin_socket) as opened,
    ):
        channel: Any = opened
        path = Path(running.admin_socket.removeprefix("unix:"))
        assert path.stat().st_mode & 0o777 == 0o600
        stub: Any = api_grpc.SessionServiceStub(channel)
        for method in api_pb.DESCRIPTOR.services_by_name["SessionService"].methods:
            request = getattr(api_pb, f"{method.name}Request")()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                call = getattr(stub, method.name)(request)
                _ = [each async for each in call] if method.server_streaming else await call
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED, method.name
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="readiness"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        async for response in reflection.ServerReflectionInfo(iter([ask])):
            names = {each.name for each in response.list_services_response.service}
        assert names == {
            "ruvd.admin.v1.AdminService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


# --- the socket ----------------------------------------------------------------------------


async def test_the_default_socket_is_beside_the_store_and_private(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = tmp_path / "new" / "s.db"
    flags = ("--store", f"sqlite:{store}", "--admin-listen", "auto")
    async with daemon(*ECHO, *flags) as running:
        socket = Path(f"{store}-admin.sock")
        assert socket.stat().st_mode & 0o777 == 0o600
        assert store.parent.stat().st_mode & 0o777 == 0o700
        assert await outcomes(f"unix:{socket}") == {"OK"}
        running.kill()
        await running.ended()
    async with daemon(*ECHO, *flags) as again:  # the stale socket is replaced
        # A backup's name has the second, and the one before may be of the same second.
        assert await outcomes(f"unix:{socket}") - {"BACKUP_EXISTS"} == {"OK"}
        await again.stop()
    assert not socket.exists()


async def test_a_default_socket_in_use_is_logged_and_stops_no_daemon(tmp_path: Path) -> None:
    """Two daemons with stores in memory have the same default socket."""
    state = {"XDG_STATE_HOME": str(tmp_path)}
    flags = (*ECHO, "--store", "memory", "--listen", "127.0.0.1:0")
    started: list[RunningDaemon] = []
    socket = tmp_path / "ruvd" / "admin.sock"
    try:
        for _ in range(2):
            running = await start_serve(*flags, folder=tmp_path, variables=state)
            started.append(running)
            await running.listening(1)
        first, second = started
        await first.logged("serving administration", address=f"unix:{socket}")
        line = await second.logged("no admin socket")
        assert line["level"] == "warning"
        assert "another ruvd listens there" in line["reason"]
        assert "admin_listen" in line["remedy"]
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        assert "OK" in await outcomes(f"unix:{socket}")
    finally:
        for running in started:
            await running.stop()


@pytest.mark.parametrize("kind", ["taken", "a file", "too long"])
async def test_a_socket_that_is_named_and_cannot_be_had_stops_the_start(
    daemon: StartDaemon, tmp_path: Path, kind: str
) -> None:
    async with daemon(*ECHO) as running:
        path = {
            "taken": running.admin_socket.removeprefix("unix:"),
            "a file": str(tmp_path / "file"),
            "too long": f"{tmp_path}/{'x' * 108}",
        }[kind]
        (tmp_path / "file").write_text("mine")
        flags = (*ECHO, "--store", "memory", "--listen", "127.0.0.1:0")
        other = await start_serve(*flags, "--admin-listen", f"unix:{path}", folder=tmp_path)
        assert await other.ended() == 3
        printed = " ".join(line["event"] for line in other.log)  # it may be wrapped
        assert "cannot listen at unix:" in printed, printed
        assert (tmp_path / "file").read_text() == "mine"
        assert "OK" in await outcomes(running.admin_socket)


async def test_without_an_admin_socket_nothing_administers_the_daemon(
    daemon: StartDaemon,
) -> None:
    async with daemon(*ECHO, "--admin-listen", "none") as running:
        assert not Path(running.admin_socket.removeprefix("unix:")).exists()
        assert await outcomes(running.socket) == {"PERMISSION_DENIED"}


# --- what the RPCs do ----------------------------------------------------------------------


async def test_the_status_shows_readiness_and_what_runs(daemon: StartDaemon) -> None:
    slow = (*ECHO, "--echo-delay-seconds", "0.05")
    async with (
        daemon(*slow) as running,
        running.stub() as stub,
        admin_at(running.admin_socket) as admin,
    ):
        now = await status(admin)
        assert (now.ready, now.draining, now.stopping) == (True, False, False)
        assert (now.running_completions, now.log_level) == (0, pb.LOG_LEVEL_INFO)
        assert now.version
        stream = stub.Complete(turn(" ".join(["word"] * 400)))
        await anext(aiter(stream))
        assert (await status(admin)).running_completions == 1
        drained = await admin.Drain(pb.DrainRequest(wait_timeout=Duration(nanos=10_000_000)))
        assert (drained.status.ready, drained.status.draining) == (False, True)
        assert drained.status.running_completions == 1, "a wait that is too short is no error"
        waits = admin.Drain(pb.DrainRequest(wait_timeout=Duration(seconds=60)))
        stream.cancel()
        assert (await waits).status.running_completions == 0
        undrained = await admin.Undrain(pb.UndrainRequest())
        assert (undrained.status.ready, undrained.status.draining) == (True, False)


async def test_a_daemon_that_stops_cannot_be_undrained(daemon: StartDaemon) -> None:
    slow = (*ECHO, "--echo-delay-seconds", "0.05")
    async with (
        daemon(*slow) as running,
        running.stub() as stub,
        admin_at(running.admin_socket) as admin,
    ):
        stream = aiter(stub.Complete(turn(" ".join(["word"] * 60))))
        await anext(stream)
        running.process.terminate()
        await running.logged("draining")
        assert await outcome(admin, "Undrain") == "SHUTTING_DOWN"
        assert (await status(admin)).stopping
        assert [response async for response in stream][-1].event.HasField("finished")


async def test_the_log_level_changes_for_a_while(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, admin_at(running.admin_socket) as admin:
        debug = pb.SetLogLevelRequest(level=pb.LOG_LEVEL_DEBUG, duration=Duration(seconds=3600))
        now = (await admin.SetLogLevel(debug)).status
        assert now.log_level == pb.LOG_LEVEL_DEBUG
        assert now.HasField("log_level_expire_time")
        await running.logged("log level", log_level="debug", seconds=3600.0)
        short = pb.SetLogLevelRequest(level=pb.LOG_LEVEL_ERROR, duration=Duration(nanos=50_000_000))
        await admin.SetLogLevel(short)
        await running.logged("log level", log_level="info")
        assert (await status(admin)).log_level == pb.LOG_LEVEL_INFO


async def test_a_backup_has_what_was_committed_and_never_replaces_a_file(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    flags = ("--store", f"sqlite:{tmp_path}/s.db", "--backup-dir", str(folder))
    async with (
        daemon(*ECHO, *flags) as running,
        running.stub() as stub,
        admin_at(running.admin_socket) as admin,
    ):
        await say(stub, "committed", "s")
        responses = [each async for each in admin.Backup(pb.BackupRequest(name="one.db"))]
        file = responses[-1].file
        assert file.path == str(folder / "one.db")
        assert all(each.HasField("progress") for each in responses[:-1])
        assert (folder / "one.db").stat().st_mode & 0o777 == 0o600
        assert (folder / "one.db").stat().st_size == file.size_bytes
        assert folder.stat().st_mode & 0o777 == 0o700
        assert await outcome(admin, "Backup", pb.BackupRequest(name="one.db")) == "BACKUP_EXISTS"
        (folder / "link.db").symlink_to(tmp_path / "elsewhere")
        assert await outcome(admin, "Backup", pb.BackupRequest(name="link.db")) == "BACKUP_EXISTS"
        for name in ("../x.db", "/x.db", "a/b.db"):
            request = pb.BackupRequest(name=name)
            assert await outcome(admin, "Backup", request) == "INVALID_REQUEST"
        assert await outcome(admin, "Backup") == "OK"  # with a name of the daemon's
        assert not (tmp_path / "elsewhere").exists()
        assert len(list(folder.iterdir())) == 3
    with closing(sqlite3.connect(folder / "one.db")) as copy:
        assert copy.execute("SELECT id, message_count FROM sessions").fetchall() == [("s", 2)]


async def test_the_memory_store_has_no_backups(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running, admin_at(running.admin_socket) as admin:
        assert await outcome(admin, "Backup") == "BACKUP_FAILED"


async def test_tenants_are_listed_with_their_counts_and_nothing_of_their_content(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    by_tenant = {name: new_token(file, Role.USER, name) for name in ("ann", "bob", "default")}
    slow = (*ECHO, "--echo-delay-seconds", "0.05", "--tokens-file", str(file))
    async with daemon(*slow) as running, admin_at(running.admin_socket) as admin:
        async with grpc.aio.insecure_channel(running.socket) as channel:
            stub: Any = api_grpc.SessionServiceStub(channel)

            def as_(tenant: str) -> Metadata:
                return (("authorization", f"Bearer {by_tenant[tenant]}"),)

            for tenant in ("ann", "default"):
                async for _ in stub.Complete(turn("hidden", "hidden-id"), metadata=as_(tenant)):
                    pass
            running_call = stub.Complete(turn(" ".join(["x"] * 400)), metadata=as_("bob"))
            await anext(aiter(running_call))
            listed, token = [], ""
            while True:
                request = pb.ListTenantsRequest(page_size=1, page_token=token)
                response = await admin.ListTenants(request)
                assert "hidden" not in str(response)
                assert len(response.tenants) == 1
                listed += response.tenants
                token = response.next_page_token
                if not token:
                    break
            running_call.cancel()
        assert [
            (each.name, each.session_count, each.message_count, each.running_completions)
            for each in listed
        ] == [("ann", 1, 2, 0), ("bob", 0, 0, 1), ("default", 1, 2, 0)]


async def test_a_revoked_token_is_refused_once_a_reload_has_confirmed_it(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    revoked = new_token(file, Role.ADMIN)
    kept = tokens.create("acme", Role.ADMIN)
    async with (
        daemon(*ECHO, "--tokens-file", str(file)) as running,
        admin_at(running.admin_socket) as admin,
    ):

        async def reload() -> pb.ReloadedSecret:
            (secret,) = (await admin.ReloadSecrets(pb.ReloadSecretsRequest())).secrets
            assert (secret.setting, secret.location) == ("tokens_file", str(file))
            found: pb.ReloadedSecret = secret
            return found

        assert "OK" in await outcomes(running.address, revoked)
        file.write_text(f"{kept[1]}\n")
        taken = (pb.ReloadedSecret.OUTCOME_TAKEN, pb.ReloadedSecret.OUTCOME_UNCHANGED)
        assert (await reload()).outcome in taken  # the daemon may have taken it by itself
        assert await outcomes(running.address, revoked) == {"UNAUTHENTICATED"}
        assert "OK" in await outcomes(running.address, kept[0])
        file.write_text("a mistake\n")
        wrong = await reload()
        assert wrong.outcome == pb.ReloadedSecret.OUTCOME_REFUSED
        assert "tokens_file: line 1" in wrong.error
        assert "OK" in await outcomes(running.address, kept[0]), "the last good file stays"


async def test_a_reload_reads_every_file_with_secrets_that_the_settings_name(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    paths = {
        "api_key_file": tmp_path / "key",
        "tls_cert_file": files.certificate,
        "tls_key_file": files.key,
        "client_ca_file": files.ca,
        "jwt_jwks_file": tmp_path / "jwks.json",
        "tokens_file": tmp_path / "tokens",
    }
    paths["api_key_file"].write_text("sk-one")
    paths["jwt_jwks_file"].write_bytes(key_set(Issuer()))
    new_token(paths["tokens_file"], Role.USER)
    flags = [
        flag for name, path in paths.items() for flag in (f"--{name.replace('_', '-')}", str(path))
    ]
    engine = ("--engine", "openai", "--base-url", "http://127.0.0.1:1/v1", "--model", "m")
    jwt = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    async with (
        daemon(*engine, *jwt, *flags) as running,
        admin_at(running.admin_socket) as admin,
    ):

        async def reload() -> dict[str, tuple[str, int]]:
            secrets = (await admin.ReloadSecrets(pb.ReloadSecretsRequest())).secrets
            return {each.setting: (each.location, each.outcome) for each in secrets}

        unchanged = pb.ReloadedSecret.OUTCOME_UNCHANGED
        first = await reload()
        assert first.pop("api_key_file")[0] == str(paths["api_key_file"])  # perhaps its first read
        assert first == {
            name: (str(path), unchanged) for name, path in paths.items() if name != "api_key_file"
        }
        for path in paths.values():
            path.write_bytes(b"\x00 no secret")
        refused = pb.ReloadedSecret.OUTCOME_REFUSED
        assert {name: outcome for name, (_, outcome) in (await reload()).items()} == dict.fromkeys(
            paths, refused
        )


# --- the commands --------------------------------------------------------------------------


async def test_the_commands_administer_through_the_socket(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    token = new_token(file, Role.ADMIN)
    flags = ("--store", f"sqlite:{tmp_path}/s.db", "--tokens-file", str(file))
    async with daemon(*ECHO, *flags) as running:

        async def out(*arguments: str, code: int = 0) -> str:
            done = await ruvd(running, "admin", *arguments)
            assert done.returncode == code, done
            return done.stdout + done.stderr

        assert running.admin_socket in await out("status")
        assert json.loads(await out("status", "--json"))["ready"] is True
        assert await out("log-level", "debug") == "log level: debug\n"
        assert "error, for 3" in await out("log-level", "error", "--for", "3600")
        assert await out("log-level", "setting") == "log level: info\n"
        assert "no tenant has sessions" in await out("tenants")
        async with grpc.aio.insecure_channel(running.socket) as channel:
            stub: Any = api_grpc.SessionServiceStub(channel)
            call = stub.Complete(turn("x", "s"), metadata=(("authorization", f"Bearer {token}"),))
            assert [each async for each in call]
        assert json.loads(await out("tenants", "--json"))[0]["name"] == "acme"
        assert "acme" in await out("tenants")
        made = await out("backup", "b.db")
        assert made.startswith(f"{tmp_path}/s.db-backups/b.db: ")
        assert "BACKUP_EXISTS" in await out("backup", "b.db", code=1)
        secrets = await out("reload-secrets")
        assert secrets == f"tokens_file ({file}): in use, unchanged\n"
        file.write_text("a mistake\n")
        assert "refused: tokens_file: line 1" in await out("reload-secrets", code=1)
        # A remote administrator needs a token with the role admin.
        remote = ("status", "--admin-address", running.address)
        assert "UNAUTHENTICATED" in await out(*remote, code=1)
        (tmp_path / "token").write_text(token)
        assert running.address in await out(*remote, "--token-file", str(tmp_path / "token"))
