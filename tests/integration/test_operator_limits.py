"""The operator's say holds at every door of a daemon, and a wrong rule stops its start."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import struct_pb2
from running import StartDaemon, clean_environment
from tenant_calls import Tenant, tenants
from wire import details, say, turn

from ruvd.v1 import session_service_pb2 as pb

RULE = "ann;models=echo*;tools=safe;extra_body=top_k;max_output_tokens=3;max_answer_bytes=40"
DENIED = grpc.StatusCode.PERMISSION_DENIED


def extra(**fields: Any) -> struct_pb2.Struct:
    body = struct_pb2.Struct()
    body.update(fields)
    return body


FORBIDDEN = {
    "options.model": pb.CompletionOptions(model="other"),
    "options.tools[0].name": pb.CompletionOptions(tools=[pb.Tool(name="rm")]),
    "options.extra_body.min_p": pb.CompletionOptions(extra_body=extra(min_p=0.5)),
}


async def denied(call: Any) -> tuple[grpc.StatusCode, str, list[str]]:
    """The status, reason and fields of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        if hasattr(call, "__aiter__"):
            _ = [each async for each in call]
        else:
            await call
    reason, fields, _ = details(error.value)
    return error.value.code(), reason, fields


async def batched(tenant: Tenant, *items: pb.CompleteRequest) -> list[tuple[int, str]]:
    """The code and the message of each item of a batch, in the order of the items."""
    found = {}
    async for response in tenant.BatchComplete(pb.BatchCompleteRequest(items=items)):
        if response.HasField("result"):
            error = response.result.error
            found[response.result.index] = (error.code, error.message)
    return [found[index] for index in range(len(items))]


async def test_the_operators_say_holds_at_every_door(daemon: StartDaemon, tmp_path: Path) -> None:
    flags = ("--engine", "echo", "--store", f"sqlite:{tmp_path}/s.db")
    new = pb.CreateSessionRequest(session_id="old", model="other")
    async with tenants(daemon, tmp_path, *flags, limits=[]) as (_, ann, _bob):
        await ann.CreateSession(new)  # before there were rules
        replayed = turn("hi", "r", request_id="r", options=pb.CompletionOptions(model="other"))
        _ = [each async for each in ann.Complete(replayed)]
    async with tenants(daemon, tmp_path, *flags, limits=[RULE]) as (_, ann, bob):
        for field, options in FORBIDDEN.items():
            for request in (turn("hi", options=options), turn("hi", "s", options=options)):
                outcome = await denied(ann.Complete(request))
                assert outcome == (DENIED, "PERMISSION_DENIED", [field])
                (code, message), ok = await batched(ann, request, turn("hi"))
                assert code == DENIED.value[0]
                assert field in message
                assert ok == (0, "")
                await say(bob, "hi", request.session_id, options=options)
        other = pb.CreateSessionRequest(model="other")
        assert await denied(ann.CreateSession(other)) == (DENIED, "PERMISSION_DENIED", ["model"])
        in_old = (DENIED, "PERMISSION_DENIED", ["options.model"])
        assert await denied(ann.Complete(turn("hi", "old"))) == in_old
        assert await denied(ann.ForkSession(pb.ForkSessionRequest(session_id="old"))) == in_old
        assert await denied(ann.Complete(replayed)) == in_old
        fork = pb.ForkSessionRequest(session_id="missing")
        assert (await denied(ann.ForkSession(fork)))[0] is grpc.StatusCode.NOT_FOUND
        update = pb.UpdateSessionRequest(session_id="old", labels={"a": "b"})
        assert (await ann.UpdateSession(update)).session.model == "other"
        above = turn("hi", options=pb.CompletionOptions(max_tokens=4))
        wrong = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", ["options.max_tokens"])
        assert await denied(ann.Complete(above)) == wrong
        done = await say(ann, "one two three four five")
        assert done.message.content.split() == ["one", "two", "three"]
        assert done.finish_reason == pb.FINISH_REASON_LENGTH
        done = await say(ann, "w" * 100)
        assert (len(done.message.content), done.raw_finish_reason) == (40, "max_answer_bytes")
        assert list((await ann.ListModels(pb.ListModelsRequest())).models) == ["echo"]


async def test_a_tenant_that_may_use_no_model_is_shown_none(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    async with tenants(daemon, tmp_path, "--engine", "echo", limits=["ann;models="]) as (_, ann, b):
        assert not (await ann.ListModels(pb.ListModelsRequest())).models
        assert list((await b.ListModels(pb.ListModelsRequest())).models) == ["echo"]
        assert (await denied(ann.Complete(turn("hi"))))[0] is DENIED


@pytest.mark.parametrize("command", ["config", "serve"])
async def test_a_wrong_rule_is_told_with_what_is_wrong(command: str, tmp_path: Path) -> None:
    rule = "ann;max_inflight=many"
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "ruvd", command, "--engine", "echo", "--tenant-limits", rule],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env=clean_environment(),
        check=False,
    )
    assert ended.returncode == 2
    told = " ".join((ended.stdout + ended.stderr).split())
    assert "tenant_limits (from --tenant-limits)" in told
    assert f"{rule!r}: max_inflight must be a whole number, 0 or more" in told
