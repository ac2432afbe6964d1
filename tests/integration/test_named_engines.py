"""A daemon with several engines: routing, one that is down, and settings that are read again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import command_line
import grpc
import pytest
from answers import DONE, Answer, chunk, deltas, stream_head, text
from grpc_health.v1 import health_pb2, health_pb2_grpc
from running import RunningDaemon, StartDaemon
from upstream import Request, Upstream, serving, unused_url
from wire import details, events, say, turn

from ruvd.admin.v1 import admin_service_pb2 as admin_pb
from ruvd.admin.v1 import admin_service_pb2_grpc as admin_grpc
from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")


@asynccontextmanager
async def two() -> AsyncIterator[tuple[Upstream, Upstream]]:
    async with serving() as cloud, serving() as lab:
        yield cloud, lab


class SettingsFile:
    """A settings file with the tables of named engines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, dict[str, Any]] = {}
        self.head = ""

    def set(self, name: str, url: str, **settings: Any) -> None:
        common = {"base_url": url, "model": "m", "health_check_seconds": 0.2, "retries": 0}
        self.tables[name] = {**common, **settings}
        self.write()

    def remove(self, name: str) -> None:
        del self.tables[name]
        self.write()

    def write(self) -> None:
        tables = [
            f"[engines.{name}]\n"
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
            for name, table in self.tables.items()
        ]
        self.path.write_text(self.head + "".join(tables))

    @property
    def flags(self) -> tuple[str, str]:
        return ("--config", str(self.path))


@pytest.fixture
def file(tmp_path: Path) -> SettingsFile:
    return SettingsFile(tmp_path / "settings.toml")


def options(model: str) -> pb.CompletionOptions:
    return pb.CompletionOptions(model=model)


