"""GetServerInfo and `ruvd info`: what a client has to know of a daemon before it calls."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import command_line
from running import StartDaemon
from tenant_calls import tenants

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
ALWAYS = ["batch", "resume", "structured_output", "tools"]
WITH_SESSIONS = ["compaction", "message_parts", "pinned_messages", "sessions"]


async def test_a_daemon_tells_its_version_its_features_its_limits_and_its_engine(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    flags = ("--store", f"sqlite:{tmp_path}/s.db", "--max-message-bytes", "5000")
    async with daemon(*ECHO, *flags, "--idle-timeout-seconds", "90") as running:
        async with running.stub() as stub:
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
            again: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
        text = await command_line.run("info", "--address", running.address)
        as_json = await command_line.run("info", "--json", "--address", running.address)
    assert info.version == version("ruvd")
    assert info.instance_id == again.instance_id != ""
    assert list(info.features) == sorted([*ALWAYS, *WITH_SESSIONS, "durable_sessions"])
    limits = info.limits
    assert (limits.max_message_bytes, limits.max_sessions, limits.max_batch_items) == (
        5000, 100, 10_000,
    )  # fmt: skip
    assert limits.idle_timeout.seconds == 90
    assert not limits.HasField("max_output_tokens")
    (engine,) = info.engines
    assert (engine.name, engine.ready, engine.default_model) == ("echo", True, "echo")
    assert list(engine.models) == ["echo"]
    assert text.stderr == as_json.stderr == ""
    assert f"{version('ruvd')}" in text.stdout
    assert "max_message_bytes" in text.stdout
    assert json.loads(as_json.stdout)["limits"]["max_message_bytes"] == "5000"


async def test_the_features_follow_the_settings(daemon: StartDaemon) -> None:
    for flags, features in (
        (("--no-sessions-enabled",), ALWAYS),
        (("--store", "memory"), sorted([*ALWAYS, *WITH_SESSIONS])),
    ):
        async with daemon(*ECHO, *flags) as running, running.stub() as stub:
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert list(info.features) == features


async def test_it_answers_while_the_engine_is_down(daemon: StartDaemon) -> None:
    engine = ("--engine", "openai", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    async with daemon(*engine, "--store", "memory", "--max-parallel", "7") as running:
        await running.logged("engine down")
        async with running.stub() as stub:
            info: pb.GetServerInfoResponse = await stub.GetServerInfo(pb.GetServerInfoRequest())
    (told,) = info.engines
    assert (told.name, told.ready, told.default_model) == ("openai", False, "m")
    assert not told.models
    assert told.slots == 7
    assert not told.HasField("window_tokens")


async def test_a_tenant_is_told_its_own_limits_and_the_models_that_it_may_name(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    rule = "ann;max_sessions=3;max_output_tokens=9;max_answer_bytes=40;models=other*"
    async with tenants(daemon, tmp_path, *ECHO, "--store", "memory", limits=[rule]) as (
        _,
        ann,
        bob,
    ):
        own: pb.GetServerInfoResponse = await ann.GetServerInfo(pb.GetServerInfoRequest())
        others: pb.GetServerInfoResponse = await bob.GetServerInfo(pb.GetServerInfoRequest())
    limits = own.limits
    assert (limits.max_sessions, limits.max_output_tokens, limits.max_answer_bytes) == (3, 9, 40)
    assert not own.engines[0].models
    assert others.limits.max_sessions == 100
    assert list(others.engines[0].models) == ["echo"]
