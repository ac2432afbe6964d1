"""`PROGRAM identity WAY` of clients/CONFORMANCE.md: the calls of a client with a token and TLS."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from conformance_blocking import Blocking
from conformance_output import out
from ruvd_client import RuvdError, Tls


def identity(connect: Callable[..., Any], way: str) -> None:
    try:
        client = connect(**identity_settings(way, is_async=connect is Blocking))
    except (OSError, ValueError):
        out("refused")
        return
    for line in sys.stdin:
        identity_calls(client, line.strip())


def identity_settings(way: str, *, is_async: bool) -> dict[str, Any]:
    variables = os.environ
    file = Path(variables.get("TEST_TOKEN_FILE", ""))

    async def read() -> str:
        return await asyncio.to_thread(file.read_text)

    function = read if is_async else file.read_text
    if way == "environment":
        return {}
    token = {"value": variables.get("TEST_TOKEN", ""), "file": file, "function": function}[way]
    settings = {"address": variables["TEST_ADDRESS"], "token": token}
    if ca := variables.get("TEST_TLS_CA_FILE"):
        names = ("TEST_TLS_CLIENT_CERT_FILE", "TEST_TLS_CLIENT_KEY_FILE")
        cert, key = (variables.get(name) for name in names)
        settings["tls"] = Tls(ca, cert, key, variables.get("TEST_TLS_SERVER_NAME", ""))
    return settings


def identity_calls(client: Any, name: str) -> None:
    calls: dict[str, Callable[[], str]] = {
        "models": lambda: "ok" if client.list_models() else "",
        "complete": lambda: joined(client.complete("one two", session_id=name, request_id=name)),
        "resume": lambda: joined(client.resume_completion(session_id=name, request_id=name)),
        "cancel": lambda: client.cancel_completion(session_id=name, request_id=name) or "ok",
        "batch": lambda: "".join(f"[{outcome.text()}]" for outcome in client.batch(["three"])),
    }
    for call, run in calls.items():
        try:
            out(f"{call} {run()}")
        except RuvdError as failure:
            out(f"{call} error {failure.code.name} {failure.reason or '-'}")


def joined(answer: Iterable[str]) -> str:
    return f"[{''.join(answer)}]"
