"""Tenants over HTTP: their sessions, quotas, allowances and audit records are those of gRPC."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc
import httpx
from http_door import HTTP, base_url
from running import StartDaemon
from tenant_calls import tenants
from wire import say

from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo", *HTTP)
BODY = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}


async def is_running(tenant: Any, session_id: str) -> bool:
    try:
        found = await tenant.GetSession(pb.GetSessionRequest(session_id=session_id))
    except grpc.aio.AioRpcError:
        return False
    return bool(found.session.running_completion_id)


async def test_a_tenants_sessions_quotas_and_records_are_the_same_over_http(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    limits = ["ann;max_inflight=1;models=echo"]
    flags = (*ECHO, "--audit-log", str(audit), "--echo-delay-seconds", "0.02")
    async with tenants(daemon, tmp_path, *flags, limits=limits) as (running, ann, bob):
        url = await base_url(running)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:

            async def chat(tenant: Any, session: str = "", **fields: Any) -> httpx.Response:
                headers = {"authorization": f"Bearer {tenant.token}"}
                if session:
                    headers["x-ruvd-session-id"] = session
                return await http.post("/chat/completions", json=BODY | fields, headers=headers)

            assert (await chat(ann, "s")).status_code == 200
            listed = await bob.ListSessions(pb.ListSessionsRequest())
            assert not listed.sessions
            assert (await say(ann, "again", "s")).exchange_count == 2
            denied = await chat(ann, model="other")
            assert (denied.status_code, denied.json()["error"]["param"]) == (403, "model")
            long = [{"role": "user", "content": "word " * 2000}]
            busy = asyncio.create_task(chat(ann, "t", messages=long))
            async with asyncio.timeout(60):
                while not await is_running(ann, "t"):
                    pass
            beyond = await chat(ann)
            assert (beyond.status_code, beyond.json()["error"]["code"]) == (429, "quota_exceeded")
            assert "retry-after" in beyond.headers
            assert (await chat(bob)).status_code == 200
            busy.cancel()
            wrong = await http.post("/chat/completions", json=BODY)
            assert wrong.status_code == 401
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    method = "HTTP POST /v1/chat/completions"
    calls = [each for each in records if (each["event"], each.get("method")) == ("call", method)]
    first = calls[0]
    assert (first["tenant"], first["session_id"], first["code"]) == ("ann", "s", "OK")
    assert first["completion_id"].startswith("cmpl-")
    assert first["address"].startswith("ipv4:127.0.0.1:")
    codes = [each["code"] for each in calls]
    assert {"OK", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "UNAUTHENTICATED"} <= set(codes)
    assert "hello" not in audit.read_text()