async def refused(stub: Any, model: str, session_id: str = "") -> tuple[str, str]:
    """The reason and the text of the error of a turn with this model."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await say(stub, "hi", session_id, options=options(model))
    return details(caught.value)[0], caught.value.details() or ""


@asynccontextmanager
async def admin(running: RunningDaemon) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(running.admin_socket) as channel:
        yield admin_grpc.AdminServiceStub(channel)


async def reload(running: RunningDaemon, *flags: str) -> subprocess.CompletedProcess[str]:
    variables = {"RUVD_ADMIN_ADDRESS": running.admin_socket}
    return await command_line.run("admin", "reload", *flags, variables=variables)


def sent(request: Request) -> list[str]:
    return [message["content"] for message in request.body["messages"]]


def slow(until: asyncio.Event) -> Answer:
    """An answer whose second word comes only once something has happened."""
    first, one, two, *rest = deltas({"content": "one"}, {"content": " two"})
    early = [chunk(each) for each in (first, one)]
    late = [chunk(each) for each in (two, *rest, DONE)]
    return [stream_head(), *early, until, *late, b"0\r\n\r\n"]


async def ready(running: RunningDaemon) -> bool:
    async with grpc.aio.insecure_channel(running.socket) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service="readiness"))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_the_model_of_a_turn_chooses_the_engine(
    daemon: StartDaemon, file: SettingsFile
) -> None:
    async with two() as (cloud, lab):
        file.set("cloud", cloud.url, model="big", models=["big", "c-*"], affinity="openai")
        file.set("lab", lab.url, api_key="sk-of-the-lab")
        lab.answer = lambda _: text("from", " lab")
        async with daemon(*ECHO, *file.flags) as running, running.stub() as stub:
            await running.logged("engine up", count=3)
            assert (await say(stub, "one", "s")).message.content == "one"
            await say(stub, "two", "s", options=options("cloud"))
            done = await say(stub, "three", "s", options=options("lab/org/x"))
            assert done.message.content == "from lab"
            (started, *_) = await events(stub, turn("four", options=options("c-1")))
            assert started.started.model == "c-1"
            first, second = cloud.requests
            (third,) = lab.requests
            assert [each.body["model"] for each in (first, second, third)] == [
                "big", "c-1", "org/x",
            ]  # fmt: skip
            assert "prompt_cache_key" in first.body
            assert "prompt_cache_key" not in third.body
            assert third.headers["authorization"] == "Bearer sk-of-the-lab"
            assert "authorization" not in first.headers
            assert sent(third) == ["one", "one", "two", "Hello there!", "three"]
            assert await refused(stub, "cloud/other") == (
                "ENGINE_REJECTED", "engine cloud has no model 'other'; it has 'big', 'c-*'",
            )  # fmt: skip
            listed: pb.ListModelsResponse = await stub.ListModels(pb.ListModelsRequest())
            assert list(listed.models) == ["echo", "big", "lab/m", "lab/another"]
            assert listed.default_model == "echo"
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
            assert [
                (each.name, each.engine_name, each.ready, each.default_model, list(each.models))
                for each in info.engines
            ] == [
                ("echo", "", True, "echo", ["echo"]),
                ("openai", "cloud", True, "big", ["big"]),
                ("openai", "lab", True, "m", ["lab/m", "lab/another"]),
            ]
            shown = await command_line.run("info", "--address", running.address)
            assert re.search(r"cloud \(openai\), ready", shown.stdout)
            shown = await command_line.run("models", "--address", running.address)
            assert shown.stdout.splitlines() == ["echo  (default)", "big", "lab/m", "lab/another"]


async def test_a_named_engine_that_is_down_fails_only_its_own_turns(
    daemon: StartDaemon, file: SettingsFile
) -> None:
    async with serving() as cloud:
        file.set("cloud", cloud.url)
        file.set("lab", unused_url())
        metrics = ("--metrics-listen", "127.0.0.1:0")
        async with daemon(*ECHO, *file.flags, *metrics) as running, running.stub() as stub:
            down = await running.logged("engine down", engine="lab")
            assert "no server of the engine is up" in down["detail"]
            await running.logged("engine up", engine="cloud")
            reason, words = await refused(stub, "lab")
            assert reason == "ENGINE_UNAVAILABLE"
            assert words.startswith("engine lab: no server of the engine is up")
            assert (await say(stub, "hi")).message.content == "hi"
            await say(stub, "hi", options=options("cloud"))
            assert await ready(running)
            listed: pb.ListModelsResponse = await stub.ListModels(pb.ListModelsRequest())
            assert list(listed.models) == ["echo", "cloud/m", "cloud/another"]
            address = (await running.logged("serving metrics"))["address"]
            page = await asyncio.to_thread(scrape, f"http://{address}/metrics")
            assert 'ruvd_engine_up{ruvd_engine_name=""} 1.0' in page
            assert 'ruvd_engine_up{ruvd_engine_name="cloud"} 1.0' in page
            assert 'ruvd_engine_up{ruvd_engine_name="lab"} 0.0' in page
            counts = re.findall(r"\ngen_ai_client_operation_duration_\w*count\{(.*)\} 1", page)
            (of_cloud,) = [each for each in counts if 'ruvd_engine_name="cloud"' in each]
            assert f'server_port="{cloud.port}"' in of_cloud
            assert 'gen_ai_request_model="m"' in of_cloud


def scrape(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310  # a URL of ours
        page: bytes = response.read()
    return page.decode()


async def test_engines_are_added_changed_and_removed_under_running_streams(
    daemon: StartDaemon, file: SettingsFile
) -> None:
    async with two() as (cloud, lab):
        file.head = "max_sessions = 100\n"
        file.set("cloud", cloud.url)
        file.set("lab", lab.url, models=["m"])
        async with daemon(*ECHO, *file.flags) as running, running.stub() as stub:
            hold = asyncio.Event()
            cloud.scripts.append(slow(hold))
            lab.scripts.append(slow(hold))
            streams = [
                asyncio.create_task(events(stub, turn("hi", name, options=options(name))))
                for name in ("cloud", "lab")
            ]
            await cloud.asked()
            await lab.asked()
            file.head = "max_sessions = 7\n"
            file.remove("lab")
            file.set("cloud", lab.url, model="moved")
            file.set("extra", cloud.url)
            done = await reload(running)
            assert (done.returncode, done.stdout.splitlines()) == (
                0,
                [
                    "engine lab: removed",
                    "engine cloud: changed",
                    "engine extra: added",
                    "changed, and taken only by a restart: max_sessions",
                ],
            ), done.stderr
            await running.logged("changed settings need a restart", settings=["max_sessions"])
            reason, words = await refused(stub, "lab/m")
            assert reason == "ENGINE_REJECTED"
            assert "the engine lab was removed from the settings" in words
            await say(stub, "hi", options=options("extra/x"))
            await say(stub, "hi", options=options("cloud"))
            assert [each.body["model"] for each in cloud.requests] == ["m", "x"]
            assert [each.body["model"] for each in lab.requests] == ["m", "moved"]
            hold.set()
            for stream in streams:
                finished = (await stream)[-1].finished
                assert finished.message.content == "one two"
            (started, *_) = await events(stub, turn("more", "cloud", options=options("cloud")))
            assert started.started.model == "cloud"
            assert sent(lab.requests[-1]) == ["hi", "one two", "more"]
            async with admin(running) as administrator:
                again = await administrator.ReloadSettings(admin_pb.ReloadSettingsRequest())
            unchanged = admin_pb.ReloadedEngine.OUTCOME_UNCHANGED
            assert [(each.name, each.outcome) for each in again.engines] == [
                ("cloud", unchanged), ("extra", unchanged),
            ]  # fmt: skip
            assert list(again.restart_needed) == ["max_sessions"]


async def test_a_bad_file_changes_nothing_and_names_every_wrong_field(
    daemon: StartDaemon, file: SettingsFile
) -> None:
    async with serving() as cloud:
        file.head = 'compaction_model = "cloud"\n'
        file.set("cloud", cloud.url)
        async with daemon(*ECHO, *file.flags) as running, running.stub() as stub:
            file.set("cloud", cloud.url, retries=99)
            file.set("lab", "nowhere", retrys=1)
            done = await reload(running, "--json")
            assert done.returncode == 1
            path, hint = file.path, "did you mean engines.lab.retries?"
            expected = [
                f"engines.cloud.retries (from {path}): Input should be less than or equal to 10",
                f"engines.lab.base_url (from {path}): 'nowhere' must be like https://HOST:PORT/v1",
                f"engines.lab.retrys (from {path}): is not a setting; {hint}",
            ]
            assert json.loads(done.stdout)["errors"] == expected
            line = await running.logged("the settings were read again and not taken")
            assert line["errors"] == expected

            async def errors() -> str:
                async with admin(running) as administrator:
                    answer = await administrator.ReloadSettings(admin_pb.ReloadSettingsRequest())
                return "; ".join(answer.errors)

            for head, wrong in (
                ("max_sessions = \n", "Invalid value"),
                ('compaction_model = "cloud"\n', "compaction_model: 'cloud' is a model of the"),
            ):
                file.tables = {}
                file.head = head
                file.write()
                assert wrong in await errors()
            file.path.unlink()
            assert await errors() == f"the settings file {path} does not exist"
            await say(stub, "hi", options=options("cloud"))
            assert len(cloud.requests) == 1


async def test_sighup_reads_the_settings_again(daemon: StartDaemon, file: SettingsFile) -> None:
    async with serving() as cloud:
        file.write()
        async with daemon(*ECHO, *file.flags) as running, running.stub() as stub:
            file.set("cloud", cloud.url)
            running.process.send_signal(signal.SIGHUP)
            await running.logged("the settings were read again", added=["cloud"])
            await say(stub, "hi", options=options("cloud"))
            file.remove("cloud")
            running.process.send_signal(signal.SIGHUP)
            await running.logged("the settings were read again", removed=["cloud"])
            assert (await refused(stub, "cloud"))[0] == "ENGINE_REJECTED"


async def test_the_key_of_a_named_engine_is_read_again_when_its_file_changes(
    daemon: StartDaemon, file: SettingsFile, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-first")
    async with serving() as cloud:
        file.set("cloud", cloud.url, api_key_file=str(key))
        async with daemon(*ECHO, *file.flags) as running, running.stub() as stub:
            await say(stub, "hi", options=options("cloud"))
            key.write_text("sk-second")
            async with admin(running) as administrator:
                answer = await administrator.ReloadSecrets(admin_pb.ReloadSecretsRequest())
            (secret,) = answer.secrets
            assert (secret.setting, secret.location) == ("engines.cloud.api_key_file", str(key))
            assert secret.error == ""
            await say(stub, "hi", options=options("cloud"))
            keys = [each.headers["authorization"] for each in cloud.requests]
            assert keys == ["Bearer sk-first", "Bearer sk-second"]


async def test_a_daemon_does_not_start_with_an_ambiguous_model(file: SettingsFile) -> None:
    file.set("cloud", unused_url(), models=["echo", "m"])
    done = await command_line.run("serve", *ECHO, *file.flags, "--store", "memory")
    assert done.returncode == 2
    error = "engines.cloud: the model 'echo' is that of the default engine"
    assert error in " ".join(done.stderr.split())
